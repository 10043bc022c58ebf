"""What came out of the causal test, and whether its dials turn what they say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pandas as pd

from brainfm_lib.figures.style import title
from brainfm_lib.study import causal, dials
from brainfm_lib.study.dials import ordering
from brainfm_lib.verdict import CONTROL, RAW_VOXELS
from brainfm_lib.words import Words

if TYPE_CHECKING:
    from brainfm_lib.runs import Run
    from brainfm_lib.study import Study


def causal_note(study: Study, test: Run | None) -> Words:
    """What came out of the causal test, or what has to be run before it can be said.

    Args:
        study: On the dials.
        test: From `brainfm_lib.study.causal.latest`.
    """
    if test is None:
        command = f"`brainfm causal --profile {study.profile_name} --seeds {causal.FEWEST}`"
        return Words(f"**Not run yet**: {command} makes what is missing, and this page reads it.")
    slopes, parts = causal.table(test, "slopes"), primary_verdicts(test)
    for _, r in slopes[~slopes["primary"]].iterrows():
        ends = f"{r['estimate']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}]"
        within = r["low"] <= 0 <= r["high"]
        told = f"which is told from 0, unadjusted (p {r['p']:.3f}): if it is not chance, something else is at work"
        flat = "which cannot be told from 0" if within else told
        parts.append(f"- Crossed control, {title(r['arm'])} along `{r['dial']}`: {ends}, {flat}.")
    for _, r in test.table("twins").iterrows():
        said = "equals it to the last bit" if r["equal"] else "**differs from it: this comparison is not clean**"
        parts.append(f"- {title(r['arm'])} with the weight 0 and its plain arm: the encoder {said}.")
    parts += [f"- {said}" for said in levels_said(test)]
    return Words("\n".join(parts) + f"\n\n{causal_units(test)} {_tested(study)}{_looks_before(study, test)}")


def _looks_before(study: Study, test: Run) -> str:
    """What tests with fewer seeds had said; empty where there are none."""
    said, seeds = [], causal.table(test, "slopes")["seeds"].iloc[0]
    for run in causal.finished(study):
        slopes = causal.table(run, "slopes")
        if slopes["seeds"].iloc[0] >= seeds:
            continue
        each = (
            f"{title(r['arm'])} along `{r['dial']}` {r['estimate']:+.2f} [{r['low']:+.2f}, {r['high']:+.2f}], "
            f"{r['verdict']}"
            for _, r in slopes[slopes["primary"]].iterrows()
        )
        whose = (
            "of the first of these seeds" if _same_encoders(run, test) else "of encoders that other code had trained"
        )
        made = f"{slopes['seeds'].iloc[0]} seeds ({run.provenance['finished'][:10]}, {whose})"
        said.append(f"with {made}, {' and '.join(each)}")
    if not said:
        return ""
    return (
        f" The same test was also made with fewer seeds: {'; '.join(said)}. Whoever looks more than once finds a "
        "difference somewhat more often than the p of the last look says."
    )


def _same_encoders(fewer: Run, more: Run) -> bool:
    """Whether all that a test of fewer seeds was made from is among what the other was made from."""
    return fewer.provenance["inputs"].items() <= more.provenance["inputs"].items()


def _tested(study: Study) -> str:
    """On how many subjects each setting is tested: all of them where it is cross-validated."""
    counts = set()
    for dial in dials.DIALS.values():
        for table in map(study.task_table, dial.settings):
            held = table[table["split"] == "test"] if "split" in table else table
            counts.add(held["subject_id"].nunique())
    many = f"{min(counts):,}" if len(counts) == 1 else f"{min(counts):,} to {max(counts):,}"
    return f"Every setting is tested on {many} subjects."


def levels_said(test: Run) -> Iterator[str]:
    """What slopes do not say: whether gains are gains at all, how large, and where arms stand beside the controls."""
    gains, levels = test.table("gains"), test.table("levels")
    for (dial, arm, baseline), rows in gains.groupby(["dial", "arm", "baseline"], sort=False):
        if dials.DIALS[dial].arm == arm:
            below = int((rows["gain"] < 0).sum())
            yield (
                f"Whatever its slope, the gain of {title(arm)} over {title(baseline)} along `{dial}` is "
                f"{rows['gain'].mean():+.2f} on average, and below 0 in {below} of {len(rows)} settings and seeds; it "
                f"lies between {rows['gain'].min():+.2f} and {rows['gain'].max():+.2f}."
            )
    wide = levels.pivot_table(index=["dial", "value"], columns="arm", values="auroc")
    for control in (RAW_VOXELS, CONTROL):
        arms = [arm for arm in causal.PAIRED if {arm, control} <= set(wide)]
        said = [f"{title(arm)} {(wide[arm] < wide[control]).sum()}" for arm in arms]
        if said:
            where = f"Settings, of {len(wide)}, in which the AUROC is below that of"
            yield f"{where} {'the untrained encoder' if control == CONTROL else title(control)}: {', '.join(said)}."


def primary_verdicts(test: Run) -> list[str]:
    """A line for each primary hypothesis of a causal test: its verdict, with the slope and its interval."""
    slopes, measured, parts = causal.table(test, "slopes"), causal.table(test, "measured"), []
    for _, r in slopes[slopes["primary"]].iterrows():
        gain = f"the gain of {title(r['arm'])} over {title(r['baseline'])} along `{r['dial']}`"
        ends = f"{r['estimate']:+.2f} [{r['low']:+.2f}, {r['high']:+.2f}]"
        if r["verdict"] == "open":
            said = f"**open**: {gain} changes by {ends} over the dial, {causal.why_open(r)}"
        else:
            said = f"**{r['verdict']}**: {gain} changes by {ends} over the dial (adjusted p {r['p_holm']:.3f})"
        rows = measured[measured["dial"] == r["dial"]] if len(measured) else measured
        if len(rows) and not dials.told_apart(rows):
            said += "; what is measured on its images does not tell the two ends of this dial apart"
        parts.append(f"- {said}.")
    return parts


def causal_units(test: Run) -> str:
    """What the numbers of a causal test are in, and where it was made."""
    units = "Slopes are over the whole dial, in units of the d′ of a probe that is given the latents; phantom results."
    if not test.shipped:
        return units
    made = test.provenance
    shipped = f"made on {made['finished'][:10]} by version {made['versions']['brainfm_lib']}"
    if made.get("commit"):
        shipped += f", commit `{made['commit'][:10]}`"
    return f"{units} Shipped with the report: {shipped}."


def ordering_note(measured: pd.DataFrame) -> Words:
    """Whether what is measured follows the dials.

    Args:
        measured: From `brainfm_lib.study.dials.measured_dials`.
    """
    if measured.empty:
        return Words("No setting has been looked into yet.")
    names = {"frequency": "reliance on high frequencies", "dimension": "discriminative dimension"}
    said = [f"{names[dial]} and dial: {rho:.2f}" for dial, rho in ordering(measured).items()]
    ends = [f"the measured {names[str(d)]} {_ends(rows)}" for d, rows in measured.groupby("dial", sort=False)]
    return Words(f"Spearman's correlation of {'; of '.join(said)}. That is about order alone: {'; '.join(ends)}.")


def _short(value: float) -> str:
    """Two digits, and no power of ten."""
    return f"{value:.2g}" if abs(value) < 99.5 else f"{value:,.0f}"


def _ends(rows: pd.DataFrame) -> str:
    """What is measured at the first and the last setting of a dial, and whether their intervals lie apart."""
    rows = rows.sort_values("value")
    first, last = rows.iloc[0], rows.iloc[-1]
    turned = f"where the dial goes from {first['value']:g} to {last['value']:g}"
    if rows.iloc[[0, -1]][["estimate", "low", "high"]].isna().any(axis=None):
        return f"is not told at both ends, {turned}"
    moved = "does not change" if first["estimate"] == last["estimate"] else "goes"
    if moved == "goes":
        moved = f"goes from {_short(first['estimate'])} to {_short(last['estimate'])}"
    apart = first["high"] < last["low"] or last["high"] < first["low"]
    return f"{moved} {turned}{'' if apart else ', and the intervals at its two ends overlap'}"
