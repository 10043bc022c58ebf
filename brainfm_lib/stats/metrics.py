"""What else held-out probabilities say: precision, accuracy, calibration; and efficiency where the truth is known."""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import ndtri

from brainfm_lib.stats.units import (
    AGREE,
    Array,
    Units,
    auroc_ends,
    fold_mean_auroc,
    freedom,
    influences,
    make_units,
    stretch,
    unit_weights,
)

METRICS = ("auroc", "auprc", "balanced_accuracy", "brier", "calibration_slope")
STEPS = 10  # of Newton's method for the calibration slope
BOUNDS = {"brier": 2.0}  # of metrics that lie within [0, 1], unless said here


def metric_intervals(
    labels: ArrayLike,
    probabilities: ArrayLike,
    subjects: ArrayLike,
    folds: ArrayLike | None = None,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """All of `METRICS` over (subject, label) units, each with its interval over the same resampled subjects.

    That of the AUROC is `auroc_interval`'s; the others are percentiles, whose deviations are stretched by quantile of t
    over normal with the AUROC's degrees of freedom, because few subjects leave the variance itself uncertain. Where all
    resamples agree, percentiles say nothing, and the ends are NaN.

    - ``auroc``: see `auroc`.
    - ``auprc``: average precision (area under the precision-recall curve as a step function); chance is the prevalence.
    - ``balanced_accuracy``: mean over classes of the share that the largest probability names.
    - ``brier``: mean squared distance between probability and outcome; of two classes that of class 1, of more the
      sum over classes.
    - ``calibration_slope``: slope of the logistic regression of the outcome on the predicted log odds; below 1 where
      predictions are too extreme. NaN where no slope exists, as for perfect separation, which resamples may have too.

    Three classes or more are averaged one-vs-rest, folds are averaged too.

    Args:
        labels: (n,) classes 0…C-1 of the scans.
        probabilities: (n,) of class 1, or (n, C).
        subjects: (n,) identifiers.
        folds: (n,) each scan's fold, or None for one test set.
        level, draws, seed: Of the bootstrap.

    Returns:
        A row a metric: metric, estimate, low, high.

    Raises:
        InputError: As in `auroc_interval`.
    """
    units = make_units(labels, probabilities, subjects, folds, minimum=2)
    if units.scores.shape[1] == 1:
        both = np.concatenate([1 - units.scores, units.scores], axis=1)
        units = Units(units.labels, both, units.subjects, units.folds)
    one = np.ones((1, len(units.labels)))
    point = {name: _over_folds(units, one, name)[0] for name in METRICS}
    drawn: dict[str, list[Array]] = {name: [] for name in METRICS}
    moved, linear = influences(units), []
    for weights in unit_weights(units, draws, seed):
        linear.append(weights @ moved)
        for name in METRICS:
            drawn[name].append(_over_folds(units, weights, name))
    rows, factor = [], stretch(freedom(units, moved), level)
    for name in METRICS:
        values = np.concatenate(drawn[name])
        usable = values[np.isfinite(values)]
        known = np.isfinite(point[name]) and len(usable) > draws / 2 and np.ptp(usable) > AGREE
        low, high = np.quantile(usable, [(1 - level) / 2, (1 + level) / 2]) if known else (np.nan, np.nan)
        low, high = point[name] + factor * (np.array([low, high]) - point[name])
        if name == "auroc":
            low, high = auroc_ends(units, values, np.concatenate(linear), level)
        elif name != "calibration_slope":
            low, high = np.clip([low, high], 0, BOUNDS.get(name, 1.0))
        rows.append({"metric": name, "estimate": float(point[name]), "low": float(low), "high": float(high)})
    return pd.DataFrame(rows)


def efficiency(auroc: ArrayLike, ideal: float) -> Array:
    """Share of an ideal observer's squared detectability: (d' / d'_ideal)², with d' = sqrt 2 Phi^-1(AUROC).

    Below chance it is negative, so that noise about chance averages to nothing.

    Args:
        auroc: Areas, any shape; two classes.
        ideal: The ideal observer's, above one half.
    """
    if not 0.5 < ideal < 1:
        raise ValueError(f"an ideal observer's AUROC lies between one half and 1, not at {ideal}")
    d = ndtri(np.clip(np.asarray(auroc, float), 0.0, 1.0)) / ndtri(ideal)
    return np.sign(d) * d**2


def _over_folds(units: Units, weights: Array, name: str) -> Array:
    """(R,) a metric under unit weights (R, U), averaged over folds."""
    if name == "auroc":
        return np.asarray(fold_mean_auroc(units, weights))
    found = [_ONE[name](part, w) for part, w in _folds(units, weights)]
    return np.mean(found, axis=0)


def _folds(units: Units, weights: Array) -> Iterator[tuple[Units, Array]]:
    for fold in np.unique(units.folds):
        inside = np.flatnonzero(units.folds == fold)
        yield Units(*(a[inside] for a in (units.labels, units.scores, units.subjects, units.folds))), weights[:, inside]


def _auprc(units: Units, weights: Array) -> Array:
    areas = []
    for label, column in units.columns:
        order = np.argsort(-units.scores[:, column], kind="stable")
        scores, w = units.scores[order, column], weights[:, order]
        positive = w * (units.labels[order] == label)
        last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # ties are taken together
        hits, taken = np.cumsum(positive, 1)[:, last], np.cumsum(w, 1)[:, last]
        gained = np.diff(hits, axis=1, prepend=0)
        areas.append((gained * hits / np.maximum(taken, 1e-12)).sum(1) / hits[:, -1])
    return np.mean(areas, axis=0)


def _balanced_accuracy(units: Units, weights: Array) -> Array:
    right = units.scores.argmax(1) == units.labels
    classes = [units.labels == c for c in range(units.scores.shape[1])]
    return np.mean([weights[:, c] @ right[c] / weights[:, c].sum(1) for c in classes], axis=0)


def _brier(units: Units, weights: Array) -> Array:
    outcome = units.labels[:, None] == np.arange(units.scores.shape[1])
    square = ((units.scores - outcome) ** 2).sum(1) / (2 if outcome.shape[1] == 2 else 1)
    return weights @ square / weights.sum(1)


def _calibration_slope(units: Units, weights: Array) -> Array:
    slopes = []
    for label, column in units.columns:
        p = np.clip(units.scores[:, column], 1e-9, 1 - 1e-9)
        slopes.append(_logistic_slope(np.log(p / (1 - p)), units.labels == label, weights))
    return np.mean(slopes, axis=0)


def _logistic_slope(x: Array, y: Array, weights: Array) -> Array:
    """(R,) slope of weighted logistic regressions of y (U,) on x (U,) under weights (R, U), by Newton's method.

    All start from the regression without weights, near which resamples lie.
    """
    scale = max(float(np.std(x)), 1e-12)
    z = (x - x.mean()) / scale
    a, b, _ = _newton(z, y, np.ones((1, len(x))), np.zeros(1), np.zeros(1), 4 * STEPS)
    a, b = (np.repeat(c if np.isfinite(c).all() else np.zeros(1), len(weights)) for c in (a, b))
    a, b, moved = _newton(z, y, weights, a, b, STEPS)
    known = (moved < 1e-6 * (1 + np.abs(b))) & _overlap(z, y, weights)
    return np.where(known, b / scale, np.nan)


def _overlap(z: Array, y: Array, weights: Array) -> Array:
    """(R,) whether neither class lies wholly on one side of the other, without which there is no finite slope."""
    ends = []
    for part in (y, ~y):
        there = weights[:, part] > 0
        ends += [np.where(there, z[part], np.inf).min(1), np.where(there, z[part], -np.inf).max(1)]
    return (ends[1] > ends[2]) & (ends[3] > ends[0])


def _newton(z: Array, y: Array, weights: Array, a: Array, b: Array, steps: int) -> tuple[Array, Array, Array]:
    """Intercepts and slopes (R,) after some steps from a and b (R,), and how far the last step moved the slopes."""
    moved = np.full(len(weights), np.inf)
    with np.errstate(all="ignore"):
        for _ in range(steps):
            p = 1 / (1 + np.exp(-(a[:, None] + b[:, None] * z)))
            residual, v = weights * (y - p), weights * p * (1 - p)
            h0, h1, h2 = v.sum(1), v @ z, v @ z**2
            g0, g1 = residual.sum(1), residual @ z
            determinant = h0 * h2 - h1**2
            da, db = (h2 * g0 - h1 * g1) / determinant, (h0 * g1 - h1 * g0) / determinant
            a, b, moved = a + np.clip(da, -2, 2), b + np.clip(db, -2, 2), np.abs(db)
            if np.all(moved < 1e-8):
                break
    return a, b, moved


_ONE: dict[str, Callable[[Units, Array], Array]] = {
    "auprc": _auprc,
    "balanced_accuracy": _balanced_accuracy,
    "brier": _brier,
    "calibration_slope": _calibration_slope,
}
