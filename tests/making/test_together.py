"""Runs that are made side by side are those that are made one after the other, and stop together."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from brainfm_lib.errors import InputError
from brainfm_lib.making import judging, together
from brainfm_lib.study import Study
from tests.book import toy
from tests.test_cli import folders

SMALL = {
    "subjects.pretraining": 40,
    "subjects.downstream": 40,
    "optimiser.steps": 6,
    "evaluation.bootstrap_draws": 20,
    "evaluation.permutations": 20,
}
CHAINS = [
    ["pretrain:mae", "probe:mae:ad", "finetune:mae:ad"],
    ["pretrain:vcr-jepa", "probe:vcr-jepa:ad", "attentive:vcr-jepa:ad"],
    ["probe:nuisance:ad"],
]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are started however little there is to make."""
    monkeypatch.setattr(together, "WORTH", 0.0)
    monkeypatch.setattr(together, "SUBJECTS", 0)
    monkeypatch.setattr(together, "usable_cores", lambda: 2)


def test_side_by_side_is_the_same_as_one_after_the_other(
    always: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, threads = {}, torch.get_num_threads()
    for name in ("together", "alone"):
        monkeypatch.setenv("BRAINFM_RUNS", str(tmp_path / name))
        study = Study("tiny", overrides=SMALL, progress=False)
        if name == "together":
            together.make_together(study, CHAINS)
            assert all(study.identify(f"optional:{request}") != "absent" for chain in CHAINS for request in chain)
        else:
            torch.set_num_threads(2)  # a helper has one of the two cores
        try:
            for chain in CHAINS:
                made[name] = made.get(name, []) + [study.run(request) for request in chain]
        finally:
            torch.set_num_threads(threads)
    for one, other in zip(made["together"], made["alone"]):
        assert one.id == other.id
        names = {str(file.relative_to(one.path)) for file in one.path.rglob("*") if file.is_file()}
        assert names == {str(file.relative_to(other.path)) for file in other.path.rglob("*") if file.is_file()}
        for file in names - {"provenance.json", "metrics.parquet"}:  # they tell times
            assert (one.path / file).read_bytes() == (other.path / file).read_bytes(), (one.id, file)


def test_a_refusal_and_a_death_are_left_to_the_caller_and_stop_nobody_else(
    always: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    study = Study("tiny", overrides=SMALL, progress=False)
    monkeypatch.setattr(together, "_travels", lambda study, request: True)  # as if it were there to be made
    together.make_together(study, [["probe:mae:nowhere"], ["pretrain:mae"]])
    assert study.identify("optional:pretrain:mae") != "absent" and not multiprocessing.active_children()
    with pytest.raises(InputError, match="nowhere"):
        study.run("probe:mae:nowhere")
    study.made_of = replace(study.made_of, overrides={**SMALL, "optimiser.lr": "none"})  # no helper can open this study
    together.make_together(study, [["pretrain:jepa"], ["pretrain:sl-mae"]])
    assert study.identify("optional:pretrain:jepa") == "absent" and not multiprocessing.active_children()
    assert "2 runs are made one by one" in capfd.readouterr().err


def test_another_seed_is_made_side_by_side_and_no_helper_takes_a_variant_for_the_study_itself(
    always: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study("tiny", overrides=SMALL, progress=False)
    seventh = study.variant("", "seed=7")
    together.make_together(seventh, [["pretrain:mae"], ["pretrain:jepa"]])
    for arm in ("mae", "jepa"):
        assert seventh.identify(f"optional:pretrain:{arm}") != "absent"
        assert study.identify(f"optional:pretrain:{arm}") == "absent"
    monkeypatch.setattr(together.multiprocessing, "get_context", lambda name: pytest.fail("a process was started"))
    for change in ("lr=0.003", "step=3"):
        together.make_together(study.variant("pretrain:mae", change), [["pretrain:mae"], ["pretrain:jepa"]])


def test_little_work_and_work_that_is_done_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together.multiprocessing, "get_context", lambda name: pytest.fail("a process was started"))
    study = Study("tiny", overrides=SMALL, progress=False)
    together.make_together(study, [["pretrain:mae"], ["pretrain:jepa"]])
    together.make_together(study, [["pretrain:mae"]])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # as a sweep's kernels are told
        assert together.usable_cores() == 1
    finally:
        torch.set_num_threads(threads)


def test_every_request_of_the_comparison_is_in_one_chain() -> None:
    study = Study("tiny", overrides={**SMALL, "evaluation.cross_validate_below": 10}, progress=False)
    chains = judging.chains(study)
    flat = [request for chain in chains for request in chain]
    assert len(flat) == len(set(flat)) and {"probe:mae:ad", "knn:jepa:ad", "finetune:sl-mae:ad"} <= set(flat)
    assert any({"probe:label-shuffle:ad", "probe:random-init:ad"} <= set(chain) for chain in chains)
    assert any(request.startswith("probe:vcr-jepa:ad@step=") for request in flat)


LONG = """
import signal
from brainfm_lib.making import launch, together
from brainfm_lib.study import Study
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born without
    together.WORTH, together.usable_cores = 0.0, lambda: 2
    study = Study("tiny", overrides={"optimiser.steps": %d}, progress=False, cpu=True)
    study.arms = ("mae", "jepa")
    launched = dict(launch.pretrain_arms(study))
    print(sorted(launched))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_stops_all_with_checkpoints_and_the_same_call_goes_on(number: int, tmp_path: Path) -> None:
    (tmp_path / "data_manifest.yaml").write_bytes((toy.ROOT / "data_manifest.yaml").read_bytes())
    (tmp_path / "long.py").write_text(LONG % 500)
    environment = {**os.environ, **folders(tmp_path), "PYTHONPATH": str(toy.ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "long.py"]
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=log, stdout=log, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "runs").glob(".partial-pretrain-*/snapshots/*"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None, (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.05)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    assert process.wait(timeout=60) != 0
    deadline = time.monotonic() + 20
    while subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True).stdout:
        assert time.monotonic() < deadline, "a helper is left"
        time.sleep(0.1)
    kept = list((tmp_path / "runs").glob(".partial-pretrain-*/checkpoint-*"))
    assert len(kept) >= 2, (tmp_path / "log").read_text()[-3000:]
    ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.strip() == "['jepa', 'mae']"
