"""A study never pretrains on whom it tests, and says what a page rests on."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.ndimage import gaussian_filter

from brainfm_lib.data.audit import confounding, covariates
from brainfm_lib.errors import InputError
from brainfm_lib.findings import data_audit
from brainfm_lib.study import Study
from brainfm_lib.tables import runs_table
from tests.data.scans import head, save_scan

CONDITIONS = {"NC": 0.5, "AD": 0.5}
TASK = {"cohort": "test", "label": "diagnosis", "mapping": {"NC": 0, "AD": 1}, "classes": ["NC", "AD"]}


@pytest.fixture
def open_study(tmp_path, monkeypatch):
    """`open_study(seeds, **manifest)`: two phantom cohorts, `pre` pretrained on and `test` tested on."""
    monkeypatch.setenv("BRAINFM_ROOT", str(tmp_path))
    monkeypatch.setenv("BRAINFM_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("BRAINFM_STORE", str(tmp_path / "store"))

    def make(seeds=(1, 2), **manifest):
        cohorts = {
            name: {"kind": "phantom", "spec": {"seed": seed, "subjects": 60, "conditions": CONDITIONS}}
            for name, seed in zip(("pre", "test"), seeds)
        }
        content = {"version": 1, "pretraining": ["pre"], "cohorts": cohorts, "tasks": {"ad": TASK}, **manifest}
        content["cohorts"] = {**cohorts, **manifest.get("cohorts", {})}
        file = tmp_path / "data_manifest.yaml"
        file.write_text(yaml.safe_dump(content))
        return Study("tiny", file, progress=False)

    return make


def trained_on(study):
    rows = study.pretraining_rows["pre"][0]
    return set(study.cohort("pre").scans["digest"].iloc[rows])


def evaluated_on(study):
    table = study.task_table("ad")
    evaluated = table["row"][table["split"] != "train"] if "split" in table else table["row"]
    return set(study.cohort("test").scans["digest"].iloc[evaluated])


def test_the_same_scans_under_another_cohorts_name_are_kept_out_of_pretraining(open_study):
    study = open_study(seeds=(1, 1))
    assert evaluated_on(study) & set(study.cohort("pre").scans["digest"])
    assert trained_on(study) and not trained_on(study) & evaluated_on(study)
    assert trained_on(open_study(seeds=(1, 1), transductive=True)) & evaluated_on(study)


def test_copies_that_were_saved_again_are_kept_out_of_pretraining(tmp_path):
    """Another cohort holds a tested scan, rescaled and under another name: its subject is not trained on."""

    def brain(seed):
        coarse = gaussian_filter(np.random.default_rng(seed).standard_normal(head().shape), 4)
        return np.where(head() != 0, 300 + 60 * coarse / coarse.std(), 0).astype(np.float32)

    rows = ["participant_id\tgroup"]
    for i in range(12):
        save_scan(tmp_path / f"tested/sub-{i:02d}/anat/sub-{i:02d}_T1w.nii.gz", brain(i))
        rows.append(f"sub-{i:02d}\t{'case' if i % 2 else 'control'}")
    (tmp_path / "tested/participants.tsv").write_text("\n".join(rows) + "\n")
    for i in range(12):
        copy = 2.5 * brain(3) if i == 5 else brain(100 + i)
        save_scan(tmp_path / f"other/sub-x{i:02d}/anat/sub-x{i:02d}_T1w.nii", copy)
    task = {"cohort": "tested", "label": "group", "mapping": {"control": 0, "case": 1}, "classes": ["control", "case"]}
    manifest = {
        "version": 1,
        "pretraining": ["other"],
        "cohorts": {name: {"kind": "bids", "root": name} for name in ("other", "tested")},
        "tasks": {"disease": task},
    }
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(manifest))
    study = Study("tiny", path, progress=False)
    train, held = study.pretraining_rows["other"]
    subjects = study.cohort("other").scans["subject_id"]
    assert "sub-x05" in set(subjects.iloc[held]) and "sub-x05" not in set(subjects.iloc[train])
    assert len(train) == 9 and len(study.duplicates) == 1
    found = data_audit.leak_table(study).set_index("what a reviewer would look for")["found"]
    assert found["pairs of nearly the same scan"] == 1 and found["of these, under two subjects"] == 1
    assert found["of these, in pretraining and evaluated by a task"] == 0


def test_an_unrelated_cohort_makes_no_run_stale_but_the_pages_that_list_it(open_study):
    first = open_study()
    more = {"third": {"kind": "phantom", "spec": {"seed": 3, "subjects": 20, "conditions": CONDITIONS}}}
    second = open_study(cohorts=more, tasks={"ad": TASK, "other": {**TASK, "cohort": "third"}})
    for request in ("pretrain:mae", "features:mae:test", "probe:mae:ad"):
        assert first.identify(request) == second.identify(request)
    assert first.identify("study") != second.identify("study")
    assert first.identify("study") != open_study(transductive=True).identify("study")


def test_subjects_of_different_cohorts_stay_different_people(open_study):
    study = open_study(pretraining=["pre", "test"])
    _, scans = study.pretraining_volumes(1)
    assert {name.split("/")[0] for name in scans["subject_id"]} == {"pre", "test"}


def test_a_study_without_tasks_has_an_empty_table(open_study):
    study = open_study(tasks={})
    assert study.results().drop(columns="cohort").empty and "study-" in study.identify("study")


def test_a_run_does_not_depend_on_how_its_batches_are_split_unless_its_loss_does():
    def identity(arm, **overrides):
        return Study("tiny", objective=arm, overrides=overrides, progress=False).identify(f"pretrain:{arm}")

    split = {"optimiser.accumulate": 2}
    for arm in ("sl-mae", "jepa", "vcr-jepa"):
        assert identity(arm) == identity(arm, **split)
    alone = {"vcr.gathered": False}
    assert identity("vcr-jepa") != identity("vcr-jepa", **alone) != identity("vcr-jepa", **alone, **split)


def test_of_phantoms_only_those_are_rendered_that_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINFM_STORE", str(tmp_path))
    study = Study("tiny", progress=False)
    volumes, scans = study.pretraining_volumes(1, 3)
    seen = volumes.read(range(len(volumes)))
    (name,) = study.pretraining_cohorts
    assert study.some_volumes(name, [0]).read([0]).shape == (1, *study.profile.geometry.grid)
    made = {file.name for file in tmp_path.rglob("*.npy")}
    assert 3 <= len(made) <= 4 < len(study.cohort(name)) and len(scans) == 3
    whole = Study("tiny", progress=False)
    whole.volumes(name)  # all of them; a part of it is the same
    assert np.array_equal(whole.pretraining_volumes(1, 3)[0].read(range(3)), seen)


@pytest.mark.parametrize(
    "kind",
    ["probe", "knn", "fewshot", "resplit", "attentive", "finetune", "bands", "components", "truth", "confounding"],
)
def test_another_manifest_s_task_is_no_task_of_this_one(open_study, kind):
    """A page that was made from one manifest asks this of the next one, to see that it is out of date."""
    request = f"{kind}:unknown" if kind in ("truth", "confounding") else f"{kind}:mae:unknown"
    with pytest.raises(InputError):
        open_study().identify(request)


def test_what_covariates_tell_is_kept_and_what_they_are_decides(open_study, tmp_path):
    study = open_study()
    table = study.task_table("ad")
    expected = confounding(table, covariates(study.volumes("test"), table["row"]))
    shown = data_audit.confounding_table(study)
    assert len(shown) > 3 and set(shown["covariate"]) == set(expected["covariate"])
    for row in expected.itertuples():
        (auroc,) = shown["AUROC alone"][shown["covariate"] == row.covariate]
        assert auroc == pytest.approx(row.auroc)
    (run,) = (tmp_path / "runs").glob("confounding-*")
    before = (run / "covariates.parquet").read_bytes()
    assert not [uid for uid in table["scan_uid"] if uid.encode() in before]
    assert study.identify("confounding:ad") == run.name != open_study(seeds=(1, 3)).identify("confounding:ad")


@pytest.mark.parametrize("column", ["age", "site"])
def test_another_value_of_a_covariate_is_another_confounding(tmp_path, column):
    rows = pd.DataFrame(
        {
            "path": [save_scan(tmp_path / f"{i}.nii.gz", head(seed=i)).name for i in range(8)],
            "subject_id": [f"P{i}" for i in range(8)],
            "diagnosis": ["NC", "AD"] * 4,
            "age": np.arange(60, 68),
            "site": ["A"] * 4 + ["B"] * 4,
        }
    )
    cohort = {"kind": "table", "table": "scans.csv", "contrast": "T1w"}
    manifest = {"version": 1, "pretraining": ["test"], "cohorts": {"test": cohort}, "tasks": {"ad": TASK}}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(manifest))
    found = []
    for value in (rows[column].iloc[0], rows[column].iloc[-1]):
        rows.loc[0, column] = value
        rows.to_csv(tmp_path / "scans.csv", index=False)
        found.append(Study("tiny", tmp_path / "m.yaml", progress=False).identify("confounding:ad"))
    assert found[0] != found[1]


def test_a_page_says_which_of_its_runs_other_code_made(open_study, tmp_path):
    made = open_study().run("pretrain:random-init")
    shipped = tmp_path / "book" / "reference" / "runs" / made.provenance["loose_id"]
    shipped.parent.mkdir(parents=True)
    shutil.move(made.path, shipped)
    study = open_study()
    assert study.run("pretrain:random-init").shipped
    assert list(runs_table(study)["code"]) == ["as it is now"]
    old = made.provenance | {"id": "init-000000000000", "commit": "1234567890", "finished": "2026-01-02T03:04:05Z"}
    (shipped / "provenance.json").write_text(json.dumps(old))
    study = open_study()
    study.run("pretrain:random-init")
    assert list(runs_table(study)["code"]) == ["another: version 0.1.0, commit 1234567, 2026-01-02"]
