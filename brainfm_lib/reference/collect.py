"""What of a reference run is worth keeping: finished runs small enough to ship, and how they came about."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainfm_lib.identity import write_atomic
from brainfm_lib.integrity import digests
from brainfm_lib.reference.plan import Plan
from brainfm_lib.runs import PROVENANCE, list_runs

LARGEST = 8 * 2**20  # bytes of one file that ships
LEFT_OUT = ("snapshots", "features")  # of a run's files or of kinds of runs, what never ships
KEPT_KINDS = (
    "pretrain", "init", "probe", "knn", "latents", "reconstruction", "progress", "bands", "components",
)  # fmt: skip


def collect(folder: Path, plan: Plan, log: Sequence[dict[str, Any]]) -> Path:
    """Write ``results/``: runs as the shipped layer holds them, and ``reference.json``.

    Args:
        folder: Of the reference run.
        plan: That was followed.
        log: Of the clock.

    Returns:
        The folder.
    """
    results = folder / "results"
    (results / "runs").mkdir(parents=True, exist_ok=True)
    for run in list_runs():
        if run.kind in KEPT_KINDS and not run.shipped:
            _ship(run.path, results / "runs" / run.provenance["loose_id"])
    busy = busy_share(folder / "state" / "busy.csv", log)
    summary = {"plan": dataclasses.asdict(plan), "log": list(log), "busy": busy}
    with write_atomic(results / "reference.json") as path:
        path.write_text(json.dumps(summary, indent=1))
    return results


def _ship(source: Path, target: Path) -> None:
    """Copy a finished run without what is too large to ship; weights of whole models in half precision."""
    if target.is_dir():
        return
    with write_atomic(target) as temporary:
        temporary.mkdir()
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            name = file.relative_to(source)
            if name.parts[0] in LEFT_OUT or str(name) == PROVENANCE or name.suffix == ".txt":
                continue
            place = temporary / name
            place.parent.mkdir(exist_ok=True)
            if str(name) == "model.safetensors":
                _halve(file, place)
            else:
                shutil.copyfile(file, place)
            if place.stat().st_size > LARGEST:
                place.unlink()
        provenance = json.loads((source / PROVENANCE).read_text())
        provenance["files"] = digests(temporary)
        (temporary / PROVENANCE).write_text(json.dumps(provenance, indent=2))


def _halve(source: Path, target: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name: tensor.half() for name, tensor in load_file(source).items()}, target)


def busy_share(file: Path, log: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean utilisation of the device (0 to 1) over each piece of work; empty where it was not sampled."""
    if not file.is_file():
        return {}
    samples = pd.read_csv(file, header=None, names=["time", "busy", "power", "memory"], on_bad_lines="skip")
    samples = samples.apply(pd.to_numeric, errors="coerce").dropna()
    found = {}
    for piece in log:
        inside = samples[(samples["time"] >= piece["began"]) & (samples["time"] < piece["began"] + piece["seconds"])]
        if len(inside):
            found[piece["what"]] = float(np.round(inside["busy"].mean() / 100, 3))
    return found
