"""SIGTERM is noted and not forgotten; processes stop at one step."""

import os
import signal
import threading

import pytest
import torch

from brainfm_lib.pretrain.stopping import TERMINATED, Sigterm, Terminated, all_stop
from brainfm_lib.termination import ended_by_sigterm


@pytest.fixture(autouse=True)
def _forget():
    yield
    Sigterm.came = False


def test_sigterm_is_asked_for_and_remembered_until_it_ended_something():
    before = signal.getsignal(signal.SIGTERM)
    with Sigterm() as sigterm:
        assert not sigterm.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert sigterm.asked
    assert signal.getsignal(signal.SIGTERM) == before
    with Sigterm() as again:  # the work that it came in was at its end: the next one stops
        assert again.asked
    with pytest.raises(SystemExit) as stop:
        raise Terminated("terminated at step 3")
    assert stop.value.code == TERMINATED == 143 and "step 3" in str(stop.value) and not Sigterm.came


def test_sigterm_in_the_last_step_of_a_training_ends_the_work_around_it():
    with pytest.raises(Terminated, match="goes on from there"), ended_by_sigterm():
        with Sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the work around it went on")
    assert not Sigterm.came


def test_a_second_sigterm_does_not_cut_short_what_the_first_puts_in_order():
    ended, before = [], signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), ended_by_sigterm():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            ended.append("worker")
    assert ended == ["worker"] and signal.getsignal(signal.SIGTERM) == before


def test_in_another_thread_nothing_changes():
    before, found = signal.getsignal(signal.SIGTERM), []

    def enter():
        with Sigterm():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [before]


def test_several_processes_ask_each_other_now_and_then(monkeypatch):
    cpu = torch.device("cpu")
    assert all_stop(True, 3, 1, cpu) and not all_stop(False, 3, 1, cpu)
    assert not all_stop(True, 3, 2, cpu)  # not now
    another = lambda value: value + 1  # noqa: E731 - another one was asked
    monkeypatch.setattr("brainfm_lib.pretrain.stopping.sum_over_ranks", another)
    assert all_stop(False, 8, 2, cpu)
