"""Leaks put there on purpose: each is found before any probe runs, and whoever allows one cannot hide it."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from brainfm_lib import figures
from brainfm_lib.card import KEY
from brainfm_lib.cli import app
from brainfm_lib.errors import InputError
from brainfm_lib.findings import comparison
from brainfm_lib.paths import runs_dir
from brainfm_lib.study import Study, leaks
from tests.data.scans import head, save_scan

SUBJECTS = 32


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Folder of two real files a subject; every head has coarse shapes of its own."""
    folder = tmp_path_factory.mktemp("scans")
    for i in range(2 * SUBJECTS):
        coarse = gaussian_filter(np.random.default_rng(i // 2).standard_normal(head().shape), 4)
        own = gaussian_filter(np.random.default_rng(1000 + i).standard_normal(head().shape), 3)
        texture = coarse / coarse.std() + own / own.std()
        save_scan(folder / f"{i}.nii", np.where(head() != 0, 300 + 40 * texture, 0).astype(np.float32))
    return folder


@pytest.fixture
def make_study(tmp_path, scans):
    """`make_study(site=None, files=None, allow_leak=False, **manifest)` over a table of those scans."""

    def make(*, site=None, files=None, allow_leak=False, **manifest):
        rows = pd.DataFrame({"path": [f"{i}.nii" for i in range(2 * SUBJECTS)]})
        rows["subject_id"] = [f"s{i // 2:02d}" for i in rows.index]
        rows["scan_uid"] = [f"u{i:02d}" for i in rows.index]
        rows["group"] = [str(i // 2 % 2) for i in rows.index]
        rows["site"] = [site(i // 2) if site else "one" for i in rows.index]
        rows["contrast"] = "T1w"
        rows.to_csv(tmp_path / "scans.csv", index=False)
        task = {"cohort": "real", "label": "group", "mapping": {"0": 0, "1": 1}, "classes": ["control", "case"]}
        if files is not None:
            for name, kept in files.items():
                rows.iloc[kept][["subject_id", "scan_uid"]].to_csv(tmp_path / f"{name}.csv", index=False)
            task["splits"] = {name: f"{name}.csv" for name in files}
        phantoms = {"kind": "phantom", "spec": {"seed": 5, "subjects": 24, "conditions": {"NC": 1.0}}}
        real = {"kind": "table", "table": str(tmp_path / "scans.csv"), "root": str(scans)}
        content = {
            "version": 1,
            "pretraining": ["phantoms"],
            "cohorts": {"real": real, "phantoms": phantoms},
            "tasks": {"disease": task},
        }
        path = tmp_path / "data_manifest.yaml"
        path.write_text(yaml.safe_dump(content | manifest))
        return Study("tiny", path, progress=False, allow_leak=allow_leak)

    return make


def refused(study, request, match):
    """The leak is named, nothing that judges has been made, and the plain text says how to go on."""
    with pytest.raises(InputError, match=match) as caught:
        study.run(request)
    assert not [run for kind in ("probe", "knn", "finetune") for run in runs_dir().glob(f"{kind}-*")]
    return str(caught.value)


def stamped(study, text):
    """Every row and every figure of this study carries `text`."""
    for request in ("probe:raw-voxels", "probe:label-shuffle", "knn:random-init", "finetune:random-init"):
        study.run(f"{request}:disease")
    results = study.results()
    assert results["leak"].str.contains(text, regex=False).all() and len(results)
    figures.stamp(study.stamp)
    try:
        drawn = figures.forest_plot(comparison.adjusted(results), {"disease": "Disease"})
        said = drawn.get_suptitle().replace("\n", " ")
        assert said.startswith("LEAK: ") and text in said
    finally:
        figures.stamp("")
    assert figures.forest_plot(comparison.adjusted(results), {"disease": "Disease"}).get_suptitle() == ""


def test_clean_data_are_not_accused(make_study):
    study = make_study(site=lambda subject: "one" if subject // 2 % 2 else "two")
    assert study.leaks("disease") == [] and study.stamp == ""
    assert study.run("probe:raw-voxels:disease") and (study.results()["leak"] == "").all()
    assert make_study(allow_leak=True).stamp == ""


def test_a_split_by_scans_is_found(make_study):
    """First scans of all subjects for training, second ones for testing: nobody is new to the classifier."""
    first, second = list(range(0, 2 * SUBJECTS, 2)), list(range(1, 2 * SUBJECTS, 2))
    files = {"train": first[:24], "val": first[24:], "test": second}
    refused(make_study(files=files), "probe:raw-voxels:disease", "a subject must be in one split only")
    stamped(make_study(files=files, allow_leak=True), "32 subjects on two sides of the split of disease")


def test_a_site_that_tells_the_label_is_found(make_study):
    def site(subject):
        return "hospital" if subject % 2 else "university"

    said = refused(make_study(site=site), "probe:raw-voxels:disease", "site alone tells the labels of disease")
    assert "--allow-leak" in said
    refused(make_study(site=site), "finetune:random-init:disease", "site alone")
    stamped(make_study(site=site, allow_leak=True), "site alone tells the labels of disease (AUROC 1.00)")


def test_copies_of_a_scan_on_two_sides_are_found(make_study, scans, tmp_path):
    study = make_study()
    table = study.task_table("disease")
    part = table["split" if "split" in table else "fold"]
    sides = sorted(set(part))
    a, b = (int(table["scan_uid"][part == side].iloc[0][-2:]) for side in sides[:2])
    kept = (scans / f"{b}.nii").read_bytes()
    try:
        save_scan(scans / f"{b}.nii", 3 * np.asarray(nib.load(scans / f"{a}.nii").dataobj))
        refused(make_study(), "knn:random-init:disease", "nearly the same scan on two sides")
    finally:
        (scans / f"{b}.nii").write_bytes(kept)


def test_an_encoder_that_has_seen_the_test_is_found(make_study, tmp_path):
    """It was pretrained on all scans under a manifest that permits it; another study then takes it as its own."""
    seen = make_study(pretraining=["real"], transductive=True)
    assert seen.stamp.startswith("TRANSDUCTIVE")
    folder = seen.run("pretrain:mae").path / "encoder"
    mine = {"mine": {"kind": "folder", "path": str(folder)}}
    told = r"mine was pretrained on .* scans of subjects that disease evaluates on"
    refused(make_study(encoders=mine), "probe:mine:disease", told)
    study = make_study(encoders=mine, allow_leak=True)
    study.run("probe:mine:disease")
    assert study.results()["leak"].str.startswith("mine was pretrained on").all() and "mine was" in study.stamp
    clean = make_study(encoders=mine | {"other": {"kind": "folder", "path": str(honest(make_study))}})
    assert clean.run("probe:other:disease")


def test_an_encoder_that_has_seen_another_scan_of_a_test_subject_is_found(make_study, monkeypatch):
    study = make_study()
    table = study.task_table("disease")
    held = table[table["split"] == "test"] if "split" in table else table
    scans = study.cohort("real").scans
    of_it = scans[scans["subject_id"] == held["subject_id"].iloc[0]]
    assert len(of_it) == 2
    one = table[~table["scan_uid"].isin(of_it["scan_uid"][:1])].reset_index(drop=True)  # a task of the other contrast
    monkeypatch.setattr(type(study), "task_table", lambda self, task: one)
    monkeypatch.setattr(leaks, "trained_on", lambda settings, manifest: {of_it["digest"].iloc[0][:KEY]})
    assert leaks.encoder_leaks(study, "mine", None, "disease") == [
        "mine was pretrained on 1 scan of subjects that disease evaluates on"
    ]


def test_no_random_split_tests_what_an_encoder_has_seen(make_study, tmp_path):
    """The training subjects of the task itself were pretrained on, which its own split allows and another does not."""
    few = {"evaluation.cross_validate_below": 10}
    study = Study("tiny", make_study(pretraining=["real"]).manifest.path, overrides=few, progress=False)
    folder = study.run("pretrain:mae").path / "encoder"
    with pytest.raises(InputError, match="encoders were pretrained on some of its scans"):
        study.run("resplit:raw-voxels:disease")
    path = make_study(encoders={"mine": {"kind": "folder", "path": str(folder)}}).manifest.path
    study = Study("tiny", path, overrides=few, progress=False)
    assert study.run("probe:mine:disease") and study.run("resplit:raw-voxels:disease")
    with pytest.raises(InputError, match=r"mine was pretrained on .* scans of subjects that disease evaluates on"):
        study.run("resplit:mine:disease")


def honest(make_study):
    return make_study().run("pretrain:mae").path / "encoder"


def test_the_command_line_refuses_and_warns(make_study):
    path = str(make_study(site=lambda subject: "hospital" if subject % 2 else "university").manifest.path)
    call = ["probe", "--profile", "tiny", "--manifest", path, "--objective", "random-init"]
    found = CliRunner().invoke(app, call)
    assert isinstance(found.exception, InputError) and "site alone" in str(found.exception)
    found = CliRunner().invoke(app, [*call, "--allow-leak"])
    assert found.exit_code == 0 and found.output.startswith("warning: LEAK: site alone tells")
