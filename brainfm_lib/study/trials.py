"""Learning rates tried for each arm, and judged on validation subjects alone: made from many runs of the study."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from brainfm_lib.errors import InputError
from brainfm_lib.objectives import ARMS
from brainfm_lib.runs import RunConfig
from brainfm_lib.study.tasks import TaskKinds


def trials_config(study: TaskKinds) -> RunConfig:
    """What the learning-rate trials of all arms are made of; which rate each has in the end changes nothing."""
    found: dict[str, RunConfig] = {}
    for arm in ARMS:
        for rate in study.profile.trial_lrs:
            variant = study.variant(f"pretrain:{arm}", f"lr={rate:g}")
            for task in judging_tasks(study):
                found[f"probe:{arm}:{task}@lr={rate:g}"] = variant.config(f"probe:{arm}:{task}")
    return RunConfig(
        "trials", {"rates": list(study.profile.trial_lrs)}, inputs=found, code=("brainfm_lib.study.trials",)
    )


def make_trials(study: TaskKinds) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls: ``trials.parquet`` with arm, lr, task, validation_auroc; small enough to ship."""

    def make(folder: Path) -> dict[str, Any]:
        rows = [
            {"arm": arm, "lr": rate, "task": task, "validation_auroc": _validation(study, arm, rate, task)}
            for arm in ARMS
            for rate in study.profile.trial_lrs
            for task in judging_tasks(study)
        ]
        pd.DataFrame(rows).to_parquet(folder / "trials.parquet", index=False)
        return {}

    return make


def judging_tasks(study: TaskKinds) -> list[str]:
    """Tasks with validation subjects of their own; under cross-validation those are tested too, and judge nothing."""
    return [task for task in study.tasks if "split" in study.task_table(task)]


def tune(study: TaskKinds) -> Iterator[str]:
    """Pretrain every arm with every learning rate of the profile, probe, and say which is best on validation subjects.

    Yields:
        A line a trial, then the profile's `arm_lr` as it should be.

    Raises:
        InputError: No task has validation subjects.
    """
    tasks = judging_tasks(study)
    if not tasks:
        raise InputError("No task has validation subjects of its own to choose a learning rate on: all are small.")
    best: dict[str, tuple[float, float]] = {}
    for arm in study.trained_arms:
        for rate in study.profile.trial_lrs:
            values = {task: _validation(study, arm, rate, task) for task in tasks}
            listed = ", ".join(f"{task} {value:.3f}" for task, value in values.items())
            mean = sum(values.values()) / len(values)
            best[arm] = max(best.get(arm, (0.0, 0.0)), (mean, rate))
            yield f"{arm:<10} lr {rate:<8g} validation AUROC {mean:.3f}  ({listed})"
    yield f"arm_lr: {{{', '.join(f'{arm}: {rate:g}' for arm, (_, rate) in best.items())}}}"
    if set(best) == set(ARMS):
        yield f"run: {study.run('trials').id}"


def _validation(study: TaskKinds, arm: str, rate: float, task: str) -> float:
    """AUROC over validation subjects, mean over the draws of the split where there are several."""
    run = study.variant(f"pretrain:{arm}", f"lr={rate:g}").run(f"probe:{arm}:{task}")
    return float(run.table("chosen")["validation_auroc"].mean())
