import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from brainfm_lib.errors import InputError
from brainfm_lib.probes.linear import linear_probe, make_probe, refit_p
from brainfm_lib.probes.results import evaluate


def task(n=120, classes=2, scans=1, width=300, effect=0.6, seed=0, prevalence=None):
    """Features (rows, width) whose first ten directions carry the label, and the table of scans."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n, p=prevalence)
    subjects = np.repeat(np.arange(n), scans)
    features = rng.standard_normal((n * scans, width))
    features[:, :10] += effect * labels[subjects, None]
    order = np.empty(n, int)
    for c in range(classes):
        order[labels == c] = np.arange((labels == c).sum())
    table = pd.DataFrame(
        {
            "scan_uid": [f"scan-{i}" for i in range(n * scans)],
            "subject_id": [f"sub-{s:03d}" for s in subjects],
            "label": labels[subjects],
            "split": np.select([order % 20 < 11, order % 20 < 14], ["train", "val"], "test")[subjects],
        }
    )
    return {"mean": features[:, 5:40], "regional": features}, table, order[subjects]


def with_folds(table, order, folds=5):
    return table.drop(columns="split").assign(fold=order % folds)


def test_scores_equal_a_plain_sklearn_pipeline():
    features, table, _ = task(scans=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = linear_probe(features, table)
    chosen = result.chosen.iloc[0]
    x, test = features[chosen["pooling"]], (table["split"] == "test").to_numpy()
    scaler = StandardScaler().fit(x[~test])
    model = LogisticRegression(C=chosen["C"], tol=1e-8, max_iter=100_000)
    model.fit(scaler.transform(x[~test]), table["label"][~test])
    expected = model.predict_proba(scaler.transform(x[test]))
    np.testing.assert_allclose(result.predictions[["score_0", "score_1"]], expected, atol=2e-3)
    assert result.predictions["scan_uid"].tolist() == table["scan_uid"][test].tolist()
    row = evaluate(result).iloc[0]
    means = result.predictions.groupby("subject_id")[["label", "score_1"]].mean()
    assert row["estimate"] == pytest.approx(roc_auc_score(means["label"], means["score_1"]))
    assert row["low"] < row["estimate"] < row["high"] or row["estimate"] == 1
    assert row["n_subjects"] == len(means)
    assert row["p_permutation"] < 0.01


def test_held_out_labels_change_no_score():
    features, table, order = task()
    shuffled = table.copy()
    test = np.flatnonzero(table["split"] == "test")
    shuffled.loc[test, "label"] = np.roll(table["label"].to_numpy()[test], 3)
    a, b = linear_probe(features, table), linear_probe(features, shuffled)
    np.testing.assert_array_equal(a.predictions["score_1"], b.predictions["score_1"])

    folded = with_folds(table, order)
    held = np.flatnonzero(folded["fold"] == 2)
    other = folded.copy()
    other.loc[held, "label"] = np.roll(folded["label"].to_numpy()[held], 3)
    a, b = linear_probe(features, folded), linear_probe(features, other)
    np.testing.assert_array_equal(a.predictions["score_1"][held], b.predictions["score_1"][held])


def test_held_out_features_of_others_change_no_score():
    features, table, _ = task()
    result = linear_probe(features, table)
    test = np.flatnonzero(table["split"] == "test")
    changed = {name: array.copy() for name, array in features.items()}
    for array in changed.values():
        array[test[1:]] *= 100
    assert linear_probe(changed, table).predictions["score_1"][0] == result.predictions["score_1"][0]


def test_the_pooling_that_carries_the_signal_is_chosen():
    features, table, _ = task(n=300, effect=1.0)
    noise = np.random.default_rng(9).standard_normal((300, 50))
    assert linear_probe({"noise": noise, "signal": features["regional"]}, table).chosen["pooling"][0] == "signal"


def test_three_classes_and_imbalance():
    features, table, _ = task(n=240, classes=3)
    row = evaluate(linear_probe(features, table)).iloc[0]
    assert row["estimate"] > 0.7
    features, table, _ = task(n=400, prevalence=[0.95, 0.05], effect=1.5)
    row = evaluate(linear_probe(features, table)).iloc[0]
    assert row["estimate"] > 0.8
    assert row["p_permutation"] < 0.05


@pytest.mark.parametrize("folds", [2, 5])
def test_twenty_eight_subjects_are_cross_validated(folds):
    features, table, order = task(n=28, width=1000, effect=1.5, prevalence=[0.6, 0.4], seed=2)
    result = linear_probe(features, with_folds(table, order, folds))
    assert len(result.predictions) == 28
    assert result.predictions[["score_0", "score_1"]].notna().all(axis=None)
    assert result.chosen["fold"].tolist() == list(range(folds))
    assert result.chosen["validation_auroc"].isna().all() == (folds == 2)
    assert evaluate(result)["estimate"][0] > 0.8


def test_noise_is_at_chance_and_not_significant_too_often():
    p, estimates = [], []
    for seed in range(30):
        features, table, order = task(n=28, width=200, effect=0, seed=seed, prevalence=[0.6, 0.4])
        try:
            row = evaluate(linear_probe({"x": features["regional"]}, with_folds(table, order, 4)), draws=50).iloc[0]
        except InputError:  # a draw with too few of one class
            continue
        p.append(row["p_permutation"])
        estimates.append(row["estimate"])
    assert np.mean(estimates) == pytest.approx(0.5, abs=0.08)
    assert np.mean(np.asarray(p) < 0.05) <= 0.2


def test_refitting_under_permuted_labels_finds_an_effect_and_no_more():
    features, table, order = task(n=24, width=40, effect=2.0, prevalence=[0.5, 0.5], seed=5)
    assert refit_p({"x": features["regional"]}, with_folds(table, order, 3), draws=19) == pytest.approx(0.05)
    features, table, order = task(n=24, width=40, effect=0.0, prevalence=[0.5, 0.5], seed=5)
    assert refit_p({"x": features["regional"]}, with_folds(table, order, 3), draws=19) > 0.05


def test_refusals_name_the_subject_split_or_class():
    features, table, order = task()
    leak = table.copy()
    leak.loc[np.flatnonzero(leak["split"] == "test")[0], "subject_id"] = leak["subject_id"][0]
    with pytest.raises(InputError, match="Subject sub-000 is in more than one split"):
        linear_probe(features, leak)
    with pytest.raises(InputError, match="All 120 scans carry label 1"):
        linear_probe(features, table.assign(label=1))
    with pytest.raises(InputError, match=r"Split val has 0 subject\(s\) of class 1"):
        linear_probe(features, table.assign(label=table["label"].where(table["split"] != "val", 0)))
    with pytest.raises(InputError, match=r"Fold 0 has 0 subject\(s\) of class 1"):
        folded = with_folds(table, order)
        linear_probe(features, folded.assign(label=folded["label"].where(folded["fold"] != 0, 0)))
    with pytest.raises(InputError, match="Features mean of scan-4 are not finite"):
        broken = features["mean"].copy()
        broken[4, 2] = np.nan
        linear_probe({"mean": broken}, table)
    with pytest.raises(InputError, match="have 119 rows"):
        linear_probe({"mean": features["mean"][1:]}, table)


def test_a_probe_run_reads_the_rows_of_its_task(tmp_path):
    features, table, _ = task()
    rows = np.random.default_rng(0).permutation(200)[:120]
    stored = tmp_path / "features"
    stored.mkdir()
    for name, array in features.items():
        whole = np.zeros((200, array.shape[1]), np.float32)
        whole[rows] = array
        np.save(stored / f"{name}.npy", whole)
    make_probe(stored, table.assign(row=rows), {"draws": 100, "permutations": 100, "seed": 0})(tmp_path)
    result = linear_probe({name: array.astype(np.float32) for name, array in features.items()}, table)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "predictions.parquet"), result.predictions)
    assert list(pd.read_parquet(tmp_path / "results.parquet")) == [
        *("metric", "estimate", "low", "high", "n_subjects", "p_permutation")
    ]
