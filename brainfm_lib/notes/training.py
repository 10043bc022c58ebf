"""How encoders were trained: whether losses fell, arms are matched, and rates were tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from brainfm_lib.figures.style import title
from brainfm_lib.findings.matching import unmatched
from brainfm_lib.objectives import EVERY_ARM
from brainfm_lib.words import Words, listed

if TYPE_CHECKING:
    from brainfm_lib.runs import Run
    from brainfm_lib.study import Study


def heldout_note(metrics: Mapping[str, pd.DataFrame]) -> Words:
    """Whether each arm's held-out loss fell, and whether it was still falling at the end."""
    lines = []
    for arm, table in metrics.items():
        values = table["heldout"].dropna() if "heldout" in table else pd.Series(dtype=float)
        if len(values) >= 2:
            first, last, best = values.iloc[0], values.iloc[-1], values.min()
            moved = "fell" if last < first else "did not fall"
            end = "and is at its lowest at the end" if last <= best else f"and was lowest at {best:.3f} before the end"
            lines.append(f"{title(arm)} {moved} ({first:.3f} to {last:.3f}) {end}")
    note = "The first value is taken in the course of training, not before it."
    jepa = " A JEPA's target moves with its encoder: its loss can rise while it learns, and fall while it collapses."
    lejepa = " Two views are closest where LeJEPA collapses: SIGReg tells that, not this loss."
    for term, caveat in (("prediction", jepa), ("invariance", lejepa)):
        note += caveat if any(term in table for table in metrics.values()) else ""
    none = "No held-out loss was recorded twice, so nothing is said of its course."
    return Words(f"Held-out loss: {'; '.join(lines)}. {note}" if lines else none)


def live_note(live: Mapping[str, Run]) -> Words:
    """How far the short trainings of `brainfm_lib.findings.comparison.live_runs` came."""
    said = []
    for arm, run in live.items():
        table = run.table("metrics")
        heldout = table["heldout"].dropna()
        said.append(
            f"{title(arm)}, trained here: {table['volumes'].iloc[-1]:,.0f} volumes, "
            f"{run.provenance['volumes_per_second']:,.0f} a second, held-out loss {heldout.iloc[0]:.3f} to "
            f"{heldout.iloc[-1]:.3f}"
        )
    return Words(f"{'; '.join(said)}." if said else "Every encoder of this page was trained here: nothing is added.")


def matched_note(study: Study) -> Words:
    """Whether the arms differ in anything but their objective and a tuned learning rate."""
    differing = unmatched(study)
    if differing:
        return Words(f"**The arms are not matched**: they differ in {listed([f'`{n}`' for n in differing])}.")
    families = {EVERY_ARM[arm].family for arm in study.trained_arms}
    if len(study.trained_arms) < 2:
        return Words("No two arms are trained here that could be matched.")
    dearer = " FLOPs differ because a JEPA's target sees whole volumes." if families >= {"mae", "jepa"} else ""
    return Words(
        "Of all settings (data and their order, seed, masks, augmentation, steps, batch, optimiser and schedule, "
        f"encoder) the arms differ in their objective and the learning rate alone.{dearer}"
    )


def trials_note(trials: pd.DataFrame, arms: Sequence[str]) -> Words:
    """How the learning rates of `arms` were chosen, and whether each has the best of those tried."""
    untried = [title(arm) for arm in arms if (trials["arm"] == arm).sum() < 2]
    if untried or not arms:
        of = f" of {listed(untried)}" if 0 < len(untried) < len(arms) else ""
        return Words(
            f"Learning rates{of} were not tried here: `brainfm tune` pretrains every compared arm with the profile's "
            "`trial_lrs` and judges each on validation subjects; of another arm it prints what it finds."
        )
    best = trials[trials["validation"] >= trials.groupby("arm")["validation"].transform("max")]  # ties are all best
    worse = [title(arm) for arm in trials["arm"].unique() if not best[best["arm"] == arm]["chosen"].any()]
    counts = trials.groupby("arm")["lr"].count()
    same = "the same number" if counts.nunique() == 1 else "**not the same number**"
    said = "each arm has the best of them" if not worse else f"**{listed(worse)} could have a better one**"
    source = " These trials ship with the project; `brainfm tune` makes them anew." if trials["shipped"].any() else ""
    for profile in set(trials["profile"]) - {""}:
        source += f" They are of profile `{profile}`: of a longer or larger training another rate may be the best."
    ends = trials.groupby("arm")["lr"].agg(["min", "max"])
    inside = best["lr"].gt(best["arm"].map(ends["min"])) & best["lr"].lt(best["arm"].map(ends["max"]))
    edge = [title(str(arm)) for arm, within in inside.groupby(best["arm"], sort=False) if not within.any()]
    beyond = f" The best of {listed(edge)} is an outermost one: one beyond it may be better still." if edge else ""
    return Words(
        f"Each rate is judged by the linear probe's AUROC over validation subjects, averaged over tasks; of {same} of "
        f"rates tried for each arm, {said}. No test subject is looked at.{beyond}{source}"
    )
