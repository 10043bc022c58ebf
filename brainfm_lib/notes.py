"""Sentences under the report's figures. Each is chosen by the numbers, so that none can turn false after a re-run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from brainfm_lib import causal, verdict
from brainfm_lib.comparison import PREDICTORS, came_along
from brainfm_lib.config import SHIPPED
from brainfm_lib.figures.style import title
from brainfm_lib.matching import unmatched
from brainfm_lib.structure import ordering, told_apart
from brainfm_lib.verdict import CNN, CONTROL, DECIDED, NUISANCE, RAW_VOXELS, REGULARISED, SHUFFLED, TRANSDUCTIVE
from brainfm_lib.words import Words

if TYPE_CHECKING:
    from brainfm_lib.runs import Run
    from brainfm_lib.study import Study

COLLAPSED = 0.02  # share of the width: fewer directions than this are called a collapse,
SHARE = 0.01  # and so is a smaller share of variance that is not the position's
LEVEL = "tokens, position removed"
THROUGH = {"position_mean": "the position mean", "interpolation": "the position mean with interpolation"}


def headline(results: pd.DataFrame, differences: pd.DataFrame) -> Words:
    """What beats what and what does not, a paragraph a protocol.

    Args:
        results: From `brainfm_lib.comparison.adjusted`.
        differences: From `brainfm_lib.comparison.paired_differences`.
    """
    table = pd.concat([results, differences], ignore_index=True) if len(differences) else results
    parts = [*verdict.verdicts(table).values(), verdict.rule(table)] if len(table) else ["Nothing was probed."]
    return Words("\n\n".join(parts))


def study_note(study: Study) -> Words:
    """What data this is: simulated or real, how much of it, under which profile and seed."""
    names = study.cohorts_in_use
    phantom = [name for name in names if study.manifest.cohorts[name].kind == "phantom"]
    real = [name for name in names if name not in phantom]
    parts = []
    if phantom:
        parts.append(
            f"**Phantom data.** The scans of {_list(phantom)} are simulated: anatomy bent from a template, made-up "
            "pathology. Results on them test the methods and say nothing about a disease."
        )
    if real:
        parts.append(f"**Real scans**: {_list([_cohort(study, name) for name in real])}.")
    if study.manifest.transductive:
        parts.append(TRANSDUCTIVE)
    if study.stamp:
        parts.append(f"Every figure says: **{study.stamp}**.")
    if study.profile_name == SHIPPED:
        seen = study.profile.volumes_seen
        read = "Read, not trained here" if came_along(study) else "Trained here as those that ship were"
        parts.append(
            f"**{read}**: encoders that have seen {seen:,} volumes each; `BRAINFM_PROFILE=quick` trains for minutes."
        )
    geometry = study.profile.geometry
    grid = " × ".join(map(str, geometry.grid))
    parts.append(
        f"Profile `{study.profile_name}`, seed {study.seed}; volumes of {grid} voxels of {geometry.spacing:g} mm."
    )
    return Words(" ".join(parts))


def skipped_note(study: Study) -> Words:
    """Tasks that cannot be run because their cohort is absent."""
    skipped = "; ".join(f"`{task}` ({why})" for task, why in study.manifest.skipped_tasks().items())
    whole = "Every task of the manifest has its data present."
    return Words(f"Left out, because their data are absent: {skipped}." if skipped else whole)


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
    return Words(f"Held-out loss: {'; '.join(lines)}. {note}" if lines else "No held-out loss was recorded.")


def live_note(live: Mapping[str, Run]) -> Words:
    """How far the short trainings of `brainfm_lib.comparison.live_runs` came."""
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


def error_note(errors: pd.DataFrame) -> Words:
    """Which arms beat which trivial predictor, by whether the paired interval excludes zero."""
    sentences = []
    for arm in dict.fromkeys(errors.loc[errors["baseline"] != "", "arm"]):
        rows = errors[(errors["arm"] == arm) & (errors["baseline"] != "")].set_index("baseline")
        better = [THROUGH[b] for b in PREDICTORS if rows.loc[b, "high"] < 0]
        worse = [THROUGH[b] for b in PREDICTORS if rows.loc[b, "low"] > 0]
        level = [THROUGH[b] for b in PREDICTORS if not rows.loc[b, "high"] < 0 and not rows.loc[b, "low"] > 0]
        said = [f"beats {_list(better)}"] if better else []
        said += [f"is worse than {_list(worse)}"] if worse else []
        said += [f"cannot be told from {_list(level)}"] if level else []
        name = f"{title(arm)}, through a linear read-out," if rows["readout"].any() else title(arm)
        sentences.append(f"{name} {' and '.join(said)}")
    if not sentences:
        return Words("No arm that is shown here predicts hidden voxels.")
    text = "; ".join(sentences) + ". (A paired 95 % interval over held-out subjects that excludes zero decides.)"
    if not (errors.loc[errors["baseline"] == PREDICTORS[-1], "high"] < 0).any():
        text += (
            f" No arm beats {THROUGH[PREDICTORS[-1]]}: where a probe finds no difference between encoders further on, "
            "they may simply not have been trained for long enough."
        )
    return Words(text)


def explained_note(explained: pd.DataFrame) -> Words:
    """How much of the hidden latents JEPA arms explain."""
    if explained.empty:
        return Words("No arm that is shown here predicts latents.")
    parts = [
        f"{title(r['arm'])} explains {100 * r['estimate']:.0f} % [{100 * r['low']:.0f}, {100 * r['high']:.0f}]"
        + (", no more than the position mean does" if r["low"] <= 0 else "")
        for _, r in explained.iterrows()
    ]
    return Words(
        f"Of what varies in hidden latents at a given position, {'; '.join(parts)}. Each is a share of the arm's own "
        "latents: a large share of latents that vary in few directions is worth little, so read it beside their rank."
    )


def resolution_note(table: pd.DataFrame) -> Words:
    """Down to which wavelength predictions are right, and what the spectral loss changed above its cut-off."""
    if table.empty:
        return Words("No arm that is shown here predicts voxels.")
    rows = table.set_index("arm")
    reach = [f"{title(arm)} {_wavelength(half)}" for arm, half in rows["half"].items()]
    text = f"Coherence stays above one half down to wavelengths of: {', '.join(reach)}."
    if {"mae", "sl-mae"} <= set(rows.index):
        plain, spectral = rows.loc["mae"], rows.loc["sl-mae"]
        power = "more" if spectral["power"] > plain["power"] else "no more"
        right = "higher" if spectral["coherence"] > plain["coherence"] else "no higher"
        joint = "and" if (power == "more") == (right == "higher") else "but"
        text += (
            f" Above the cut-off SL-MAE predicts {power} power than MAE ({100 * spectral['power']:.1f} % against "
            f"{100 * plain['power']:.1f} % of the target's) {joint} its coherence there is {right} "
            f"({spectral['coherence']:.3f} against {plain['coherence']:.3f})."
        )
    return Words(text)


def collapse_note(measures: Mapping[str, pd.DataFrame]) -> Words:
    """Whether any encoder's features, with positions removed, have collapsed into a few directions."""
    if not measures:
        return Words("No encoder that is shown here has latents to measure.")
    rows = {arm: table.set_index("level").loc[LEVEL] for arm, table in measures.items()}
    collapsed = [
        title(arm)
        for arm, row in rows.items()
        if row["rankme_centred"] < max(COLLAPSED * row["width"], 2) or row["variance_share"] < SHARE
    ]
    listed = "; ".join(
        f"{title(arm)} {row['rankme_centred']:.1f} of {row['width']:.0f} ({100 * row['variance_share']:.1f} %)"
        for arm, row in rows.items()
    )
    verdict = f"{_list(collapsed)} **collapsed**" if collapsed else "No encoder collapsed"
    text = (
        f"{verdict}. RankMe of the centred token features with positions removed (and the share of all token variance "
        f"that this leaves): {listed}."
    )
    for arm, plain in REGULARISED.items():
        if {arm, plain} <= set(rows) and arm == "vcr-jepa":
            more = "more" if rows[arm]["rankme_centred"] > rows[plain]["rankme_centred"] else "no more"
            text += f" {title(arm)} varies in {more} directions than {title(plain)}."
    return Words(
        f"{text} (A collapse is a RankMe below {100 * COLLAPSED:.0f} % of the width or below 2, or a share below "
        f"{100 * SHARE:.0f} %.)"
    )


def matched_note(study: Study) -> Words:
    """Whether the arms differ in anything but their objective and a tuned learning rate."""
    differing = unmatched(study)
    if differing:
        return Words(f"**The arms are not matched**: they differ in {_list([f'`{n}`' for n in differing])}.")
    return Words(
        "Of all settings (data and their order, seed, masks, augmentation, steps, batch, optimiser and schedule, "
        "encoder) the arms differ in their objective and the learning rate alone. FLOPs differ because a JEPA's target "
        "sees whole volumes."
    )


def cnn_note(study: Study) -> Words:
    """For how long the supervised network was trained, and what share of the dearest arm's FLOPs that is."""
    said = []
    for task in study.tasks:
        run = study.used.get(f"finetune:{CNN}:{task}")
        if run is not None:
            epochs, spent = run.provenance["epochs"], study.cnn_share(task, run.provenance["epochs"])
            said.append(f"{task} {epochs} epochs ({100 * spent:.0f} %)")
    if not said:
        return Words("The supervised network has not been trained here.")
    return Words(
        f"The supervised network was trained for: {', '.join(said)}; in brackets the share of what the dearest arm "
        "spends on pretraining and fine-tuning (100 % but for rounding, unless the profile's `cnn.epochs` caps it)."
    )


def trials_note(trials: pd.DataFrame, arms: Sequence[str]) -> Words:
    """How the learning rates of `arms` were chosen, and whether each has the best of those tried."""
    if any((trials["arm"] == arm).sum() < 2 for arm in arms) or not arms:
        return Words(
            "Learning rates were not tried here: `brainfm tune` pretrains every compared arm with the profile's "
            "`trial_lrs` and judges each on validation subjects; of another arm it prints what it finds."
        )
    best = trials.sort_values("validation").groupby("arm").tail(1)
    worse = [title(arm) for arm in trials["arm"].unique() if not best[best["arm"] == arm]["chosen"].any()]
    counts = trials.groupby("arm")["lr"].count()
    same = "the same number" if counts.nunique() == 1 else "**not the same number**"
    said = "each arm has the best of them" if not worse else f"**{_list(worse)} could have a better one**"
    source = " These trials ship with the project; `brainfm tune` makes them anew." if trials["shipped"].any() else ""
    for profile in set(trials["profile"]) - {""}:
        source += f" They are of profile `{profile}`: of a longer or larger training another rate may be the best."
    ends = trials.groupby("arm")["lr"].agg(["min", "max"]).stack().reset_index(name="lr")[["arm", "lr"]]
    edge = [title(arm) for arm in best.merge(ends)["arm"].unique()]
    beyond = f" The best of {_list(edge)} is an outermost one: one beyond it may be better still." if edge else ""
    return Words(
        f"Each rate is judged by the linear probe's AUROC over validation subjects, averaged over tasks; of {same} of "
        f"rates tried for each arm, {said}. No test subject is looked at.{beyond}{source}"
    )


def delong_note(differences: pd.DataFrame) -> Words:
    """Whether DeLong's test says what the bootstrap says."""
    both = differences.dropna(subset=["p", "p_delong"])
    if both.empty:
        return Words(
            "DeLong's test applies to none of these (it needs one test set, and twelve subjects of two classes)."
        )
    other = ((both["p"] < DECIDED) != (both["p_delong"] < DECIDED)).sum()
    apart = (both["p"] - both["p_delong"]).abs().max()
    return Words(
        f"DeLong's test of the same differences (where one test set has twelve subjects of two classes: {len(both)} of "
        f"{len(differences)}) is at most {apart:.3f} away in p and decides {other} of them otherwise (unadjusted, "
        f"{DECIDED})."
    )


def chance_note(results: pd.DataFrame) -> Words:
    """Which rows are above chance after Holm's adjustment, of how many."""
    if results.empty:
        return Words("Nothing was probed.")
    results = results[~results["arm"].isin([NUISANCE, SHUFFLED])]
    sure = results[results["p_holm"] < 0.05]
    listed = "; ".join(f"{title(arm)} on {_list(list(rows['task']))}" for arm, rows in sure.groupby("arm", sort=False))
    said = f"{len(sure)} of {len(results)} rows" if len(sure) else f"None of the {len(results)} rows"
    rule = "permutation of subjects' labels, Holm over all rows, 0.05"
    verb = "is" if len(sure) < 2 else "are"
    return Words(f"{said} {verb} above chance ({rule}){': ' + listed if len(sure) else ''}.")


def earned_note(differences: pd.DataFrame, protocol: str = "linear") -> Words:
    """On which tasks an arm beats both the untrained encoder and raw voxels, after Holm's adjustment.

    Args:
        differences: From `brainfm_lib.comparison.paired_differences`.
        protocol: Whose rows are looked at.
    """
    rows = differences[(differences["protocol"] == protocol) & differences["baseline"].isin([CONTROL, RAW_VOXELS])]
    won = rows[(rows["estimate"] > 0) & (rows["p_holm"] < DECIDED)].groupby(["arm", "task"], sort=False).size()
    both = won[won == 2].reset_index()
    if rows.empty:
        return Words("Nothing was compared with the controls.")
    if both.empty:
        return Words("No arm beats both the untrained encoder and raw voxels, on any task.")
    said = [f"{title(arm)} on {_list(list(found['task']))}" for arm, found in both.groupby("arm", sort=False)]
    return Words(f"Both the untrained encoder and raw voxels are beaten by {_list(said)}.")


def causal_note(study: Study, test: Run | None) -> Words:
    """What came out of the causal test, or what has to be run before it can be said.

    Args:
        study: On the dials.
        test: From `brainfm_lib.causal.latest`.
    """
    if test is None:
        command = f"`brainfm causal --profile {study.profile_name} --seeds {causal.FEWEST}`"
        return Words(f"**Not run yet**: {command} makes what is missing, and this page reads it.")
    slopes, parts = test.table("slopes"), primary_verdicts(test)
    for _, r in slopes[~slopes["primary"]].iterrows():
        ends = f"{r['estimate']:+.2f} [{r['low']:+.2f}, {r['high']:+.2f}]"
        within = r["low"] <= 0 <= r["high"]
        flat = "which cannot be told from 0" if within else "which is not 0: something else is at work"
        parts.append(f"- Crossed control, {title(r['arm'])} along `{r['dial']}`: {ends}, {flat}.")
    for _, r in test.table("twins").iterrows():
        said = "equals it to the last bit" if r["equal"] else "**differs from it: this comparison is not clean**"
        parts.append(f"- {title(r['arm'])} with the weight 0 and its plain arm: the encoder {said}.")
    parts += [f"- {said}" for said in levels_said(test)]
    tested = (study.task_table(causal.DIALS["frequency"].settings[0])["split"] == "test").sum()
    return Words("\n".join(parts) + f"\n\n{causal_units(test)} Every setting is tested on {tested} subjects.")


def levels_said(test: Run) -> Iterator[str]:
    """What slopes do not say: whether gains are gains at all, how large, and where arms stand beside the controls."""
    gains, levels = test.table("gains"), test.table("levels")
    for (dial, arm, baseline), rows in gains.groupby(["dial", "arm", "baseline"], sort=False):
        if causal.DIALS[dial].arm == arm:
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
    slopes, parts = test.table("slopes"), []
    for _, r in slopes[slopes["primary"]].iterrows():
        gain = f"the gain of {title(r['arm'])} over {title(r['baseline'])} along `{r['dial']}`"
        ends = f"{r['estimate']:+.2f} [{r['low']:+.2f}, {r['high']:+.2f}]"
        if r["verdict"] == "open":
            said = f"**open**: {gain} changes by {ends} over the dial, {causal.why_open(r)}"
        else:
            said = f"**{r['verdict']}**: {gain} changes by {ends} over the dial (adjusted p {r['p_holm']:.3f})"
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
        measured: From `brainfm_lib.structure.measured_dials`.
    """
    if measured.empty:
        return Words("No setting has been looked into yet.")
    names = {"frequency": "reliance on high frequencies", "dimension": "discriminative dimension"}
    said = [f"{names[dial]} and dial: {rho:.2f}" for dial, rho in ordering(measured).items()]
    ends = [
        f"the measured {names[dial]} runs from {rows['estimate'].min():.2g} to {rows['estimate'].max():.2g} where the "
        f"dial goes from {rows['value'].min():g} to {rows['value'].max():g}"
        + ("" if told_apart(rows) else ", and the intervals at its two ends overlap")
        for dial, rows in measured.groupby("dial", sort=False)
    ]
    return Words(f"Spearman's correlation of {'; of '.join(said)}. That is about order alone: {'; '.join(ends)}.")


def _wavelength(frequency: float) -> str:
    return f"{1 / frequency:.0f} mm" if frequency > 0 else "(at no scale)"


def _cohort(study: Study, name: str) -> str:
    scans, (more, others) = study.cohort(name).scans, study.cohort(name).beyond
    taken = (
        f"{n} of {n + left}" if left else n for n, left in ((scans["subject_id"].nunique(), others), (len(scans), more))
    )
    return "{} ({} subjects, {} scans{})".format(name, *taken, ": the profile takes no more" if more else "")


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
