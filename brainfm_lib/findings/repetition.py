"""The same comparison under other seeds and other splits: how much of a result is the luck of the draw."""

from __future__ import annotations

import numpy as np
import pandas as pd

from brainfm_lib import stats
from brainfm_lib.errors import InputError
from brainfm_lib.findings.comparison import compare
from brainfm_lib.probes.resplits import TEST
from brainfm_lib.study import Study
from brainfm_lib.verdict import CONTROL, CONTROLS, DECIDED, KINDS, RAW_VOXELS, REGULARISED
from brainfm_lib.words import Words

SEEDS = 5  # pretraining seeds that are looked for, from 0


def repeated(study: Study) -> pd.DataFrame:
    """AUROC of each arm on random splits under several pretraining seeds, as far as somebody has made those runs.

    Returns:
        arm, task, seed, split, auroc, sampling (variance over resampled test subjects); see `probes.resplits`.
    """
    rows = []
    for task in study.tasks:
        for arm in study.compared:
            seen = set()  # what knows no pretraining is the same under every seed
            for seed in range(SEEDS):
                change = "" if seed == study.seed else f"@seed={seed}"
                try:
                    run = study.optional(f"resplit:{arm}:{task}{change}")
                except InputError:  # such a task is not split anew
                    break
                if run is not None and run.provenance["inputs"]["features"] not in seen:
                    seen.add(run.provenance["inputs"]["features"])
                    rows.append(run.table("splits").assign(arm=arm, task=task, seed=seed))
    columns = ["arm", "task", "seed", "split", "auroc", "sampling"]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def variance_table(repeats: pd.DataFrame) -> pd.DataFrame:
    """How much of an arm's AUROC is the luck of a seed, of a split, and of who is tested.

    Args:
        repeats: From `repeated`; of each arm and task, the splits that all its seeds share.

    Returns:
        arm, task, seeds, splits, auroc (mean) and the standard deviations seed, split, rest and subjects (see
        `stats.variance_shares`; each split tests subjects of its own, so that subjects is part of split); seed is NaN
        where there is one seed.
    """
    rows = []
    for (arm, task), table in repeats.groupby(["arm", "task"], sort=False):
        seeds, splits = table["seed"].nunique(), table["split"].nunique()
        found = {"seed": np.nan, "split": table["auroc"].std(), "subjects": np.sqrt(table["sampling"].mean())}
        if seeds > 1:
            shares = stats.variance_shares(table, "auroc", ["seed", "split"], "sampling").set_index("component")
            found = np.sqrt(shares["variance"]).to_dict()
        rows.append(
            {"arm": arm, "task": task, "seeds": seeds, "splits": splits, "auroc": table["auroc"].mean(), **found}
        )
    names = ["arm", "task", "seeds", "splits", "auroc", "seed", "split", "rest", "subjects"]
    return pd.DataFrame(rows, columns=names)


def over_splits(study: Study, repeats: pd.DataFrame) -> pd.DataFrame:
    """Differences between arms over random splits, by Nadeau and Bengio's test; the mean over seeds on each split.

    Returns:
        Columns and rows as those of `paired_differences`, with protocol "splits".
    """
    means = repeats.groupby(["task", "arm", "split"])["auroc"].mean()
    rows = []
    for task, arm in means.index.droplevel("split").unique():
        for baseline in () if arm in CONTROLS else (CONTROL, RAW_VOXELS, REGULARISED.get(arm)):
            if (task, baseline) in means.index.droplevel("split"):
                paired = (means[task, arm] - means[task, baseline]).dropna()
                found = stats.nadeau_bengio(paired, TEST)
                names = {"arm": arm, "baseline": baseline, "task": task, "protocol": "splits"}
                rows.append({**names, **vars(found), "freedom": len(paired) - 1.0})
    columns = ["arm", "baseline", "task", "protocol", "estimate", "low", "high", "p", "freedom"]
    table = pd.DataFrame(rows, columns=columns)
    family = table.groupby("baseline")["p"]
    p = family.transform(stats.holm) if rows else pd.Series(dtype=float)
    tests = family.transform("count").clip(lower=1) if rows else 1
    seen = stats.detectable_difference(table["low"], table["high"], tests, table.pop("freedom"))
    return table.assign(p_holm=p, detectable=seen)


def replicated(study: Study, differences: pd.DataFrame) -> pd.DataFrame:
    """Differences between linear probes that the study's own seed decides, under every pretraining seed that is there.

    Args:
        study: Whose seed they are decided under.
        differences: From `comparison.paired_differences`.

    Returns:
        task, arm, baseline, seed, estimate, low, high, the study's own seed first; the untrained encoder is that of the
        other seed where somebody has judged it, else the study's own. Empty where no other seed was judged.
    """
    rows: list[dict[str, object]] = []
    decided = differences[(differences["protocol"] == KINDS["probe"]) & (differences["p_holm"] < DECIDED)]
    for _, row in decided.iterrows():
        names = {name: row[name] for name in ("task", "arm", "baseline")}
        found = []
        for seed in (seed for seed in range(SEEDS) if seed != study.seed):
            pair = [f"probe:{row[name]}:{row['task']}" for name in ("arm", "baseline")]
            one, other = (study.optional(f"{request}@seed={seed}") for request in pair)
            if other is None and row["baseline"] in CONTROLS:
                other = study.used.get(pair[1])
            if one is not None and other is not None and one.id != row["run"]:  # what came along knows no seed
                there = vars(compare(one, other, draws=study.profile.evaluation.bootstrap_draws))
                found.append({**names, "seed": seed, **{name: there[name] for name in ("estimate", "low", "high")}})
        if found:
            rows += [{**names, "seed": study.seed, **row[["estimate", "low", "high"]]}, *found]
    return pd.DataFrame(rows, columns=["task", "arm", "baseline", "seed", "estimate", "low", "high"])


def replicated_note(study: Study, differences: pd.DataFrame, table: pd.DataFrame) -> Words:
    """How many of the differences that one seed decides others bear out.

    Args:
        study: As for `replicated`.
        differences: From `comparison.paired_differences`.
        table: What `replicated` made of them.
    """
    decided = int(((differences["protocol"] == KINDS["probe"]) & (differences["p_holm"] < DECIDED)).sum())
    if not decided:
        return Words("No difference between linear probes is decided here, so there is none to look for again.")
    if table.empty:
        many = decided > 1
        return Words(
            f"{decided} difference{'s are' if many else ' is'} decided by one pretraining seed, {study.seed}: none was "
            f"judged under another, so {'they are those' if many else 'it is that'} of single encoders, and may be the "
            "luck of a seed."
        )
    others = table[table["seed"] != study.seed].copy()
    own = table[table["seed"] == study.seed].set_index(["task", "arm", "baseline"])["estimate"]
    keys = pd.MultiIndex.from_frame(others[["task", "arm", "baseline"]])
    sign = np.sign(own.reindex(keys).to_numpy())
    others["same"] = np.sign(others["estimate"]) == sign
    others["clear"] = others["same"] & ((others["low"] > 0) | (others["high"] < 0))
    every = others.groupby(["task", "arm", "baseline"])[["same", "clear"]].all()
    seeds = ", ".join(map(str, sorted(others["seed"].unique())))
    return Words(
        f"Of {decided} difference{'s' * (decided > 1)} that seed {study.seed} decides, {len(every)} "
        f"{'was' if len(every) == 1 else 'were'} looked for again with encoders of "
        f"seed{'s' * (others['seed'].nunique() > 1)} {seeds}, on the same test subjects: "
        f"the sign is the same each time in {int(every['same'].sum())}, and the interval excludes zero each time in "
        f"{int(every['clear'].sum())}. A difference that does not come back is one between two encoders, not between "
        "two ways to train them."
    )
