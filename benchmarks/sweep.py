"""Sweeps: what a cell costs beyond its kernel, how two workers share the work, and whether kills lose anything.

    python benchmarks/sweep.py > benchmarks/sweep.md

On a project of its own with one light notebook: cells a minute with one worker and with two (cells that compute on one
thread, so that cores, not waiting, decide); the time of a cell beyond that of starting a kernel and running the same
cells in it; a dry run of 1,000 cells; and a sweep of 16 cells that is killed at random moments and started again, with
the sum of what its cells made held against an undisturbed one.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

PARAMETERS = 'profile = "tiny"\ndepth = 1\nrounds = 400\nseed = 0\nresult = "result.json"'
WORK = """
import json
from pathlib import Path

total = sum(i * i % 7 for _ in range(rounds) for i in range(20_000))
Path(result).write_text(json.dumps({"runs": {}, "value": depth**3}))
"""


def project(folder: Path) -> None:
    """A project whose one notebook computes for a while."""
    (folder / "notebooks" / "params").mkdir(parents=True)
    (folder / "data_manifest.yaml").write_text("version: 1\npretraining: []\ncohorts: {}\ntasks: {}\n")
    (folder / "notebooks" / "params" / "tiny.yaml").write_text("profile: tiny\n")
    parameters = nbformat.v4.new_code_cell(PARAMETERS)
    parameters.metadata["tags"] = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(WORK)])
    nbformat.write(notebook, folder / "notebooks" / "10_work.ipynb")


def write(folder: Path, name: str, cells: int, rounds: int) -> None:
    """A sweep's file."""
    grid = f"grid: {{product: {{depth: {list(range(cells))}}}}}"
    text = f"notebook: 10_work\nprofile: tiny\nparameters: {{rounds: {rounds}}}\n{grid}\n"
    (folder / f"{name}.yaml").write_text(text)


def start(folder: Path, name: str, *words: str) -> subprocess.Popen:
    """`brainfm sweep` on the project."""
    code = "from brainfm_lib.cli import main; main()"
    command = [sys.executable, "-c", code, "sweep", str(folder / f"{name}.yaml"), *words]
    environment = {**os.environ, "BRAINFM_ROOT": str(folder)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)


def run(folder: Path, name: str, *words: str) -> float:
    """Seconds of a whole sweep."""
    began = time.perf_counter()
    if start(folder, name, *words).wait():
        raise SystemExit(f"the sweep {name} failed")
    return time.perf_counter() - began


def results(folder: Path, name: str) -> dict[str, int]:
    """What each staged cell made; a cell that is there twice would show."""
    found: dict[str, int] = {}
    for file in sorted((folder / "sweeps" / name / "cells").glob("*/10_work.result.json")):
        found[file.parent.name] = json.loads(file.read_text())["value"]
    return found


def kernel_alone(folder: Path) -> float:
    """Seconds to start a kernel and run the notebook's cells in it, without a sweep: median of five."""
    spent = []
    for _ in range(5):
        notebook = nbformat.read(folder / "notebooks" / "10_work.ipynb", as_version=4)
        notebook.cells[0].source = PARAMETERS.replace("400", "0")
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": scratch}}).execute()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    arguments = parser.parse_args()
    print(f"# Sweeps\n\nMade by `benchmarks/sweep.py`, which says how; {platform.machine()}, {os.cpu_count()} CPUs.\n")
    with tempfile.TemporaryDirectory(prefix="brainfm-sweep-") as name:
        folder = Path(name)
        project(folder)
        write(folder, "one", 1, 0)
        write(folder, "nine", 9, 0)
        first = run(folder, "one")
        overhead = (run(folder, "nine") - first) / 8
        alone = kernel_alone(folder)
        print(f"A cell that computes nothing: {overhead:.2f} s; its kernel and cells alone: {alone:.2f} s.\n")
        for sweep in ("single", "double"):
            write(folder, sweep, 12, 3000)
        one, two = run(folder, "single", "-j", "1"), run(folder, "double", "-j", "2")
        said = f"{one:.0f} s with one worker, {two:.0f} s with two: {one / two:.2f} times as many a minute"
        print(f"Twelve cells that compute for some seconds: {said}.\n")
        write(folder, "thousand", 1000, 0)
        began = time.perf_counter()
        start(folder, "thousand", "--dry-run").wait()
        print(f"A dry run of 1,000 cells, Python's start included: {time.perf_counter() - began:.1f} s.\n")
        for sweep in ("undisturbed", "killed"):
            write(folder, sweep, 16, 400)
        run(folder, "undisturbed", "-j", "2")
        rng, kills = random.Random(0), 0
        while True:
            process = start(folder, "killed", "-j", "2")
            try:
                code = process.wait(timeout=rng.uniform(2, 14) if kills < arguments.kills else None)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
                continue
            if code:
                raise SystemExit("the sweep failed")
            if kills >= arguments.kills:
                break
            shutil.rmtree(folder / "sweeps" / "killed")  # it ended before enough kills: once more from the start
        found = results(folder, "killed")
        same = found == results(folder, "undisturbed")
        left = [file for file in (folder / "sweeps").rglob("*") if file.name.startswith(".") and file.name != ".lock"]
        print(f"Killed {kills} times: {len(found)} cells of 16, equal to the undisturbed sweep: {same}; files under a")
        print(f"temporary name: {len(left)}.")


if __name__ == "__main__":
    main()
