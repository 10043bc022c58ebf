"""What is learned when: encoders in the middle of their training, judged like finished ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from brainfm_lib.checkpoint import snapshot_steps
from brainfm_lib.comparison import trained_arms
from brainfm_lib.snapshot import NothingKept
from brainfm_lib.verdict import CONTROL, METRIC, RAW_VOXELS

if TYPE_CHECKING:
    from brainfm_lib.study import Study

CONTROLS = (RAW_VOXELS, CONTROL)


def curve_tasks(study: Study) -> list[str]:
    """Tasks with test subjects of their own; a cross-validated one would cost hundreds of fits for each point."""
    return [task for task in study.tasks if "split" in study.task_table(task)]


def learning_table(study: Study) -> pd.DataFrame:
    """AUROC of linear probes on test subjects against the volumes that an encoder had seen; missing ones are made.

    Returns:
        task, arm, volumes (0 for the controls, which see none), estimate, low, high.
    """
    rows = []
    for task in curve_tasks(study):
        for arm in CONTROLS:
            rows.append({"task": task, "arm": arm, "volumes": 0, **_reached(study, f"probe:{arm}:{task}")})
        for arm in trained_arms(study):
            optimiser = study.profile.pretraining(arm, study.seed).optimiser
            requests = {step: f"probe:{arm}:{task}@step={step}" for step in snapshot_steps(optimiser.steps)}
            requests[optimiser.steps] = f"probe:{arm}:{task}"
            for step, request in requests.items():
                try:
                    reached = _reached(study, request)
                except NothingKept:  # a run that ships has no models of the middle; it may have what they reached
                    continue
                rows.append({"task": task, "arm": arm, "volumes": step * optimiser.batch_size, **reached})
    return pd.DataFrame(rows, columns=["task", "arm", "volumes", "estimate", "low", "high"])


def _reached(study: Study, request: str) -> dict[str, float]:
    row = study.run(request).table("results").set_index("metric").loc[METRIC]
    return {name: float(row[name]) for name in ("estimate", "low", "high")}
