"""Tasks that break comparisons: three classes, one case in twenty, twelve subjects, a single class."""

import numpy as np
import pandas as pd
import pytest
import yaml

from brainfm_lib.data.splits import assign_folds, assign_splits
from brainfm_lib.errors import InputError
from brainfm_lib.making.judging import judge
from brainfm_lib.probes.attentive import AttentiveConfig, attentive_probe
from brainfm_lib.probes.fewshot import few_shot
from brainfm_lib.probes.linear import linear_probe, refit_p
from brainfm_lib.probes.neighbours import knn_probe
from brainfm_lib.probes.results import evaluate, write_result
from brainfm_lib.study import Study

SETTINGS = {"draws": 300, "permutations": 300, "seed": 0}


def task(counts, effect, *, folds=0, seed=0):
    """Features (n, 8) whose first columns carry the class, as far apart as `effect`; a split, or folds."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    x = rng.standard_normal((len(labels), 8))
    x[np.arange(len(labels)), labels] += effect
    names = [f"s{i:03d}" for i in range(len(labels))]
    table = pd.DataFrame({"scan_uid": [f"c/{n}" for n in names], "subject_id": names, "label": labels})
    if folds:
        return {"mean": x}, table.assign(fold=assign_folds(table, seed=0, folds=folds))
    return {"mean": x}, table.assign(split=assign_splits(table, seed=0))


PROBES = {
    "linear": linear_probe,
    "kNN": knn_probe,
    "attentive": lambda x, table: attentive_probe(
        {"1": np.repeat(x["mean"][:, None], 4, 1)}, table, AttentiveConfig(epochs=30, lr=1e-2), heads=2
    ),
}


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("counts", [(80, 80, 80), (300, 15)], ids=["three classes", "one in twenty"])
def test_a_clear_signal_is_found_and_noise_is_not(probe, counts, tmp_path):
    for effect in (4.0, 0.0):
        features, table = task(counts, effect)
        result = PROBES[probe](features, table)
        scored = evaluate(result, draws=300, permutations=300).iloc[0]
        assert scored["n_subjects"] == (table["split"] == "test").sum()
        if effect:
            assert scored["estimate"] > 0.93 and scored["p_permutation"] < 0.02
        else:
            assert scored["low"] < 0.5 and scored["p_permutation"] > 0.004  # few cases may stand out by luck
        folder = tmp_path / f"{effect}"
        folder.mkdir()
        write_result(result, SETTINGS, folder)
        metrics = pd.read_parquet(folder / "results.parquet").set_index("metric")
        assert metrics.loc["auroc", "estimate"] == scored["estimate"]
        if counts == (300, 15) and not effect:  # chance of the precision-recall curve is the share of cases
            found, cases = metrics.loc["auprc"], (table["split"] == "test") & (table["label"] == 1)
            if pd.isna(found["low"]):  # all neighbours' votes are one, under every resample
                assert found["estimate"] == pytest.approx(cases.sum() / (table["split"] == "test").sum())
            else:
                assert found["low"] < 15 / 315 and found["high"] < 0.5


def test_one_case_too_few_is_refused_by_name():
    features, table = task((60, 3), 4.0)
    for probe in PROBES.values():
        with pytest.raises(InputError, match=r"Split test has 1 subject\(s\) of class 1 and needs 2"):
            probe(features, table)
    with pytest.raises(InputError, match="class 1"):
        few_shot(features, table)


def test_twelve_subjects_say_much_only_where_there_is_much_to_say():
    features, table = task((6, 6), 6.0, folds=3)
    scored = evaluate(linear_probe(features, table), draws=300).iloc[0]
    assert scored["estimate"] > 0.9 and refit_p(features, table, draws=39) < 0.05
    below = [refit_p(*task((6, 6), 0.0, folds=3, seed=seed), draws=39) < 0.05 for seed in range(4)]
    assert sum(below) <= 1
    with pytest.raises(InputError, match="4 folds cannot be made: the smallest class has 3"):
        task((9, 3), 1.0, folds=4)


@pytest.fixture
def make_study(tmp_path):
    def make(conditions, subjects, mapping):
        spec = {"seed": 3, "subjects": subjects, "conditions": conditions}
        cohorts = {
            "pre": {"kind": "phantom", "spec": {"seed": 4, "subjects": 24, "conditions": {"NC": 1.0}}},
            "one": {"kind": "phantom", "spec": spec},
        }
        classes = ["a", "b", "c"][: len({v for v in mapping.values() if v is not None})]
        tasks = {"odd": {"cohort": "one", "label": "diagnosis", "mapping": mapping, "classes": classes}}
        path = tmp_path / "data_manifest.yaml"
        path.write_text(yaml.safe_dump({"version": 1, "pretraining": ["pre"], "cohorts": cohorts, "tasks": tasks}))
        return Study("tiny", path, objective="random-init", overrides={"evaluation.refits": 3}, progress=False)

    return make


def test_a_study_answers_them_all_the_way_through(make_study):
    three = make_study({"2": 0.4, "3": 0.3, "4": 0.3}, 60, {"2": 0, "3": 1, "4": 2})
    rare = make_study({"NC": 0.95, "AD": 0.05}, 60, {"NC": 0, "AD": 1})
    few = make_study({"NC": 0.5, "AD": 0.5}, 12, {"NC": 0, "AD": 1})
    assert all("AUROC" in line for line in judge(three, "linear"))
    (line,) = judge(rare, "linear")
    assert line.startswith("odd") and "left out" in line and "class 1" in line
    lines = list(judge(few, "linear"))
    assert len(lines) == 4 and all("AUROC" in line for line in lines)


def test_a_single_class_is_no_task(make_study):
    study = make_study({"NC": 1.0}, 20, {"NC": 0, "AD": 1})
    with pytest.raises(InputError, match="no scan has the class b"):
        list(judge(study, "linear"))
    features, table = task((30,), 0.0)
    with pytest.raises(InputError, match="a probe needs two"):
        linear_probe(features, table)
