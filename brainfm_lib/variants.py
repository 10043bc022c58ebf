"""The same study with one thing changed: seed, rate, weight, how far it was trained, or the profile."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

from brainfm_lib.errors import InputError
from brainfm_lib.verdict import AUXILIARY, REGULARISED

if TYPE_CHECKING:
    from brainfm_lib.study import Study

OF_ALL_ARMS = ("seed", "step", "profile")  # what does not concern one arm alone


def arm_of(request: str, change: str) -> str:
    """The arm that a change concerns; empty where it concerns all."""
    return "" if change.partition("=")[0] in OF_ALL_ARMS else request.split(":")[1]


def varied(study: Study, request: str, change: str) -> Study:
    """`study` under a change; `Study.variant` says which there are.

    Raises:
        InputError: There is no such change.
    """
    name, _, value = change.partition("=")
    if name == "profile":
        made_of: dict[str, Any] = {**study.made_of, "profile": value, "overrides": {}}
        return type(study)(**made_of, progress=study.progress)
    arm = arm_of(request, change)
    other = copy.copy(study)  # cohorts, splits and what leaks do not depend on it
    other._configs, other._variants, other.used, other._asked = {}, {}, {}, []
    other.travels = name == "seed" and study.travels
    try:
        if name == "seed":
            other.seed = int(value)
            other.made_of = {**study.made_of, "seed": other.seed}
        elif name == "step":
            other.after = int(value)
        elif name == "lr":
            other.profile = dataclasses.replace(study.profile, arm_lr={**study.profile.arm_lr, arm: float(value)})
        elif name in ("weight", "paired"):
            rate = study.profile.pretraining(REGULARISED.get(arm, arm), study.seed).optimiser.lr
            other.profile = dataclasses.replace(study.profile, arm_lr={**study.profile.arm_lr, arm: rate})
            if name == "weight":
                part = AUXILIARY[arm]
                weighted = dataclasses.replace(getattr(study.profile, part), weight=float(value))
                other.profile = dataclasses.replace(other.profile, **{part: weighted})
            else:
                other.seed = int(value)
        else:
            raise ValueError
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{change!r} changes nothing of {request}: write seed=1, lr=0.001, weight=0, paired=1, step=250 or "
            "profile=quick."
        ) from error
    return other
