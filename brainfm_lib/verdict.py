"""What beats what, and what does not: sentences chosen by a table of results, never written by hand."""

from collections.abc import Mapping

import pandas as pd

CONTROL = "random-init"
RAW_VOXELS = "raw-voxels"
PROTOCOLS = {"linear": "a linear probe on frozen features", "fine-tune": "short fine-tuning"}
METRIC = "auroc"


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
        rows = table[table["protocol"] == protocol]
        if "baseline" in rows:
            plain, paired = rows[rows["baseline"].isna()], rows[rows["baseline"].notna()]
        else:
            plain, paired = rows, rows.iloc[:0].assign(baseline=None, p_holm=None)
        baselines = dict.fromkeys([CONTROL, *paired["baseline"]])
        found[protocol] = " ".join(_against(baseline, plain, paired, protocol) for baseline in baselines)
    return found


def in_order(results: pd.DataFrame) -> list[str]:
    """Protocols in the order of the report."""
    present = set(results["protocol"])
    return [*(p for p in PROTOCOLS if p in present), *sorted(present - set(PROTOCOLS))]


def _against(baseline: str, plain: pd.DataFrame, paired: pd.DataFrame, protocol: str) -> str:
    """One or two sentences: which arms are above the baseline on which tasks, which below, and how many are open."""
    wins: dict[str, list[str]] = {}
    losses: dict[str, list[str]] = {}
    open_, direct = 0, 0
    arms = [arm for arm in dict.fromkeys([*plain["arm"], *paired["arm"]]) if arm not in (baseline, RAW_VOXELS)]
    for arm in arms:
        for task in dict.fromkeys([*plain["task"], *paired["task"]]):
            verdict = _paired_verdict(paired, arm, task, baseline)
            direct += verdict is not None
            if verdict is None and baseline == CONTROL:
                verdict = _interval_verdict(plain, arm, task, baseline)
            if verdict is None:
                continue
            if verdict:
                (wins if verdict > 0 else losses).setdefault(arm, []).append(task)
            open_ += verdict == 0
    how = PROTOCOLS.get(protocol, protocol)
    control = "training from scratch" if protocol == "fine-tune" else "the untrained encoder"
    of = control if baseline == CONTROL else "raw voxels" if baseline == RAW_VOXELS else f"`{baseline}`"
    decided = sum(map(len, [*wins.values(), *losses.values()]))
    if not decided + open_:
        return f"Under {how} nothing has been compared with {of}."
    rest = (
        f"{'in the other' if decided else 'in all'} {open_} comparison{'s' * (open_ != 1)} "
        "the evidence does not separate them"
        if open_
        else ""
    )
    rule = (
        "paired differences; one counts where its adjusted p is below 0.05, or, unadjusted, its 95 % interval "
        "excludes zero"
        if direct
        else "one counts where the two 95 % intervals do not overlap"
    )
    clauses = [f"{_list(wins)} {'beats' if len(wins) == 1 else 'beat'} {of}"] if wins else [f"no arm beats {of}"]
    clauses += [f"{_list(losses)} {'falls' if len(losses) == 1 else 'fall'} below it"] if losses else []
    clauses += [rest] if rest else []
    return f"Under {how}, {'; '.join(clauses)} ({rule})."


def _paired_verdict(paired: pd.DataFrame, arm: str, task: str, baseline: str) -> int | None:
    chosen = (paired["arm"] == arm) & (paired["task"] == task) & (paired["baseline"] == baseline)
    if not chosen.any():
        return None
    row = paired[chosen].iloc[0]
    if pd.notna(row["p_holm"]):
        return (1 if row["estimate"] > 0 else -1) if row["p_holm"] < 0.05 else 0
    return int(row["low"] > 0) - int(row["high"] < 0)


def _interval_verdict(plain: pd.DataFrame, arm: str, task: str, baseline: str) -> int | None:
    at = plain[plain["task"] == task].set_index("arm")
    if arm not in at.index or baseline not in at.index:
        return None
    return int(at.loc[arm, "low"] > at.loc[baseline, "high"]) - int(at.loc[arm, "high"] < at.loc[baseline, "low"])


def _list(found: Mapping[str, list[str]]) -> str:
    return ", ".join(f"**{arm}** (on {', '.join(tasks)})" for arm, tasks in found.items())
