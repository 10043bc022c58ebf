"""Whether arms can be compared at all: what they share, what each costs, and how its learning rate was chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd

from brainfm_lib.comparison import trained_arms
from brainfm_lib.compute import pretraining_cost
from brainfm_lib.errors import InputError

if TYPE_CHECKING:
    from brainfm_lib.study import Study

OWN = ("objective", "optimiser.lr")  # what an arm has of its own, and what is tuned for each


def matched_table(study: Study, trials: pd.DataFrame) -> pd.DataFrame:
    """What each arm's pretraining takes.

    Args:
        study: Whose arms.
        trials: From `trial_table`.

    Returns:
        arm, volumes, tokens_seen, flops, lr, trials (rates whose probes are on file).
    """
    rows = []
    for arm in trained_arms(study):
        config = study.profile.pretraining(arm, study.seed)
        cost = vars(pretraining_cost(config))
        rows.append({"arm": arm, **cost, "lr": config.optimiser.lr, "trials": int((trials["arm"] == arm).sum())})
    return pd.DataFrame(rows, columns=["arm", "volumes", "tokens_seen", "flops", "lr", "trials"])


def unmatched(study: Study) -> list[str]:
    """Settings in which the arms differ though they should not, by dotted name."""
    flat = [
        dict(_flatten(dataclasses.asdict(study.profile.pretraining(arm, study.seed)))) for arm in trained_arms(study)
    ]
    names = sorted({name for one in flat for name in one})
    differing = [name for name in names if len({repr(one.get(name)) for one in flat}) > 1]
    return [name for name in differing if not name.startswith(OWN)]


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def trial_requests(study: Study, arm: str, rate: float) -> list[str]:
    """The probes that judge a learning rate of an arm: one for each task with validation subjects."""
    change = "" if study.profile.pretraining(arm, study.seed).optimiser.lr == rate else f"@lr={rate:g}"
    return [f"probe:{arm}:{task}{change}" for task in judging_tasks(study)]


def judging_tasks(study: Study) -> list[str]:
    """Tasks with validation subjects of their own; under cross-validation those are tested too, and judge nothing."""
    return [task for task in study.tasks if "split" in study.task_table(task)]


def trial_table(study: Study) -> pd.DataFrame:
    """Validation AUROC of each arm under each learning rate of the profile that has been tried; nothing is made now.

    Returns:
        arm, lr, validation (mean over tasks of the AUROC over validation subjects), chosen (whether the arm has it).
    """
    rows = []
    for arm in trained_arms(study):
        used = study.profile.pretraining(arm, study.seed).optimiser.lr
        for rate in study.profile.trial_lrs:
            runs = [study.optional(request) for request in trial_requests(study, arm, rate)]
            values = [float(run.table("chosen")["validation_auroc"].mean()) for run in runs if run is not None]
            if runs and len(values) == len(runs):
                mean = sum(values) / len(values)
                rows.append({"arm": arm, "lr": rate, "validation": mean, "chosen": rate == used})
    return pd.DataFrame(rows, columns=["arm", "lr", "validation", "chosen"])


def tune(study: Study) -> Iterator[str]:
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
    for arm in trained_arms(study):
        for rate in study.profile.trial_lrs:
            variant = study.variant(f"pretrain:{arm}", f"lr={rate:g}")
            runs = [variant.run(f"probe:{arm}:{task}") for task in tasks]
            values = [float(run.table("chosen")["validation_auroc"].mean()) for run in runs]
            mean = sum(values) / len(values)
            best[arm] = max(best.get(arm, (0.0, 0.0)), (mean, rate))
            listed = ", ".join(f"{task} {value:.3f}" for task, value in zip(tasks, values, strict=True))
            yield f"{arm:<10} lr {rate:<8g} validation AUROC {mean:.3f}  ({listed})"
    yield f"arm_lr: {{{', '.join(f'{arm}: {rate:g}' for arm, (_, rate) in best.items())}}}"
