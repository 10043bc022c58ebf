"""Intervals and tests whose unit is the subject.

Labels belong to scans, so the unit of inference is (subject, label): the scores of a subject's scans under one label
are averaged. Whole subjects are resampled, so repeated scans never narrow an interval. Everything here is conditional
on the fitted models: refitting, seeds and splits add variance of their own.
"""

from brainfm_lib.stats.delong import delong
from brainfm_lib.stats.intervals import (
    auroc,
    auroc_interval,
    auroc_variance,
    cv_auroc_interval,
    paired_auroc_difference,
    paired_mean_interval,
)
from brainfm_lib.stats.metrics import METRICS, efficiency, metric_intervals
from brainfm_lib.stats.permutation import holm, label_dealer, permutation_p, permutation_p_refit
from brainfm_lib.stats.repeats import detectable_difference, nadeau_bengio, variance_shares
from brainfm_lib.stats.units import Comparison, Interval, aggregate_by_subject, newcombe

__all__ = [
    "METRICS",
    "Comparison",
    "Interval",
    "aggregate_by_subject",
    "auroc",
    "auroc_interval",
    "auroc_variance",
    "cv_auroc_interval",
    "delong",
    "detectable_difference",
    "efficiency",
    "holm",
    "label_dealer",
    "metric_intervals",
    "nadeau_bengio",
    "newcombe",
    "paired_auroc_difference",
    "paired_mean_interval",
    "permutation_p",
    "permutation_p_refit",
    "variance_shares",
]
