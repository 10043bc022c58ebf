"""Advice for a user's own task: its structure, placed on the gains that the causal test measured along its dials.

The gains come from phantoms, where one property is turned and nothing else; a disease differs in more. So the advice
says what was measured where, how far seeds and the task's own structure leave it open, and when there is no basis.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import t

from brainfm_lib.errors import InputError
from brainfm_lib.study.causal import LEVEL, latest, measured
from brainfm_lib.study.dials import DIALS, MEASURES, told_apart
from brainfm_lib.study.structure import structure_rows
from brainfm_lib.verdict import RAW_VOXELS, REGULARISED

if TYPE_CHECKING:
    from brainfm_lib.study import Study

CHANCE = 0.5
NO_BASIS = "no basis for advice"


@dataclass(frozen=True)
class Advice:
    """What is expected of one auxiliary objective on one task.

    Attributes:
        arm: Which.
        measure: What of the task was measured.
        value, value_low, value_high: Of that measure.
        gain, low, high: Expected gain in the oracle's d', and its interval; NaN where there is no basis.
        said: The advice, in a sentence.
    """

    arm: str
    measure: str
    value: float
    value_low: float
    value_high: float
    gain: float
    low: float
    high: float
    said: str


def advise(study: Study, task: str, dials: Study) -> list[Advice]:
    """What the measured gains say of each auxiliary objective for a task.

    Args:
        study: The user's; `bands` of the task's scans is made where it is missing.
        task: One of its tasks.
        dials: On the manifest of the dials, same profile; its causal test is read.

    Raises:
        InputError: No such task, or nobody has made the test.
    """
    study.task_table(task)  # says which tasks there are
    row = structure_rows({task: study.run(f"bands:{RAW_VOXELS}:{task}")}).iloc[0]
    test = latest(dials)
    if test is None:
        raise InputError(
            f"There is no finished causal test of profile {dials.profile_name}: `brainfm causal --profile "
            f"{dials.profile_name}` makes it."
        )
    return [_of_dial(name, row, test.table("gains"), measured(dials, test)) for name in DIALS]


def report(study: Study, task: str, dials: Study) -> Iterator[str]:
    """`advise` in lines."""
    for one in advise(study, task, dials):
        value = f"{one.value:.2f} [{one.value_low:.2f}, {one.value_high:.2f}]"
        yield f"{one.measure}: {value}"
        yield f"  {one.said}."
    yield (
        "Gains were measured on phantoms, in which one property of the signal is turned and nothing else; they are in "
        "the d' of a probe that knows the latents."
    )


def _of_dial(name: str, row: pd.Series, gains: pd.DataFrame, settings: pd.DataFrame) -> Advice:
    arm, measure = DIALS[name].arm, MEASURES[name]
    what = {"reliance": "high-frequency reliance", "dimension": "discriminative dimension"}[measure]
    place = float(row[measure]), float(row[f"{measure}_low"]), float(row[f"{measure}_high"])
    pair = f"{arm} over {REGULARISED[arm]}"

    def none(why: str) -> Advice:
        nan = float("nan")
        return Advice(arm, what, *place, nan, nan, nan, f"{pair}: {NO_BASIS}: {why}")

    here = settings[settings["dial"] == name]
    part = gains[(gains["dial"] == name) & (gains["arm"] == arm)]
    if row["auroc_low"] <= CHANCE:
        return none("a linear reading of whole scans is not above chance, so where the label lies cannot be said")
    if not np.isfinite(place).all():
        return none(f"the {what} cannot be told from so few subjects")
    if set(here.get("by", [""])) != {row[f"{measure}_by"]}:
        return none("the settings of the dial were measured in another way than this task: measure them anew")
    if not np.isfinite(here["estimate"]).all():
        return none("not every setting of the dial could be measured")
    if not told_apart(here):
        return none("what is measured of the settings does not tell the two ends of the dial apart")
    reach = float(here["estimate"].min()), float(here["estimate"].max())
    if place[0] < reach[0] or place[0] > reach[1]:
        return none(f"the dial covers {reach[0]:.2f} to {reach[1]:.2f}, and this task lies outside")
    gain, low, high = _predicted(name, place, part, here)
    if low > 0:
        said = f"expect {pair} to gain {gain:.2f} [{low:.2f}, {high:.2f}]: pretrain with it"
    elif high < 0:
        said = f"expect {pair} to lose {-gain:.2f} [{-high:.2f}, {-low:.2f}]: leave it out"
    else:
        said = f"{pair}: {gain:+.2f} [{low:+.2f}, {high:+.2f}], which may as well be nothing: choose by cost"
    return Advice(arm, what, *place, gain, low, high, said)


def _predicted(
    name: str, place: tuple[float, float, float], part: pd.DataFrame, here: pd.DataFrame
) -> tuple[float, float, float]:
    """Gain at a task's place and its interval: a line a seed over what was measured of the settings.

    The t-interval over seeds is widened to the ends of the task's own interval, as far as the dial reaches.
    """
    scale = np.log if name == "dimension" else np.asarray
    wide = part.pivot(index="setting", columns="seed", values="gain")
    x = scale(here.set_index("setting")["estimate"].reindex(wide.index).to_numpy())
    slopes, starts = np.polyfit(x, wide.to_numpy(), 1)
    inside = np.clip(scale(np.asarray(place)), x.min(), x.max())
    found = starts[:, None] + slopes[:, None] * inside
    spread = t.isf((1 - LEVEL) / 2, len(found) - 1) * found.std(0, ddof=1) / np.sqrt(len(found))
    means = found.mean(0)
    return float(means[0]), float((means - spread).min()), float((means + spread).max())
