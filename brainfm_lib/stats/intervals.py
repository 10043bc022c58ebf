"""AUROC and paired differences, with intervals over subjects."""

import numpy as np
from numpy.typing import ArrayLike

from brainfm_lib.errors import InputError
from brainfm_lib.stats.units import (
    AGREE,
    Comparison,
    Interval,
    aggregate_by_subject,
    auroc_values,
    bootstrap_interval,
    comparison,
    comparison_at_ceiling,
    fold_mean_auroc,
    freedom,
    influences,
    make_units,
    resample,
    standard_error,
)


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve, ties counted half; macro one-vs-rest for three classes or more.

    Args:
        labels: (n,) classes 0…C-1.
        scores: (n,) scores of class 1, or (n, C), one column a class.

    Raises:
        InputError: a class without a row, or scores that are not finite.
    """
    rows = np.arange(np.size(labels))
    units = make_units(labels, scores, rows, None, aggregate=False)
    return fold_mean_auroc(units)


def auroc_interval(
    labels: ArrayLike,
    scores: ArrayLike,
    subjects: ArrayLike,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """AUROC over (subject, label) units with a subject-clustered bootstrap interval.

    Subjects are drawn within groups that carry the same set of labels (stratified by class), so that no
    resample lacks a class. m - 1 of m subjects are drawn with replacement, which makes the variance unbiased
    in small groups too (Rao and Wu, 1988, JASA 83:231) but for `units.standard_error`'s correction. The interval is a
    t-interval of the log odds of the AUROC, which is nearer to symmetric than the area, with the degrees of freedom of
    `units.freedom`: percentiles are too narrow for areas near 1. Where a class has fewer than 15 subjects, or all
    resamples agree (as for classes that are perfectly apart), it is Newcombe's, see `units.newcombe`.
    `benchmarks/interval_coverage.py` shows what that holds.

    Args:
        labels: (n,) classes 0…C-1 of the scans.
        scores: (n,) or (n, C) held-out scores of the scans.
        subjects: (n,) subject identifiers.
        level: nominal coverage.
        draws: bootstrap resamples.
        seed: of the resampling.

    Raises:
        InputError: a class with fewer than two subjects, or scores that are not finite.
    """
    units = make_units(labels, scores, subjects, None, minimum=2)
    return bootstrap_interval(units, level, draws, seed)


def auroc_variance(
    labels: ArrayLike, scores: ArrayLike, subjects: ArrayLike, *, draws: int = 400, seed: int = 0
) -> float:
    """Variance of the AUROC over resampled subjects; arguments and errors as in `auroc_interval`."""
    units = make_units(labels, scores, subjects, None, minimum=2)
    return standard_error(*auroc_values(units, draws, seed)) ** 2


def cv_auroc_interval(
    labels: ArrayLike,
    scores: ArrayLike,
    subjects: ArrayLike,
    folds: ArrayLike,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of the within-fold AUROCs, with subjects resampled within fold and class.

    Scores are never pooled over folds: their models differ, and pooling is biased (under the null,
    leave-one-out pooling gives an AUROC far below one half).

    Args:
        labels, subjects, level, draws, seed: as in `auroc_interval`.
        scores: each scan's score from the model that did not see its fold.
        folds: (n,) fold of each scan; all scans of a subject are in one fold.

    Raises:
        InputError: a fold with fewer than two subjects of a class, or a subject in two folds.
    """
    units = make_units(labels, scores, subjects, folds, minimum=2)
    return bootstrap_interval(units, level, draws, seed)


def paired_auroc_difference(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    subjects: ArrayLike,
    *,
    folds: ArrayLike | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Comparison:
    """AUROC of `scores_a` minus that of `scores_b` on the same scans, under the same resampled subjects.

    A t-interval whose standard error is the spread of resampled differences (`units.standard_error`), with the degrees
    of freedom of `units.freedom`; the p-value inverts it. Where no resample changes either (both are
    perfect, say) it is `units.comparison_at_ceiling`.
    Arguments and errors are those of `auroc_interval` and `cv_auroc_interval`.
    """
    a = make_units(labels, scores_a, subjects, folds, minimum=2)
    b = make_units(labels, scores_b, subjects, folds, minimum=2)
    (values_a, linear_a), (values_b, linear_b) = (auroc_values(units, draws, seed) for units in (a, b))
    if max(np.ptp(values_a), np.ptp(values_b)) < AGREE:
        return comparison_at_ceiling(a, b, level, draws)
    error = standard_error(values_a - values_b, linear_a - linear_b)
    freed = freedom(a, influences(a) - influences(b))
    return comparison(fold_mean_auroc(a) - fold_mean_auroc(b), error, freed, level, draws)


def paired_mean_interval(
    a: ArrayLike, b: ArrayLike, subjects: ArrayLike, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Comparison:
    """Mean over subjects of each subject's mean a - b, with a subject bootstrap (for reconstruction errors).

    Args:
        a: (n,) a value for each scan.
        b: (n,) the value that it is compared with, same scan.
        subjects: (n,) subject identifiers.
        level, draws, seed: as in `auroc_interval`.

    Raises:
        InputError: fewer than two subjects, or values that are not finite.
    """
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    _, mean, names = aggregate_by_subject(np.zeros(difference.size, int), difference, subjects)
    if names.size < 2:
        raise InputError(f"A paired interval needs at least two subjects and got {names.size}: add subjects.")
    if not np.isfinite(mean).all():
        bad = names[~np.isfinite(mean)][0]
        raise InputError(f"Subject {bad} has a paired difference that is not finite: drop or mend its scans.")
    weights = resample(np.zeros(mean.size, int), draws, np.random.default_rng(seed))
    error = float((weights @ mean / weights.sum(1)).std(ddof=1))
    return comparison(float(mean.mean()), error, mean.size - 1, level, draws)
