"""No identifier of a person and no free text of a header reaches runs or results."""

import multiprocessing
import stat

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml

from brainfm_lib.data.pseudonyms import _key, key_file, pseudonymised
from brainfm_lib.errors import InputError
from brainfm_lib.stats.permutation import label_dealer
from brainfm_lib.study import Study
from tests.data.scans import head

NAME, FREE_TEXT = "DOEJANE", "WRITTENBYHAND"


@pytest.fixture
def clinic(tmp_path, monkeypatch):
    """Fourteen real files of people with names, in a project of its own."""
    rows = ["participant_id\tage\tsex\tgroup"]
    for i in range(14):
        subject = f"sub-{NAME}{i:02d}"
        file = tmp_path / "scans" / subject / "anat" / f"{subject}_T1w.nii.gz"
        file.parent.mkdir(parents=True)
        image = nib.Nifti1Image(head(seed=i), np.diag([4.0, 4, 4, 1]))
        for field in ("descrip", "db_name", "intent_name", "aux_file"):
            image.header[field] = FREE_TEXT.encode()
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", FREE_TEXT.encode()))
        image.to_filename(file)
        rows.append(f"{subject}\t{30 + i}\tF\t{'case' if i % 2 else 'control'}")
    (tmp_path / "scans" / "participants.tsv").write_text("\n".join(rows) + "\n")
    task = {"cohort": "clinic", "label": "group", "mapping": {"control": 0, "case": 1}, "classes": ["control", "case"]}
    manifest = {
        "version": 1,
        "transductive": True,
        "pretraining": ["clinic"],
        "cohorts": {"clinic": {"kind": "bids", "root": "scans"}},
        "tasks": {"disease": task},
    }
    (tmp_path / "data_manifest.yaml").write_text(yaml.safe_dump(manifest))
    monkeypatch.setenv("BRAINFM_ROOT", str(tmp_path))
    monkeypatch.setenv("BRAINFM_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("BRAINFM_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("BRAINFM_KEY", str(tmp_path / "elsewhere" / "key"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(folder):
    """Files below a folder in which a name or the free text stands, tables unpacked."""
    found = []
    for file in (path for path in folder.rglob("*") if path.is_file()):
        text = file.read_bytes()
        if file.suffix == ".parquet":
            text += pd.read_parquet(file).to_csv().encode()
        if any(word.encode() in text for word in (NAME, FREE_TEXT)) or NAME in file.name:
            found.append(file.name)
    return found


def test_nothing_under_runs_tells_who_was_scanned(clinic):
    overrides = {"optimiser.steps": 2, "evaluation.refits": 19, "evaluation.reconstruction_volumes": 4}
    study = Study("tiny", overrides=overrides, progress=False)
    for request in ("reconstruction:mae", "latents:jepa", "probe:random-init:disease", "probe:mae:disease"):
        study.run(request)
    study.write_result(clinic / "runs" / "result.json")
    predictions = study.run("probe:mae:disease").table("predictions")
    assert len(predictions) == 14 and predictions["subject_id"].nunique() == 14
    assert predictions["scan_uid"].str.fullmatch(r"clinic/[0-9a-f]{16}").all()
    assert len(list((clinic / "runs").rglob("*.parquet"))) > 5
    assert told(clinic / "runs") == []
    in_store = [name for name in told(clinic / "store") if name != "file-digests.parquet"]  # remembers paths
    assert in_store == []


def test_identities_do_not_depend_on_the_key(clinic, monkeypatch):
    first = Study("tiny", progress=False).identify("probe:mae:disease")
    monkeypatch.setenv("BRAINFM_KEY", str(clinic / "other"))
    assert Study("tiny", progress=False).identify("probe:mae:disease") == first


def test_pseudonyms_follow_the_key_and_nothing_else(tmp_path, monkeypatch):
    scans = pd.DataFrame(
        {"subject_id": ["a", "b", "a"], "scan_uid": ["c/1", "c/2", "c/3"], "path": "/x", "session": "s"}
    )
    monkeypatch.setenv("BRAINFM_KEY", str(tmp_path / "one" / "key"))
    first = pseudonymised(scans, "c")
    assert list(first.columns) == ["subject_id", "scan_uid"]
    assert first["subject_id"][0] == first["subject_id"][2] != first["subject_id"][1]
    assert first["scan_uid"].is_unique and first.equals(pseudonymised(scans, "c"))
    assert set(first["subject_id"]).isdisjoint(pseudonymised(scans, "other")["subject_id"]), "cohorts cannot be joined"
    assert stat.S_IMODE(key_file().stat().st_mode) == 0o600
    monkeypatch.setenv("BRAINFM_KEY", str(tmp_path / "two" / "key"))
    with pytest.raises(InputError, match=r"pseudonyms of another key than .*two/key"):
        pseudonymised(scans, "c")
    monkeypatch.setenv("BRAINFM_RUNS", str(tmp_path / "other-runs"))
    assert set(first["subject_id"]).isdisjoint(pseudonymised(scans, "c")["subject_id"])


def _first_use(path, start, answers):
    start.wait()
    answers.put(_key(path))


def test_processes_that_need_a_key_at_once_have_one_key(tmp_path):
    context = multiprocessing.get_context("fork")
    for attempt in range(10):
        start, answers = context.Barrier(4), context.Queue()
        path = tmp_path / f"{attempt}" / "key"
        helpers = [context.Process(target=_first_use, args=(path, start, answers)) for _ in range(4)]
        for helper in helpers:
            helper.start()
        found = {answers.get(timeout=30) for _ in helpers}
        for helper in helpers:
            helper.join()
        assert found == {bytes.fromhex(path.read_text().strip())}


def test_labels_are_dealt_out_alike_under_every_key():
    labels, subjects = np.arange(30) % 2, np.repeat(np.arange(15), 2).astype(str)
    renamed = pd.Series(subjects).map({name: f"{hash(name) % 997:03}-{name}" for name in subjects}).to_numpy()
    one, other = (label_dealer(labels, names)(np.random.default_rng(0)) for names in (subjects, renamed))
    assert (one == other).all()


def test_a_key_that_is_no_key_is_one_sentence(tmp_path, monkeypatch):
    scans = pd.DataFrame({"subject_id": ["a"], "scan_uid": ["c/1"]})
    for text, words in (("not hexadecimal", "hexadecimal digits"), ("abcd", "too short")):
        file = tmp_path / f"key{len(text)}"
        file.write_text(text)
        monkeypatch.setenv("BRAINFM_KEY", str(file))
        with pytest.raises(InputError, match=words):
            pseudonymised(scans, "c")


def test_without_a_setting_the_key_lies_outside_the_project(monkeypatch, tmp_path):
    monkeypatch.delenv("BRAINFM_KEY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert key_file() == tmp_path / "config" / "brainfm" / "pseudonyms.key"
