"""What a study's runs say when arms are held against each other: paired, with intervals over subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from brainfm_lib import stats
from brainfm_lib.analysis.covariance import debiased_cka
from brainfm_lib.config import LIVE
from brainfm_lib.errors import InputError
from brainfm_lib.runs import Run
from brainfm_lib.study import Study
from brainfm_lib.verdict import CNN, CONTROL, CONTROLS, KINDS, METRIC, NUISANCE, RAW_VOXELS, REGULARISED, SHUFFLED

PREDICTORS = ("position_mean", "interpolation")
CUTOFF = "spectral loss from here"
GRADIENT = ("attentive", "finetune")  # kinds that need a fold of their own to choose the epoch on
HALF = 0.5  # coherence; and chance, as an AUROC


def came_along(study: Study) -> bool:
    """Whether the encoders of all its arms are there, and came with the project."""
    runs = [study.optional(f"pretrain:{arm}") for arm in study.trained_arms]
    return bool(runs) and all(run is not None and run.shipped for run in runs)


def live_runs(study: Study, runs: Mapping[str, Run]) -> dict[str, Run]:
    """Of the first arm whose `runs` came with the project, a short training here and now; empty where none did."""
    arm = next((arm for arm, run in runs.items() if run.shipped), None)
    return {arm: study.run(f"pretrain:{arm}@profile={LIVE}")} if arm else {}


def error_table(errors: Mapping[str, pd.DataFrame], *, draws: int = 2000) -> pd.DataFrame:
    """Error on hidden brain voxels of arms and trivial predictors, and each arm's paired difference from those.

    Args:
        errors: Arm -> a row a scan with subject_id, model, position_mean, interpolation (mean squared error,
            z-scored units); JEPA arms also have latent, because their voxels come from a linear read-out.
        draws: Bootstrap resamples.

    Returns:
        arm, baseline (empty for the error itself), estimate, low, high, p, readout.
    """
    rows = []
    if errors:
        first = next(iter(errors.values()))  # trivial predictors see the same scans and masks in every run
        rows = [_mean(first[name], first, arm=name, baseline="", readout=False, draws=draws) for name in PREDICTORS]
    for arm, table in errors.items():
        common: dict[str, Any] = {"arm": arm, "readout": "latent" in table, "draws": draws}
        rows.append(_mean(table["model"], table, baseline="", **common))
        rows += [_mean(table["model"] - table[name], table, baseline=name, **common) for name in PREDICTORS]
    return pd.DataFrame(rows, columns=["arm", "baseline", "estimate", "low", "high", "p", "readout"])


def explained_table(errors: Mapping[str, pd.DataFrame], *, draws: int = 2000) -> pd.DataFrame:
    """Share of hidden latents that JEPA arms predict beyond the per-position mean latent, averaged over scans.

    Args:
        errors: As in `error_table`; arms without the columns latent and latent_position_mean are left out.
        draws: Bootstrap resamples.

    Returns:
        arm, estimate, low, high, p.
    """
    rows = [
        _mean(1 - table["latent"] / table["latent_position_mean"], table, arm=arm, draws=draws)
        for arm, table in errors.items()
        if "latent" in table
    ]
    return pd.DataFrame(rows, columns=["arm", "estimate", "low", "high", "p"])


def _mean(values: pd.Series, table: pd.DataFrame, *, draws: int, **names: Any) -> dict[str, Any]:
    found = stats.paired_mean_interval(values, np.zeros(len(values)), table["subject_id"], draws=draws)
    return {**names, "estimate": found.estimate, "low": found.low, "high": found.high, "p": found.p}


def resolution_table(spectra: Mapping[str, pd.DataFrame], cutoff: float) -> pd.DataFrame:
    """How far up in frequency predictions are right, and what they hold above the spectral loss's cut-off.

    Args:
        spectra: Arm -> table with frequency, power_target, power_prediction, coherence_prediction, noise_floor.
        cutoff: Frequency (cycles/mm) from which the spectral loss counts.

    Returns:
        arm, half and floor (cycles/mm: below it every shell's coherence is above one half, or above the noise floor;
        0 where not even the lowest is), power (share of the target's power above the cut-off), coherence (mean over
        the shells above it).
    """
    rows = []
    for arm, table in spectra.items():
        coherence, above = table["coherence_prediction"], table["frequency"] >= cutoff
        rows.append(
            {
                "arm": arm,
                "half": _reach(table["frequency"], coherence > HALF),
                "floor": _reach(table["frequency"], coherence > table["noise_floor"]),
                "power": table.loc[above, "power_prediction"].sum() / table.loc[above, "power_target"].sum(),
                "coherence": coherence[above].mean(),
            }
        )
    return pd.DataFrame(rows, columns=["arm", "half", "floor", "power", "coherence"])


def _reach(frequency: pd.Series, good: pd.Series) -> float:
    """Highest frequency up to which all is good; the shell at frequency 0 does not count."""
    shells = frequency > 0
    unbroken = good[shells].cummin()
    return float(frequency[shells][unbroken].max()) if unbroken.any() else 0.0


def one_scan(reconstructions: Mapping[str, Run], number: int = 0) -> dict[str, np.ndarray]:
    """A pictured held-out scan as "target" and as each arm predicts it, every voxel while hidden: (D, H, W), z-scored.

    Args:
        reconstructions: Arm -> run, all of the same scans.
        number: Which of the pictured scans.
    """
    found: dict[str, np.ndarray] = {}
    for arm, run in reconstructions.items():
        found.setdefault("target", run.array("examples")[number, 0])
        found[arm] = run.array("predictions")[number]
    return found


FEWEST_FOR_CKA = 4


def similarity_table(pooled: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Debiased CKA of every two encoders' pooled features (n, E) of the same scans, by arm; empty below four."""
    if any(len(features) < FEWEST_FOR_CKA for features in pooled.values()):
        return pd.DataFrame()
    found = {a: {b: debiased_cka(pooled[a], pooled[b]) for b in pooled} for a in pooled}
    return pd.DataFrame(found, index=list(pooled), columns=list(pooled))


def landmarks(study: Study) -> dict[str, float]:
    """Frequencies (cycles/mm) worth marking: one cycle a patch, and the spectral loss's cut-off."""
    spacing, grid = study.profile.geometry.spacing, study.profile.geometry.grid
    highest = float(np.linalg.norm([n // 2 / n for n in grid])) / spacing
    patch = study.profile.encoder.patch_size * spacing
    return {"one cycle a patch": 1 / patch, CUTOFF: study.profile.spectral.high_pass * highest}


def efficiency_table(study: Study, results: pd.DataFrame) -> pd.DataFrame:
    """Share of the ideal observer's squared detectability that each row of `adjusted` reaches on simulated tasks.

    Returns:
        The rows of tasks of two classes whose truth is known, estimate, low and high as efficiencies, with ideal_auroc.
    """
    parts = []
    for task in study.simulated_tasks:
        rows = results[results["task"] == task]
        if len(study.manifest.tasks[task].classes) != 2 or rows.empty:
            continue
        ideal = float(study.run(f"truth:{task}").table("truth")["ideal_auroc"].iloc[0])
        if not HALF < ideal < 1:  # severity says nothing of this label, or all of it
            continue
        shares = {name: stats.efficiency(rows[name], ideal) for name in ("estimate", "low", "high")}
        parts.append(rows.assign(**shares, ideal_auroc=ideal, metric="efficiency"))
    return pd.concat(parts, ignore_index=True) if parts else results.iloc[:0].assign(ideal_auroc=[])


def adjusted(results: pd.DataFrame) -> pd.DataFrame:
    """The AUROC rows of `Study.results`, with p_holm: Holm's adjustment of p_permutation over a protocol's rows.

    Controls that no finding hangs on (covariates alone, shuffled labels) are not of that family: their p_holm is NaN.
    """
    if results.empty:
        return pd.DataFrame(columns=["arm", "task", "protocol", "metric", "estimate", "low", "high", "p_holm", "run"])
    table = results[results["metric"] == METRIC].copy()
    of_family = table["p_permutation"].where(~table["arm"].isin([NUISANCE, SHUFFLED]))
    table["p_holm"] = of_family.groupby(table["protocol"]).transform(stats.holm)
    return table.reset_index(drop=True)


def paired_differences(study: Study) -> pd.DataFrame:
    """Differences in AUROC between arms, on the same held-out scans under the same resampled subjects.

    Each trained arm against the untrained encoder and raw voxels, and each regularised arm against its plain form, for
    the probes and fine-tunings that the study has used so far.

    Returns:
        As `Study.results`, with baseline, p, p_delong, p_holm (Holm over the rows that share protocol and baseline, of
        p) and detectable (see `stats.detectable_difference`); the estimate is arm minus baseline.
    """
    rows = []
    for request, run in study.used.items():
        kind, *words = request.split(":")
        if kind not in KINDS or "@" in request or words[0] in (*CONTROLS, CNN):
            continue
        arm, task = words
        for baseline in (CONTROL, RAW_VOXELS, REGULARISED.get(arm)):
            other = study.used.get(f"{kind}:{baseline}:{task}")
            if other is not None:
                found = compare(run, other, draws=study.profile.evaluation.bootstrap_draws)
                names = {"arm": arm, "baseline": baseline, "task": task, "protocol": KINDS[kind], "run": run.id}
                tested = {**vars(found), "p_delong": delong_p(run, other), "freedom": _freedom(run)}
                rows.append({**names, "metric": METRIC, "seed": study.seed, **tested})
    columns = ["arm", "baseline", "task", "protocol", "run", "metric", "seed", "estimate", "low", "high", "p"]
    table = pd.DataFrame(rows, columns=[*columns, "p_delong", "freedom"])
    family = table.groupby(["protocol", "baseline"])["p"]
    p = family.transform(stats.holm) if rows else pd.Series(dtype=float)
    tests = family.transform("count").clip(lower=1) if rows else 1
    seen = stats.detectable_difference(table["low"], table["high"], tests, table.pop("freedom"))
    return table.assign(p_holm=p, detectable=seen)


def picked(study: Study, kind: str = "probe") -> pd.DataFrame:
    """The encoder that validation subjects would have picked for each task, and what it reaches on test subjects.

    The choice never sees a test subject, so its AUROC is that of a user who chose the same way. Under cross-validation
    validation scores come from the same subjects as test scores, and nothing is picked.

    Returns:
        task, arm, validation, estimate, low, high.
    """
    rows = []
    for task in study.tasks:
        reached = {}
        for arm in study.represented:
            run = study.used.get(f"{kind}:{arm}:{task}")
            if run is not None and "fold" not in run.table("chosen"):
                reached[arm] = float(run.table("chosen")["validation_auroc"].iloc[0])
        if reached:
            arm = max(reached, key=lambda name: reached[name])
            row = study.used[f"{kind}:{arm}:{task}"].table("results").set_index("metric").loc[METRIC]
            rows.append({"task": task, "arm": arm, "validation": reached[arm], **row[["estimate", "low", "high"]]})
    return pd.DataFrame(rows, columns=["task", "arm", "validation", "estimate", "low", "high"])


def held_out(study: Study, kind: str, arms: Sequence[str]) -> dict[str, dict[str, pd.DataFrame]]:
    """Task of two classes -> arm -> its held-out scans, among the runs of one kind that the study has used so far."""
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for task in study.tasks:
        if len(study.manifest.tasks[task].classes) == 2:
            runs = {arm: study.used.get(f"{kind}:{arm}:{task}") for arm in arms}
            found[task] = {arm: run.table("predictions") for arm, run in runs.items() if run is not None}
    return {task: tables for task, tables in found.items() if tables}


def present(study: Study, kind: str, table: str) -> dict[str, dict[str, pd.DataFrame]]:
    """Task -> arm -> a table of those runs of one kind that somebody has made; none is made now."""
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for task in study.tasks:
        for arm in study.compared:
            run = study.optional(f"{kind}:{arm}:{task}")
            if run is not None:
                found.setdefault(task, {})[arm] = run.table(table)
    return found


def against(differences: pd.DataFrame, protocol: str, baseline: str) -> pd.DataFrame:
    """Rows of `paired_differences` of one protocol and baseline."""
    return differences[(differences["protocol"] == protocol) & (differences["baseline"] == baseline)]


def compare(run: Run, other: Run, *, draws: int = 2000) -> stats.Comparison:
    """AUROC of `run` minus that of `other`: two probes, or two fine-tunings, of one task.

    On one test set, the paired bootstrap over subjects. Under cross-validation the folds' models share subjects, and a
    bootstrap over fixed scores finds differences where there are none; Nadeau and Bengio's test, over folds, does not
    see that folds of few subjects agree by chance. There the larger p and the wider interval of the two count.
    """
    labels, of_a, of_b, subjects, folds = _paired(run, other)
    plain = stats.paired_auroc_difference(labels, of_a, of_b, subjects, folds=folds, draws=draws)
    if folds is None:
        return plain
    count = len(np.unique(folds))
    each = [
        stats.auroc(*stats.aggregate_by_subject(labels[at], a[at], subjects[at])[:2])
        for at in (folds == fold for fold in np.unique(folds))
        for a in (of_a, of_b)
    ]
    gradient = {run.kind, other.kind} & set(GRADIENT)
    trained = count - 2 if gradient and count > 2 else count - 1  # folds that a model was fitted on
    found = stats.nadeau_bengio(np.array(each[::2]) - np.array(each[1::2]), 1 / (1 + trained))
    low, high = min(plain.low, found.low), max(plain.high, found.high)
    return stats.Comparison(found.estimate, low, high, max(plain.p, found.p))


def _freedom(run: Run) -> float:
    """Degrees of freedom of the test in `compare`: one less than folds, without any infinitely many."""
    table = run.table("predictions")
    return float(table["fold"].nunique() - 1) if "fold" in table else float("inf")


def delong_p(run: Run, other: Run) -> float:
    """DeLong's p of the same difference; NaN where that test does not apply (folds, three classes, two labels)."""
    labels, of_a, of_b, subjects, folds = _paired(run, other)
    try:
        return stats.delong(labels, of_a, of_b, subjects).p if folds is None else float("nan")
    except InputError:
        return float("nan")


def _paired(run: Run, other: Run) -> tuple[Any, ...]:
    """Labels, scores of both, subjects, and folds or None, of the same scans in the same order."""
    a, b = (r.table("predictions").set_index("scan_uid").sort_index() for r in (run, other))
    if not a.index.equals(b.index):
        raise InputError(
            f"{run.id} and {other.id} held out different scans, or name them by pseudonyms of two keys (BRAINFM_KEY): "
            "they cannot be paired."
        )
    scores = (p.loc[a.index, [c for c in p.columns if c.startswith("score")]].to_numpy() for p in (a, b))
    folds = a["fold"].to_numpy() if "fold" in a else None
    return a["label"].to_numpy(), *scores, a["subject_id"].to_numpy(), folds
