"""What arms and controls reach, and how they compare."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from brainfm_lib.figures.style import TITLES, title
from brainfm_lib.tables.style import p_text, percent
from brainfm_lib.verdict import DECIDED

SCRATCH = {"random-init": "from scratch"}  # what fine-tuning an untrained encoder is called


def results_table(results: pd.DataFrame, titles: Mapping[str, str], *, scratch: bool = False) -> pd.DataFrame:
    """Arms down, tasks across; each cell an AUROC, its 95 % interval, and the adjusted p against chance.

    Args:
        results: From `brainfm_lib.findings.comparison.adjusted`, of one protocol.
        titles: Task -> its name, from `task_titles`.
        scratch: Whether the protocol is fine-tuning, where an untrained encoder is trained from scratch.
    """
    arms, tasks = list(dict.fromkeys(results["arm"])), list(dict.fromkeys(results["task"]))
    cells = {
        (
            r["arm"],
            r["task"],
        ): f"{r['estimate']:.2f}<br><small>[{r['low']:.2f}, {r['high']:.2f}]<br>{p_text(r['p_holm'])}</small>"
        for _, r in results.iterrows()
    }
    columns = {titles.get(task, task): [cells.get((arm, task), "–") for arm in arms] for task in tasks}
    return pd.DataFrame({"arm": [_name(arm, scratch) for arm in arms], **columns})


def differences_table(differences: pd.DataFrame, titles: Mapping[str, str], *, scratch: bool = False) -> pd.DataFrame:
    """Pairs down, tasks across: difference, 95 % interval, adjusted p and, if undecided, what could have been seen.

    Args:
        differences: From `brainfm_lib.findings.comparison.paired_differences`, of one protocol.
        titles: Task -> its name.
        scratch: As in `results_table`.
    """
    rows: dict[str, dict[str, str]] = {}
    for _, r in differences.sort_values("baseline", key=lambda b: b.map(list(TITLES).index), kind="stable").iterrows():
        pair = f"{title(r['arm'])} − {_name(r['baseline'], scratch)}"
        said = p_text(r["p_holm"])
        if r["p_holm"] >= DECIDED and pd.notna(r["detectable"]):  # what a null result could have seen
            said += f", sees {r['detectable']:.2f}" if r["detectable"] < 1 else ", sees none"
        cell = f"{r['estimate']:+.2f}<br><small>[{r['low']:+.2f}, {r['high']:+.2f}]<br>{said}</small>"
        rows.setdefault(pair, {})[titles.get(r["task"], r["task"])] = cell
    return pd.DataFrame([{"difference": pair, **cells} for pair, cells in rows.items()]).fillna("–")


def efficiency_table(efficiencies: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Arms down, tasks across; each cell a share of the ideal observer's squared detectability, and its interval.

    Args:
        efficiencies: From `brainfm_lib.findings.comparison.efficiency_table`, of one protocol.
        titles: Task -> its name.
    """
    columns: dict[str, dict[str, str]] = {}
    for _, r in efficiencies.iterrows():
        head = f"{titles.get(r['task'], r['task'])}, ideal AUROC {r['ideal_auroc']:.2f}"
        low, middle, high = (percent(r[name]) for name in ("low", "estimate", "high"))
        cell = f"{middle} %<br><small>[{low}, {high}]</small>"
        columns.setdefault(head, {})[title(r["arm"])] = cell
    return pd.DataFrame(columns).rename_axis("arm").reset_index()


def metrics_table(results: pd.DataFrame, task: str) -> pd.DataFrame:
    """Every metric of one task and protocol, arms down, with 95 % intervals.

    Args:
        results: From `Study.results`, of one protocol.
        task: The task.
    """
    rows: dict[str, dict[str, str]] = {}
    for _, r in results[results["task"] == task].iterrows():
        head = (
            str(r["metric"])
            .replace("_", " ")
            .replace("auroc", "AUROC")
            .replace("auprc", "AUPRC")
            .replace("brier", "Brier")
        )
        spread = f"[{r['low']:.2f}, {r['high']:.2f}]" if pd.notna(r["low"]) else "no interval"
        cell = f"{r['estimate']:.2f}<br><small>{spread}</small>"
        rows.setdefault(title(r["arm"]), {})[head] = cell if pd.notna(r["estimate"]) else "–"
    return pd.DataFrame([{"arm": arm, **cells} for arm, cells in rows.items()])


def picked_table(picked: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """What validation subjects would have picked for each task, and how good it is on test subjects.

    Args:
        picked: From `brainfm_lib.findings.comparison.picked`.
        titles: Task -> its name.
    """
    rows = [
        {
            "task": titles.get(r["task"], r["task"]),
            "picked on validation": title(r["arm"]),
            "AUROC, validation": f"{r['validation']:.2f}",
            "AUROC, test": f"{r['estimate']:.2f} [{r['low']:.2f}, {r['high']:.2f}]",
        }
        for _, r in picked.iterrows()
    ]
    return pd.DataFrame(rows)


def matched_table(matched: pd.DataFrame) -> pd.DataFrame:
    """What each arm's pretraining takes, and how many learning rates were tried for it.

    Args:
        matched: From `brainfm_lib.findings.matching.matched_table`.
    """
    rows = [
        {
            "arm": title(r["arm"]),
            "volumes": f"{r['volumes']:,}",
            "tokens seen": f"{r['tokens_seen']:,}",
            "TFLOP": f"{r['flops'] / 1e12:,.2f}",
            "learning rate": f"{r['lr']:g}",
            "rates on file": str(r["trials"]),
        }
        for _, r in matched.iterrows()
    ]
    return pd.DataFrame(rows)


def trial_table(trials: pd.DataFrame) -> pd.DataFrame:
    """Arms down, learning rates across: validation AUROC, the chosen one in bold.

    Args:
        trials: From `brainfm_lib.findings.matching.trial_table`.
    """
    rows: dict[str, dict[str, str]] = {}
    for _, r in trials.iterrows():
        said = f"{r['validation']:.3f}"
        rows.setdefault(title(r["arm"]), {})[f"{r['lr']:g}"] = f"<b>{said}</b>" if r["chosen"] else said
    return pd.DataFrame([{"arm": arm, **cells} for arm, cells in rows.items()]).fillna("–")


def variance_table(spread: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """How far an AUROC moves with the seed, the split and the subjects tested: standard deviations.

    Args:
        spread: From `brainfm_lib.findings.repetition.variance_table`.
        titles: Task -> its name.
    """
    names = {"seed": "sd, seed", "split": "sd, split", "rest": "sd, rest", "subjects": "sd, subjects (part of split)"}
    table = spread.assign(task=spread["task"].map(lambda task: titles.get(task, task)), arm=spread["arm"].map(title))
    return table[["task", "arm", "seeds", "splits", "auroc", *names]].rename(columns={"auroc": "AUROC", **names})


def replicated_table(replicated: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Comparisons that are decided down, pretraining seeds across; each cell a difference and its 95 % interval.

    Args:
        replicated: From `brainfm_lib.findings.repetition.replicated`.
        titles: Task -> its name.
    """
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for _, r in replicated.iterrows():
        pair = titles.get(r["task"], r["task"]), f"{title(r['arm'])} − {title(r['baseline'])}"
        said = f"{r['estimate']:+.2f}<br><small>[{r['low']:+.2f}, {r['high']:+.2f}]</small>"
        rows.setdefault(pair, {})[f"seed {r['seed']}"] = said
    table = [{"task": task, "difference": pair, **cells} for (task, pair), cells in rows.items()]
    return pd.DataFrame(table, columns=None if table else ["task", "difference"]).fillna("–")


def _name(arm: str, scratch: bool) -> str:
    return SCRATCH.get(arm, title(arm)) if scratch else title(arm)
