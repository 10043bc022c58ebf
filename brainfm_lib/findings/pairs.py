"""Finished runs as the command line says them: what one reached, and what lies between two."""

from collections.abc import Iterator, Sequence

import pandas as pd

from brainfm_lib.errors import InputError
from brainfm_lib.findings.comparison import compare
from brainfm_lib.runs import Run, get_run
from brainfm_lib.verdict import METRIC


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
