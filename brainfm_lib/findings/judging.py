"""Probes from the command line: a study's encoders judged one after the other, and finished runs held together."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from brainfm_lib.errors import InputError
from brainfm_lib.findings.comparison import compare
from brainfm_lib.findings.learning import curve_requests, curve_tasks
from brainfm_lib.identity import write_atomic
from brainfm_lib.pretrain.snapshot import NothingKept
from brainfm_lib.runs import Run, get_run
from brainfm_lib.study import Study
from brainfm_lib.together import make_together
from brainfm_lib.verdict import CNN, CONTROL, METRIC, SHUFFLED

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
    kind, found = KINDS[protocol], []
    wanted = tasks or (curve_tasks(study) if protocol == "curve" else study.tasks)
    for task in study.tasks:
        if not tasks and task not in wanted:
            yield f"{task:<16} left out: it is cross-validated, and each point of a curve takes all its fits: name it"
    make_together(study, _chains_of(study, protocol, wanted))
    for task in wanted:
        for arm in asked_of(study, protocol):
            names = {
                "arm": arm,
                "task": task,
                "seed": study.seed,
                "protocol": protocol,
                "leak": study.leaks_of(arm, task),
            }
            if protocol == "curve":
                for volumes, request in curve_requests(study, arm, task).items():
                    try:
                        run = study.run(request)
                    except NothingKept as error:
                        yield f"{task:<16} {arm:<14} left out: {error}"
                        continue
                    found.append(run.table("results").assign(**names, volumes=volumes, run=run.id))
                    yield f"{task:<16} {arm:<14} after {volumes:>9,} volumes {area(run)}  {run.id}"
                continue
            try:
                run = study.run(f"{kind}:{arm}:{task}")
            except InputError as error:
                if tasks:  # asked for by name
                    raise
                yield f"{task:<16} left out: {error}"
                break
            if kind == "resplit":
                splits = run.table("splits").assign(**names, run=run.id)
                found.append(splits)
                mean, spread = splits["auroc"].mean(), splits["auroc"].std()
                yield f"{task:<16} {arm:<14} AUROC {mean:.3f} over {len(splits)} splits, sd {spread:.3f}  {run.id}"
            elif kind == "fewshot":
                draws = run.table("draws").assign(**names, run=run.id)
                found.append(draws)
                said = ", ".join(f"{n}: {group.mean():.3f}" for n, group in draws.groupby("shots")["auroc"])
                yield f"{task:<16} {arm:<14} AUROC by subjects a class {said}  {run.id}"
            else:
                yield f"{task:<16} {arm:<14} {area(run)}  {run.id}"
    if table is not None:
        rows = pd.concat(found, ignore_index=True) if found else study.results(folds=True)
        with write_atomic(table) as temporary:
            if table.suffix == ".parquet":
                rows.to_parquet(temporary, index=False)
            else:
                rows.to_csv(temporary, index=False)
        yield f"table: {table}"


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


def compare_runs(names: Sequence[str]) -> Iterator[str]:
    """AUROC of runs of one task, and each one's difference from the first on the same held-out scans.

    Args:
        names: Identifiers of runs, or their beginnings.

    Raises:
        InputError: Fewer than two runs, a run that holds no predictions, or runs that held out different scans.
    """
    runs = [get_run(name) for name in names]
    if len(runs) < 2:
        raise InputError("Give at least two runs to compare.")
    for run in runs:
        if not (run.path / "predictions.parquet").is_file():
            raise InputError(f"{run.id} holds no predictions: give runs of probes or of fine-tuning.")
    first = _scans(runs[0])
    for run in runs[1:]:
        if not _scans(run).equals(first):
            raise InputError(
                f"{run.id} and {runs[0].id} held out different scans or labels, or name them by "
                "pseudonyms of two keys (BRAINFM_KEY): they cannot be paired."
            )
    yield f"{runs[0].id:<28} {area(runs[0])}"
    for run in runs[1:]:
        d = compare(run, runs[0])
        difference = f"difference {d.estimate:+.3f} [{d.low:+.3f}, {d.high:+.3f}], p = {d.p:.4f}"
        yield f"{run.id:<28} {area(run)}  {difference}"


def area(run: Run) -> str:
    """AUROC and its interval, as a line of the terminal says it."""
    row = run.table("results").set_index("metric").loc[METRIC]
    return f"AUROC {row['estimate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _scans(run: Run) -> pd.DataFrame:
    table = run.table("predictions")
    kept = [name for name in ("scan_uid", "label", "fold") if name in table]
    return table[kept].sort_values("scan_uid", ignore_index=True)
