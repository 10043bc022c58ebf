"""Runs that do not wait for each other are made at once, in processes of their own, each with its share of the cores.

A small network leaves most of a machine idle, however many threads take part in each of its many short operations; two
networks side by side do not. What is made is the same, byte for byte, whoever makes it: see `device.fixed_threads`.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from brainfm_lib.device import NARROW, best_device
from brainfm_lib.errors import InputError
from brainfm_lib.memory import free_memory
from brainfm_lib.pretrain.compute import pretraining_cost
from brainfm_lib.pretrain.stopping import Sigterm, Terminated
from brainfm_lib.processes import bound_cores, end_with_parent
from brainfm_lib.study import Study
from brainfm_lib.verdict import CNN, CONTROL

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

MOST = 8  # processes at once
EACH = 1.5e9  # bytes of memory that one of them needs
WORTH = 1e12  # FLOPs of all trainings together, and
SUBJECTS = 200  # of a task, below which starting processes costs more than it saves
TOLD_EACH = 0.5  # seconds between two messages of a training
ENDS_WITHIN = 60.0  # seconds in which a process that is asked to stop writes its checkpoint


def make_together(study: Study, chains: Iterable[Sequence[str]], *, anyway: bool = False) -> None:
    """Make what is missing of the runs of `study` that `chains` ask for; `Study.run` then finds them.

    What is refused, or lost with a process that dies, is left to `Study.run`, which says why or makes it. Interrupted,
    or asked by SIGTERM, it stops all processes; a training in its course stops with a checkpoint, and the same call
    goes on from there.

    Args:
        study: Whose runs. Left to `Study.run` are wide encoders, which fill a machine one by one; all work where there
            is a GPU; the supervised network; encoders that were brought along; volumes in this process' memory; and
            variants but those of the seed.
        chains: Requests. Those of a chain are made one after the other, different chains at once.
        anyway: Also where starting processes takes longer than what they would save.
    """
    on_cpu = best_device(cpu=study.cpu).type == "cpu"
    if not study.travels or study.in_memory or not on_cpu or study.profile.encoder.embed_dim >= NARROW:
        return
    wanted = [[request for request in chain if _travels(study, request)] for chain in chains]
    wanted = [chain for chain in wanted if chain]
    cores = usable_cores()
    count = min(len(wanted), cores, MOST, int(free_memory() / EACH))
    if count < 2 or not (anyway or _worthwhile(study, wanted)):
        return
    if any(_trains(request) for chain in wanted for request in chain):
        study.pretraining_volumes(0), study.pretraining_volumes(1)  # prepared once, and not waited for by all
    context = multiprocessing.get_context("spawn")
    tasks: Any = context.Queue()
    told: Any = context.Queue()
    for chain in [*wanted, *[None] * count]:
        tasks.put(chain)
    work = (os.getpid(), vars(study.made_of), max(cores // count, 1), tasks, told)
    helpers: list[BaseProcess] = [context.Process(target=_work, args=work, daemon=True) for _ in range(count)]
    try:
        for helper in helpers:
            helper.start()
        _follow(study, wanted, helpers, told)
    finally:
        _stop(helpers)
        tasks.cancel_join_thread()  # what nobody took is not waited for


def usable_cores() -> int:
    """Cores that this process may keep busy: those it is bound to, and no more than torch was told to use."""
    return min(bound_cores(), torch.get_num_threads())


def _travels(study: Study, request: str) -> bool:
    """Whether a run is missing and may be made by another process."""
    arm = request.partition("@")[0].split(":")[1]
    return arm not in study.own and arm != CNN and study.identify(f"optional:{request}") == "absent"


def _worthwhile(study: Study, chains: Sequence[Sequence[str]]) -> bool:
    """Whether making all of it takes longer than starting processes does."""
    trained = {request.split(":")[1].partition("@")[0] for chain in chains for request in chain if _trains(request)} - {
        CONTROL
    }
    if trained:
        return sum(pretraining_cost(study.profile.pretraining(arm, study.seed)).flops for arm in trained) > WORTH
    return (study.profile.subjects.downstream or SUBJECTS) >= SUBJECTS


def _trains(request: str) -> bool:
    return request.startswith("pretrain:")


def _follow(study: Study, chains: Sequence[Sequence[str]], helpers: Sequence[BaseProcess], told: Any) -> None:
    """Show how far the helpers are until all is made."""
    weight = {request: _steps(study, request) for chain in chains for request in chain}
    done, left = dict.fromkeys(weight, 0), set(weight)
    said = f"{len(weight)} runs, {len(helpers)} at once"
    shown = tqdm(total=sum(weight.values()), desc=said, disable=not study.progress, mininterval=1.0)
    with shown as bar, Sigterm() as sigterm:
        while left:
            if sigterm.asked:
                raise Terminated("terminated; the same command goes on from there")
            try:
                request, step = told.get(timeout=1.0)
            except queue.Empty:
                if not any(helper.is_alive() for helper in helpers) and told.empty():
                    codes = {helper.exitcode for helper in helpers} - {0}
                    print(f"helpers ended with status {codes}: {len(left)} runs are made one by one", file=sys.stderr)
                    return
                continue
            step = weight[request] if step is None else step
            bar.update(step - done[request])
            done[request] = step
            if step == weight[request]:
                left.discard(request)


def _steps(study: Study, request: str) -> int:
    return study.profile.optimiser.steps if _trains(request) else 1


def _stop(helpers: Sequence[BaseProcess]) -> None:
    """End the helpers: those that still work are asked to, and write a checkpoint first."""
    started = [helper for helper in helpers if helper.pid is not None]
    for helper in started:
        helper.join(0.2)
        if helper.is_alive():
            helper.terminate()
    for helper in started:
        helper.join(ENDS_WITHIN)
        if helper.is_alive():
            helper.kill()


def _work(parent: int, made_of: dict[str, Any], threads: int, tasks: Any, told: Any) -> None:
    """What a helper does: chains, until there are none."""
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it comes to all; the parent decides, and asks with SIGTERM
    torch.set_num_threads(threads)
    with threadpool_limits(threads), Sigterm() as sigterm:
        study = Study(**made_of, progress=False)
        while (chain := tasks.get()) is not None:
            for request in chain:
                if sigterm.asked:
                    raise Terminated("asked to stop")
                making = {"progress": _Told(request, told)} if _trains(request) else {}
                with suppress(InputError):  # the caller's `Study.run` says so
                    study.run(request, **making)
                told.put((request, None))


class _Told:
    """Tells the parent of the steps of a training, not too often."""

    def __init__(self, request: str, told: Any) -> None:
        self.request, self.told, self.last = request, told, 0.0

    def __call__(self, step: int) -> None:
        if time.monotonic() - self.last > TOLD_EACH:
            self.last = time.monotonic()
            self.told.put((self.request, step - 1))  # the last one is told when the run is whole
