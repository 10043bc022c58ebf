"""What repeating a study says: over training sets, pretraining seeds and splits; and what a study can see at all."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import nctdtrinc, ndtri, stdtr, stdtrit

from brainfm_lib.errors import InputError
from brainfm_lib.stats.units import Comparison

MANY = 1000  # degrees of freedom from which a t-distribution is as good as normal


def nadeau_bengio(differences: ArrayLike, test_share: float, *, level: float = 0.95) -> Comparison:
    """Mean difference over repeated random splits, with the variance that overlapping training sets call for.

    The corrected resampled t-test (Nadeau and Bengio, 2003, Machine Learning 52:239): the variance of the mean is
    (1/J + n_test/n_train) times that of the J differences. K folds of one cross-validation are treated alike.

    Args:
        differences: (J,) of one metric between two methods, a split each.
        test_share: Share of the subjects in a split's test set, in (0, 1).
        level: Nominal coverage.

    Raises:
        InputError: Fewer than two splits, or a share that is none.
    """
    d = np.asarray(differences, float)
    if d.size < 2 or not np.isfinite(d).all():
        raise InputError(f"{d.size} finite differences are needed to be 2 or more: repeat the split.")
    if not 0 < test_share < 1:
        raise InputError(f"The share of subjects that are tested lies between 0 and 1, not at {test_share:g}.")
    estimate = float(d.mean())
    error = float(np.sqrt((1 / d.size + test_share / (1 - test_share)) * d.var(ddof=1)))
    if error == 0:
        return Comparison(estimate, estimate, estimate, float(estimate == 0))
    reach = -float(stdtrit(d.size - 1, (1 - level) / 2)) * error
    p = float(2 * stdtr(d.size - 1, -abs(estimate) / error))
    return Comparison(estimate, estimate - reach, estimate + reach, p)


def detectable_difference(
    low: ArrayLike,
    high: ArrayLike,
    tests: ArrayLike = 1,
    freedom: ArrayLike = np.inf,
    *,
    level: float = 0.95,
    power: float = 0.8,
) -> np.ndarray:
    """Smallest true difference that a two-sided test would have found with probability `power`.

    From the width of the difference's interval: so many standard errors that the noncentral t lies beyond t_alpha with
    that probability, where alpha is what the first step of Holm's adjustment leaves of 1 - `level`, as if none of the
    other differences were there. (That of a normal distribution is z_alpha + z_power.)

    Args:
        low, high: Ends of the intervals, of nominal coverage `level`.
        tests: Size of the family that a difference is tested in.
        freedom: Degrees of freedom of the t-distribution that the intervals come from; infinite for a normal one.
        level, power: As said.

    Returns:
        The differences; NaN where an interval has no width, which says nothing of what could have been found.
    """
    width = np.asarray(high, float) - np.asarray(low, float)
    alpha, df = (1 - level) / (2 * np.asarray(tests, float)), np.asarray(freedom, float)
    few = df < MANY
    t = np.where(few, df, 1.0)
    error = np.where(width > 0, width, np.nan) / (
        -2 * np.where(few, stdtrit(t, (1 - level) / 2), ndtri((1 - level) / 2))
    )
    return error * np.where(few, nctdtrinc(t, 1 - power, -stdtrit(t, alpha)), ndtri(power) - ndtri(alpha))


def variance_shares(table: pd.DataFrame, value: str, factors: Sequence[str], sampling: str) -> pd.DataFrame:
    """Split the variance of a metric over a crossed design into its factors, the rest, and the sampling of subjects.

    Components of a balanced crossed design without replicates, by the expected mean squares of its main effects;
    negative estimates count as 0. What is left after the main effects is their interaction together with the sampling
    of test subjects, whose variance is known from the bootstrap and is given beside it.

    Args:
        table: A row for every combination of the factors' levels, once each.
        value: Column of the metric.
        factors: Columns, such as seed and split.
        sampling: Column with the variance of each row's value over resampled subjects.

    Returns:
        component (each factor, "rest", "subjects"), variance. "subjects" is the mean sampling variance; it is part of
        the factor whose levels test different subjects (a split that all seeds share), of "rest" where every row does,
        and of none where all rows share one test set.

    Raises:
        InputError: A combination is missing or twice there, or a factor has one level only.
    """
    levels = [table[f].nunique() for f in factors]
    combinations = table.groupby(list(factors)).size()
    if len(combinations) != np.prod(levels) or (combinations != 1).any():
        raise InputError(f"{' and '.join(factors)} must be crossed, with one row for each combination.")
    if min(levels) < 2:
        raise InputError(f"{factors[int(np.argmin(levels))]} has one level only: repeat it.")
    y = table[value].astype(float)
    total, n = float(((y - y.mean()) ** 2).sum()), len(table)
    squares, freedom = {}, {}
    for factor, count in zip(factors, levels, strict=True):
        means = table.groupby(factor)[value].mean()
        squares[factor], freedom[factor] = float(n / count * ((means - y.mean()) ** 2).sum()), count - 1
    left = n - 1 - sum(freedom.values())
    if left < 1:
        raise InputError("Every degree of freedom belongs to a factor: give a second factor.")
    rest = max(total - sum(squares.values()), 0.0) / left
    rows = [
        {"component": f, "variance": max(squares[f] / freedom[f] - rest, 0.0) / (n / count)}
        for f, count in zip(factors, levels, strict=True)
    ]
    rows += [
        {"component": "rest", "variance": rest},
        {"component": "subjects", "variance": float(table[sampling].mean())},
    ]
    return pd.DataFrame(rows)
