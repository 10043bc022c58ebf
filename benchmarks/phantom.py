"""Whether the phantoms' truth is true, and how fast they are made.

    python benchmarks/phantom.py > benchmarks/phantom.md
    python benchmarks/phantom.py --only-memory --memory 100000 >> benchmarks/phantom.md

The ideal observer by Monte Carlo in latent space, and on subjects as they are described and rendered, with shuffled
labels and covariates beside it; the dials; folding; speed on this machine (two threads over scans, as the store does);
memory over many volumes.
"""

import argparse
import dataclasses
import platform
import resource
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import torch

from brainfm_lib.analysis.truth import measure_truth
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.phantom import CONDITIONS, PhantomSpec, describe, dials, render
from brainfm_lib.data.phantom.deform import exponentiate, jacobian_determinant
from brainfm_lib.data.phantom.draws import draw
from brainfm_lib.data.phantom.ideal import ideal_auroc
from brainfm_lib.data.phantom.rendering import single_threaded
from brainfm_lib.stats import auroc

DRAWS, SUBJECTS = 40_000, 2000
MEMORY_COHORT = 1000  # subjects of each cohort in turn
TASKS = {
    "ad": ("NC", "AD"),
    "mci": ("NC", "MCI"),
    "tumour 2 against 4": ("2", "4"),
    "autism": ("control", "autism"),
    **{setting: (f"{setting}-control", f"{setting}-case") for setting in dials.FACTORS},
}


def standard_error(value: float, per_class: int) -> float:
    """Of an AUROC with as many subjects in either class (Hanley and McNeil 1982)."""
    q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)
    return float(np.sqrt((value * (1 - value) + (per_class - 1) * (q1 + q2 - 2 * value**2)) / per_class**2))


def truth() -> None:
    """Stated ideal, Monte Carlo, subjects as described, shuffled labels, and covariates alone."""
    columns = ["age", "sex", "head size", "site", "contrast"]
    print(f"\n| task | ideal | {DRAWS:,} draws | {SUBJECTS:,} subjects | shuffled | {' | '.join(columns)} |")
    print("|---|" + "---:|" * (4 + len(columns)))
    rng = np.random.default_rng(0)
    for number, (task, pair) in enumerate(TASKS.items()):
        spec = PhantomSpec(seed=100 + number, subjects=SUBJECTS, conditions=tuple((name, 0.5) for name in pair))
        stated = ideal_auroc([[name] for name in pair], spec)
        labels = np.arange(DRAWS) % 2
        monte_carlo = auroc(
            labels, np.array([CONDITIONS[name].mean for name in pair])[labels] + rng.standard_normal(DRAWS)
        )
        scans = describe(spec)
        here = (scans["diagnosis"] == pair[1]).to_numpy().astype(int)
        size = np.array([1 / np.linalg.det(draw(spec, i, 0).matrix) for i in range(SUBJECTS)])
        alone = {
            "age": scans["age"],
            "sex": scans["sex"] == "F",
            "head size": size,
            "site": scans["site"].str[5:].astype(int),
            "contrast": pd.factorize(scans["contrast"])[0],
        }
        found = [auroc(here, scans["severity"]), auroc(rng.permutation(here), scans["severity"])]
        found += [auroc(here, np.asarray(alone[name], float)) for name in columns]
        limits = [standard_error(stated, SUBJECTS // 2)] + [standard_error(0.5, SUBJECTS // 2)] * (1 + len(columns))
        aims = [stated] + [0.5] * (1 + len(columns))
        cells = [f"{f:.3f} ({(f - a) / s:+.1f})" for f, a, s in zip(found, aims, limits, strict=True)]
        print(f"| {task} | {stated:.3f} | {monte_carlo:.3f} | {' | '.join(cells)} |", flush=True)
    print("\nIn brackets: distance from the designed value in standard errors.")


def dial_table() -> None:
    """Ideal AUROC, rank and measured frequency at every setting."""
    geometry = Geometry((32, 32, 32), 5.75)
    print("\n| setting | ideal AUROC | rank | half of the signal below (cycles/voxel) | 10 to 90 % |")
    print("|---|---:|---:|---:|---:|")
    for setting in dials.FACTORS:
        names = TASKS[setting]
        spec = PhantomSpec(seed=9, conditions=tuple((name, 0.5) for name in names))
        found, _ = measure_truth(spec, [[name] for name in names], geometry, subjects=12)
        low, middle, high = (found[f"frequency_{q}"] * geometry.spacing for q in (10, 50, 90))
        print(f"| {setting} | {found['ideal_auroc']:.3f} | {found['rank']} | {middle:.2f} | {low:.2f} to {high:.2f} |")


def folding(count: int = 1000) -> None:
    """Smallest determinant of the deformations' Jacobians."""
    conditions = tuple((name, 1.0) for name, c in CONDITIONS.items() if c.family != "dial")
    spec, smallest, folds = PhantomSpec(seed=9, subjects=count, conditions=conditions), np.inf, 0
    for start in range(0, count, 50):
        velocities = np.stack([draw(spec, i, 0).velocity for i in range(start, min(start + 50, count))])
        determinant = jacobian_determinant(exponentiate(torch.from_numpy(velocities).float()))
        smallest, folds = min(smallest, float(determinant.min())), folds + int((determinant <= 0).sum())
    print(f"\nFolding cells in {count:,} subjects: {folds}; smallest Jacobian determinant {smallest:.2f}.")


def speed() -> None:
    """Volumes per second."""
    print("\n| grid | spacing, mm | volumes/s |\n|---|---:|---:|")
    spec = PhantomSpec(seed=9, subjects=400)
    scans = describe(spec)
    for n, spacing, count in ((32, 5.75, 240), (48, 4.0, 120), (96, 2.0, 40)):
        geometry = Geometry((n, n, n), spacing)
        render(spec, scans[:1], geometry)
        with single_threaded(), ThreadPoolExecutor(2) as pool:
            started = time.perf_counter()
            list(pool.map(lambda i, g=geometry: render(spec, scans[i : i + 4], g), range(0, count, 4)))
            print(f"| {n}³ | {spacing:g} | {count / (time.perf_counter() - started):.1f} |", flush=True)


def memory(count: int) -> None:
    """Peak memory over many volumes of many subjects, coarse ones so that it can be waited for."""
    geometry, marks, peaks = Geometry((12, 12, 12), 15.0), np.linspace(0, count, 5)[1:].astype(int), []
    made, started = 0, time.perf_counter()
    with single_threaded():
        while made < count:
            spec = PhantomSpec(seed=made, subjects=min(MEMORY_COHORT, count - made))
            scans = describe(spec)
            for i in range(0, len(scans), 8):
                render(spec, scans[i : i + 8], geometry)
            made += len(scans)
            if made >= marks[len(peaks)]:
                peaks.append(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB after {made:,}")
    print(
        f"\nPeak memory over volumes of 12³: {', '.join(peaks)} ({(time.perf_counter() - started) / 60:.0f} minutes)."
    )


def same_bytes() -> None:
    """The same scans in another order and batch size."""
    spec = PhantomSpec(seed=9, subjects=40, conditions=(("AD", 0.4), ("4", 0.3), ("dimension-8-case", 0.3)))
    scans, geometry = describe(spec), Geometry((48, 48, 48), 4.0)
    whole, order = render(spec, scans, geometry), np.random.default_rng(0).permutation(len(scans))
    parts = torch.cat(
        [render(dataclasses.replace(spec), scans.iloc[order[i : i + 3]], geometry) for i in range(0, 40, 3)]
    )
    print(f"\nForty volumes of 48³ in another order and batch size: equal bytes: {torch.equal(parts, whole[order])}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=int, default=2000, help="volumes over which memory is watched")
    parser.add_argument("--only-memory", action="store_true")
    arguments = parser.parse_args()
    if arguments.only_memory:
        memory(arguments.memory)
        return
    print("# Phantoms: truth and speed\n")
    print(f"Made by `benchmarks/phantom.py`, which says how; {platform.machine()}, torch {torch.__version__}.")
    truth()
    dial_table()
    folding()
    same_bytes()
    speed()
    memory(arguments.memory)


if __name__ == "__main__":
    main()
