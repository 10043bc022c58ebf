"""Folders laid out like known data sets, made here, read through the shipped manifest."""

import numpy as np
import pandas as pd
import pytest

from brainfm_lib.data.cohort import describe_cohort, list_scans
from brainfm_lib.data.folders import compile_pattern
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.manifest import load_manifest
from brainfm_lib.data.prepare import check
from brainfm_lib.data.splits import task_table
from brainfm_lib.data.store import open_volumes
from brainfm_lib.errors import InputError
from tests.data.scans import head, save_scan

GRID = Geometry((16, 18, 16), 10.0)


def brain(path, seed=0):
    return save_scan(path, head(seed=seed))


def make_ixi(root):
    for i, site in ((2, "Guys"), (12, "HH"), (33, "IOP")):
        for contrast in ("T1", "T2", "PD"):
            brain(root / f"IXI{i:03d}-{site}-08{i:02d}-{contrast}.nii.gz", i)
    (root / "IXI.csv").write_text("IXI_ID,AGE\n2,35.8\n")
    return {"subjects": {"IXI002", "IXI012", "IXI033"}, "contrasts": {"T1w"}, "scans": 3}


def make_brats(root):
    for subject, visit in (("00005", "100"), ("00005", "101"), ("02063", "100")):
        name = f"BraTS-GLI-{subject}-{visit}"
        for number, kind in enumerate(("t1n", "t1c", "t2w", "t2f", "seg")):
            brain(root / name / f"{name}-{kind}.nii.gz", number)
    return {"subjects": {"BraTS-GLI-00005", "BraTS-GLI-02063"}, "contrasts": {"T1w", "T2w"}, "scans": 6}


def make_ucsf(root):
    for number in (4, 5, 7, 541):
        name = f"UCSF-PDGM-{number:04d}"
        for kind in ("T1", "T1c", "T2", "FLAIR", "T1_bias", "brain_segmentation"):
            brain(root / f"{name}_nifti" / f"{name}_{kind}.nii.gz", number)
    rows = ["ID,Sex,Age at MRI,WHO CNS Grade", "UCSF-PDGM-004,M,66,4", "UCSF-PDGM-005,F,80,3", "UCSF-PDGM-541,M,30,2"]
    (root / "UCSF-PDGM-metadata.csv").write_text("\n".join(rows) + "\n")
    subjects = {f"UCSF-PDGM-{n:04d}" for n in (4, 5, 7, 541)}
    return {"subjects": subjects, "contrasts": {"T1w", "T1c", "T2w", "FLAIR"}, "scans": 16}


def make_adni(root):
    rows = ["path,subject_id,date,site,age,sex"]
    for rid, date in ((21, "2006-01-10"), (21, "2009-02-01"), (101, "2010-05-05"), (230, "2011-01-01")):
        name = f"{rid}_{date}.nii.gz"
        brain(root / name, rid)
        rows.append(f"{name},{rid},{date},{rid % 3},7{rid % 10},F")
    (root / "scans.csv").write_text("\n".join(rows) + "\n")
    visits = ["RID,EXAMDATE,DIAGNOSIS", "0021,2006-02-01,1", "21,2009-01-15,3", "101,2010-12-30,2", "230,2011-03-01,3"]
    (root / "diagnoses.csv").write_text("\n".join(visits) + "\n")
    return {"subjects": {"21", "101", "230"}, "contrasts": {"T1w"}, "scans": 4}


def make_oasis(root):
    for subject, days in (("OAS30001", "d0129"), ("OAS30001", "d2430"), ("OAS30002", "d0371")):
        for kind in ("T1w", "T2w", "FLAIR"):
            stem = f"sub-{subject}_ses-{days}_{kind}"
            brain(root / f"sub-{subject}/ses-{days}/anat/{stem}.nii.gz", int(days[1:]))
    return {"subjects": {"sub-OAS30001", "sub-OAS30002"}, "contrasts": {"T1w", "T2w", "FLAIR"}, "scans": 9}


def make_table(header, lines):
    def make(root):
        for number, line in enumerate(lines):
            brain(root / line.split(",")[0], number)
        (root / "scans.csv").write_text("\n".join([header, *lines]) + "\n")
        subjects = {line.split(",")[1] for line in lines}
        return {"subjects": subjects, "contrasts": {"T1w"}, "scans": len(lines)}

    return make


def make_nacc(root):
    lines = ["a_t1.nii.gz,NACC1,2015-01-01,T1w", "a_fl.nii.gz,NACC1,2015-01-01,FLAIR", "b.nii.gz,NACC2,2016-01-01,T2w"]
    made = make_table("path,subject_id,date,contrast", lines)(root)
    (root / "visits.csv").write_text("NACCID,VISITDATE,DIAGNOSIS\nNACC1,2015-03-01,AD\nNACC2,2019-01-01,NC\n")
    return {**made, "contrasts": {"T1w", "T2w", "FLAIR"}}


LAYOUTS = {
    "ADNI": ("ADNI_ROOT", make_adni),
    "OASIS-3": ("OASIS3_ROOT", make_oasis),
    "PPMI": ("PPMI_ROOT", make_table("path,subject_id,session", ["x/1.nii.gz,3001,BL", "x/2.nii.gz,3001,V04"])),
    "IXI": ("IXI_ROOT", make_ixi),
    "MOOD": ("MOOD_ROOT", make_table("path,subject_id", ["00000.nii.gz,00000", "00001.nii.gz,00001"])),
    "BraTS-2024": ("BRATS2024_ROOT", make_brats),
    "NACC": ("NACC_ROOT", make_nacc),
    "UCSF-PDGM": ("UCSF_PDGM_ROOT", make_ucsf),
    "ABIDE": (
        "ABIDE_ROOT",
        make_table("path,subject_id,site,diagnosis", ["a.nii.gz,50002,PITT,1", "b.nii.gz,50030,NYU,2"]),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_of_the_shipped_manifest_is_read_checked_and_prepared(name, tmp_path, monkeypatch):
    variable, make = LAYOUTS[name]
    root = tmp_path / "data"
    root.mkdir()
    expected = make(root)
    monkeypatch.setenv(variable, str(root))
    monkeypatch.setenv("BRAINFM_STORE", str(tmp_path / "store"))
    manifest = load_manifest()
    cohort = describe_cohort(manifest, name)
    assert set(cohort.scans["subject_id"]) == expected["subjects"]
    assert set(cohort.scans["contrast"]) == expected["contrasts"] and len(cohort) == expected["scans"]
    assert cohort.scans["scan_uid"].is_unique and cohort.refused.empty
    findings = [finding for finding in check(progress=False) if name in finding.where]
    assert not [finding for finding in findings if finding.level == "error" and "cohort" in finding.where]
    assert any("not been tried on the real data set" in finding.sentence for finding in findings)
    volumes = open_volumes(cohort, GRID, progress=False)
    assert len(volumes) == expected["scans"] and 0.02 < (volumes.read(range(len(volumes))) > 0).mean() < 0.9


def test_subjects_are_compared_by_number_and_those_without_a_row_are_listed(tmp_path, monkeypatch):
    make_ucsf(tmp_path)
    monkeypatch.setenv("UCSF_PDGM_ROOT", str(tmp_path))
    manifest = load_manifest()
    cohort = list_scans(manifest, "UCSF-PDGM")
    people = cohort.scans.drop_duplicates("subject_id").set_index("subject_id")
    assert list(people["grade"]) == ["4", "3", "", "2"] and people["age"].tolist()[:2] == [66, 80]
    assert list(people["sex"]) == ["M", "F", "", "M"]
    assert "4 of 16 scans have no row in UCSF-PDGM-metadata.csv" in cohort.notes[0] and "0007" in cohort.notes[0]
    with pytest.raises(InputError, match="holds ''"):
        task_table(manifest, "tumour-grade-ucsf", cohort)


def test_a_diagnosis_comes_from_the_nearest_visit_within_the_window(tmp_path, monkeypatch):
    make_adni(tmp_path)
    monkeypatch.setenv("ADNI_ROOT", str(tmp_path))
    cohort = list_scans(load_manifest(), "ADNI")
    scans = cohort.scans.set_index("scan_uid")
    assert scans["diagnosis"].to_dict() == {
        "ADNI/21_2006-01-10": "1",
        "ADNI/21_2009-02-01": "3",
        "ADNI/101_2010-05-05": "",
        "ADNI/230_2011-01-01": "3",
    }
    assert set(scans["visit_days"].dropna()) == {22, 17, 59}
    assert "1 of 4 scans have no row within 180 days in diagnoses.csv" in cohort.notes[0]
    assert "date" not in scans


def slow_nearest(scan, visits, window):
    """Row of the nearest visit, the earlier of two at equal distance; None outside the window."""
    best = None
    for row, day in enumerate(visits):
        if abs(day - scan) <= window and (
            best is None or (abs(day - scan), day) < (abs(visits[best] - scan), visits[best])
        ):
            best = row
    return best


def test_nearest_visit_matches_a_slow_reference(tmp_path, make_manifest):
    rng = np.random.default_rng(3)
    visits = [(s, int(d)) for s in range(5) for d in rng.choice(900, 6, replace=False)]
    scans = [(s, int(d)) for s in range(6) for d in rng.integers(0, 900, 20)]
    for number in range(len(scans)):
        (tmp_path / f"{number}.nii.gz").write_bytes(b"")
    lines = [f"{n}.nii.gz,P{s},d{d}" for n, (s, d) in enumerate(scans)]
    (tmp_path / "scans.csv").write_text("\n".join(["path,subject_id,day", *lines]) + "\n")
    lines = [f"P{s},{d},v{n}" for n, (s, d) in enumerate(visits)]
    (tmp_path / "visits.csv").write_text("\n".join(["who,day,what", *lines]) + "\n")
    labels = {"table": "visits.csv", "subject": "who", "date": "day", "scan_date": "day", "columns": {"what": "what"}}
    cohort = {"kind": "table", "table": "scans.csv", "root": ".", "contrast": "T1w"}
    manifest = make_manifest(cohorts={"c": {**cohort, "labels": {**labels, "window_days": 60}}})
    found = list_scans(manifest, "c").scans.set_index("scan_uid")["what"]
    for number, (subject, day) in enumerate(scans):
        own = [n for n, (s, _) in enumerate(visits) if s == subject]
        best = slow_nearest(day, [visits[n][1] for n in own], 60)
        assert found[f"c/{number}"] == ("" if best is None else f"v{own[best]}")


@pytest.mark.parametrize(
    ("visits", "labels", "words"),
    [
        ("who,when,what\nA,2011-07-23,x\nA,2011-07-23,y\n", {}, r"row 3: subject A has a row for 2011-07-23"),
        ("who,when,what\nA,23.7.2011,x\n", {}, r"date '23.7.2011' of column 'when' cannot be read"),
        ("who,when,what\nA,129,x\n", {}, r"visits are dated by day numbers and scans by dates"),
        ("who,when\nA,2011-07-23\n", {}, r"has no column 'what'"),
        ("who,when,what\nA,2011-07-23,x\nA,2012-07-23,y\n", {"date": None}, r"row 3: subject A has a row already"),
        ("who,when,what\nA,2011-07-23,x\n", {"scan_date": "day"}, r"the scans have no column 'day'"),
    ],
)
def test_every_bad_table_of_labels_is_one_sentence(tmp_path, make_manifest, visits, labels, words):
    (tmp_path / "a.nii.gz").write_bytes(b"")
    (tmp_path / "scans.csv").write_text("path,subject_id,date\na.nii.gz,A,2011-08-01\n")
    (tmp_path / "visits.csv").write_text(visits)
    given = {"table": "visits.csv", "subject": "who", "date": "when", "columns": {"what": "what"}, **labels}
    cohort = {"kind": "table", "table": "scans.csv", "root": ".", "contrast": "T1w", "labels": given}
    with pytest.raises(InputError, match=words) as caught:
        list_scans(make_manifest(cohorts={"c": cohort}), "c")
    assert "\n" not in str(caught.value)


def labelled(tmp_path, make_manifest, scans, labels, **settings):
    """List a cohort of the scans `subject_id,date` with a table of labels `who,when,what` beside it."""
    for number in range(len(scans)):
        (tmp_path / f"{number}.nii.gz").write_bytes(b"")
    rows = [f"{number}.nii.gz,{line}" for number, line in enumerate(scans)]
    (tmp_path / "scans.csv").write_text("\n".join(["path,subject_id,date", *rows]) + "\n")
    (tmp_path / "visits.csv").write_text("\n".join(["who,when,what", *labels]) + "\n")
    given = {"table": "visits.csv", "subject": "who", "date": "when", "columns": {"what": "what"}, **settings}
    cohort = {"kind": "table", "table": "scans.csv", "root": ".", "contrast": "T1w", "labels": given}
    return list_scans(make_manifest(cohorts={"c": cohort}), "c")


@pytest.mark.parametrize("date", ["when", None])
@pytest.mark.parametrize(
    ("scans", "labels", "words"),
    [
        (
            ["A-001,9"],
            ["A_001,9,NC", "B_001,8,AD"],
            r"visits\.csv: the subjects 'A_001' and 'B_001' share the number 1",
        ),
        (["A-001,9", "B-01,9"], ["A_001,9,NC"], r"scans that .*visits\.csv.*'A-001' and 'B-01' share the number 1"),
        (["S1,9"], ["S1_v1,9,NC", "S2_v1,8,AD"], r"'S1_v1' and 'S2_v1' share the number 1.*'match: exact'"),
    ],
)
def test_subjects_that_share_a_number_are_not_compared_by_it(tmp_path, make_manifest, scans, labels, words, date):
    with pytest.raises(InputError, match=words) as caught:
        labelled(tmp_path, make_manifest, scans, labels, match="number", date=date)
    assert "\n" not in str(caught.value)


def test_one_subject_may_be_written_with_and_without_zeros_and_have_the_number_zero(tmp_path, make_manifest):
    scans = ["sub-A000,10", "A-100,10", "A-100,400"]
    labels = ["A_000,10,none", "A_0100,10,early", "A_100,400,late", ",10,nobody"]
    cohort = labelled(tmp_path, make_manifest, scans, labels, match="number")
    assert cohort.scans["what"].tolist() == ["none", "early", "late"] and cohort.notes == ()


def test_a_date_that_cannot_be_read_is_blamed_on_the_table_that_holds_it(tmp_path, make_manifest):
    with pytest.raises(InputError, match=r"The table of the scans: the date '01.03.2012' of column 'date'") as caught:
        labelled(tmp_path, make_manifest, ["A,01.03.2012"], ["A,2012-03-01,x"])
    assert "visits.csv" not in str(caught.value)
    with pytest.raises(InputError, match=r"visits\.csv: the date '01.03.2012' of column 'when'"):
        labelled(tmp_path, make_manifest, ["A,2012-03-01"], ["A,01.03.2012,x"])


def test_pattern_fields_globs_and_repeats():
    expression = compile_pattern("{subject_id:S*}/{session}/{subject_id}_*_{contrast}.nii.gz")
    match = expression.fullmatch("S1/a/S1_x_T1w.nii.gz")
    assert match and match.groupdict() == {"subject_id": "S1", "session": "a", "contrast": "T1w"}
    assert expression.fullmatch("S1/a/S2_x_T1w.nii.gz") is None
    assert expression.fullmatch("T1/a/T1_x_T1w.nii.gz") is None
    assert compile_pattern("{subject_id}+(.nii").fullmatch("a+(.nii"), "everything but fields and stars is literal"
    for bad in ("{subject}_T1.nii", "x.nii"):
        with pytest.raises(InputError, match="field"):
            compile_pattern(bad)


def test_a_folder_cohort_of_ones_own_pattern(tmp_path, make_manifest):
    for name in ("p1_v1_mprage", "p1_v2_mprage", "p2_v1_tse", "p2_v1_localiser"):
        brain(tmp_path / "scans" / f"{name}.nii.gz")
    settings = {"kind": "folder", "root": "scans", "pattern": "{subject_id}_{session}_{contrast}.nii.gz"}
    manifest = make_manifest(cohorts={"c": {**settings, "contrast_names": {"mprage": "T1w", "tse": "T2w"}}})
    scans = list_scans(manifest, "c").scans
    assert scans[["subject_id", "session", "contrast"]].to_numpy().tolist() == [
        ["p1", "v1", "T1w"],
        ["p1", "v2", "T1w"],
        ["p2", "v1", "T2w"],
    ]


def test_a_scan_that_is_there_twice_is_refused(tmp_path, make_manifest):
    for name in ("p1.nii.gz", "p2.nii.gz", "p2.nii"):
        brain(tmp_path / "scans" / name)
    settings = {"kind": "folder", "root": "scans", "pattern": "{subject_id}.nii*", "contrast": "T1w"}
    cohort = list_scans(make_manifest(cohorts={"c": settings}), "c")
    assert cohort.scans["scan_uid"].tolist() == ["c/p1"] and cohort.refused["scan_uid"].tolist() == ["c/p2"] * 2
    assert all("there twice, with different endings" in reason for reason in cohort.refused["reason"])
    (tmp_path / "scans/p1.nii.gz").unlink()
    with pytest.raises(InputError, match="there twice"):
        list_scans(make_manifest(cohorts={"c": settings}), "c")


@pytest.mark.parametrize("settings", [{"kind": "bids"}, {"kind": "folder", "recipe": "IXI"}])
def test_dicom_folders_are_refused_with_the_command_that_converts_them(tmp_path, make_manifest, settings):
    series = tmp_path / "raw" / "series"
    series.mkdir(parents=True)
    (series / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(64))
    with pytest.raises(InputError, match=r"DICOM files: convert them first \(dcm2niix"):
        list_scans(make_manifest(cohorts={"c": {"root": "raw", **settings}}), "c")


def test_bids_sidecars_tell_scanner_and_contrast_agent(make_bids, make_manifest):
    root = make_bids(4)
    (root / "T1w.json").write_text('{"Manufacturer": "Siemens", "MagneticFieldStrength": 3, "PatientName": "Doe"}')
    (root / "sub-01/anat/sub-01_T1w.json").write_text(
        '{"MagneticFieldStrength": 1.5, "ContrastBolusIngredient": "GADOLINIUM"}'
    )
    (root / "sub-02/anat/sub-02_T1w.json").write_text("{broken")
    cohort = list_scans(make_manifest(cohorts={"b": {"kind": "bids", "root": "bids"}}), "b")
    assert cohort.scans["scanner"].tolist() == ["Siemens"] * 4
    assert cohort.scans["field_strength"].tolist() == ["3", "1.5", "3", "3"]
    assert cohort.scans["contrast"].tolist() == ["T1w", "T1c", "T1w", "T1w"]
    assert "Doe" not in cohort.scans.to_csv() and "sub-02_T1w.json is no JSON file" in cohort.notes[0]


def test_links_that_go_in_circles_end(tmp_path, make_manifest):
    brain(tmp_path / "scans" / "a_T1.nii.gz")
    (tmp_path / "scans" / "again").symlink_to(tmp_path / "scans")
    (tmp_path / "scans" / "loop_T1.nii.gz").symlink_to(tmp_path / "scans" / "loop_T1.nii.gz")
    settings = {"kind": "folder", "root": "scans", "pattern": "{subject_id}_T1.nii.gz", "contrast": "T1w"}
    cohort = describe_cohort(make_manifest(cohorts={"c": settings}), "c")
    assert cohort.scans["subject_id"].tolist() == ["a"] and cohort.refused["scan_uid"].tolist() == ["c/loop_T1"]


def test_labels_may_stand_beside_a_bids_folder(make_bids, make_manifest):
    root = make_bids(4)
    pd.DataFrame({"id": ["00", "02"], "score": ["low", "high"]}).to_csv(root / "scores.csv", index=False)
    labels = {"table": "scores.csv", "subject": "id", "columns": {"score": "score"}}
    manifest = make_manifest(cohorts={"b": {"kind": "bids", "root": "bids", "labels": labels}})
    assert list_scans(manifest, "b").scans["score"].tolist() == ["low", "", "high", ""]
