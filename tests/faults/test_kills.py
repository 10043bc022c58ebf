"""Killed at random moments and started again, work ends with what an undisturbed run ends with, byte for byte."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.book import toy
from tests.faults.soak import times
from tests.test_cli import folders

PROFILE = """\
geometry: {grid: [32, 32, 32], spacing: 5.75}
subjects: {pretraining: 48, downstream: 60}
encoder: {patch_size: 8, embed_dim: 32, depth: 2, heads: 2}
mae: {decoder_dim: 32, decoder_depth: 1, decoder_heads: 2}
jepa: {predictor_dim: 32, predictor_depth: 1, predictor_heads: 2}
optimiser: {lr: 2.0e-3, batch_size: 8, steps: 60}
evaluation: {bootstrap_draws: 50, permutations: 50, cross_validate_below: 20}
"""
# checkpoints are written all the time, or a training this short would have none
CODE = """\
import brainfm_lib.pretrain.loop
brainfm_lib.pretrain.loop.CHECKPOINT_SECONDS = 0.0
from brainfm_lib.cli import main
main()
"""
WORDS = ["probe", "--profile", "small.yaml", "--objective", "sl-mae", "--task", "ad", "--cpu"]


def start(root: Path, code: str, *words: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **folders(root), "BRAINFM_KEY": str(root / "key"), "OMP_NUM_THREADS": "1"}
    with (root / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", code, *words],
            cwd=root,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def finish(root: Path, code: str, *words: str) -> float:
    began = time.monotonic()
    assert start(root, code, *words).wait(timeout=300) == 0, (root / "log").read_text()[-3000:]
    return time.monotonic() - began


def kill_now_and_then(root: Path, seconds: float, kills: int, code: str, *words: str) -> None:
    """Start, kill after a random while, `kills` times in all; then let it end."""
    rng = random.Random(0)
    for _ in range(kills):
        process = start(root, code, *words)
        try:
            status = process.wait(timeout=rng.uniform(0.3, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            continue
        assert status == 0, (root / "log").read_text()[-3000:]
        newest = max((root / "runs").glob("[!.]*"), key=lambda folder: folder.stat().st_mtime)
        newest.rename(root / f"taken-{time.time_ns()}")  # there was nothing left to disturb
    finish(root, code, *words)


def contents(folder: Path) -> dict[str, str]:
    """File -> digest of its bytes; of a provenance that which does not tell the time."""
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and ".locks" not in path.parts):
        name = str(file.relative_to(folder))
        if file.name in ("provenance.json", ".lock") or file.suffix == ".lock":
            found[name] = ""
        elif file.name == "metrics.parquet":  # seconds are told in it
            found[name] = pd.read_parquet(file).drop(columns="seconds").to_csv()
        else:
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    root = project(tmp_path_factory.mktemp("undisturbed"))
    return root, finish(root, CODE, *WORDS)


def project(root: Path) -> Path:
    (root / "data_manifest.yaml").write_bytes((toy.ROOT / "data_manifest.yaml").read_bytes())
    (root / "small.yaml").write_text(PROFILE)
    return root


def test_prepare_pretrain_features_and_probe_survive_kills(undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    whole, seconds = undisturbed
    root = project(tmp_path)
    kill_now_and_then(root, seconds, times(6, 100), CODE, *WORDS)
    for folder in ("runs", "store"):
        assert contents(root / folder) == contents(whole / folder), folder
    left = [p.name for p in root.rglob("*") if ".tmp" in p.name or p.name.startswith((".partial", "checkpoint-"))]
    assert left == [], left
    assert finish(root, CODE, *WORDS) < 0.9 * seconds  # no lock is stuck, nothing is made again


# two arms side by side in processes of their own, however little there is to train
BESIDE = """\
import sys
from brainfm_lib.making import together
from brainfm_lib.making import judging
from brainfm_lib.study import Study
if __name__ == "__main__":
    together.WORTH, together.SUBJECTS, together.usable_cores = 0.0, 0, lambda: 2
    study = Study("small.yaml", cpu=True, progress=False)
    study.arms = ("mae", "vcr-jepa")
    together.make_together(study, [["pretrain:mae"], ["pretrain:vcr-jepa"]])
    together.make_together(study, judging.chains(study))
    for chain in judging.chains(study):
        for request in chain:
            study.run(request)
"""


def test_what_is_made_side_by_side_survives_the_death_of_who_asked_for_it(tmp_path: Path) -> None:
    """The parent alone is killed: its helpers end by themselves, and what was half made goes on, in whatever hands."""
    roots = [project(tmp_path / name) for name in ("whole", "killed") if (tmp_path / name).mkdir() is None]
    for root in roots:
        (root / "beside.py").write_text(BESIDE)
    code = "import runpy; runpy.run_path('beside.py', run_name='__main__')"
    seconds = finish(roots[0], code)
    rng = random.Random(2)
    for _ in range(times(2, 30)):
        process = start(roots[1], code)
        try:
            assert process.wait(timeout=rng.uniform(0.2, 0.9) * seconds) == 0, (roots[1] / "log").read_text()[-3000:]
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    finish(roots[1], code)
    for folder in ("runs", "store"):
        assert contents(roots[1] / folder) == contents(roots[0] / folder), folder
    left = [p.name for p in roots[1].rglob("*") if ".tmp" in p.name or p.name.startswith((".partial", "checkpoint-"))]
    assert left == [], left


def test_sigterm_writes_a_checkpoint_and_the_end_is_the_same(undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    whole, _ = undisturbed
    root = project(tmp_path)
    words = ["pretrain", "--profile", "small.yaml", "--objective", "sl-mae", "--cpu"]
    slow = CODE.replace("CHECKPOINT_SECONDS = 0.0", "CHECKPOINT_SECONDS = 1e9")  # so that SIGTERM alone writes one
    process, end = start(root, slow, *words), time.monotonic() + 60
    while not list((root / "runs").glob(".partial-pretrain-*/snapshots/*")):
        assert time.monotonic() < end and process.poll() is None, (root / "log").read_text()[-2000:]
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert "the same command goes on from there" in (root / "log").read_text()
    (kept,) = (root / "runs").glob(".partial-pretrain-*/checkpoint-*")
    assert 0 < int(kept.name.split("-")[1]) < 60
    finish(root, slow, *words)
    (made,) = (root / "runs").glob("pretrain-*")
    theirs, ours = contents(whole / "runs" / made.name), contents(made)
    assert theirs == ours


REPORT = """\
from pathlib import Path
from brainfm_lib.report import build
build.bring_up_to_date(Path.cwd(), identify=lambda *words: "x")
"""


def test_a_killed_report_is_made_whole(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        toy.make_toy(tmp_path / name)
        for chapter in ("10_data", "20_pretrain"):
            toy.write_notebook(tmp_path / name, chapter, [f"import time; time.sleep(0.2); print({chapter!r})"], {})
    seconds = finish(tmp_path / "one", REPORT)
    rng = random.Random(1)
    for _ in range(times(3, 20)):
        process = start(tmp_path / "two", REPORT)
        try:
            process.wait(timeout=rng.uniform(0.3, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    finish(tmp_path / "two", REPORT)
    one, two = (tmp_path / name / "book" / "chapters" for name in ("one", "two"))
    for file in one.glob("*.ipynb"):
        assert (two / file.name).read_bytes() == file.read_bytes()
    assert not [p for p in two.rglob("*") if ".tmp" in p.name] and not list((two / "failed").glob("*"))
