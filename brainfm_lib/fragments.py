"""Markdown that book pages include, generated from run tables: the headline of the start page and the time budget.

No sentence is written by hand that a re-run could make false: each is chosen by what the table says.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import pandas as pd
import yaml

from brainfm_lib import report
from brainfm_lib.identity import code_digest, stable_hash

HEADLINE_NOTEBOOK = "50_probes"
CONTROL = "random-init"
PROTOCOLS = {"linear": "a linear probe on frozen features", "fine-tune": "short fine-tuning"}
COLUMNS = ("arm", "task", "metric", "protocol", "estimate", "low", "high", "run")
Tables = Callable[[Path, str, Mapping[str, str]], tuple[pd.DataFrame, Collection[str]]]


def write_all(root: Path, *, profile: str | None = None, tables: Tables | None = None) -> None:
    """Write the fragments under ``book/chapters`` where they differ from what is there.

    Args:
        root: The project's folder, its notebooks executed.
        profile: The profile they were executed with; default `report.default_profile`.
        tables: (root, profile, runs by request) -> the results, and the tasks that are phantoms; default
            `study_tables`. Called only when a run has changed.
    """
    profile, pages = profile or report.default_profile(), report.find_pages(root)
    report.write_text(root / "book" / "chapters" / "_budget.md", budget(root, pages))
    target = root / "book" / "chapters" / "_headline.md"
    recorded = {page.name: json.loads(page.beside(".result.json").read_text())["runs"] for page in pages}
    runs = recorded.get(HEADLINE_NOTEBOOK, {})
    mark = f"% made from {stable_hash([runs, profile, code_digest(['brainfm_lib.fragments'])])}"
    if target.is_file() and target.read_text(encoding="utf-8").splitlines()[-1] == mark:
        return
    if runs:
        results, phantoms = (tables or study_tables)(root, profile, runs)
        write_headline(results, target, phantom_tasks=phantoms, profile=profile, mark=mark)
    else:
        report.write_text(target, f"Nothing has been compared yet.\n\n{mark}\n")


def study_tables(root: Path, profile: str, runs: Mapping[str, str]) -> tuple[pd.DataFrame, Collection[str]]:
    """Results of the runs that ``50_probes`` used, and the names of the tasks whose scans are simulated."""
    from brainfm_lib.runs import get_run

    parameters = report.profile_parameters(root, profile, report.find_pages(root))[HEADLINE_NOTEBOOK]
    with report.rooted(root):
        study = report.open_study(parameters)
        study.used.update({request: get_run(run) for request, run in runs.items()})
        cohorts, tasks = study.manifest.cohorts, study.manifest.tasks
        return study.results(), {name for name, task in tasks.items() if cohorts[task.cohort].kind == "phantom"}


def write_headline(
    results: pd.DataFrame,
    target: Path,
    *,
    phantom_tasks: Collection[str],
    profile: str,
    metric: str = "auroc",
    mark: str = "",
) -> None:
    """Write the start page's headline: what beats what and what does not, then the table, then its runs.

    Args:
        results: Tidy table with the columns arm, task, metric, protocol, estimate, low, high, run. A row that also
            has a `baseline` is the paired difference arm - baseline; where it has `p_holm`, that decides, else
            its interval does. Rows of single folds or seeds do not belong here.
        target: The Markdown file to write.
        phantom_tasks: Tasks whose scans are simulated; their results are labelled.
        profile: Profile the runs were made with; stated.
        metric: The metric to show; higher is better.
        mark: Last line, a Markdown comment.

    Raises:
        ValueError: A column is missing, or two rows describe the same thing.
    """
    missing = set(COLUMNS) - set(results.columns)
    if missing:
        raise ValueError(f"the results lack the columns {', '.join(sorted(missing))}")
    table = results[results["metric"] == metric].copy()
    for column in ("baseline", "p_holm"):
        table[column] = table.get(column)
    key = ["arm", "task", "protocol", "baseline"]
    if table.duplicated(key).any():
        twice = table[table.duplicated(key)].iloc[0]
        raise ValueError(f"two rows for {twice['arm']}, {twice['task']}, {twice['protocol']} in the results")
    protocols = [p for p in PROTOCOLS if p in set(table["protocol"])]
    protocols += sorted(set(table["protocol"]) - set(protocols))
    parts = []
    for protocol in protocols:
        rows = table[table["protocol"] == protocol]
        plain, paired = rows[rows["baseline"].isna()], rows[rows["baseline"].notna()]
        sentences = [_against(CONTROL, plain, paired, protocol)]
        sentences += [_against(b, plain, paired, protocol) for b in _others(paired)]
        parts.append(" ".join(sentences) + "\n\n" + _grid(plain, phantom_tasks, metric, protocol))
    simulated = sorted(set(table["task"]) & set(phantom_tasks))
    text = "\n\n".join(filter(None, [*parts, _provenance(table, simulated, profile), mark]))
    report.write_text(target, text + "\n")


def budget(root: Path, pages: Sequence[report.Page]) -> str:
    """Return the table of minutes: promised in ``book/budget.yaml``, and measured when the page was last made."""
    promised = yaml.safe_load((root / "book" / "budget.yaml").read_text(encoding="utf-8"))["minutes"]
    states = {page.name: page.beside(".state.json") for page in pages}
    lines = ["| step | budget (min) | measured here (min) |", "|---|---:|---:|"]
    for step, minutes in promised.items():
        state = states.get(step)
        measured = f"{json.loads(state.read_text())['minutes']:.1f}" if state and state.is_file() else "–"
        lines.append(f"| {step} | {minutes:g} | {measured} |")
    return "\n".join([*lines, f"| **total** | **{sum(promised.values()):g}** | |"]) + "\n"


def _against(baseline: str, plain: pd.DataFrame, paired: pd.DataFrame, protocol: str) -> str:
    """One or two sentences: which arms are above the baseline on which tasks, which below, and how many are open."""
    wins: dict[str, list[str]] = {}
    losses: dict[str, list[str]] = {}
    open_, direct = 0, 0
    arms = [arm for arm in dict.fromkeys([*plain["arm"], *paired["arm"]]) if arm != baseline]
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
    of = "the untrained encoder" if baseline == CONTROL else f"`{baseline}`"
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
    clauses = [f"{_list(wins)} beats {of}"] if wins else [f"no arm beats {of}"]
    clauses += [f"{_list(losses)} falls below it"] if losses else []
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


def _others(paired: pd.DataFrame) -> list[str]:
    return [b for b in dict.fromkeys(paired["baseline"]) if b != CONTROL]


def _list(found: dict[str, list[str]]) -> str:
    return ", ".join(f"**{arm}** (on {', '.join(tasks)})" for arm, tasks in found.items())


def _grid(plain: pd.DataFrame, phantom_tasks: Collection[str], metric: str, protocol: str) -> str:
    """Arms down, tasks across; each cell an estimate and its 95 % interval."""
    tasks = list(dict.fromkeys(plain["task"]))
    heads = [f"{task} (phantom)" if task in phantom_tasks else task for task in tasks]
    cells = {
        (r["arm"], r["task"]): f"{r['estimate']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for _, r in plain.iterrows()
    }
    rows = [
        f"| {arm} | " + " | ".join(cells.get((arm, task), "–") for task in tasks) + " |"
        for arm in dict.fromkeys(plain["arm"])
    ]
    title = f"{metric.upper()} with 95 % intervals over subjects, {PROTOCOLS.get(protocol, protocol)}."
    head = ["| arm | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(tasks)]
    return "\n".join([f":::{{table}} {title}", ":align: left", "", *head, *rows, ":::"])


def _provenance(table: pd.DataFrame, simulated: Sequence[str], profile: str) -> str:
    """The label of simulated data, the profile, and the run behind each number."""
    label = (
        f"**Phantom results**: the scans of {', '.join(simulated)} are simulated. They test the method, "
        "and say nothing about a disease. "
        if simulated
        else ""
    )
    rows = [
        f"| {r['arm']}{' − ' + r['baseline'] if pd.notna(r['baseline']) else ''} | {r['task']} | {r['protocol']} "
        f"| `{r['run']}` |"
        for _, r in table.iterrows()
    ]
    lines = [f"{label}Profile: `{profile}`.", "", ":::{dropdown} The run behind each number"]
    return "\n".join([*lines, "| arm | task | protocol | run |", "|---|---|---|---|", *rows, ":::"])
