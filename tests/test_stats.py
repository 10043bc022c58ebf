import time

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import norm, t, ttest_ind
from sklearn.metrics import roc_auc_score

from brainfm_lib.errors import InputError
from brainfm_lib.stats import (
    aggregate_by_subject,
    auroc,
    auroc_interval,
    cv_auroc_interval,
    detectable_difference,
    holm,
    newcombe,
    paired_auroc_difference,
    paired_mean_interval,
    permutation_p,
    permutation_p_refit,
)
from brainfm_lib.stats.units import auroc_values, freedom, make_units, standard_error


def study(n, seed, effect=1.0, scans=3, icc=0.5, prevalence=0.5):
    """n subjects with `scans` correlated scans each: labels, scores, subjects (rows)."""
    rng = np.random.default_rng(seed)
    subjects = np.repeat(np.arange(n), scans)
    labels = (np.arange(n) < round(prevalence * n)).astype(int)[subjects]
    scores = np.sqrt(icc) * rng.standard_normal(n)[subjects] + np.sqrt(1 - icc) * rng.standard_normal(n * scans)
    return labels, scores + effect * labels, subjects


def test_auroc_equals_sklearn_with_ties_and_three_classes():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    scores = (rng.standard_normal(200) + labels).round(1)
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
    assert auroc(labels, np.c_[-scores, scores]) == pytest.approx(roc_auc_score(labels, scores))
    labels, scores = rng.integers(0, 3, 200), rng.dirichlet([1, 1, 1], 200).round(1)
    scores /= scores.sum(1, keepdims=True)
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores, multi_class="ovr"))


def test_the_unit_is_subject_and_label():
    labels, scores, subjects = aggregate_by_subject(
        [0, 0, 1, 1, 0], [1.0, 3.0, 5.0, 7.0, 9.0], ["b", "b", "b", "a", "a"]
    )
    assert labels.tolist() == [0, 1, 0, 1]
    assert subjects.tolist() == ["a", "a", "b", "b"]
    assert scores.tolist() == [9, 7, 2, 5]


def log_odds_interval(estimate, values, freedom):
    """The slow, obvious one: symmetric in the log odds, with the spread of resampled areas."""
    half = t.ppf(0.975, freedom) * np.std(values, ddof=1) / (estimate * (1 - estimate))
    return expit(logit(estimate) + np.array([-half, half]))


def test_interval_equals_a_brute_force_subject_bootstrap():
    labels, scores, subjects = study(80, 1, prevalence=0.25)
    mean_labels, mean_scores, _ = aggregate_by_subject(labels, scores, subjects)
    rng, values = np.random.default_rng(0), []
    for _ in range(2000):
        rows = [rng.choice(np.flatnonzero(mean_labels == c), m - 1) for c, m in ((0, 60), (1, 20))]
        values.append(roc_auc_score(mean_labels[np.concatenate(rows)], mean_scores[np.concatenate(rows)]))
    found = auroc_interval(labels, scores, subjects, draws=20_000)
    assert found.estimate == pytest.approx(roc_auc_score(mean_labels, mean_scores))
    won = mean_scores[mean_labels == 1][:, None] > mean_scores[mean_labels == 0]
    parts = [(won.mean(1).var(ddof=1) / 20, 19), (won.mean(0).var(ddof=1) / 60, 59)]
    freedom = sum(v for v, _ in parts) ** 2 / sum(v**2 / m for v, m in parts)
    assert 19 < freedom < 78
    expected = log_odds_interval(found.estimate, values, freedom)
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.012)


def test_interval_of_three_classes_equals_brute_force():
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1, 2], 30)
    scores = rng.standard_normal((90, 3)) + np.eye(3)[labels]
    weight = np.exp(scores)
    weight /= weight.sum(1, keepdims=True)
    values = []
    for _ in range(1000):
        rows = np.concatenate([rng.choice(np.flatnonzero(labels == c), 29) for c in range(3)])
        values.append(roc_auc_score(labels[rows], weight[rows], multi_class="ovr"))
    found = auroc_interval(labels, weight, np.arange(90))
    expected = log_odds_interval(found.estimate, values, 80)
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.012)


def test_repeating_every_scan_changes_nothing():
    labels, scores, subjects = study(40, 3, scans=1)
    again = np.tile(np.arange(40), 5)
    assert auroc_interval(labels[again], scores[again], subjects[again]) == auroc_interval(labels, scores, subjects)


def test_two_thousand_draws_of_five_hundred_subjects_take_well_below_a_second():
    labels, scores, subjects = study(500, 0, scans=1)
    start = time.perf_counter()
    auroc_interval(labels, scores, subjects)
    assert time.perf_counter() - start < 0.8


@pytest.mark.parametrize("n, prevalence, scans", [(30, 0.5, 3), (100, 0.2, 2)])
def test_intervals_cover_the_truth(n, prevalence, scans):
    effect = 1.0
    truth = norm.cdf(effect / np.sqrt(0.5 + 0.5 / scans) / np.sqrt(2))
    found = [auroc_interval(*study(n, s, effect, scans, prevalence=prevalence), draws=500, seed=s) for s in range(500)]
    coverage = np.mean([i.low <= truth <= i.high for i in found])
    assert 0.915 <= coverage <= 0.98  # 500 studies: ±0.02 around 0.95 is chance


def test_degrees_of_freedom_and_standard_errors_are_those_of_textbooks():
    """Welch's for two groups; of the AUROC the unbiased variance of a two-sample U-statistic."""
    labels, scores, subjects = study(40, 7, scans=1, prevalence=0.3)
    units = make_units(labels, scores, subjects, None)
    won = scores[labels == 1][:, None] > scores[labels == 0]
    m, n = won.shape
    rows, columns = won.mean(1, keepdims=True), won.mean(0, keepdims=True)
    pairs = ((won - rows - columns + won.mean()) ** 2).sum() / ((m - 1) * (n - 1))
    variance = rows.var(ddof=1) / m + columns.var(ddof=1) / n - pairs / (m * n)
    assert standard_error(*auroc_values(units, 20_000, 0)) ** 2 == pytest.approx(variance, rel=0.05)
    x, y = scores[labels == 1] / m, scores[labels == 0] / n
    moved = np.zeros(40)
    moved[labels == 1], moved[labels == 0] = x - x.mean(), y - y.mean()
    welch = ttest_ind(scores[labels == 1], scores[labels == 0], equal_var=False).df
    assert freedom(units, moved) == pytest.approx(welch)
    assert freedom(units, np.zeros(40)) == m - 1


def test_paired_tests_hold_their_size_and_find_a_difference():
    p = []
    for s in range(400):
        labels, scores, subjects = study(60, s)
        rng = np.random.default_rng(10_000 + s)
        a, b = (scores + 0.5 * rng.standard_normal(scores.size) for _ in range(2))
        p.append(paired_auroc_difference(labels, a, b, subjects, draws=400, seed=s).p)
    assert 0.02 <= np.mean(np.asarray(p) < 0.05) <= 0.085
    found = paired_auroc_difference(labels, scores, np.random.default_rng(0).standard_normal(scores.size), subjects)
    assert found.low > 0
    assert found.p < 0.05
    assert paired_auroc_difference(labels, scores, scores, subjects).p == 1


def test_cross_validated_auroc_is_the_mean_over_folds():
    labels, scores, subjects = study(28, 4, scans=1, prevalence=0.4)
    folds = np.empty(28, int)
    for c in (0, 1):
        folds[labels == c] = np.arange((labels == c).sum()) % 5
    scores = scores + 100 * folds  # scores of different folds are not comparable, and are not compared
    expected = np.mean([roc_auc_score(labels[folds == f], scores[folds == f]) for f in range(5)])
    found = cv_auroc_interval(labels, scores, subjects, folds)
    assert found.estimate == pytest.approx(expected)
    assert 0 <= found.low < expected < found.high <= 1
    assert permutation_p(labels, scores, subjects, folds) > 0.0005


def test_permutation_p_is_uniform_under_the_null_and_small_under_an_effect():
    p = np.array([permutation_p(*study(24, s, effect=0), draws=200, seed=s) for s in range(400)])
    assert np.mean(p < 0.05) == pytest.approx(0.05, abs=0.03)
    assert p.mean() == pytest.approx(0.5, abs=0.05)
    assert permutation_p(*study(40, 0, effect=3), draws=999) == pytest.approx(0.001)


def test_permutation_p_with_subjects_who_convert():
    rng = np.random.default_rng(0)
    subjects = np.r_[np.arange(20), np.arange(20)]
    labels = np.r_[np.zeros(20, int), (np.arange(20) < 8).astype(int)]  # eight subjects convert
    p = [permutation_p(labels, rng.standard_normal(40), subjects, draws=200, seed=s) for s in range(200)]
    assert np.mean(np.asarray(p) < 0.1) == pytest.approx(0.1, abs=0.06)


def test_permutation_p_equals_refitting_a_fixed_score():
    labels, scores, subjects = study(30, 6, effect=0.6, scans=2)

    def statistic(permuted):
        mean_labels, mean_scores, _ = aggregate_by_subject(permuted, scores, subjects)
        return auroc(mean_labels, mean_scores)

    slow = permutation_p_refit(statistic, labels, subjects, draws=1500)
    assert permutation_p(labels, scores, subjects) == pytest.approx(slow, abs=0.03)


def test_refitting_permutes_subjects_within_folds():
    subjects = np.repeat(np.arange(12), 2)
    labels, folds = (subjects % 2), subjects // 6
    seen = []

    def statistic(permuted):
        seen.append(permuted)
        return 0.0

    assert permutation_p_refit(statistic, labels, subjects, folds, draws=20, enough=21) == 1
    for permuted in seen:
        assert np.array_equal(permuted[::2], permuted[1::2])  # a subject keeps one label
        assert [permuted[folds == f].sum() for f in (0, 1)] == [6, 6]
    assert len({tuple(p) for p in seen}) > 10


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, 0.9]), [1, 1])
    assert holm([]).size == 0


def test_paired_mean_interval_weighs_subjects_equally():
    rng = np.random.default_rng(0)
    subjects = np.repeat(np.arange(50), rng.integers(1, 6, 50))
    difference = rng.standard_normal(50)[subjects] + 0.5
    found = paired_mean_interval(difference, np.zeros(subjects.size), subjects)
    means = np.array([difference[subjects == s].mean() for s in range(50)])
    half = 1.96 * means.std(ddof=1) / np.sqrt(50)
    assert found.estimate == pytest.approx(means.mean())
    np.testing.assert_allclose([found.low, found.high], means.mean() + half * np.array([-1, 1]), atol=0.04)


@pytest.mark.parametrize(
    "labels, scores, subjects, sentence",
    [
        ([1, 1, 1], [1, 2, 3], "abc", "Class 0 has 0"),
        ([0, 0, 1], [1, 2, 3], "abc", "Class 1 has 1"),
        ([0, 0, 1, 1], [1, 2, np.nan, 4], "abcd", "row 2 .subject c. is not finite"),
        ([0, 0, 2, 2], [1, 2, 3, 4], "abcd", "Label 2"),
        ([0, 1], [1, 2, 3], "abc", "do not fit together"),
        ([], [], "", "no scan to score"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_a_sentence(labels, scores, subjects, sentence):
    with pytest.raises(InputError, match=sentence):
        auroc_interval(labels, scores, list(subjects))


def test_bad_folds_are_refused():
    labels, scores, subjects = study(8, 0, scans=1)
    with pytest.raises(InputError, match="in fold 1 where"):
        cv_auroc_interval(labels, scores, subjects, [0, 0, 0, 1, 0, 0, 0, 1])
    with pytest.raises(InputError, match="Subject 0 is in more than one fold"):
        cv_auroc_interval([0, 0, 1, 1], [1, 2, 3, 4], [0, 0, 1, 2], [0, 1, 0, 1])
    with pytest.raises(InputError, match="not finite"):
        paired_mean_interval([1.0, np.nan], [0.0, 0.0], [0, 1])


def test_holm_leaves_tests_that_were_not_made_out_of_the_family():
    adjusted = holm([0.01, np.nan, 0.04])
    assert adjusted[[0, 2]] == pytest.approx([0.02, 0.04]) and np.isnan(adjusted[1])


def test_refits_stop_early_where_nothing_is_there():
    calls = []

    def score(labels):
        calls.append(1)
        return np.random.default_rng(len(calls)).random()

    labels, subjects = np.arange(40) % 2, np.arange(40)
    p = permutation_p_refit(score, labels, subjects, draws=2000)
    assert len(calls) < 400 and p == pytest.approx(10 / (len(calls) - 1))


def test_newcombes_interval_solves_its_equation_and_does_not_collapse():
    z = norm.ppf(0.975)
    for area, m, n in ((0.8, 12, 30), (0.5, 4, 4), (0.97, 50, 9)):
        for end in newcombe(area, m, n):
            q1, q2 = end / (2 - end), 2 * end**2 / (1 + end)  # Hanley and McNeil, both sides weighted alike
            half = (m + n) / 2 - 1
            variance = (end * (1 - end) + half * (q1 - end**2) + half * (q2 - end**2)) / (m * n)
            assert (area - end) ** 2 == pytest.approx(z**2 * variance)
        np.testing.assert_allclose(newcombe(1 - area, m, n), 1 - np.array(newcombe(area, m, n))[::-1])
    low, high = newcombe(1.0, 5, 5)
    assert 0.4 < low < 0.8 and high == 1
    apart = auroc_interval([0, 0, 0, 1, 1, 1], [1, 2, 3, 4, 5, 6.0], np.arange(6))
    assert apart.estimate == apart.high == 1 and apart.low < 0.8


def test_differences_of_perfect_scores_have_a_width():
    """Resamples of classes that are perfectly apart all agree, which is no certainty."""
    for each in (2, 10, 60, 1000):
        labels, subjects = np.repeat([0, 1], each), np.arange(2 * each)
        both = paired_auroc_difference(labels, labels, 3.0 * labels, subjects)
        assert both.estimate == 0 and both.p == 1 and both.low == -both.high < 0
        low, high = newcombe(1, each, each)
        assert both.high == pytest.approx(1 - low)
        one = paired_auroc_difference(labels, labels, np.zeros(2 * each), subjects)
        low_half, high_half = newcombe(0.5, each, each)
        assert one.estimate == 0.5
        assert one.low == pytest.approx(0.5 - np.hypot(1 - low, high_half - 0.5))
        assert one.high == pytest.approx(0.5 + np.hypot(1 - high, 0.5 - low_half))
        assert (one.p < 0.05) == (one.low > 0) == (each > 2)
        other = paired_auroc_difference(labels, np.zeros(2 * each), labels, subjects)
        assert (other.low, other.high, other.p) == pytest.approx((-one.high, -one.low, one.p))
    labels, scores, subjects = study(120, 0, scans=1)
    same = paired_auroc_difference(labels, scores, 3 * scores, subjects)  # one ranking, which is no ceiling
    assert (same.estimate, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert newcombe(1.0, 800, 800, level=0.001)[0] > 0.999 and newcombe(0.0, 800, 800, level=0.001)[1] < 0.001
    assert np.isnan(detectable_difference([0.0, -0.1], [0.0, 0.1])).tolist() == [True, False]


@pytest.mark.parametrize("cases", [2, 4, 8, 12])
def test_few_cases_make_intervals_wide_enough_and_tests_shy(cases):
    """A plain percentile bootstrap covers 67 and 85 % with 2 and 4 cases, and finds differences that are not there."""
    covered, found = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        labels = np.r_[np.ones(cases, int), np.zeros(60, int)]
        common = rng.standard_normal(cases + 60) + labels
        a, b = (common + 0.7 * rng.standard_normal(cases + 60) for _ in range(2))
        interval = auroc_interval(labels, a, np.arange(cases + 60), draws=300, seed=seed)
        covered.append(interval.low <= norm.cdf(1 / np.sqrt(2 * 1.49)) <= interval.high)
        found.append(paired_auroc_difference(labels, a, b, np.arange(cases + 60), draws=300, seed=seed).p < 0.05)
    assert 0.92 < np.mean(covered) < 0.985 and np.mean(found) < 0.08
