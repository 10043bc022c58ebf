"""Intervals and tests whose unit is the subject.

Labels belong to scans, so the unit of inference is (subject, label): the scores of a subject's scans under one label
are averaged. Whole subjects are resampled, so repeated scans never narrow an interval. Everything here is conditional
on the fitted models: refitting, seeds and splits add variance of their own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from brainfm_lib.errors import InputError

Array = NDArray[Any]


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison(Interval):
    """A paired difference, its interval and its two-sided p-value."""

    p: float


@dataclass(frozen=True)
class _Units:
    """One row a (subject, label): labels (U,), scores (U, C), subjects (U,) codes 0…S-1, folds (U,)."""

    labels: Array
    scores: Array
    subjects: Array
    folds: Array

    @property
    def columns(self) -> list[tuple[int, int]]:
        """Pairs (class, score column): class 1 alone when binary, every class against the rest otherwise."""
        width = self.scores.shape[1]
        return [(1, width - 1)] if width <= 2 else [(c, c) for c in range(width)]


def aggregate_by_subject(labels: ArrayLike, scores: ArrayLike, subjects: ArrayLike) -> tuple[Array, Array, Array]:
    """Average scores over the scans that share a subject and a label.

    Args:
        labels: (n,) integer classes.
        scores: (n,) or (n, C).
        subjects: (n,) identifiers.

    Returns:
        labels (U,), scores (U,) or (U, C), subjects (U,), sorted by subject and then by label.
    """
    labels, scores, subjects = np.asarray(labels), np.asarray(scores, dtype=float), np.asarray(subjects)
    names, codes = np.unique(subjects, return_inverse=True)
    classes, label_codes = np.unique(labels, return_inverse=True)
    keys, unit = np.unique(codes * len(classes) + label_codes, return_inverse=True)
    columns = scores.reshape(len(labels), -1)
    sums = np.stack([np.bincount(unit, column, len(keys)) for column in columns.T], axis=1)
    mean = sums / np.bincount(unit)[:, None]
    mean = mean[:, 0] if scores.ndim == 1 else mean
    return classes[keys % len(classes)], mean, names[keys // len(classes)]


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve, ties counted half; macro one-vs-rest for three classes or more.

    Args:
        labels: (n,) classes 0…C-1.
        scores: (n,) scores of class 1, or (n, C), one column a class.

    Raises:
        InputError: a class without a row, or scores that are not finite.
    """
    rows = np.arange(np.size(labels))
    units = _make_units(labels, scores, rows, None, aggregate=False)
    return _fold_mean_auroc(units)


def auroc_interval(
    labels: ArrayLike,
    scores: ArrayLike,
    subjects: ArrayLike,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """AUROC over (subject, label) units with a subject-clustered percentile bootstrap interval.

    Subjects are drawn within groups that carry the same set of labels (stratified by class), so that no
    resample lacks a class. m - 1 of m subjects are drawn with replacement, which makes the variance unbiased
    in small groups too (Rao and Wu, 1988, JASA 83:231). Perfect separation gives a degenerate [1, 1].

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
    units = _make_units(labels, scores, subjects, None, minimum=2)
    return _bootstrap_interval(units, level, draws, seed)


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
    units = _make_units(labels, scores, subjects, folds, minimum=2)
    return _bootstrap_interval(units, level, draws, seed)


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

    The p-value inverts the percentile interval: twice the smaller share of resamples on one side of zero.
    Arguments and errors are those of `auroc_interval` and `cv_auroc_interval`.
    """
    a = _make_units(labels, scores_a, subjects, folds, minimum=2)
    b = _make_units(labels, scores_b, subjects, folds, minimum=2)
    chunks = [_fold_mean_auroc(a, w) - _fold_mean_auroc(b, w) for w in _unit_weights(a, draws, seed)]
    return _comparison(_fold_mean_auroc(a) - _fold_mean_auroc(b), np.concatenate(chunks), level)


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
    weights = _resample(np.zeros(mean.size, int), draws, np.random.default_rng(seed))
    return _comparison(float(mean.mean()), weights @ mean / weights.sum(1), level)


def permutation_p(
    labels: ArrayLike,
    scores: ArrayLike,
    subjects: ArrayLike,
    folds: ArrayLike | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> float:
    """One-sided p of an AUROC above chance: subjects' labels are permuted against fixed held-out scores.

    Labels move between subjects (within a fold) that carry equally many labels, and between the units of a
    subject that carries several. Models are not refitted: exact for one held-out test set; for small
    cross-validated samples use `permutation_p_refit`, because there the folds' scores depend on each other.

    Args:
        labels, scores, subjects: as in `auroc_interval`.
        folds: as in `cv_auroc_interval`, or None for one test set.
        draws, seed: number and seed of the permutations.

    Raises:
        InputError: a class without a subject (in a fold), or scores that are not finite.
    """
    units = _make_units(labels, scores, subjects, folds)
    rng = np.random.default_rng(seed)
    held = np.bincount(units.subjects)[units.subjects]  # labels carried by each unit's subject
    null = np.zeros(draws)
    for fold in np.unique(units.folds):
        inside = np.flatnonzero(units.folds == fold)
        permuted = np.empty((draws, inside.size), dtype=units.labels.dtype)
        for count in np.unique(held[inside]):
            place = np.flatnonzero(held[inside] == count)  # units are sorted by subject: rows of `count`
            blocks = units.labels[inside][place].reshape(-1, count)
            shuffled = blocks[rng.permuted(np.tile(np.arange(len(blocks)), (draws, 1)), axis=1)]
            permuted[:, place] = rng.permuted(shuffled, axis=2).reshape(draws, -1)
        for label, column in units.columns:
            ranks, positive = rankdata(units.scores[inside, column]), permuted == label
            n = positive[0].sum()
            area = (positive @ ranks - n * (n + 1) / 2) / (n * (inside.size - n))
            null += area / len(units.columns) / np.unique(units.folds).size
    return float((1 + np.sum(null >= _fold_mean_auroc(units) - 1e-12)) / (draws + 1))


def permutation_p_refit(
    fit_and_score: Callable[[Array], float],
    labels: ArrayLike,
    subjects: ArrayLike,
    folds: ArrayLike | None = None,
    *,
    draws: int = 200,
    enough: int = 10,
    seed: int = 0,
) -> float:
    """One-sided p of a statistic whose whole procedure is repeated under permuted subject labels.

    Sequential (Besag & Clifford 1991, Biometrika 78:301): where nothing is there, few refits say so.

    Args:
        fit_and_score: takes labels (n,), runs everything that looks at labels, returns the statistic.
        labels: (n,) classes of the scans. Where every subject carries one label it moves as one; otherwise
            label sequences move whole between subjects with equally many scans.
        subjects, folds: (n,) each; with folds, labels move within them, which keeps every fold's class counts.
        draws: most permutations, each of them a refit.
        enough, seed: stop once so many have reached the observed value, p being their share; seed of the permutations.
    """
    labels, rng = np.asarray(labels), np.random.default_rng(seed)
    names, codes = np.unique(np.asarray(subjects), return_inverse=True)
    rows = [np.flatnonzero(codes == s) for s in range(len(names))]
    single = all(np.ptp(labels[r]) == 0 for r in rows)
    fold_of = np.zeros(len(labels), int) if folds is None else np.unique(np.asarray(folds), return_inverse=True)[1]
    groups: dict[tuple[int, int], list[int]] = {}
    for s, r in enumerate(rows):
        groups.setdefault((int(fold_of[r[0]]), 1 if single else len(r)), []).append(s)
    observed, exceed = fit_and_score(labels.copy()), 0
    for made in range(1, draws + 1):
        permuted = labels.copy()
        for members in groups.values():
            for target, source in zip(members, rng.permutation(members)):
                permuted[rows[target]] = labels[rows[source][0]] if single else labels[rows[source]]
        exceed += fit_and_score(permuted) >= observed - 1e-12
        if exceed == enough:
            return exceed / made
    return (1 + exceed) / (draws + 1)


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down adjusted p-values, in the given order (Holm, 1979, Scand. J. Statist. 6:65).

    NaN stands for a test that was not made: it stays NaN and the family is the others.
    """
    p = np.asarray(p_values, dtype=float)
    made = np.flatnonzero(~np.isnan(p))
    order = made[np.argsort(p[made])]
    result = np.full_like(p, np.nan)
    result[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(order.size, 0, -1)), 1.0)
    return result


def _make_units(
    labels: ArrayLike,
    scores: ArrayLike,
    subjects: ArrayLike,
    folds: ArrayLike | None,
    *,
    minimum: int = 1,
    aggregate: bool = True,
) -> _Units:
    """Check, aggregate and sort; every class has at least `minimum` subjects in every fold, or InputError."""
    labels, scores, subjects = np.asarray(labels), np.asarray(scores, dtype=float), np.asarray(subjects)
    if not len(labels) == len(scores) == len(subjects):
        raise InputError(
            f"{len(labels)} labels, {len(scores)} scores and {len(subjects)} subjects do not fit together: "
            "give one of each for every scan."
        )
    if not len(labels):
        raise InputError("There is no scan to score: check the split of this task.")
    if not np.isfinite(scores).all():
        row = int(np.argwhere(~np.isfinite(scores))[0][0])
        raise InputError(f"The score of row {row} (subject {subjects[row]}) is not finite: mend its features.")
    names, codes = np.unique(subjects, return_inverse=True)
    fold_names, fold_codes = np.unique(
        np.zeros(len(labels), int) if folds is None else np.asarray(folds), return_inverse=True
    )
    fold_of = np.zeros(len(names), int)
    fold_of[codes] = fold_codes
    if (fold_of[codes] != fold_codes).any():
        bad = subjects[np.flatnonzero(fold_of[codes] != fold_codes)[0]]
        raise InputError(f"Subject {bad} is in more than one fold: assign folds by subject.")
    if aggregate:
        labels, scores, unit_names = aggregate_by_subject(labels, scores, subjects)
        codes = np.searchsorted(names, unit_names)
    units = _Units(labels, scores.reshape(len(labels), -1), codes, fold_of[codes])
    classes = max(2, units.scores.shape[1])
    if not np.isin(labels, np.arange(classes)).all():
        strange = labels[~np.isin(labels, np.arange(classes))][0]
        raise InputError(f"Label {strange} has no score column: labels must be 0 to {classes - 1}.")
    for fold, name in enumerate(fold_names):
        counts = np.bincount(labels[units.folds == fold].astype(int), minlength=classes)
        if counts.min() < minimum:
            where = "" if folds is None else f" in fold {name}"
            raise InputError(
                f"Class {counts.argmin()} has {counts.min()} subject(s){where} where an AUROC needs at least "
                f"{minimum}: add subjects{'' if folds is None else ', use fewer folds'} or merge classes."
            )
    return units


def _weighted_auroc(positive: Array, scores: Array, weights: Array) -> Array:
    """AUROC under unit weights: positive (U,) bool, scores (U,), weights (R, U) -> (R,)."""
    order = np.argsort(scores, kind="stable")
    scores, positive, weights = scores[order], positive[order], weights[:, order]
    below = np.zeros((len(weights), len(scores) + 1))
    np.cumsum(weights * ~positive, axis=1, out=below[:, 1:])
    first = np.searchsorted(scores, scores[positive], side="left")
    last = np.searchsorted(scores, scores[positive], side="right")
    won = 0.5 * (below[:, first] + below[:, last])  # weight of the negatives below, ties counted half
    w = weights[:, positive]
    return (w * won).sum(1) / (w.sum(1) * below[:, -1])


def _fold_mean_auroc(units: _Units, weights: Array | None = None) -> Any:
    """Mean over folds of the macro AUROC: a float, or (R,) for weights (R, U)."""
    w = np.ones((1, units.labels.size)) if weights is None else weights
    areas = [
        _weighted_auroc(units.labels[inside] == label, units.scores[inside, column], w[:, inside])
        for fold in np.unique(units.folds)
        for inside in [np.flatnonzero(units.folds == fold)]
        for label, column in units.columns
    ]
    mean = np.mean(areas, axis=0)
    return float(mean[0]) if weights is None else mean


def _resample(strata: Array, draws: int, rng: np.random.Generator) -> Array:
    """How often each subject is drawn, (draws, S), when m - 1 of m are drawn within each stratum (S,)."""
    weights = np.ones((draws, strata.size))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        m = members.size
        if m > 1:
            drawn = rng.integers(m, size=(draws, m - 1)) + m * np.arange(draws)[:, None]
            weights[:, members] = np.bincount(drawn.ravel(), minlength=draws * m).reshape(draws, m)
    return weights


def _unit_weights(units: _Units, draws: int, seed: int) -> Iterator[Array]:
    """Bootstrap weights of the units in blocks (R, U), stratified by fold and set of labels carried."""
    label_set = np.zeros(units.subjects.max() + 1, dtype=np.int64)
    np.add.at(label_set, units.subjects, 2 ** units.labels.astype(np.int64))
    fold_of = np.zeros_like(label_set)
    fold_of[units.subjects] = units.folds
    strata, rng = fold_of * (label_set.max() + 1) + label_set, np.random.default_rng(seed)
    block = max(1, 2_000_000 // units.labels.size)  # keeps the temporaries near 100 MB
    for start in range(0, draws, block):
        yield _resample(strata, min(block, draws - start), rng)[:, units.subjects]


def _bootstrap_interval(units: _Units, level: float, draws: int, seed: int) -> Interval:
    values = np.concatenate([_fold_mean_auroc(units, w) for w in _unit_weights(units, draws, seed)])
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(_fold_mean_auroc(units), float(low), float(high))


def _comparison(estimate: float, values: Array, level: float) -> Comparison:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    tail = 1 + min((values <= 0).sum(), (values >= 0).sum())
    return Comparison(estimate, float(low), float(high), float(min(1.0, 2 * tail / (values.size + 1))))
