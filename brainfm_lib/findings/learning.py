"""What is learned when: encoders in the middle of their training, judged like finished ones."""

from __future__ import annotations

import pandas as pd

from brainfm_lib.pretrain.checkpoint import snapshot_steps
from brainfm_lib.pretrain.snapshot import NothingKept
from brainfm_lib.runs import Run
from brainfm_lib.study import Study
from brainfm_lib.verdict import CONTROL, METRIC, RAW_VOXELS

UNTRAINED = (RAW_VOXELS, CONTROL)


def curve_tasks(study: Study) -> list[str]:
    """Tasks with test subjects of their own; a cross-validated one would cost hundreds of fits for each point."""
    return [task for task in study.tasks if "split" in study.task_table(task)]


def curve_requests(study: Study, arm: str, task: str) -> dict[int, str]:
    """Volumes seen -> the request of the probe of an encoder that had seen as many; the finished one last."""
    optimiser = study.profile.pretraining(arm, study.seed).optimiser
    requests = {step: f"probe:{arm}:{task}@step={step}" for step in snapshot_steps(optimiser.steps)}
    requests[optimiser.steps] = f"probe:{arm}:{task}"
    return {step * optimiser.batch_size: request for step, request in requests.items()}


def learning_table(study: Study, *, make: bool = True) -> pd.DataFrame:
    """AUROC of linear probes on test subjects against the volumes that an encoder had seen.

    What is missing is made for the tasks that are fine-tuned on, unless `make` forbids it; the others are there where
    somebody has made them.

    Returns:
        task, arm, volumes (0 for the controls, which see none), estimate, low, high.
    """
    rows = []
    for task in curve_tasks(study):
        ask = study.run if make and task in study.finetune_tasks else study.optional
        found = []
        for arm in study.trained_arms:
            for volumes, request in curve_requests(study, arm, task).items():
                try:
                    run = ask(request)
                except NothingKept:  # a run that ships has no models of the middle; it may have what they reached
                    continue
                if run is not None:
                    found.append({"task": task, "arm": arm, "volumes": volumes, **_reached(run)})
        if len({row["volumes"] for row in found}) > 1:  # the finished encoders alone are no curve
            controls = {arm: (study.run if make else study.optional)(f"probe:{arm}:{task}") for arm in UNTRAINED}
            for arm, run in controls.items():
                rows += [{"task": task, "arm": arm, "volumes": 0, **_reached(run)}] if run is not None else []
            rows += found
    return pd.DataFrame(rows, columns=["task", "arm", "volumes", "estimate", "low", "high"])


def _reached(run: Run) -> dict[str, float]:
    row = run.table("results").set_index("metric").loc[METRIC]
    return {name: float(row[name]) for name in ("estimate", "low", "high")}
