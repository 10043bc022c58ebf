"""Tables of the report, as a reader sees them."""

from brainfm_lib.tables.judged import (
    SCRATCH,
    differences_table,
    efficiency_table,
    matched_table,
    metrics_table,
    picked_table,
    replicated_table,
    results_table,
    trial_table,
    variance_table,
)
from brainfm_lib.tables.structure import dimension_table, seams_table, slope_table, structure_table
from brainfm_lib.tables.study import (
    cost_table,
    example_names,
    manifest_table,
    montage_scans,
    pretraining_table,
    rank_table,
    resolution_table,
    runs_table,
    split_table,
    truth_table,
)
from brainfm_lib.tables.style import show, task_titles

__all__ = [
    "SCRATCH",
    "cost_table",
    "differences_table",
    "dimension_table",
    "efficiency_table",
    "example_names",
    "manifest_table",
    "matched_table",
    "metrics_table",
    "montage_scans",
    "picked_table",
    "pretraining_table",
    "rank_table",
    "replicated_table",
    "resolution_table",
    "results_table",
    "runs_table",
    "seams_table",
    "show",
    "slope_table",
    "split_table",
    "structure_table",
    "task_titles",
    "trial_table",
    "truth_table",
    "variance_table",
]
