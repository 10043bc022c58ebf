"""Markdown that book pages include, generated from run tables: the headline of the start page and the time budget.

No sentence is written by hand that a re-run could make false: each is chosen by what the table says.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import pandas as pd
import yaml

from brainfm_lib.identity import code_digest, stable_hash
from brainfm_lib.report import build
from brainfm_lib.verdict import KINDS, PROTOCOLS, TRANSDUCTIVE, in_order, rule, verdicts

HEADLINE_NOTEBOOK, CAUSAL_NOTEBOOK, TRAINING_NOTEBOOK = "50_probes", "70_causal", "20_pretrain"
COLUMNS = ("arm", "task", "metric", "protocol", "estimate", "low", "high", "run")
Tables = Callable[[Path, str, Mapping[str, str]], tuple[pd.DataFrame, Collection[str], bool]]


def write_all(root: Path, *, profile: str | None = None, tables: Tables | None = None) -> None:
    """Write the fragments under ``book/chapters`` where they differ from what is there.

    Args:
        root: The project's folder, its notebooks executed.
        profile: The profile they were executed with; default `build.default_profile`.
        tables: (root, profile, runs by request) -> the results, the tasks that are phantoms, and whether encoders may
            have seen test subjects; default `study_tables`. Called only when a run has changed.
    """
    profile, pages = profile or build.default_profile(root), build.find_pages(root)
    timed = [*pages, *build.reference_pages(root)]
    build.write_text(root / "book" / "chapters" / "_budget.md", budget(root, timed))
    for name, text in measured(root).items():
        build.write_text(root / "book" / "chapters" / f"_bench_{name}.md", text)
    write_reference(root)
    write_settings(root, profile)
    recorded = {page.name: json.loads(page.beside(".result.json").read_text())["runs"] for page in pages}
    write_causal(root, recorded.get(CAUSAL_NOTEBOOK, {}))
    target = root / "book" / "chapters" / "_headline.md"
    runs = recorded.get(HEADLINE_NOTEBOOK, {})
    mark = f"% made from {stable_hash([runs, profile, code_digest(['brainfm_lib.report.fragments'])])}"
    if _stands(target, mark):
        return
    if runs:
        results, phantoms, transductive = (tables or study_tables)(root, profile, runs)
        write_headline(results, target, phantom_tasks=phantoms, profile=profile, transductive=transductive, mark=mark)
    else:
        build.write_text(target, f"Nothing has been compared yet.\n\n{mark}\n")


def write_reference(root: Path) -> None:
    """Write what there is to say of the reference run that ships, or how to make one."""
    from brainfm_lib.reference.told import told

    file = root / "book" / "reference" / "reference.json"
    summary = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    build.write_text(root / "book" / "chapters" / "_reference.md", told(summary))


def write_settings(root: Path, profile: str) -> None:
    """Write the settings of the profile that the report is built with, and the table of all profiles."""
    from brainfm_lib.report.settings import profile_table, settings_of
    from brainfm_lib.study import FLAT_NAMES

    book, pages = root / "book", build.find_pages(root)
    given = build.profile_parameters(root, profile, pages)
    if (book / "method.md").is_file() and "profile" in given.get(TRAINING_NOTEBOOK, {}):
        asked = given[TRAINING_NOTEBOOK]
        changed = {FLAT_NAMES[name]: asked[name] for name in FLAT_NAMES if asked.get(name) is not None}
        overrides = {**(asked.get("overrides") or {}), **changed}
        with build.rooted(root):
            text = settings_of(str(asked["profile"]), overrides)
        build.write_text(book / "chapters" / "_settings.md", text)
    if (book / "your_data.md").is_file():
        with build.rooted(root):
            text = profile_table()
        build.write_text(book / "chapters" / "_profiles.md", text)


def write_causal(root: Path, runs: Mapping[str, str]) -> None:
    """Write the verdicts of the causal test that its page read, or that there is none, where that has changed.

    Args:
        root: The project's folder.
        runs: Of the page, by request.
    """
    target = root / "book" / "chapters" / "_causal.md"
    tests = {int(request.partition(":")[2]): run for request, run in runs.items() if request.startswith("causal:")}
    name = tests[max(tests)] if tests else ""
    mark = f"% made from {stable_hash([name, code_digest(['brainfm_lib.report.fragments', 'brainfm_lib.notes'])])}"
    if _stands(target, mark):
        return
    said = "The claim has not been tested: `brainfm causal` does it."
    if name:
        from brainfm_lib.notes import causal_units, levels_said, primary_verdicts
        from brainfm_lib.runs import get_run

        with build.rooted(root):
            test = get_run(name)
            said = "\n".join([*primary_verdicts(test), "", *(f"{s}\n" for s in levels_said(test)), causal_units(test)])
    build.write_text(target, f"{said}\n\n{mark}\n")


def _stands(target: Path, mark: str) -> bool:
    """Whether a fragment was made from the same."""
    return target.is_file() and target.read_text(encoding="utf-8").splitlines()[-1] == mark


def study_tables(root: Path, profile: str, runs: Mapping[str, str]) -> tuple[pd.DataFrame, Collection[str], bool]:
    """Results of the runs that ``50_probes`` used; tasks whose scans are simulated; whether it is transductive."""
    from brainfm_lib.findings.comparison import paired_differences
    from brainfm_lib.runs import get_run

    parameters = build.profile_parameters(root, profile, build.find_pages(root))[HEADLINE_NOTEBOOK]
    with build.rooted(root):
        study = build.open_study(parameters)
        probes = {request: run for request, run in runs.items() if request.split(":")[0] in KINDS}
        study.used.update({request: get_run(run) for request, run in probes.items()})
        cohorts, tasks = study.manifest.cohorts, study.manifest.tasks
        results = pd.concat([study.results(), paired_differences(study)], ignore_index=True)
        phantoms = {name for name, task in tasks.items() if cohorts[task.cohort].kind == "phantom"}
        return results, phantoms, study.manifest.transductive


def write_headline(
    results: pd.DataFrame,
    target: Path,
    *,
    phantom_tasks: Collection[str],
    profile: str,
    metric: str = "auroc",
    transductive: bool = False,
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
        transductive: Whether encoders may have been pretrained on test subjects; stated.
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
    plain, sentences = table[table["baseline"].isna()], verdicts(table, metric=metric)
    parts = [
        f"{sentences[p]}\n\n{_grid(plain[plain['protocol'] == p], phantom_tasks, metric, p)}" for p in in_order(table)
    ]
    simulated = sorted(set(table["task"]) & set(phantom_tasks))
    said = [*parts, rule(table, metric=metric), _provenance(table, simulated, profile, transductive), mark]
    text = "\n\n".join(filter(None, said))
    build.write_text(target, text + "\n")


def measured(root: Path) -> dict[str, str]:
    """What the page on costs asks for by name: the output of a script of ``benchmarks``, without its title."""
    page = root / "book" / "performance.md"
    names = re.findall(r"_bench_(\w+)\.md", page.read_text(encoding="utf-8")) if page.is_file() else []
    found = {}
    for name in names:
        file = root / "benchmarks" / f"{name}.md"
        if file.is_file():
            lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("# ")]
            text = "\n".join(f"#{line}" if line.startswith("#") else line for line in lines).strip() + "\n"
            found[name] = re.sub(r"\]\((\w+\.svg)\)", r"](../benchmarks/\1)", text)
        else:
            found[name] = f"`benchmarks/{name}.py` has not been run for this report.\n"
    return found


def budget(root: Path, pages: Sequence[build.Page]) -> str:
    """Return the table of minutes: promised in ``book/budget.yaml``, and measured when the page was last made."""
    promised = yaml.safe_load((root / "book" / "budget.yaml").read_text(encoding="utf-8"))["minutes"]
    states = {page.name: page.beside(".state.json") for page in pages}
    lines = ["| step | budget of the default report (min) | measured here (min) |", "|---|---:|---:|"]
    for step, minutes in promised.items():
        state = states.get(step)
        measured = f"{json.loads(state.read_text())['minutes']:.1f}" if state and state.is_file() else "–"
        lines.append(f"| {step} | {minutes:g} | {measured} |")
    return "\n".join([*lines, f"| **total** | **{sum(promised.values()):g}** | |"]) + "\n"


def _grid(plain: pd.DataFrame, phantom_tasks: Collection[str], metric: str, protocol: str) -> str:
    """Arms down, tasks across; each cell an estimate and its 95 % interval."""
    tasks = list(dict.fromkeys(plain["task"]))
    mixed = set(tasks) - set(phantom_tasks)  # where all are phantoms, the title says so once
    heads = [f"{task} (phantom)" if task in phantom_tasks and mixed else task for task in tasks]
    cells = {
        (r["arm"], r["task"]): f"{r['estimate']:.2f}<br><small>{r['low']:.2f}–{r['high']:.2f}</small>"
        for _, r in plain.iterrows()
    }
    rows = [
        f"| {arm} | " + " | ".join(cells.get((arm, task), "–") for task in tasks) + " |"
        for arm in dict.fromkeys(plain["arm"])
    ]
    label = "" if mixed else " Phantom results."
    title = f"{metric.upper()} with 95 % intervals over subjects, {PROTOCOLS.get(protocol, protocol)}.{label}"
    head = ["| arm | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(tasks)]
    return "\n".join([f":::{{table}} {title}", ":align: left", "", *head, *rows, ":::"])


def _provenance(table: pd.DataFrame, simulated: Sequence[str], profile: str, transductive: bool) -> str:
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
    label += f"{TRANSDUCTIVE} " if transductive else ""
    lines = [f"{label}Profile: `{profile}`.", "", ":::{dropdown} The run behind each number"]
    return "\n".join([*lines, "| arm | task | protocol | run |", "|---|---|---|---|", *rows, ":::"])
