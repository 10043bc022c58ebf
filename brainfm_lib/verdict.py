"""What beats what, and what does not: sentences chosen by a table of results, never written by hand."""

from collections.abc import Mapping

import pandas as pd

CONTROL = "random-init"
# Controls that are no encoder: voxels, what is known without a look at the brain, and labels dealt out anew.
RAW_VOXELS, NUISANCE, SHUFFLED = "raw-voxels", "nuisance", "label-shuffle"
CONTROLS = (SHUFFLED, NUISANCE, RAW_VOXELS, CONTROL)
ORACLE = "oracle"  # the latents that a phantom's label is drawn from: what a probe with as many subjects could reach
CNN = "cnn"  # the supervised network, trained from scratch on the labels alone
REGULARISED = {"sl-mae": "mae", "vcr-jepa": "jepa"}  # an arm with an auxiliary objective -> the same arm without
AUXILIARY = {"sl-mae": "spectral", "vcr-jepa": "vcr"}  # and the profile's part that holds its weight
KINDS = {"probe": "linear", "attentive": "attentive", "knn": "kNN", "finetune": "fine-tune"}  # run -> its protocol
PROTOCOLS = {
    "linear": "a linear probe on frozen features",
    "attentive": "an attentive probe on frozen tokens",
    "kNN": "nearest neighbours on frozen features",
    "fine-tune": "short fine-tuning",
}
METRIC = "auroc"
DECIDED = 0.05  # an adjusted p below it decides a comparison
TRANSDUCTIVE = "**Transductive**: encoders may have been pretrained on subjects that tasks are tested on."


def verdicts(results: pd.DataFrame, *, metric: str = METRIC) -> dict[str, str]:
    """For each protocol, what beats its baseline and what does not, in a few sentences.

    Args:
        results: Columns arm, task, metric, protocol, estimate, low, high. A row that also has a `baseline` is the
            paired difference arm - baseline; where it has `p_holm`, that decides, else its interval does. Without
            paired rows, arms are held against the untrained encoder by whether the intervals overlap.
        metric: Higher is better.
    """
    table = results[results["metric"] == metric]
    found = {}
    for protocol in in_order(table):
        plain, paired = _parts(table[table["protocol"] == protocol])
        baselines = dict.fromkeys([CONTROL, *paired["baseline"]])
        said = "; ".join(filter(None, (_against(baseline, plain, paired, protocol) for baseline in baselines)))
        how = PROTOCOLS.get(protocol, protocol)
        found[protocol] = f"Under {how}, {said}." if said else f"Under {how} nothing has been compared."
    return found


def rule(results: pd.DataFrame, *, metric: str = METRIC) -> str:
    """When a comparison of `verdicts` counts as decided: one sentence, said once."""
    _, paired = _parts(results[results["metric"] == metric])
    if paired.empty:
        return "A comparison is decided where the two 95 % intervals do not overlap."
    if paired["p_holm"].notna().all():
        return "A comparison is decided where the Holm-adjusted p of the paired difference is below 0.05."
    return (
        "A comparison is decided where the adjusted p of the paired difference is below 0.05, or, unadjusted, its 95 % "
        "interval excludes zero."
    )


def _parts(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of single arms, and rows of paired differences."""
    if "baseline" in table:
        return table[table["baseline"].isna()], table[table["baseline"].notna()]
    return table, table.iloc[:0].assign(baseline=None, p_holm=None)


def in_order(results: pd.DataFrame) -> list[str]:
    """Protocols in the order of the report."""
    present = set(results["protocol"])
    return [*(p for p in PROTOCOLS if p in present), *sorted(present - set(PROTOCOLS))]


def _against(baseline: str, plain: pd.DataFrame, paired: pd.DataFrame, protocol: str) -> str:
    """One clause: which arms are better than the baseline on which tasks, which worse, and how many are undecided."""
    better: dict[str, list[str]] = {}
    worse: dict[str, list[str]] = {}
    seen: dict[str, None] = {}
    compared = 0
    arms = [
        arm
        for arm in dict.fromkeys([*plain["arm"], *paired["arm"]])
        if arm not in (baseline, RAW_VOXELS, NUISANCE, SHUFFLED, CNN)
    ]
    for arm in arms:
        for task in dict.fromkeys([*plain["task"], *paired["task"]]):
            verdict = _paired_verdict(paired, arm, task, baseline)
            if verdict is None and baseline == CONTROL:
                verdict = _interval_verdict(plain, arm, task, baseline)
            if verdict is None:
                continue
            compared += 1
            seen[arm] = None
            if verdict:
                (better if verdict > 0 else worse).setdefault(arm, []).append(task)
    if not compared:
        return ""
    control = "training from scratch" if protocol == "fine-tune" else "the untrained encoder"
    of = control if baseline == CONTROL else "raw voxels" if baseline == RAW_VOXELS else f"**{baseline}**"
    undecided = compared - sum(map(len, [*better.values(), *worse.values()]))
    said = [f"{word} than {of}: {_list(found)}" for found, word in ((better, "better"), (worse, "worse")) if found]
    if not said:
        who = "no arm" if baseline in (CONTROL, RAW_VOXELS) else ", ".join(f"**{arm}**" for arm in seen)
        verb = "can" if who == "no arm" else "cannot"
        seen_if = _detectable(paired, arms, baseline)
        return f"{who} {verb} be told from {of} ({compared} comparison{'s' * (compared != 1)}{seen_if})"
    rest = f" ({undecided} of {compared} comparisons undecided)" if undecided else ""
    return f"{', '.join(said)}{rest}"


def _detectable(paired: pd.DataFrame, arms: list[str], baseline: str) -> str:
    """Which true differences such comparisons would have found in four of five studies, where that is known."""
    rows = paired[paired["arm"].isin(arms) & (paired["baseline"] == baseline)]
    if "detectable" not in rows or not rows["detectable"].notna().any():
        return ""
    low, high = rows["detectable"].min(), rows["detectable"].max()
    if low >= 1:  # an AUROC cannot differ by as much
        return ", which could have shown no true difference at all"
    size = f"{low:.2f} to {high:.2f}" if high < 1 else f"{low:.2f} or more"
    if f"{low:.2f}" == f"{high:.2f}":
        size = f"{low:.2f}"
    return f", which would have shown a true difference of {size} four times in five"


def _paired_verdict(paired: pd.DataFrame, arm: str, task: str, baseline: str) -> int | None:
    chosen = (paired["arm"] == arm) & (paired["task"] == task) & (paired["baseline"] == baseline)
    if not chosen.any():
        return None
    row = paired[chosen].iloc[0]
    if pd.notna(row["p_holm"]):
        return (1 if row["estimate"] > 0 else -1) if row["p_holm"] < DECIDED else 0
    return int(row["low"] > 0) - int(row["high"] < 0)


def _interval_verdict(plain: pd.DataFrame, arm: str, task: str, baseline: str) -> int | None:
    at = plain[plain["task"] == task].set_index("arm")
    if arm not in at.index or baseline not in at.index:
        return None
    return int(at.loc[arm, "low"] > at.loc[baseline, "high"]) - int(at.loc[arm, "high"] < at.loc[baseline, "low"])


def _list(found: Mapping[str, list[str]]) -> str:
    return ", ".join(f"**{arm}** on {' and '.join(tasks)}" for arm, tasks in found.items())
