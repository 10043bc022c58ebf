"""DeLong's test of two correlated areas under the ROC curve, on one held-out test set."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit

from brainfm_lib.errors import InputError
from brainfm_lib.stats.units import Array, Comparison, freedom, influences, make_units


def delong(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    subjects: ArrayLike,
    *,
    level: float = 0.95,
    normal: bool = False,
) -> Comparison:
    """AUROC of `scores_a` minus that of `scores_b`, with its interval and two-sided p.

    DeLong, DeLong and Clarke-Pearson (1988, Biometrics 44:837), by mid-ranks (Sun and Xu, 2014). The scores of a
    subject's scans are averaged first. Where the difference has no variance, p is 1 if it is zero
    (equal rankings), else 0.

    Args:
        labels: (n,) 0 or 1.
        scores_a, scores_b: (n,) scores of class 1, or (n, 2), of the same scans.
        subjects: (n,) identifiers.
        level: Nominal coverage.
        normal: Quantiles of the normal, as published; default: of t with `units.freedom`'s degrees of freedom, without
            which a few subjects differ too often.

    Raises:
        InputError: More than two classes, a subject with both labels (its two units depend on each other), or fewer
            than two subjects of a class.
    """
    a, b = (make_units(labels, scores, subjects, None, minimum=2) for scores in (scores_a, scores_b))
    if len(a.columns) > 1:
        raise InputError("DeLong's test compares two classes: for more use the paired bootstrap.")
    if len(np.unique(a.subjects)) < len(a.subjects):
        raise InputError(
            "DeLong's test needs independent units and a subject has both labels: use the paired bootstrap."
        )
    parts = [_placements(u.labels == 1, u.scores[:, u.columns[0][1]]) for u in (a, b)]
    estimate = float(parts[0][0].mean() - parts[1][0].mean())
    variance = sum(np.var(x - y, ddof=1) / len(x) for x, y in zip(parts[0], parts[1], strict=True))
    error = float(np.sqrt(variance))
    freed = np.inf if normal else freedom(a, influences(a) - influences(b))
    p = float(2 * stdtr(freed, -abs(estimate) / error)) if error > 0 else float(estimate == 0)
    reach = -float(stdtrit(freed, (1 - level) / 2)) * error
    return Comparison(estimate, estimate - reach, estimate + reach, p)


def _placements(positive: Array, scores: Array) -> tuple[Array, Array]:
    """Share of negatives below each positive (P,), and share of positives above each negative (N,); ties half."""
    from scipy.stats import rankdata  # a second of imports

    ranks = rankdata(scores)
    own = np.empty_like(ranks)
    own[positive], own[~positive] = rankdata(scores[positive]), rankdata(scores[~positive])
    below = ranks - own  # of the other class
    return below[positive] / (~positive).sum(), 1 - below[~positive] / positive.sum()
