"""The unit of inference, (subject, label), and how whole subjects are resampled."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit, ndtri, stdtr, stdtrit

from brainfm_lib.errors import InputError

Array = NDArray[Any]
AGREE = 1e-9  # spread of resampled areas below which they are the same
FEW = 15  # subjects of a class below which an AUROC's interval is the closed form: a bootstrap cannot know the variance


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
class Units:
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


def make_units(
    labels: ArrayLike,
    scores: ArrayLike,
    subjects: ArrayLike,
    folds: ArrayLike | None,
    *,
    minimum: int = 1,
    aggregate: bool = True,
) -> Units:
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
    units = Units(labels, scores.reshape(len(labels), -1), codes, fold_of[codes])
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


def weighted_auroc(positive: Array, scores: Array, weights: Array) -> Array:
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


def fold_mean_auroc(units: Units, weights: Array | None = None) -> Any:
    """Mean over folds of the macro AUROC: a float, or (R,) for weights (R, U)."""
    w = np.ones((1, units.labels.size)) if weights is None else weights
    areas = [
        weighted_auroc(units.labels[inside] == label, units.scores[inside, column], w[:, inside])
        for fold in np.unique(units.folds)
        for inside in [np.flatnonzero(units.folds == fold)]
        for label, column in units.columns
    ]
    mean = np.mean(areas, axis=0)
    return float(mean[0]) if weights is None else mean


def resample(strata: Array, draws: int, rng: np.random.Generator) -> Array:
    """Weight of each subject, (draws, S), when m - 1 of m are drawn within each stratum (S,); its sum is m again."""
    weights = np.ones((draws, strata.size))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        m = members.size
        if m > 1:
            drawn = rng.integers(m, size=(draws, m - 1)) + m * np.arange(draws)[:, None]
            times = np.bincount(drawn.ravel(), minlength=draws * m).reshape(draws, m)
            weights[:, members] = times * (m / (m - 1))  # every stratum keeps its share
    return weights


def strata_of(units: Units) -> Array:
    """(S,) stratum of each subject: its fold and the set of labels that it carries."""
    label_set = np.zeros(units.subjects.max() + 1, dtype=np.int64)
    np.add.at(label_set, units.subjects, 2 ** units.labels.astype(np.int64))
    fold_of = np.zeros_like(label_set)
    fold_of[units.subjects] = units.folds
    return fold_of * (label_set.max() + 1) + label_set


def unit_weights(units: Units, draws: int, seed: int) -> Iterator[Array]:
    """Bootstrap weights of the units in blocks (R, U), stratified by fold and set of labels carried."""
    strata, rng = strata_of(units), np.random.default_rng(seed)
    block = max(1, 2_000_000 // units.labels.size)  # keeps the temporaries near 100 MB
    for start in range(0, draws, block):
        yield resample(strata, min(block, draws - start), rng)[:, units.subjects]


def influences(units: Units) -> Array:
    """(U,) by how much each unit moves `fold_mean_auroc` with its weight: DeLong's placements less their mean."""
    moved, areas = np.zeros(len(units.labels)), 0
    for fold in np.unique(units.folds):
        inside = np.flatnonzero(units.folds == fold)
        for label, column in units.columns:
            positive, scores = units.labels[inside] == label, units.scores[inside, column]
            cases, others = scores[positive], scores[~positive]
            above, below = _placements(cases, others), _placements(others, cases)
            moved[inside[positive]] += (above - above.mean()) / len(above)
            moved[inside[~positive]] -= (below - below.mean()) / len(below)
            areas += 1
    return moved / areas


def _placements(x: Array, among: Array) -> Array:
    """(n,) share of `among` that lies below each x, ties counted half."""
    among = np.sort(among)
    return (np.searchsorted(among, x, "left") + np.searchsorted(among, x, "right")) / (2 * len(among))


def freedom(units: Units, moved: Array) -> float:
    """Degrees of freedom of a variance summed over strata, each estimated from few subjects (Satterthwaite, 1946).

    At most twice those of the smallest class: of two or three subjects not even the variance can be relied on.

    Args:
        units: Whose subjects are resampled.
        moved: (U,) influence of each unit on the statistic; all 0: as if it came from the smallest class alone.
    """
    of_subject, strata = np.bincount(units.subjects, moved), strata_of(units)
    groups = [of_subject[strata == stratum] for stratum in np.unique(strata)]
    parts = [(len(group) * group.var(ddof=1), len(group) - 1) for group in groups if len(group) > 1]
    total, folds = sum(variance for variance, _ in parts), len(np.unique(units.folds))
    fewest = max(np.unique(units.labels, return_counts=True)[1].min() - folds, 1)
    return min(total**2 / sum(variance**2 / m for variance, m in parts), 2.0 * fewest) if total > 0 else float(fewest)


def stretch(freedom: float, level: float) -> float:
    """Quantile of t with these degrees of freedom over that of the normal."""
    return float(stdtrit(max(freedom, 1), (1 - level) / 2) / ndtri((1 - level) / 2))


def auroc_values(units: Units, draws: int, seed: int) -> tuple[Array, Array]:
    """`fold_mean_auroc` under resampled subjects (R,), and the part of it (R,) that is linear in their weights."""
    moved = influences(units)
    pairs = [(fold_mean_auroc(units, w), w @ moved) for w in unit_weights(units, draws, seed)]
    values, linear = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return values, linear


def standard_error(values: Array, linear: Array) -> float:
    """Of an AUROC or a difference of two, from `auroc_values`.

    Beside the part that is linear in the subjects, an AUROC has one of pairs of them. The linear part's variance under
    resampling is too large by the variance of the other, and that of the whole by twice as much.
    """
    plain, whole = linear.var(ddof=1), values.var(ddof=1)
    return float(np.sqrt(max(2 * plain - whole, plain / 2)))


def auroc_ends(units: Units, values: Array, linear: Array, level: float) -> tuple[float, float]:
    """Ends of the interval of an AUROC from `auroc_values`, see `intervals.auroc_interval`."""
    estimate = fold_mean_auroc(units)
    few = np.unique(units.labels, return_counts=True)[1].min() < FEW
    if few or np.ptp(values) < AGREE or not 0 < estimate < 1:
        low, high = _closed_form(units, level)
        return float(low), float(high)
    quantile = -stdtrit(freedom(units, influences(units)), (1 - level) / 2)
    half = quantile * standard_error(values, linear) / (estimate * (1 - estimate))
    return float(expit(logit(estimate) - half)), float(expit(logit(estimate) + half))


def bootstrap_interval(units: Units, level: float, draws: int, seed: int) -> Interval:
    """Fold-averaged AUROC with its interval, see `intervals.auroc_interval`."""
    return Interval(fold_mean_auroc(units), *auroc_ends(units, *auroc_values(units, draws, seed), level))


def _closed_form(units: Units, level: float) -> Array:
    """Newcombe's interval (2,) of the AUROC, one-vs-rest averaged over classes."""
    ends = []
    for label, column in units.columns:
        one = Units((units.labels == label).astype(int), units.scores[:, [column]], units.subjects, units.folds)
        positives = int(one.labels.sum())
        ends.append(newcombe(fold_mean_auroc(one), positives, len(one.labels) - positives, level=level))
    return np.mean(ends, axis=0)


def newcombe(auroc: float, positives: int, negatives: int, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of an AUROC from its value and the numbers of subjects alone.

    Method 5 of Newcombe (2006, Statistics in Medicine 25:559): those values from which the observed one is within z
    standard errors, as the exponential model of Hanley and McNeil gives them at that value. It does not collapse where
    classes are perfectly apart.
    """
    z = -ndtri((1 - level) / 2)
    half = (positives + negatives) / 2 - 1

    def beyond(theta: float) -> float:
        spread = 1 + half * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (auroc - theta) ** 2 - z**2 * theta * (1 - theta) * spread / (positives * negatives)

    edge = 1e-9  # 0 and 1 themselves solve the equation where they are observed
    below, above = min(auroc, 1 - edge), max(auroc, edge)
    low = brentq(beyond, 0, below) if beyond(below) < 0 else min(auroc, below)  # an interval as narrow as an edge
    high = brentq(beyond, above, 1) if beyond(above) < 0 else max(auroc, above)
    return (float(low) if auroc > 0 else 0.0), (float(high) if auroc < 1 else 1.0)


def comparison_at_ceiling(a: Units, b: Units, level: float, draws: int) -> Comparison:
    """Difference of two AUROCs whose resamples do not differ: Newcombe's two intervals, squared and added.

    As in Zou and Donner (2008, Statistics in Medicine 27:1693), as if the two were independent; p inverts it.
    """
    first, second = fold_mean_auroc(a), fold_mean_auroc(b)

    def ends(level: float) -> tuple[float, float]:
        (low_a, high_a), (low_b, high_b) = _closed_form(a, level), _closed_form(b, level)
        below, above = np.hypot(first - low_a, high_b - second), np.hypot(high_a - first, second - low_b)
        return first - second - float(below), first - second + float(above)

    def nearer(p: float) -> float:  # how far the end next to 0 is from it, above 0 where p is too large
        low, high = ends(1 - p)
        return low if first > second else -high

    least, most = 2 / (draws + 1), 0.999
    if abs(first - second) < AGREE or nearer(most) < 0:
        p = 1.0
    else:
        p = least if nearer(least) > 0 else float(brentq(nearer, least, most))
    return Comparison(first - second, *ends(level), p)


def comparison(estimate: float, error: float, freedom: float, level: float, draws: int) -> Comparison:
    """A difference with its t-interval, and the p that inverts it; none below what so many resamples could tell."""
    half = -float(stdtrit(freedom, (1 - level) / 2)) * error
    t = abs(estimate) / error if error > 0 else (np.inf if estimate else 0.0)
    p = max(2 * float(stdtr(freedom, -t)), 2 / (draws + 1))
    return Comparison(estimate, estimate - half, estimate + half, min(1.0, p))
