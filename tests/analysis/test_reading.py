"""The ridge is the one of the textbook, on features and on Gram matrices."""

import numpy as np
import pytest

from brainfm_lib.analysis.components import standardised
from brainfm_lib.analysis.reading import dual_weights, read_linearly
from tests.analysis.tasks import features_with, table_of


@pytest.mark.parametrize("grams", [False, True])
def test_ridge_equals_its_textbook_form(grams: bool) -> None:
    features, labels = features_with(4, n=200)
    table, x = table_of(labels), standardised(features)
    result = read_linearly({"x": x @ x.T if grams else x}, table, grams=grams)
    penalty = result.chosen["penalty"].iloc[0]
    train = (table["split"] != "test").to_numpy()
    centred = x - x[train].mean(0)
    values = np.linalg.eigvalsh(centred[train].T @ centred[train])
    mean = values.sum() / (train.sum() - 1) if grams else values.mean()
    target = labels[train] - labels[train].mean()
    ridge = centred[train].T @ centred[train] + penalty * mean * np.eye(40)
    weights = np.linalg.solve(ridge, centred[train].T @ target)
    assert np.allclose(result.predictions["score_1"], labels[train].mean() + centred[~train] @ weights, atol=1e-8)


def test_what_rounding_leaves_of_nothing_is_read_as_nothing() -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((12, 12)) * 1e-13
    target = np.arange(12.0) - 5.5
    for sign in (-1, 0, 1):
        gram = sign * (noise + noise.T + 3e-13 * np.eye(12))  # not positive definite, whatever its trace
        assert np.linalg.eigvalsh(gram)[0] <= 0 and np.isfinite(dual_weights(gram, target, 1e-3)).all()
    x = rng.standard_normal((12, 3))
    plain = np.linalg.solve(x @ x.T + 0.1 * np.trace(x @ x.T) / 11 * np.eye(12), target)
    assert np.allclose(dual_weights(x @ x.T, target, 0.1), plain)
