"""Nearest neighbours, few-shot draws and the controls of the comparison: each against what it must be."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from brainfm_lib import notes
from brainfm_lib.errors import InputError
from brainfm_lib.findings import comparison
from brainfm_lib.findings.pairs import compare_runs
from brainfm_lib.making.judging import judge
from brainfm_lib.probes.fewshot import _subjects_of_classes, few_shot
from brainfm_lib.probes.neighbours import knn_probe
from brainfm_lib.probes.results import evaluate, with_shuffled_labels
from brainfm_lib.study import Study
from brainfm_lib.words import counted


def cohort(n: int = 240, effect: float = 1.5, seed: int = 0, scans: int = 1):
    """Features (n * scans, 6) of which the first carries the label, and a split task."""
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(n), scans)
    label = (np.arange(n) % 2)[subject]
    x = rng.standard_normal((n * scans, 6))
    x[:, 0] += effect * label
    split = np.array(["train", "train", "train", "val", "test", "test"])[np.arange(n) // 2 % 6][subject]
    table = pd.DataFrame(
        {"scan_uid": [f"c/{i}" for i in range(n * scans)], "subject_id": [f"s{i:03d}" for i in subject], "label": label}
    )
    return {"mean": x, "noise": rng.standard_normal((n * scans, 6))}, table.assign(split=split)


def test_neighbours_by_hand():
    """Two classes on opposite sides of the origin: the vote is that of one's own side."""
    rng = np.random.default_rng(0)
    features, table = cohort(120)
    sign = 2 * table["label"].to_numpy()[:, None] - 1
    features = {"mean": 3 * sign + 0.3 * rng.standard_normal((120, 4))}
    found = knn_probe(features, table)
    scores = found.predictions[["score_0", "score_1"]].to_numpy()
    np.testing.assert_allclose(scores.sum(1), 1)
    assert (scores.argmax(1) == found.predictions["label"]).all()
    assert found.chosen["k"].iloc[0] == 20  # all are perfect: the preferred one is taken


def test_neighbours_find_the_signal_and_choose_its_pooling():
    features, table = cohort()
    found = knn_probe(features, table)
    assert found.chosen["pooling"].iloc[0] == "mean"
    assert evaluate(found, draws=200)["estimate"].iloc[0] > 0.65
    assert 0.3 < evaluate(knn_probe({"noise": features["noise"]}, table), draws=200)["estimate"].iloc[0] < 0.7


def test_no_held_out_label_changes_a_neighbours_score():
    features, table = cohort()
    other = table.assign(label=np.where(table["split"] == "test", 1 - table["label"], table["label"]))
    a, b = (knn_probe(features, t).predictions[["score_0", "score_1"]] for t in (table, other))
    pd.testing.assert_frame_equal(a, b)


def test_more_shots_teach_more_and_draws_repeat():
    features, table = cohort(effect=1.0)
    found = few_shot(features, table, shots=(8, 32, 500), draws=8)
    assert set(found["shots"]) == {8, 32}  # no class has 500
    mean = found.groupby("shots")["auroc"].mean()
    assert mean[32] > mean[8] > 0.5
    pd.testing.assert_frame_equal(found, few_shot(features, table, shots=(8, 32, 500), draws=8))


def test_few_shots_see_no_label_beyond_their_number(monkeypatch):
    features, table = cohort(scans=2)
    seen = []

    def spy(x, drawn, **more):
        labelled = drawn[drawn["split"] != "test"]
        seen.append(labelled.groupby("label")["subject_id"].nunique().tolist())
        assert (drawn.groupby("subject_id").size() == 2).all()  # all scans of a drawn subject
        assert len(next(iter(x.values()))) == len(drawn)
        return linear(x, drawn, **more)

    from brainfm_lib.probes import fewshot

    linear = fewshot.linear_probe
    monkeypatch.setattr(fewshot, "linear_probe", spy)
    few_shot(features, table, shots=(8,), draws=3)
    assert seen == [[8, 8]] * 3


def test_few_shots_need_a_test_set_and_enough_subjects():
    features, table = cohort()
    with pytest.raises(InputError, match="cross-validated"):
        few_shot(features, table.drop(columns="split").assign(fold=np.arange(240) // 2 % 4))
    with pytest.raises(InputError, match="500 shots"):
        few_shot(features, table, shots=(500,))


@pytest.mark.parametrize("scans", [1, 2])
def test_shuffled_labels_keep_subjects_whole_and_splits_balanced(scans):
    _, table = cohort(scans=scans)
    dealt = with_shuffled_labels(table, 0)
    assert (dealt["label"] != table["label"]).mean() > 0.3
    assert (dealt.groupby("subject_id")["label"].nunique() == 1).all()
    pd.testing.assert_series_equal(
        dealt.groupby(["split", "label"]).size(), table.groupby(["split", "label"]).size(), check_names=False
    )
    pd.testing.assert_frame_equal(with_shuffled_labels(table, 0), dealt)
    assert (with_shuffled_labels(table, 1)["label"] != dealt["label"]).any()


def test_converters_change_places_with_converters_and_nobody_else_is_kept_from_it():
    """One subject who converts once kept the labels of all who have as many scans as nobody else where they were."""
    table = pd.DataFrame({"subject_id": list("aabbccdd"), "label": [0, 1, 0, 0, 1, 1, 0, 1], "fold": [0] * 8})
    dealt = [with_shuffled_labels(table, seed)["label"].to_numpy().reshape(4, 2) for seed in range(100)]
    for labels in dealt:
        assert sorted(labels.sum(1)[[0, 3]]) == [1, 1] and sorted(labels.sum(1)[[1, 2]]) == [0, 2]
    assert len({labels.tobytes() for labels in dealt}) == 8  # two orders of each converter, and the others' exchange
    subjects = np.repeat(np.arange(60), np.arange(1, 61))
    label = subjects % 2
    label[subjects == 59] = np.arange(60) % 2
    unequal = pd.DataFrame({"subject_id": subjects, "label": label, "split": "train"})
    kept = [(with_shuffled_labels(unequal, s)["label"].to_numpy() == label).mean() for s in range(20)]
    assert np.mean(kept) < 0.6


def test_few_shots_count_a_subject_to_the_rarest_class_that_it_has_had():
    """A diagnosis that is nobody's most frequent one is a class all the same."""
    rows = [(f"s{i}", label) for i in range(40) for label in ((2, 2, 1) if i % 4 == 0 else (i % 2 * 2,) * 3)]
    table = pd.DataFrame(rows, columns=["subject_id", "label"])
    pools = _subjects_of_classes(table)
    assert list(map(len, pools)) == [10, 10, 20] and set(pools[1]) == {f"s{i}" for i in range(0, 40, 4)}
    both = pd.DataFrame([(f"s{i}", label) for i in range(9) for label in (0, 1)], columns=["subject_id", "label"])
    assert list(map(len, _subjects_of_classes(both))) == [5, 4]


@pytest.fixture(scope="module")
def confounded(tmp_path_factory):
    """A study without pretraining, of a label that age tells: the young against the old."""
    root = tmp_path_factory.mktemp("confounded")
    spec = {"seed": 1, "subjects": 160, "conditions": {"control": 0.5, "NC": 0.5}, "contrasts": ["T1w"]}
    task = {"cohort": "own", "label": "diagnosis", "mapping": {"control": 0, "NC": 1}, "classes": ["young", "old"]}
    content = {"version": 1, "pretraining": ["own"], "cohorts": {"own": {"kind": "phantom", "spec": spec}}}
    file = root / "manifest.yaml"
    file.write_text(yaml.safe_dump({**content, "tasks": {"age": task}}))
    caps = {"subjects.downstream": 160, "subjects.pretraining": 160, "evaluation.shots": [8, 16]}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ROOT", "RUNS", "STORE"):
            patch.setenv(f"BRAINFM_{name}", str(root / name.lower()))
        yield Study("tiny", file, objective="random-init", progress=False, overrides=caps)


def test_covariates_alone_tell_a_confounded_label_and_shuffled_labels_tell_nothing(confounded):
    found = {arm: confounded.run(f"probe:{arm}:age").table("results") for arm in ("nuisance", "label-shuffle")}
    rows = {arm: table.set_index("metric")["estimate"] for arm, table in found.items()}
    assert rows["nuisance"]["auroc"] > 0.95 and rows["nuisance"]["brier"] < 0.1
    assert found["label-shuffle"]["low"].iloc[0] < 0.5 < found["label-shuffle"]["high"].iloc[0]
    results = confounded.results()
    assert set(results["arm"]) == {"nuisance", "label-shuffle"} and set(results["protocol"]) == {"linear"}


def test_the_command_line_judges_exports_and_compares(confounded, tmp_path):
    csv = tmp_path / "results.csv"
    lines = list(judge(confounded, "linear", table=csv))
    assert len(lines) == 5 and "nuisance" in lines[1] and lines[-1] == f"table: {csv}"
    table = pd.read_csv(csv)
    assert set(table["arm"]) == {"label-shuffle", "nuisance", "raw-voxels", "random-init"}
    assert set(table["metric"]) >= {"auroc", "auprc", "brier"} and table["run"].notna().all()
    last = list(judge(confounded, "linear", table=tmp_path / "results.parquet"))[-1]
    assert last.endswith("results.parquet")
    pd.testing.assert_series_equal(pd.read_parquet(tmp_path / "results.parquet")["estimate"], table["estimate"])
    assert (table["fold"] == "all").all()
    with pytest.raises(InputError, match="is neither a"):
        list(judge(confounded, "linear", table=tmp_path / "results.xlsx"))
    runs = [confounded.run(f"probe:{arm}:age").id for arm in ("raw-voxels", "nuisance", "label-shuffle")]
    said = list(compare_runs(runs[:2]))
    assert said[0].startswith(runs[0]) and "difference +" in said[1] and "p = " in said[1]
    with pytest.raises(InputError, match="different scans or labels"):
        list(compare_runs([runs[0], runs[2]]))
    with pytest.raises(InputError, match="at least two"):
        list(compare_runs(runs[:1]))
    with pytest.raises(InputError, match="no predictions"):
        list(compare_runs([runs[0], confounded.run("features:raw-voxels:own").id]))
    small = {"subjects.downstream": 160, "evaluation.cross_validate_below": 1000}
    few = Study("tiny", confounded.manifest.path, objective="random-init", progress=False, overrides=small)
    assert ["left out: it is cross-validated" in line for line in judge(few, "curve")] == [True]
    with pytest.raises(InputError, match="no protocol 'lda'"):
        list(judge(confounded, "lda"))
    with pytest.raises(InputError, match="no task 'sex'"):
        list(judge(confounded, "linear", ["sex"]))


def test_a_page_that_looked_for_a_run_is_out_of_date_once_it_is_there(confounded, tmp_path):
    assert confounded.optional("fewshot:raw-voxels:age") is None
    confounded.write_result(tmp_path / "result.json")
    noted = json.loads((tmp_path / "result.json").read_text())["runs"]
    assert noted["optional:fewshot:raw-voxels:age"] == "absent"
    draws = confounded.run("fewshot:raw-voxels:age").table("draws")
    assert draws["shots"].value_counts().to_dict() == {8: 20, 16: 20}
    assert confounded.identify("optional:fewshot:raw-voxels:age") == confounded.run("fewshot:raw-voxels:age").id


def test_the_supervised_network_is_a_row_of_fine_tuning(confounded):
    assert confounded.config("finetune:cnn:age").inputs == {}
    assert "not been trained" in notes.cnn_note(confounded).data
    epochs = confounded.run("finetune:cnn:age").provenance["epochs"]
    share = confounded.cnn_share("age", epochs)
    assert f"age {counted(epochs, 'epoch')} ({100 * share:.0f} %)" in notes.cnn_note(confounded).data and share > 0
    rows = confounded.results().query("arm == 'cnn'")
    assert set(rows["protocol"]) == {"fine-tune"} and rows["estimate"].notna().any()
    assert "cnn" not in set(comparison.paired_differences(confounded)["arm"])


def test_efficiency_is_given_where_the_truth_is_known(confounded):
    confounded.run("probe:raw-voxels:age")
    table = comparison.efficiency_table(confounded, comparison.adjusted(confounded.results()))
    assert table.empty  # age is no latent severity: the ideal observer of this label is at chance
