"""Tests against chance by permuting subjects' labels, and Holm's adjustment over a family of tests."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from brainfm_lib.stats.units import Array, fold_mean_auroc, make_units


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
    units = make_units(labels, scores, subjects, folds)
    from scipy.stats import rankdata  # a second of imports

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
    return float((1 + np.sum(null >= fold_mean_auroc(units) - 1e-12)) / (draws + 1))


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
        labels, subjects, folds: as in `label_dealer`.
        draws: most permutations, each of them a refit.
        enough, seed: stop once so many have reached the observed value, p being their share; seed of the permutations.
    """
    labels, rng, deal = np.asarray(labels), np.random.default_rng(seed), label_dealer(labels, subjects, folds)
    observed, exceed = fit_and_score(labels.copy()), 0
    for made in range(1, draws + 1):
        exceed += fit_and_score(deal(rng)) >= observed - 1e-12
        if exceed == enough:
            return exceed / made
    return (1 + exceed) / (draws + 1)


def label_dealer(
    labels: ArrayLike, subjects: ArrayLike, folds: ArrayLike | None = None
) -> Callable[[np.random.Generator], Array]:
    """What deals the labels of scans out anew among subjects.

    Args:
        labels: (n,) classes of the scans. Subjects that carry one label exchange it, however many scans they have;
            those that carry several exchange theirs where they have equally many scans, which are then permuted.
        subjects, folds: (n,) each; with folds (or splits), labels move within them, which keeps their class counts.

    Returns:
        A function of a generator: labels (n,), another deal each time.
    """
    labels = np.asarray(labels)
    codes, names = pd.factorize(
        np.asarray(subjects)
    )  # in their order, not that of their names: those may be pseudonyms
    rows = [np.flatnonzero(codes == s) for s in range(len(names))]
    one = [np.ptp(labels[r]) == 0 for r in rows]
    fold_of = np.zeros(len(labels), int) if folds is None else np.unique(np.asarray(folds), return_inverse=True)[1]
    groups: dict[tuple[int, int], list[int]] = {}
    for s, r in enumerate(rows):
        groups.setdefault((int(fold_of[r[0]]), 0 if one[s] else len(r)), []).append(s)

    def deal(rng: np.random.Generator) -> Array:
        dealt = labels.copy()
        for members in groups.values():
            for target, source in zip(members, rng.permutation(members)):
                dealt[rows[target]] = labels[rows[source][0]] if one[source] else rng.permutation(labels[rows[source]])
        return dealt

    return deal


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
