"""Encoders judged one after the other: what `brainfm probe` makes and says, and what the page on probes asks for."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from brainfm_lib.errors import InputError
from brainfm_lib.findings.learning import curve_requests, curve_tasks
from brainfm_lib.findings.pairs import area
from brainfm_lib.identity import write_atomic
from brainfm_lib.making.together import make_together
from brainfm_lib.pretrain.snapshot import NothingKept
from brainfm_lib.study import Study
from brainfm_lib.verdict import CNN, CONTROL, SHUFFLED

KINDS = {
    "linear": "probe",
    "attentive": "attentive",
    "knn": "knn",
    "fewshot": "fewshot",
    "splits": "resplit",
    "finetune": "finetune",
    "curve": "probe",
}


def judge(study: Study, protocol: str, tasks: Sequence[str] | None = None, table: Path | None = None) -> Iterator[str]:
    """Make what is missing and say each result in a line.

    Args:
        study: Whose encoders, and on which data.
        protocol: A key of `KINDS`.
        tasks: Default: all of the study's.
        table: Where to write the tidy table: a .csv or a .parquet file.

    Raises:
        InputError: No such protocol, task or kind of table, or the audit found a leak.
    """
    if table is not None and table.suffix not in (".csv", ".parquet"):
        raise InputError(f"{table} is neither a .csv nor a .parquet file.")
    if protocol not in KINDS:
        raise InputError(f"There is no protocol {protocol!r}: choose among {', '.join(KINDS)}.")
    for task in tasks or ():
        study.task_table(task)  # says which tasks there are
    study.refuse_leaks(tasks)
    found: list[pd.DataFrame] = []
    wanted = tasks or (curve_tasks(study) if protocol == "curve" else study.tasks)
    for task in study.tasks:
        if not tasks and task not in wanted:
            yield f"{task:<16} left out: it is cross-validated, and each point of a curve takes all its fits: name it"
    make_together(study, _chains_of(study, protocol, wanted))
    for task in wanted:
        try:
            yield from _judged(study, protocol, task, found)
        except InputError as error:
            if tasks or protocol == "curve":  # asked for by name, or a training that failed
                raise
            yield f"{task:<16} left out: {error}"
    if table is not None:
        rows = pd.concat(found, ignore_index=True) if found else study.results(folds=True)
        with write_atomic(table) as temporary:
            if table.suffix == ".parquet":
                rows.to_parquet(temporary, index=False)
            else:
                rows.to_csv(temporary, index=False)
        yield f"table: {table}"


def _judged(study: Study, protocol: str, task: str, found: list[pd.DataFrame]) -> Iterator[str]:
    """A line a run; tables that `Study.results` does not hold are added to `found`."""
    kind = KINDS[protocol]
    for arm in asked_of(study, protocol):
        names = {"arm": arm, "task": task, "seed": study.seed, "protocol": protocol, "leak": study.leaks_of(arm, task)}
        points = curve_requests(study, arm, task) if protocol == "curve" else {0: f"{kind}:{arm}:{task}"}
        for volumes, request in points.items():
            try:
                run = study.run(request)
            except NothingKept as error:
                if protocol != "curve":
                    raise
                yield f"{task:<16} {arm:<14} left out: {error}"
                continue
            if protocol == "curve":
                found.append(run.table("results").assign(**names, volumes=volumes, run=run.id))
                said = f"after {volumes:>9,} volumes {area(run)}"
            elif kind == "resplit":
                splits = run.table("splits").assign(**names, run=run.id)
                found.append(splits)
                mean, spread = splits["auroc"].mean(), splits["auroc"].std()
                said = f"AUROC {mean:.3f} over {len(splits)} splits, sd {spread:.3f}"
            elif kind == "fewshot":
                draws = run.table("draws").assign(**names, run=run.id)
                found.append(draws)
                means = (f"{n}: {group.mean():.3f}" for n, group in draws.groupby("shots")["auroc"])
                said = f"AUROC by subjects a class {', '.join(means)}"
            else:
                said = area(run)
            yield f"{task:<16} {arm:<14} {said}  {run.id}"


def _chains_of(study: Study, protocol: str, tasks: Sequence[str]) -> list[list[str]]:
    """Requests of a protocol, an arm a chain; shuffled labels follow the untrained encoder: they read its features."""
    found: dict[str, list[str]] = {}
    for arm in asked_of(study, protocol):
        chain = found.setdefault(CONTROL if arm == SHUFFLED else arm, [])
        for task in tasks:
            if protocol == "curve":
                chain += curve_requests(study, arm, task).values()
            else:
                chain.append(f"{KINDS[protocol]}:{arm}:{task}")
    return list(found.values())


def chains(study: Study) -> list[list[str]]:
    """What the report's comparison asks for, an encoder or control a chain: see `together.make_together`."""
    found = []
    for arm in study.compared:
        if arm == SHUFFLED:  # reads the untrained encoder's features, and stands in its chain
            continue
        rows = [arm, SHUFFLED] if arm == CONTROL else [arm]
        chain = [f"probe:{row}:{task}" for task in study.tasks for row in rows]
        chain += [f"knn:{arm}:{task}" for task in study.tasks if arm in study.represented]
        for task in study.finetune_tasks:
            chain += [f"finetune:{arm}:{task}"] if arm in study.encoders else []
            if arm in study.trained_arms and task in curve_tasks(study):
                chain += [name for name in curve_requests(study, arm, task).values() if name not in chain]
        found.append(chain)
    return found


def to_be_made(study: Study, protocol: str, arm: str, tasks: Sequence[str] | None = None) -> bool:
    """Whether judging an arm will pretrain it: it is not there, and neither is all that its features are asked."""
    if study.optional(f"pretrain:{arm}") is not None:
        return False
    kind, named = KINDS.get(protocol, "probe"), tasks or study.tasks
    return protocol == "curve" or any(_is_missing(study, f"{kind}:{arm}:{task}") for task in named)


def _is_missing(study: Study, request: str) -> bool:
    try:
        return study.optional(request) is None
    except InputError:  # will be left out, or refused by name
        return False


def asked_of(study: Study, protocol: str) -> tuple[str, ...]:
    """Rows that a protocol can be asked of: weights, whatever gives features, or controls as well."""
    if protocol == "finetune":
        return (CNN, *study.encoders)
    if protocol == "curve":
        return study.trained_arms
    return study.encoders if protocol == "attentive" else study.compared
