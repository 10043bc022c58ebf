"""Eigenspectra, rank measures and similarity of feature matrices, in float64. Compare only at equal N.

Rank measures depend heavily on centring, so it is always named: RankMe takes it as an argument; eigenspectrum,
participation ratio, α-ReQ and correlation are of the covariance, hence centred.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Features = Tensor | NDArray[Any]
Floats = NDArray[np.float64]


def eigenspectrum(features: Features) -> Floats:
    """Eigenvalues of the covariance (divisor N - 1) of features (N, D), descending: (min(N, D),)."""
    x = _matrix(features)
    return _gram_eigenvalues(x - x.mean(0)) / (len(x) - 1)


def rankme(features: Features, *, centred: bool) -> float:
    """RankMe, exp(-Σ p log p) with p = σ / Σσ (Garrido et al. 2023, arXiv 2210.02885).

    Args:
        features: (N, D).
        centred: Whether the mean over samples is removed first. The paper's own definition does not.

    Returns:
        Between 1 and min(N, D); 0 for features that do not vary at all.
    """
    x = _matrix(features)
    return _rankme(_gram_eigenvalues(x - x.mean(0) if centred else x))


def participation_ratio(features: Features) -> float:
    """(Σλ)² / Σλ² of the covariance eigenvalues of features (N, D); 0 for constant features."""
    return _participation(eigenspectrum(features))


def alpha_req(features: Features, *, ranks: tuple[int, int] = (5, 50)) -> float:
    """α-ReQ, minus the slope of log λ against log rank (Agrawal et al. 2022).

    Args:
        features: (N, D).
        ranks: First and last rank of the straight line, 1-based, inclusive; the last one is cut to the numerical rank.

    Returns:
        The exponent; NaN where fewer than three ranks are left.
    """
    return _alpha(eigenspectrum(features), ranks)


def mean_abs_correlation(features: Features) -> float:
    """Mean |correlation| over pairs of different features of (N, D); constant features are left out."""
    x = _matrix(features)
    x = x - x.mean(0)
    norm = np.sqrt(np.square(x).sum(0))
    x = x[:, norm > 1e-10 * max(norm.max(), 1e-300)]
    if x.shape[1] < 2:
        return float("nan")
    x = x / np.sqrt(np.square(x).sum(0))
    d = x.shape[1]
    return float((np.abs(x.T @ x).sum() - d) / (d * (d - 1)))


def rank_measures(features: Features, *, ranks: tuple[int, int] = (5, 50)) -> dict[str, float]:
    """All rank measures of features (N, D) under the names of their functions; RankMe in both conventions."""
    x = _matrix(features)
    eigenvalues = eigenspectrum(x)
    return {
        "rankme_centred": _rankme(eigenvalues),
        "rankme_uncentred": rankme(x, centred=False),
        "participation_ratio": _participation(eigenvalues),
        "alpha_req": _alpha(eigenvalues, ranks),
        "mean_abs_correlation": mean_abs_correlation(x),
    }


def debiased_cka(a: Features, b: Features) -> float:
    """Linear CKA from the unbiased HSIC estimator (Song et al. 2012, eq. 5; Kornblith et al. 2019).

    Args:
        a: (N, D) features.
        b: (N, E) features of the same N ≥ 4 samples.

    Returns:
        About 0 for unrelated features (it can be negative), 1 for equal ones up to rotation and scale.
    """
    x, y = _matrix(a), _matrix(b)
    if len(x) != len(y) or len(x) < 4:
        raise ValueError(f"CKA needs the same four or more samples on both sides, got {len(x)} and {len(y)}")
    k, m = _zero_diagonal_gram(x), _zero_diagonal_gram(y)
    denominator = _hsic(k, k) * _hsic(m, m)
    return _hsic(k, m) / float(np.sqrt(denominator)) if denominator > 0 else float("nan")


def variance_explained(features: Features, groups: NDArray[Any]) -> float:
    """Share of the total variance of features (N, D) between groups (N,), ε²: about 0 where groups say nothing.

    1 - (N - 1) / (N - G) · within / total sums of squares over all features together (Kelley 1935); it can be negative.
    NaN where there is one group only, or every sample is its own.
    """
    x = _matrix(features)
    x = x - x.mean(0)
    names, codes = np.unique(groups, return_inverse=True)
    counts = np.bincount(codes)
    total = float(np.square(x).sum())
    if len(names) < 2 or len(names) >= len(x) or total == 0:
        return float("nan")
    sums = np.zeros((len(names), x.shape[1]))
    np.add.at(sums, codes, x)
    within = total - float((np.square(sums).sum(1) / counts).sum())
    return 1 - (len(x) - 1) / (len(x) - len(names)) * within / total


def remove_position_mean(tokens: Features) -> Features:
    """Subtract from tokens (B, N, D) each position's mean over samples; what is left is not the position code."""
    return tokens - tokens.mean(0)


def _matrix(features: Features) -> Floats:
    x = features.detach().cpu().numpy() if isinstance(features, Tensor) else np.asarray(features)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"features must be (N, D) with at least two samples, got {x.shape}")
    x = x.astype(np.float64)
    if not np.isfinite(x).all():
        raise ValueError("features hold values that are not finite")
    return x


def _gram_eigenvalues(x: Floats) -> Floats:
    """Squared singular values of x (N, D), descending, from the smaller of XXᵀ and XᵀX."""
    gram = x @ x.T if x.shape[0] < x.shape[1] else x.T @ x
    return np.clip(np.linalg.eigvalsh(gram)[::-1], 0, None)


def _rankme(squared: Floats) -> float:
    sigma = np.sqrt(_numerical(squared))
    p = sigma / max(sigma.sum(), 1e-300)
    return float(np.exp(-(p * np.log(p)).sum())) if sigma.size else 0.0


def _participation(eigenvalues: Floats) -> float:
    return float(eigenvalues.sum() ** 2 / max(np.square(eigenvalues).sum(), 1e-300))


def _alpha(eigenvalues: Floats, ranks: tuple[int, int]) -> float:
    first, last = ranks[0], min(ranks[1], _numerical(eigenvalues).size)
    if last - first < 2:
        return float("nan")
    rank = np.arange(first, last + 1)
    return float(-np.polyfit(np.log(rank), np.log(eigenvalues[first - 1 : last]), 1)[0])


def _numerical(squared: Floats) -> Floats:
    """Those above rounding error: the null space of a Gram matrix is noise of about eps · λ_max."""
    return squared[squared > squared[:1] * squared.size * np.finfo(float).eps] if squared.size else squared


def _zero_diagonal_gram(x: Floats) -> Floats:
    x = x - x.mean(0)  # the estimator does not change, rounding does
    gram = x @ x.T
    np.fill_diagonal(gram, 0.0)
    return gram


def _hsic(k: Floats, m: Floats) -> float:
    """Unbiased HSIC of two Gram matrices with zero diagonals."""
    n = len(k)
    total = np.vdot(k, m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ m.sum(0)) / (n - 2)
    return float(total / (n * (n - 3)))
