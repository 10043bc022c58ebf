"""Whether arms can be compared at all: what they share, what each costs, and how its learning rate was chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pandas as pd

from brainfm_lib.config import LIVE, SHIPPED
from brainfm_lib.pretrain.compute import pretraining_cost
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
    for arm in study.trained_arms:
        config = study.profile.pretraining(arm, study.seed)
        cost = vars(pretraining_cost(config))
        rows.append({"arm": arm, **cost, "lr": config.optimiser.lr, "trials": int((trials["arm"] == arm).sum())})
    return pd.DataFrame(rows, columns=["arm", "volumes", "tokens_seen", "flops", "lr", "trials"])


def unmatched(study: Study) -> list[str]:
    """Settings in which the arms differ though they should not, by dotted name."""
    flat = [
        dict(_flatten(dataclasses.asdict(study.profile.pretraining(arm, study.seed)))) for arm in study.trained_arms
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
    found = found[found["arm"].isin(study.trained_arms)]
    used = {arm: study.profile.pretraining(arm, study.seed).optimiser.lr for arm in study.trained_arms}
    chosen = found["lr"] == found["arm"].map(used)
    found = found.rename(columns={"validation_auroc": "validation"})
    return found.assign(chosen=chosen, shipped=run.shipped, profile=tried)[columns]
