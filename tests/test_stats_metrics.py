"""Metrics against scikit-learn, DeLong against a published example, repeats against their definitions."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, t
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, balanced_accuracy_score, brier_score_loss

from brainfm_lib.errors import InputError
from brainfm_lib.stats import (
    METRICS,
    delong,
    detectable_difference,
    efficiency,
    metric_intervals,
    nadeau_bengio,
    paired_auroc_difference,
    variance_shares,
)
from brainfm_lib.stats.metrics import _ONE
from brainfm_lib.stats.units import Units

# DeLong, DeLong and Clarke-Pearson (1988): three tests of 43 subjects, as dense ranks, on which alone the areas depend.
ALBUMIN = [
    10, 12, 18, 8, 12, 1, 6, 2, 17, 16, 12, 17, 20, 15, 22, 15, 5, 21, 19, 14, 17, 10,
    23, 16, 11, 20, 22, 22, 12, 7, 13, 3, 16, 13, 21, 14, 9, 4, 8, 19, 13, 16, 15,
]  # fmt: skip
PROTEIN = [
    9, 12, 16, 4, 9, 1, 8, 7, 8, 15, 6, 14, 14, 8, 18, 15, 2, 20, 14, 9, 16, 3,
    19, 19, 14, 22, 18, 13, 5, 3, 16, 1, 10, 12, 21, 11, 8, 4, 11, 18, 8, 17, 14,
]  # fmt: skip
KG = [
    1, 6, 8, 5, 8, 6, 3, 6, 6, 5, 7, 5, 6, 6, 7, 7, 5, 7, 5, 5, 4, 3,
    6, 6, 5, 5, 6, 7, 6, 5, 5, 4, 6, 4, 5, 6, 2, 4, 3, 4, 5, 6, 6,
]  # fmt: skip
OUTCOME = [
    0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 0, 0, 1, 1, 0,
    1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0, 1, 0, 1, 1, 1, 1,
]  # fmt: skip


@pytest.mark.parametrize(
    "a, b, estimate, error, p",
    [(PROTEIN, KG, -0.0780, 0.1046, 0.4561), (ALBUMIN, KG, 0.0108, 0.0953, 0.9102)],  # as SAS prints them
)
def test_delong_equals_the_published_example(a, b, estimate, error, p):
    found = delong(OUTCOME, a, b, np.arange(43))
    assert [round(x, 4) for x in (found.estimate, found.p)] == [estimate, p]
    assert round((found.high - found.low) / 2 / norm.isf(0.025), 4) == error


def test_delong_agrees_with_the_bootstrap_and_averages_scans():
    rng = np.random.default_rng(1)
    labels, signal = np.repeat([0, 1], 150), rng.standard_normal(300)
    a, b = (signal + labels * e + 0.7 * rng.standard_normal(300) for e in (1.2, 0.8))
    found = delong(labels, a, b, np.arange(300))
    drawn = paired_auroc_difference(labels, a, b, np.arange(300), draws=4000)
    np.testing.assert_allclose([found.low, found.high], [drawn.low, drawn.high], atol=0.01)
    twice = delong(np.tile(labels, 2), np.r_[a + 1, a - 1], np.r_[b, b], np.tile(np.arange(300), 2))
    assert twice.p == pytest.approx(found.p)
    assert delong(labels, a, a, np.arange(300)).p == 1


def test_delong_refuses_what_it_cannot_compare():
    with pytest.raises(InputError, match="two classes"):
        delong([0, 1, 2] * 2, np.eye(3)[[0, 1, 2] * 2], np.eye(3)[[0, 1, 2] * 2], np.arange(6))
    with pytest.raises(InputError, match="both labels"):
        delong([0, 1, 0, 1], [0, 1, 2, 3], [0, 1, 2, 3], [0, 0, 1, 1])
    with pytest.raises(InputError, match="has 9 subjects where it needs at least 12"):
        delong(np.arange(40) < 9, np.arange(40), np.arange(40), np.arange(40))


def predictions(classes: int, n: int = 120, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    logits = rng.standard_normal((n, classes)).round(1) + 1.2 * np.eye(classes)[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def slope(outcome, p, weight):
    x = np.log(p / (1 - p))[:, None]
    return LogisticRegression(C=np.inf, max_iter=1000, tol=1e-10).fit(x, outcome, weight).coef_[0, 0]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_metrics_equal_scikit_learn_under_any_weights(classes, weighted):
    labels, p = predictions(classes)
    w = np.random.default_rng(3).integers(0, 4, len(labels)).astype(float) if weighted else np.ones(len(labels))
    units = Units(labels, p, np.arange(len(labels)), np.zeros(len(labels), int))
    found = {name: float(_ONE[name](units, w[None])[0]) for name in METRICS if name != "auroc"}
    rest = [1] if classes == 2 else range(classes)
    assert found["auprc"] == pytest.approx(
        np.mean([average_precision_score(labels == c, p[:, c], sample_weight=w) for c in rest])
    )
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, p.argmax(1), sample_weight=w))
    assert found["brier"] == pytest.approx(
        brier_score_loss(labels, p[:, 1] if classes == 2 else p, sample_weight=w, labels=list(range(classes)))
    )
    assert found["calibration_slope"] == pytest.approx(
        np.mean([slope(labels == c, p[:, c], w) for c in rest]), rel=1e-3
    )


def test_intervals_hold_their_estimate_and_one_column_is_class_one():
    labels, p = predictions(2)
    subjects = np.repeat(np.arange(60), 2)[np.argsort(labels, kind="stable").argsort()]
    table = metric_intervals(labels, p, subjects, draws=300).set_index("metric")
    assert list(table.index) == list(METRICS)
    assert ((table["low"] < table["estimate"]) & (table["estimate"] < table["high"])).all()
    again = metric_intervals(labels, p[:, 1], subjects, draws=300).set_index("metric")
    pd.testing.assert_frame_equal(table, again)


def test_intervals_of_a_rare_class_are_not_shifted():
    """Resampling must not change the classes' shares: constant probabilities have one Brier score and one precision.

    Where all resamples agree there is no interval, rather than one of no width.
    """
    labels = (np.arange(64) < 4).astype(int)
    constant = metric_intervals(labels, np.full(64, 0.1), np.arange(64), draws=200).set_index("metric")
    perfect = metric_intervals(labels, 0.2 + 0.6 * labels, np.arange(64), draws=200).set_index("metric")
    for table, names in ((constant, ("brier", "auprc")), (perfect, ("balanced_accuracy", "auprc"))):
        for name in names:
            assert np.isfinite(table.loc[name, "estimate"]) and table.loc[name, ["low", "high"]].isna().all()


def test_perfect_separation_has_no_slope():
    labels = np.arange(40) % 2
    table = metric_intervals(labels, 0.2 + 0.6 * labels, np.arange(40), draws=100).set_index("metric")
    assert table.loc["auroc", "estimate"] == 1 and np.isnan(table.loc["calibration_slope", "estimate"])
    labels, p = (
        np.arange(20) // 10,
        np.linspace(0.1, 0.9, 20),
    )  # apart by a wide margin, where a sigmoid saturates early
    for wider in (p, p + 0.1 * (2 * labels - 1)):
        assert (
            metric_intervals(labels, wider, np.arange(20), draws=100)
            .set_index("metric")
            .isna()
            .loc["calibration_slope"]
            .all()
        )
    p[9:11] = p[[10, 9]]  # one pair crosses: a slope, of which half of the resamples know nothing
    crossed = metric_intervals(labels, p, np.arange(20), draws=400).set_index("metric").loc["calibration_slope"]
    assert np.isfinite(crossed["estimate"]) and not crossed["high"] < crossed["estimate"]


def test_well_calibrated_probabilities_have_slope_one_and_twice_the_odds_one_half():
    rng = np.random.default_rng(0)
    logit = 1.5 * rng.standard_normal(20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-logit))).astype(int)
    for steep in (1.0, 2.0):
        p = 1 / (1 + np.exp(-steep * logit))
        table = metric_intervals(labels, p, np.arange(20_000), draws=20).set_index("metric")
        assert table.loc["calibration_slope", "estimate"] == pytest.approx(1 / steep, abs=0.03)


def test_efficiency():
    ideal = norm.cdf(2 / np.sqrt(2))
    assert efficiency(ideal, ideal) == pytest.approx(1)
    assert efficiency(norm.cdf(1 / np.sqrt(2)), ideal) == pytest.approx(0.25)
    assert efficiency(0.5, ideal) == 0 and efficiency(0.4, ideal) < 0
    with pytest.raises(ValueError, match="one half"):
        efficiency(0.7, 0.5)


def test_nadeau_bengio_by_hand_and_wider_than_a_t_test():
    d = np.array([0.02, 0.05, 0.01, 0.04])
    found = nadeau_bengio(d, 0.25)
    error = np.sqrt((1 / 4 + 1 / 3) * d.var(ddof=1))
    assert found.p == pytest.approx(2 * t.sf(d.mean() / error, 3))
    assert found.high - found.low > 2 * t.isf(0.025, 3) * d.std(ddof=1) / 2
    for wrong, share in ((d[:1], 0.25), (d, 0.0), (np.array([0.1, np.nan]), 0.25)):
        with pytest.raises(InputError):
            nadeau_bengio(wrong, share)


def test_a_study_finds_its_detectable_difference_as_often_as_it_says():
    error = 0.03
    reach = norm.isf(0.025) * error
    smallest = float(detectable_difference(-reach, reach))
    drawn = np.random.default_rng(0).normal(smallest, error, 200_000)
    assert (drawn - reach > 0).mean() == pytest.approx(0.8, abs=0.005)
    of_twenty = float(detectable_difference(-reach, reach, 20))
    drawn = np.random.default_rng(0).normal(of_twenty, error, 200_000)
    assert (2 * norm.sf(drawn / error) < 0.05 / 20).mean() == pytest.approx(0.8, abs=0.005)


def test_variance_shares_find_what_went_in():
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        seed, split = 0.02 * rng.standard_normal(5), 0.03 * rng.standard_normal(6)
        rows = [
            {"seed": i, "split": j, "auroc": 0.7 + seed[i] + split[j] + 0.01 * rng.standard_normal(), "v": 0.0001}
            for i in range(5)
            for j in range(6)
        ]
        found.append(variance_shares(pd.DataFrame(rows), "auroc", ["seed", "split"], "v").set_index("component"))
    mean = pd.concat(found)["variance"].groupby("component").mean()
    np.testing.assert_allclose(mean[["seed", "split", "rest", "subjects"]], [4e-4, 9e-4, 1e-4, 1e-4], rtol=0.15)
    table = pd.DataFrame(rows)
    with pytest.raises(InputError, match="crossed"):
        variance_shares(table.iloc[1:], "auroc", ["seed", "split"], "v")
    with pytest.raises(InputError, match="one level"):
        variance_shares(table[table["seed"] == 0], "auroc", ["seed", "split"], "v")


@pytest.mark.parametrize("tests", [1, 12])
def test_few_folds_see_what_is_said_that_they_see(tests):
    """Differences drawn as the corrected t-test takes them: folds that share training subjects."""
    rng, folds, share = np.random.default_rng(0), 5, 0.2
    common = np.sqrt(share / (1 - share))  # the variance that folds share, by the test's own model

    def draw(truth):
        return truth + 0.05 * (common * rng.standard_normal() + rng.standard_normal(folds))

    intervals = [nadeau_bengio(draw(0.0), share) for _ in range(2000)]
    seen = np.median([detectable_difference(c.low, c.high, tests, folds - 1) for c in intervals])
    found = np.mean([nadeau_bengio(draw(seen), share).p < 0.05 / tests for _ in range(2000)])
    assert 0.7 < found < 0.9
    if tests > 1:  # far out, normal quantiles promise too much
        assert np.median([detectable_difference(c.low, c.high, tests) for c in intervals]) < 0.8 * seen
    many, normal = (detectable_difference(-0.1, 0.1, tests, freedom) for freedom in (1e7, np.inf))
    assert many == pytest.approx(normal, rel=1e-5)
