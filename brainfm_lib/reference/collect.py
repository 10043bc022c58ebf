"""What of a reference run is worth keeping: finished runs small enough to ship, and how they came about."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import yaml

from brainfm_lib.config import SHIPPED, load_profile, profile_values
from brainfm_lib.identity import save_tensors, write_atomic
from brainfm_lib.integrity import digests
from brainfm_lib.reference.plan import Plan
from brainfm_lib.runs import PROVENANCE, Run

if TYPE_CHECKING:
    from brainfm_lib.reference.sitting import Clock

LARGEST = 8 * 2**20  # bytes of one file that ships
LEFT_OUT = ("snapshots",)  # of a run's files, what never ships
ENCODER = "encoder/model.safetensors"  # a run of weights without these does not ship


def collect(folder: Path, plan: Plan, clock: Clock, runs: Iterable[Run], *, whole: bool = False) -> Path:
    """Write ``results/``: runs as the shipped layer holds them, ``reference.json``, and the profile `SHIPPED`.

    Args:
        folder: Of the reference run.
        plan: That was followed.
        clock: Of the work.
        runs: Those to ship, of the code as it is.
        whole: These are all: what else lies there, of a plan that was extended since, goes.

    Returns:
        The folder.
    """
    results = folder / "results"
    (results / "runs").mkdir(parents=True, exist_ok=True)
    found = {run.provenance["loose_id"]: run for run in runs}
    for name, run in found.items():
        _ship(run, results / "runs" / name)
    for other in (results / "runs").iterdir() if whole else ():
        if other.name not in found:
            shutil.rmtree(other)
    first = plan.parts[0]
    asked = load_profile(first.profile).subjects.downstream
    if asked is not None and first.judged >= asked:  # a profile with fewer would cut a user's own cohorts short
        values = profile_values(first.profile, first.overrides)
        about = f"# Of the encoders beside this file: `{first.profile}`, for as long as the reference run had time.\n"
        with write_atomic(results / f"{SHIPPED}.yaml") as path:
            path.write_text(about + yaml.safe_dump(values, sort_keys=False))
    busy = busy_share(folder / "state" / "busy.csv", clock.log)
    spent = {"minutes": clock.budget / 60, "seconds": clock.spent}
    summary = {"plan": dataclasses.asdict(plan), **spent, "log": clock.log, "busy": busy}
    with write_atomic(results / "reference.json") as path:
        path.write_text(json.dumps(summary, indent=1))
    return results


def _ship(run: Run, target: Path) -> None:
    """Copy a finished run without what is too large to ship; weights of whole models in half precision."""
    if (target / PROVENANCE).is_file():
        if json.loads((target / PROVENANCE).read_text())["id"] == run.id:
            return
        shutil.rmtree(target)  # of other code
    files = {str(file.relative_to(run.path)): file for file in run.path.rglob("*") if file.is_file()}
    if ENCODER in files and files[ENCODER].stat().st_size > LARGEST:
        return
    left_out = []
    with write_atomic(target) as temporary:
        temporary.mkdir()
        for name, file in sorted(files.items()):
            place = temporary / name
            if Path(name).parts[0] in LEFT_OUT:
                left_out.append(name)
            elif name != PROVENANCE:
                place.parent.mkdir(exist_ok=True)
                _halve(file, place) if name == "model.safetensors" else shutil.copyfile(file, place)
                if place.stat().st_size > LARGEST:
                    place.unlink()
                    left_out.append(name)
        provenance = run.provenance | {"files": digests(temporary), "left_out": left_out}
        (temporary / PROVENANCE).write_text(json.dumps(provenance, indent=2))


def _halve(source: Path, target: Path) -> None:
    from safetensors.torch import load_file

    save_tensors({name: tensor.half() for name, tensor in load_file(source).items()}, target)


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
