"""The command line as a person meets it: one sentence, exit status 2, nothing half-written."""

import contextlib
import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import yaml

from brainfm_lib import tables
from brainfm_lib.cli import main
from brainfm_lib.study import Study

PROFILES = Path(__file__).parents[1] / "brainfm_lib" / "profiles"


def real_brainfm(*words, cwd, **environment):
    """Run the real command in its own process, as a person does."""
    env = {**os.environ, **folders(cwd), **environment}
    command = [sys.executable, "-m", "brainfm_lib.cli", *words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def brainfm(*words, cwd):
    """The same in this process: most of a command's time goes into starting Python."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(cwd),
    ):
        patch.setattr(sys, "argv", ["brainfm", *words])
        for name, value in folders(cwd).items():
            patch.setenv(name, value)
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())


def folders(root):
    """The environment in which a project's folders are below `root`."""
    return {"BRAINFM_ROOT": str(root), "BRAINFM_RUNS": str(root / "runs"), "BRAINFM_STORE": str(root / "store")}


def write_scan(path: Path, data: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data.astype(np.float32), np.diag([4.0, 4.0, 4.0, 1.0])), path)


def brain(seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    axes = np.stack(np.meshgrid(*(np.linspace(-1, 1, 40),) * 3, indexing="ij"))
    inside = (axes**2).sum(0) < 0.6
    return inside * (100 + 30 * np.sin(6 * axes).sum(0) + rng.normal(0, 5, inside.shape))


@pytest.fixture
def project(tmp_path):
    """Six subjects as BIDS with a two-class label."""
    folder = tmp_path / "scans"
    rows = ["participant_id\tage\tsex\tgroup"]
    for i in range(6):
        write_scan(folder / f"sub-{i}" / "anat" / f"sub-{i}_T1w.nii.gz", brain(i))
        rows.append(f"sub-{i}\t{30 + i}\tF\t{'case' if i % 2 else 'control'}")
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n")
    (tmp_path / "data_manifest.yaml").write_text(
        "version: 1\npretraining: [clinic]\ntransductive: true\n"
        "cohorts:\n  clinic: {kind: bids, root: scans}\n"
        "tasks:\n  disease: {cohort: clinic, label: group, mapping: {control: 0, case: 1}, classes: [control, case]}\n"
    )
    return tmp_path


def one_sentence(result) -> str:
    """The last line on stderr, which names what is wrong; no traceback anywhere."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


def test_check_and_prepare_succeed_on_good_data(project):
    result = real_brainfm("check", cwd=project)
    assert result.returncode == 0 and "6 scans" in result.stdout
    assert not (project / "store").exists() or not list((project / "store").glob("*/*.npy"))
    result = real_brainfm("prepare", "--profile", "tiny", cwd=project)
    assert result.returncode == 0 and "6 of 6 scans ready" in result.stdout, result.stderr


def test_what_a_cap_leaves_out_and_how_few_are_trained_on_is_said(project):
    profile = project / "small.yaml"
    tiny = yaml.safe_load((PROFILES / "tiny.yaml").read_text())
    profile.write_text(yaml.safe_dump({**tiny, "subjects": {"pretraining": 4, "downstream": 4}}))
    result = brainfm("prepare", "--profile", str(profile), cwd=project)
    assert "4 of 4 scans ready" in result.stdout and "leaves out 2 scans of 2 more subjects" in result.stdout
    file = project / "data_manifest.yaml"
    file.write_text(file.read_text().replace("transductive: true\n", ""))
    assert "these are all 6, and this task leaves 0 of the cohort's 6." in brainfm("check", cwd=project).stdout
    sentence = one_sentence(brainfm("pretrain", "--profile", "tiny", "--objective", "mae", "--cpu", cwd=project))
    assert "No scan is left to pretrain on" in sentence and "fewer than 30 subjects is cross-validated" in sentence
    for i in range(6, 10):  # others than those six, which are nearly alike
        own = brain(i) * (2 + np.cos(i * np.linspace(0, 6, 40)))
        write_scan(project / "scans" / f"sub-{i}" / "anat" / f"sub-{i}_T1w.nii.gz", own)
    with (project / "scans" / "participants.tsv").open("a") as table:
        table.writelines(f"sub-{i}\t40\tF\tother\n" for i in range(6, 10))
    file.write_text(file.read_text().replace("case: 1}", "case: 1, other: null}"))
    said = brainfm("pretrain", "--profile", "tiny", "--objective", "mae", "--cpu", cwd=project).stdout
    assert "pretraining on 2 of 10 subjects of clinic (2 scans). 2 scans are few" in said, said


def test_a_class_of_too_few_subjects_is_named_before_anything_is_made(project):
    table = project / "scans" / "participants.tsv"
    assert "Class control of task disease has 3 subjects, and probes need 4" in brainfm("check", cwd=project).stdout
    rows = table.read_text().replace("31\tF\tcase", "31\tF\tother").replace("33\tF\tcase", "33\tF\tother")
    table.write_text(rows)  # three of one class and one of the other: the smaller one is named
    given = project / "data_manifest.yaml"
    given.write_text(given.read_text().replace("case: 1}", "case: 1, other: null}"))
    result = brainfm("check", cwd=project)
    assert result.returncode == 2
    assert "error   task disease: Class case of task disease has 1 subject," in result.stdout
    file = project / "data_manifest.yaml"
    file.write_text(file.read_text().replace("transductive: true\n", ""))
    sentence = one_sentence(brainfm("pretrain", "--profile", "tiny", "--objective", "mae", "--cpu", cwd=project))
    assert sentence.startswith("brainfm: Class case of task disease has 1 subject, and probes need 4: give more, merge")


def test_a_folder_that_may_not_be_written_is_one_sentence(project, monkeypatch):
    def refuse(*_arguments, **_options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(project / "store"))

    monkeypatch.setattr("brainfm_lib.data.digests.FileLock", refuse)
    result = brainfm("prepare", "--profile", "tiny", cwd=project)
    assert result.returncode == 1 and result.stderr.strip().splitlines()[-1].startswith("brainfm: Permission denied: ")


def test_where_no_cohort_can_be_prepared_nothing_else_is_said_to_be_ready(project):
    file = project / "data_manifest.yaml"
    file.write_text(file.read_text().replace("root: scans", "root: nowhere"))
    result = brainfm("prepare", "--profile", "tiny", cwd=project)
    assert "does not exist" in one_sentence(result) and "others are ready" not in result.stderr
    assert "no cohort is ready" in result.stdout


def test_tasks_of_one_title_are_told_apart(project):
    file = project / "data_manifest.yaml"
    task = "{cohort: clinic, label: group, mapping: {control: 0, case: 1}, classes: [control, case], title: Alike}"
    file.write_text(file.read_text().split("tasks:")[0] + f"tasks:\n  one: {task}\n  two: {task}\n")
    study = Study("tiny", file, progress=False)
    assert tables.task_titles(study) == {"one": "Alike, one", "two": "Alike, two"}


BAD = {
    "four dimensions": (np.zeros((20, 20, 20, 3)), ["sub-2", "4"]),
    "not finite": (np.full((40, 40, 40), np.nan), ["sub-2", "finite"]),
    "constant": (np.ones((40, 40, 40)), ["sub-2", "every voxel is 1"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_volume_is_named_and_the_others_are_prepared(project, case):
    data, words = BAD[case]
    write_scan(project / "scans" / "sub-2" / "anat" / "sub-2_T1w.nii.gz", data)
    result = brainfm("prepare", "--profile", "tiny", cwd=project)
    sentence = one_sentence(result)
    assert all(word in sentence for word in words), sentence
    assert "5 of 6 scans ready" in result.stdout
    assert not list((project / "store").rglob("*.tmp*"))


def test_a_missing_file_of_a_table_is_named_with_its_row(project):
    (project / "scans.csv").write_text(
        "path,subject_id,contrast\nscans/sub-0/anat/sub-0_T1w.nii.gz,a,T1w\nnone.nii.gz,b,T1w\n"
    )
    (project / "data_manifest.yaml").write_text(
        "version: 1\npretraining: [t]\ncohorts:\n  t: {kind: table, table: scans.csv}\n"
    )
    result = brainfm("check", cwd=project)
    assert result.returncode == 2 and "none.nii.gz" in result.stdout and "row 3" in result.stdout
    result = brainfm("prepare", "--profile", "tiny", cwd=project)
    sentence = one_sentence(result)
    assert "row 3" in sentence and "none.nii.gz" in sentence and "1 of 2 scans ready" in result.stdout


def test_a_cohort_that_cannot_be_listed_does_not_stop_the_others(project):
    file = project / "data_manifest.yaml"
    file.write_text(file.read_text().replace("cohorts:\n", "cohorts:\n  gone: {kind: bids, root: nowhere}\n"))
    result = brainfm("prepare", "--profile", "tiny", cwd=project)
    assert "nowhere" in one_sentence(result)
    assert "gone: not prepared" in result.stdout and "clinic: 6 of 6 scans ready" in result.stdout


def test_reports_show_findings_refusals_and_pictures(project):
    write_scan(project / "scans" / "sub-2" / "anat" / "sub-2_T1w.nii.gz", np.zeros((20, 20, 20, 3)))
    write_scan(project / "scans" / "sub-3" / "anat" / "sub-3_T1w.nii.gz", 3 * brain(1))
    assert brainfm("check", "--report", "check.html", cwd=project).returncode == 2
    page = (project / "check.html").read_text()
    assert "sub-2_T1w.nii.gz" in page and "dimensions" in page and "5 scans" not in page
    result = brainfm("prepare", "--profile", "tiny", "--report", "made.html", cwd=project)
    assert "clinic/sub-1_T1w and clinic/sub-3_T1w are nearly the same scan" in result.stdout
    page = (project / "made.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "sub-2_T1w.nii.gz" in page and "sub-3_T1w" in page
    assert "http" not in page


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("label: group", "label: grupe", ["grupe", "columns are"]),
        ("{control: 0, case: 1}", "{control: 0, patient: 1}", ["'case'", "mapping"]),
    ],
)
def test_unknown_columns_and_labels_are_named(project, old, new, words):
    file = project / "data_manifest.yaml"
    file.write_text(file.read_text().replace(old, new))
    result = brainfm("check", cwd=project)
    assert result.returncode == 2 and all(word in result.stdout for word in words), result.stdout


def test_a_subject_on_both_sides_of_official_splits_is_an_error(project):
    uids = [f"clinic/sub-{i}_T1w" for i in range(6)]
    for name, chosen in (("train", [0, 1, 2, 3]), ("test", [3, 4, 5])):
        lines = [f"sub-{i},{uids[i]}" for i in chosen]
        (project / f"{name}.csv").write_text("subject_id,scan_uid\n" + "\n".join(lines) + "\n")
    file = project / "data_manifest.yaml"
    file.write_text(
        file.read_text().replace(
            "classes: [control, case]", "classes: [control, case], splits: {train: train.csv, test: test.csv}"
        )
    )
    result = brainfm("check", cwd=project)
    assert result.returncode == 2 and "sub-3" in result.stdout and "one split only" in result.stdout, result.stdout


def test_pretraining_from_the_command_line_leaves_a_run_and_resumes_for_free(project):
    first = brainfm("pretrain", "--profile", "tiny", "--objective", "mae", "--cpu", cwd=project)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("pretraining on 4 of 6 subjects of clinic (4 scans)\n")  # few, and no task's fault
    name = first.stdout.strip().split()[-1]
    assert brainfm("pretrain", "--profile", "tiny", "--objective", "mae", "--cpu", cwd=project).stdout == first.stdout
    listed = brainfm("runs", "list", cwd=project)
    assert listed.returncode == 0 and name in listed.stdout and "mae" in listed.stdout
    shown = brainfm("runs", "show", name[:14], cwd=project)
    assert shown.returncode == 0 and "encoder/model.safetensors" in shown.stdout
    provenance = json.loads((project / "runs" / name / "provenance.json").read_text())
    assert provenance["device"] == "cpu" and provenance["volumes_seen"] == 96
    assert brainfm("runs", "rm", name, cwd=project).returncode == 0
    assert "no run is called" in one_sentence(brainfm("runs", "show", name, cwd=project))


def test_pretraining_within_minutes_keeps_its_plan(project):
    for minutes in ("0.5", "1", "2"):  # a busy machine may need longer before the first step; it says so
        words = ("pretrain", "--profile", "tiny", "--objective", "all", "--minutes", minutes, "--cpu")
        first = brainfm(*words, cwd=project)
        if first.returncode == 0:
            break
        assert "give more minutes" in one_sentence(first)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("pretrain-") == 4
    again = brainfm(*words, cwd=project)
    assert [line.split(" (")[0] for line in again.stdout.splitlines()] == [
        line.split(" (")[0] for line in first.stdout.splitlines()
    ]
    sentence = one_sentence(brainfm(*words[:-2], "0.0001", "--cpu", cwd=project))
    assert "give more minutes" in sentence


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("pretrain", "--profile", "nothing"), "choose among"),
        (("pretrain", "--profile", "tiny", "--objective", "mea"), "There is no arm 'mea'"),
        (("check", "--manifest", "nowhere.yaml"), "nowhere.yaml"),
        (("runs", "rm", "nothing"), "brainfm runs list"),
    ],
)
def test_wrong_words_end_in_one_sentence(project, words, expected):
    result = real_brainfm(*words, cwd=project)
    assert result.returncode == 2 and expected in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
