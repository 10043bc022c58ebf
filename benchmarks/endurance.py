"""Whether memory and open files stay flat while one process pretrains for hours.

    python benchmarks/endurance.py > benchmarks/endurance.md
    python benchmarks/endurance.py --minutes 20 --settle 5

One process pretrains the profile `tiny` again and again, every arm in turn and every time with another seed, as a
kernel does that is left open. After each training its resident memory and its open files are noted; each run's folder
is removed before the next. What counts is how far the median of each ten minutes lies from that of the first ten after
settling; asked for is at most 2 %.
"""

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from brainfm_lib.objectives import ARMS
from brainfm_lib.study import Study

ALLOWED = 0.02
WINDOW = 600.0  # seconds that are told as one


def resident() -> float:
    """Resident memory of this process, MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--settle", type=float, default=10.0, help="minutes after which memory has to stay")
    arguments = parser.parse_args()
    samples: list[tuple[float, float, int, int]] = []
    with tempfile.TemporaryDirectory() as name:
        os.environ |= {"BRAINFM_RUNS": f"{name}/runs", "BRAINFM_STORE": f"{name}/store"}
        started, seed = time.monotonic(), 0
        while time.monotonic() - started < arguments.minutes * 60:
            for arm in ARMS:
                study = Study("tiny", seed=seed, progress=False, cpu=True)
                shutil.rmtree(study.run(f"pretrain:{arm}").path)
                handles, threads = (len(list(Path("/proc/self", what).iterdir())) for what in ("fd", "task"))
                samples.append((time.monotonic() - started, resident(), handles, threads))
            seed += 1
    print("# Memory over a long time\n")
    print(
        f"Made by `benchmarks/endurance.py`, which says how; {platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}: {len(samples):,} trainings in {samples[-1][0] / 60:.0f} minutes.\n"
    )
    print("| minutes | trainings | resident memory, MB | open files | threads |\n|---|---:|---:|---:|---:|")
    settled, worst = None, 0.0
    for number in range(int(samples[-1][0] // WINDOW) + 1):
        inside = [sample for sample in samples if number * WINDOW <= sample[0] < (number + 1) * WINDOW]
        if not inside:
            continue
        memory, handles, threads = (statistics.median(column) for column in list(zip(*inside))[1:])
        print(f"| {number * 10} to {number * 10 + 10} | {len(inside)} | {memory:.1f} | {handles:g} | {threads:g} |")
        if number * WINDOW >= arguments.settle * 60:
            settled = settled or (memory, handles)
            worst = max(worst, *(abs(now / then - 1) for now, then in zip((memory, handles), settled)))
    print(
        f"\nLargest change after {arguments.settle:g} minutes: {100 * worst:.1f} % "
        f"({100 * ALLOWED:g} % allowed: {'held' if worst <= ALLOWED else 'NOT held'})."
    )


if __name__ == "__main__":
    main()
