"""Whether arms can be compared at all: what they share, what each costs, and how its learning rate was chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from brainfm_lib.comparison import trained_arms
from brainfm_lib.compute import pretraining_cost
from brainfm_lib.config import LIVE, SHIPPED
from brainfm_lib.errors import InputError
from brainfm_lib.objectives import ARMS
from brainfm_lib.runs import RunConfig

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


def trials_config(study: Study) -> RunConfig:
    """What the learning-rate trials of all arms are made of; which rate each has in the end changes nothing."""
    found: dict[str, RunConfig] = {}
    for arm in ARMS:
        for rate in study.profile.trial_lrs:
            variant = study.variant(f"pretrain:{arm}", f"lr={rate:g}")
            for task in judging_tasks(study):
                found[f"probe:{arm}:{task}@lr={rate:g}"] = variant.config(f"probe:{arm}:{task}")
    return RunConfig("trials", {"rates": list(study.profile.trial_lrs)}, inputs=found, code=("brainfm_lib.matching",))


def make_trials(study: Study) -> Callable[[Path], dict[str, Any]]:
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


def judging_tasks(study: Study) -> list[str]:
    """Tasks with validation subjects of their own; under cross-validation those are tested too, and judge nothing."""
    return [task for task in study.tasks if "split" in study.task_table(task)]


def trial_table(study: Study) -> pd.DataFrame:
    """Validation AUROC of each arm under each learning rate of the profile, where `tune` tried them; nothing is made.

    Returns:
        arm, lr, validation (mean over tasks of the AUROC over validation subjects), chosen (whether the arm has it),
        shipped (whether the trials came with the project instead of being made here), profile (under which they were
        made, if not the study's own: at the length of those that ship no rates were tried).
    """
    columns = ["arm", "lr", "validation", "chosen", "shipped", "profile"]
    run, tried = study.optional("trials"), ""
    if run is None and study.profile_name == SHIPPED:
        run, tried = study.optional(f"trials@profile={LIVE}"), LIVE
    if run is None:
        return pd.DataFrame(columns=columns)
    found = run.table("trials").groupby(["arm", "lr"], sort=False)["validation_auroc"].mean().reset_index()
    found = found[found["arm"].isin(trained_arms(study))]
    used = {arm: study.profile.pretraining(arm, study.seed).optimiser.lr for arm in trained_arms(study)}
    chosen = found["lr"] == found["arm"].map(used)
    found = found.rename(columns={"validation_auroc": "validation"})
    return found.assign(chosen=chosen, shipped=run.shipped, profile=tried)[columns]


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
            values = {task: _validation(study, arm, rate, task) for task in tasks}
            listed = ", ".join(f"{task} {value:.3f}" for task, value in values.items())
            mean = sum(values.values()) / len(values)
            best[arm] = max(best.get(arm, (0.0, 0.0)), (mean, rate))
            yield f"{arm:<10} lr {rate:<8g} validation AUROC {mean:.3f}  ({listed})"
    yield f"arm_lr: {{{', '.join(f'{arm}: {rate:g}' for arm, (_, rate) in best.items())}}}"
    if set(best) == set(ARMS):
        yield f"run: {study.run('trials').id}"


def _validation(study: Study, arm: str, rate: float, task: str) -> float:
    """AUROC over validation subjects, mean over the draws of the split where there are several."""
    run = study.variant(f"pretrain:{arm}", f"lr={rate:g}").run(f"probe:{arm}:{task}")
    return float(run.table("chosen")["validation_auroc"].mean())
