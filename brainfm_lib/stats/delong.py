"""DeLong's test of two correlated areas under the ROC curve, on one held-out test set."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri

from brainfm_lib.errors import InputError
from brainfm_lib.stats.units import Comparison, fold_mean_auroc, influences, make_units

FEWEST = 12  # subjects of a class, as in the published example; with fewer it rejects too often


def delong(
    labels: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike, subjects: ArrayLike, *, level: float = 0.95
) -> Comparison:
    """AUROC of `scores_a` minus that of `scores_b`, with its normal interval and two-sided p.

    DeLong, DeLong and Clarke-Pearson (1988, Biometrics 44:837). The scores of a
    subject's scans are averaged first. Where the difference has no variance, p is 1 if it is zero
    (equal rankings), else 0.

    Args:
        labels: (n,) 0 or 1.
        scores_a, scores_b: (n,) scores of class 1, or (n, 2), of the same scans.
        subjects: (n,) identifiers.
        level: Nominal coverage.

    Raises:
        InputError: More than two classes, a subject with both labels (its two units depend on each other), or fewer
            than twelve subjects of a class, for which the normal is too narrow.
    """
    a, b = (make_units(labels, scores, subjects, None, minimum=2) for scores in (scores_a, scores_b))
    if len(a.columns) > 1:
        raise InputError("DeLong's test compares two classes: for more use the paired bootstrap.")
    if len(np.unique(a.subjects)) < len(a.subjects):
        raise InputError(
            "DeLong's test needs independent units and a subject has both labels: use the paired bootstrap."
        )
    fewest = min(np.unique(a.labels, return_counts=True)[1])
    if fewest < FEWEST:
        raise InputError(
            f"DeLong's test approximates by a normal and a class has {fewest} subjects where it needs at least "
            f"{FEWEST}: use the paired bootstrap."
        )
    estimate, moved = fold_mean_auroc(a) - fold_mean_auroc(b), influences(a) - influences(b)
    variance = sum(np.sum(a.labels == c) * moved[a.labels == c].var(ddof=1) for c in (0, 1))
    error = float(np.sqrt(variance))
    p = float(2 * ndtr(-abs(estimate) / error)) if error > 0 else float(estimate == 0)
    reach = -float(ndtri((1 - level) / 2)) * error
    return Comparison(estimate, estimate - reach, estimate + reach, p)
