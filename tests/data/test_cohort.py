import dataclasses
import time

import numpy as np
import pytest

from brainfm_lib.data.cohort import describe_cohort, list_scans
from brainfm_lib.data.manifest import load_manifest
from brainfm_lib.data.prepare import check
from brainfm_lib.data.tables import read_table
from brainfm_lib.errors import InputError
from tests.data.scans import head, save_scan

STANDARD = {"subject_id", "scan_uid", "session", "contrast", "site", "age", "sex", "digest"}
PHANTOM = {"kind": "phantom", "spec": {"subjects": 40, "scans_per_subject": 2, "conditions": {"NC": 0.5, "AD": 0.5}}}


def phantoms(make_manifest, **spec):
    return make_manifest(cohorts={"p": {**PHANTOM, "spec": {**PHANTOM["spec"], **spec}}})


def test_phantom_cohort(make_manifest):
    cohort = describe_cohort(phantoms(make_manifest), "p")
    assert set(cohort.scans.columns) >= STANDARD | {"diagnosis"}
    assert len(cohort) == 80 and cohort.scans["subject_id"].nunique() == 40
    assert cohort.scans["scan_uid"].is_unique and cohort.scans["scan_uid"].str.startswith("p/").all()
    assert cohort.scans["digest"].is_unique


def test_a_smaller_phantom_cohort_holds_the_same_scans(make_manifest):
    manifest = phantoms(make_manifest)
    whole, part = describe_cohort(manifest, "p"), describe_cohort(manifest, "p", max_subjects=5)
    assert part.scans.equals(whole.scans.iloc[:10])
    assert part.source_key == whole.source_key and part.digest != whole.digest
    assert describe_cohort(manifest, "p", max_subjects=1000).digest == whole.digest


@pytest.mark.parametrize("change", [{"seed": 7}, {"severity": 2.0}, {"scans_per_subject": 1}, {"sites": 2}])
def test_whatever_changes_a_phantom_changes_its_digest(make_manifest, change):
    before = describe_cohort(phantoms(make_manifest), "p")
    after = describe_cohort(phantoms(make_manifest, **change), "p")
    assert before.digest != after.digest and before.voxel_digest != after.voxel_digest


@pytest.mark.parametrize(
    ("spec", "words"), [({"seeds": 1}, "'seeds'.*subjects"), ({"subjects": "many"}, "subjects"), ({"sites": 0}, "site")]
)
def test_bad_phantom_settings(make_manifest, spec, words):
    with pytest.raises(InputError, match=words):
        describe_cohort(phantoms(make_manifest, **spec), "p")


def test_bids_folder_with_sessions_agents_and_tables_from_other_programs(make_manifest, tmp_path):
    root = tmp_path / "bids"
    anat = root / "sub-01/ses-a/anat"
    for name in ("sub-01_ses-a_T1w", "sub-01_ses-a_ce-gd_T1w", "sub-01_ses-a_run-1_FLAIR", "sub-01_ses-a_dwi"):
        save_scan(anat / f"{name}.nii.gz", head(seed=len(name)))
    save_scan(root / "sub-01/ses-b/anat/sub-01_ses-b_T1w.nii", head(seed=1))
    save_scan(root / "sub-02/anat/sub-02_inplaneT2.nii.gz", head(seed=2))
    save_scan(root / "derivatives/x/sub-01/anat/sub-01_T1w.nii.gz")
    text = "participant_id\tage\tSex\tsex\tgroup\r\n01\t45.5\tx\tFemale\tpatient\r\n\r\nsub-02\tn/a\tx\t\tcontrol\r\n"
    (root / "participants.tsv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (root / "sub-01/sub-01_sessions.tsv").write_text("session_id\tage\tdiagnosis\nses-a\t46\tNC\nses-b\tn/a\tAD\n")
    scans = describe_cohort(make_manifest(cohorts={"b": {"kind": "bids", "root": "bids"}}), "b").scans
    scans = scans.set_index("scan_uid")
    assert dict(scans["contrast"]) == {
        "b/sub-01_ses-a_T1w": "T1w",
        "b/sub-01_ses-a_ce-gd_T1w": "T1c",
        "b/sub-01_ses-a_run-1_FLAIR": "FLAIR",
        "b/sub-01_ses-b_T1w": "T1w",
        "b/sub-02_inplaneT2": "T2w",
    }
    a, b, other = (scans.loc[f"b/{uid}"] for uid in ("sub-01_ses-a_T1w", "sub-01_ses-b_T1w", "sub-02_inplaneT2"))
    assert (a["age"], a["sex"], a["diagnosis"], a["group"], a["session"]) == (46, "F", "NC", "patient", "ses-a")
    assert (b["age"], b["diagnosis"]) == (45.5, "AD")
    assert np.isnan(other["age"]) and (other["sex"], other["diagnosis"], other["group"]) == ("", "", "control")


def bids(make_manifest):
    return list_scans(make_manifest(cohorts={"b": {"kind": "bids", "root": "bids"}}), "b")


def test_scans_and_rows_of_a_bids_folder_without_a_partner_are_listed(make_bids, make_manifest):
    root = make_bids(4)
    assert bids(make_manifest).notes == ()
    table = root / "participants.tsv"
    table.write_text(table.read_text().replace("sub-01\t", "sub-1\t").replace("sub-02\t", "SUB-02\t"))
    assert bids(make_manifest).notes == (
        "2 of 4 scans have no row in participants.tsv: b/sub-01_T1w, b/sub-02_T1w.",
        "2 of 4 rows of participants.tsv match no scan: SUB-02, sub-1.",
    )
    table.unlink()
    assert bids(make_manifest).notes == ()


def test_sessions_without_a_partner_are_listed_where_their_subject_has_a_table(make_bids, make_manifest):
    root = make_bids(1)
    (root / "participants.tsv").write_text("participant_id\tdiagnosis\nsub-01\tNC\nsub-02\tNC\nsub-00\tNC\n")
    for subject in ("sub-01", "sub-02"):
        for session in ("ses-01", "ses-02"):
            save_scan(root / subject / session / f"anat/{subject}_{session}_T1w.nii.gz")
    (root / "sub-01/sub-01_sessions.tsv").write_text("session_id\tdiagnosis\nses-1\tAD\nses-02\tAD\n")
    cohort = bids(make_manifest)
    assert cohort.scans.set_index("scan_uid")["diagnosis"]["b/sub-01_ses-02_T1w"] == "AD"
    assert cohort.notes == (
        "1 of 2 scans have no row in the subjects' sessions.tsv: b/sub-01_ses-01_T1w.",
        "1 of 2 rows of the subjects' sessions.tsv match no scan: sub-01 ses-1.",
    )
    (root / "sub-02/sub-02_sessions.tsv").write_text("session_id\tdiagnosis\n")
    assert "3 of 4 scans have no row in the subjects' sessions.tsv" in bids(make_manifest).notes[0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sub-00_ses-a", "the name says sub-00 and the folder sub-01"),
        ("sub-01_ses-b", "the name says ses-b and the folder ses-a"),
    ],
)
def test_a_scan_whose_name_contradicts_its_folder_is_refused(make_bids, make_manifest, name, words):
    root = make_bids(2)
    for right in ("sub-00/ses-a/anat/sub-00_ses-a", "sub-01/ses-b/anat/sub-01_ses-b"):
        save_scan(root / f"{right}_T1w.nii.gz")
    save_scan(root / f"sub-01/ses-a/anat/{name}_T1w.nii.gz")
    save_scan(root / "sub-01/ses-a/anat/sub-01_T2w.nii.gz")
    cohort = bids(make_manifest)
    kept = ["b/sub-00_T1w", "b/sub-00_ses-a_T1w", "b/sub-01_T1w", "b/sub-01_T2w", "b/sub-01_ses-b_T1w"]
    assert sorted(cohort.scans["scan_uid"]) == sorted(kept)
    assert cohort.refused["scan_uid"].tolist() == [f"b/sub-01/ses-a/anat/{name}_T1w"]
    assert f"{name}_T1w.nii.gz: {words}: move" in cohort.refused["reason"][0]


def test_images_whose_names_do_not_say_what_they_are_are_listed(make_bids, make_manifest):
    root = make_bids(2)
    for name in ("sub-00_t1w.nii.gz", "sub-00_T1w_defaced.nii", "sub-01_T1map.nii.gz", "sub-01_T1w.txt"):
        save_scan(root / "sub-00/anat/x.nii.gz").rename(root / "sub-00/anat" / name)
    cohort = bids(make_manifest)
    assert len(cohort.scans) == 2 and cohort.refused.empty
    assert cohort.notes[0].startswith(
        "3 images in anat folders are left alone: sub-00_T1w_defaced.nii, sub-00_t1w.nii.gz, sub-01_T1map.nii.gz. "
    )
    assert "'suffixes'" in cohort.notes[0] and len(cohort.notes) == 1


def test_a_bids_folder_of_such_images_alone_names_them(make_manifest, tmp_path):
    save_scan(tmp_path / "bids/sub-01/anat/sub-01_t1w.nii.gz")
    with pytest.raises(InputError, match=r"rename what lies there \(sub-01_t1w.nii.gz\)"):
        bids(make_manifest)


def test_a_bids_folder_of_misplaced_scans_alone_says_so(make_manifest, tmp_path):
    save_scan(tmp_path / "bids/sub-01/anat/sub-1_T1w.nii.gz")
    with pytest.raises(InputError, match="the name says sub-1 and the folder sub-01"):
        bids(make_manifest)


def test_digest_follows_content_and_labels_but_not_place(make_bids, make_manifest, tmp_path):
    root = make_bids(4)
    cohorts = {"b": {"kind": "bids", "root": "bids"}}
    before = describe_cohort(make_manifest(cohorts=cohorts), "b")
    root.rename(tmp_path / "moved")
    moved = describe_cohort(make_manifest(cohorts={"b": {"kind": "bids", "root": "moved"}}), "b")
    assert moved.digest == before.digest
    table = tmp_path / "moved/participants.tsv"
    table.write_text(table.read_text().replace("control", "healthy"))
    relabelled = describe_cohort(make_manifest(cohorts={"b": {"kind": "bids", "root": "moved"}}), "b")
    assert relabelled.digest != before.digest and relabelled.voxel_digest == before.voxel_digest
    save_scan(tmp_path / "moved/sub-00/anat/sub-00_T1w.nii.gz", head(seed=99))
    changed = describe_cohort(make_manifest(cohorts={"b": {"kind": "bids", "root": "moved"}}), "b")
    assert changed.voxel_digest != before.voxel_digest


def test_capped_real_cohort_is_a_fixed_part(make_bids, make_manifest):
    make_bids(6)
    manifest = make_manifest(cohorts={"b": {"kind": "bids", "root": "bids"}})
    two, four = (set(list_scans(manifest, "b", max_subjects=n).scans["subject_id"]) for n in (2, 4))
    assert len(two) == 2 and len(four) == 4 and two < four


def test_selection_keeps_source_and_renumbers(make_manifest):
    cohort = describe_cohort(phantoms(make_manifest), "p")
    by_mask = cohort.select(cohort.scans["subject_id"] == "sub-00003")
    assert list(by_mask.scans.index) == [0, 1] and by_mask.source is cohort.source
    assert by_mask.scans.equals(cohort.select([6, 7]).scans)
    assert cohort.select([7, 6]).digest != by_mask.digest, "features stand in this order"


def write_table(tmp_path, text, n=2):
    for i in range(n):
        save_scan(tmp_path / f"scans/s{i}.nii.gz", head(seed=i))
    (tmp_path / "scans/t.csv").write_text(text)


TABLE = {"kind": "table", "root": "scans", "table": "t.csv"}


def test_table_with_its_own_column_names(make_manifest, tmp_path):
    write_table(tmp_path, "File,PTID,Age,Gender,dx\ns0.nii.gz,7,045Y,M,AD\ns1.nii.gz,8,89+,f,\n")
    columns = {"path": "File", "subject_id": "PTID", "age": "Age", "sex": "Gender"}
    manifest = make_manifest(cohorts={"t": {**TABLE, "contrast": "T1w", "columns": columns}})
    scans = describe_cohort(manifest, "t").scans
    assert list(scans["subject_id"]) == ["7", "8"] and list(scans["scan_uid"]) == ["t/s0", "t/s1"]
    assert list(scans["age"]) == [45, 89] and list(scans["sex"]) == ["M", "F"] and list(scans["dx"]) == ["AD", ""]


@pytest.mark.parametrize(
    ("text", "settings", "words"),
    [
        ("path,subject_id\nx.nii.gz,b\n", {}, r"t\.csv, row 2: the file .*x\.nii\.gz does not exist"),
        ("path,subject_id\ns0.nii.gz,a\n\ns0.nii.gz,a\n", {}, r"t\.csv, row 2: the scan t/s0 stands in rows 2 and 4"),
        ("path,subject_id\n", {}, r"t\.csv has a header and no row"),
        ("path,subject_id\ns0.nii.gz,\n", {}, r"row 2: subject_id is empty"),
        ("path,subject_id\n../t.nii.gz,a\n", {}, r"row 2: \.\./t\.nii\.gz leaves the folder"),
        ("path,subject_id\n.,a\n", {}, r"row 2: .* is a folder.*dcm2niix"),
        ("file,subject_id\ns0.nii.gz,a\n", {}, r"no column 'path'.*file, subject_id"),
        ("path,subject_id\ns0.nii.gz,a\n", {"columns": {"site": "Where"}}, r"no column 'Where'.*path, subject_id"),
        ("path,subject_id\ns0.nii.gz,a\n", {"columns": {"colour": "path"}}, r"'colour'.*subject_id"),
        ("path,subject_id\ns0.nii.gz,a\n", {"contrast": None}, r"no column 'contrast'.*contrast: T1w"),
        ("path,subject_id\ns0.nii.gz,a\n", {"contrasts": ["T2w"]}, r"'T2w'.*T1w"),
        ("path,subject_id,path\ns0.nii.gz,a,b\n", {}, r"column 'path' twice"),
        ("path,subject_id\ns0.nii.gz,a,b\n", {}, r"t\.csv cannot be read.*line 2"),
        ("", {}, r"t\.csv is empty"),
        ("path,subject_id\ns0.nii.gz,a\n", {"table": "u.csv"}, r"u\.csv does not exist"),
        ("path,subject_id\ns0.nii.gz,a\n", {"root": "elsewhere"}, r"elsewhere of cohort t does not exist"),
        ("path,subject_id\ns0.nii.gz,a\n", {"ingest": {"hihg": 98}}, r"'hihg'.*high"),
        ("path,subject_id\ns0.nii.gz,a\n", {"ingest": {"low": 99.5}}, r"percentiles"),
    ],
)
def test_every_bad_table_is_one_sentence_with_its_place(make_manifest, tmp_path, text, settings, words):
    write_table(tmp_path, text)
    cohort = {**TABLE, "contrast": "T1w", **settings}
    manifest = make_manifest(cohorts={"t": {key: value for key, value in cohort.items() if value is not None}})
    with pytest.raises(InputError, match=words) as caught:
        describe_cohort(manifest, "t")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "separator"), [("t.csv", ","), ("t.csv", ";"), ("t.csv", "\t"), ("t.tsv", ";"), ("t.txt", ",")]
)
def test_a_table_is_read_by_the_separator_of_its_header(make_manifest, tmp_path, name, separator):
    old, young = ('"72,5"', '"8,5"') if separator == "," else ("72,5", "8,5")
    header = ["path", "subject_id", '"age, years"', "dx"]
    rows = [header, ["s0.nii.gz", "p0", old, ""], ["s1.nii.gz", "p1", young, ""]]
    write_table(tmp_path, "")
    (tmp_path / "scans" / name).write_text("\ufeff" + "\r\n".join(map(separator.join, rows)) + "\r\n")
    settings = {**TABLE, "table": name, "contrast": "T1w", "columns": {"age": "age, years"}}
    scans = list_scans(make_manifest(cohorts={"t": settings}), "t").scans
    assert scans["age"].tolist() == [72.5, 8.5] and scans["subject_id"].tolist() == ["p0", "p1"]


def test_commas_in_the_header_of_a_tsv_are_text(make_manifest, tmp_path):
    write_table(tmp_path, "")
    (tmp_path / "scans/t.tsv").write_text("path\tsubject_id\tdx, by, whom; when\ns0.nii.gz\tp\tAD; 2\n")
    scans = list_scans(make_manifest(cohorts={"t": {**TABLE, "table": "t.tsv", "contrast": "T1w"}}), "t").scans
    assert scans["dx, by, whom; when"].tolist() == ["AD; 2"]


@pytest.mark.parametrize(
    ("name", "text", "columns"),
    [
        ("t.tsv", "age, years\n3\n", ["age, years"]),
        ("t.csv", "Age; at scan\n3\n", ["Age; at scan"]),
        ("t.csv", "subject;age (years, decimal);sex\na;72,5;F\n", ["subject", "age (years, decimal)", "sex"]),
        ("t.csv", "a,b\n", ["a", "b"]),
        ("t.csv", '"a;b;c",d\n"x;y;z",1\n', ["a;b;c", "d"]),
    ],
)
def test_rows_agree_on_what_separates_columns(tmp_path, name, text, columns):
    (tmp_path / name).write_text(text)
    assert list(read_table(tmp_path / name)) == columns


def test_bad_rows_are_refused_and_the_others_stay(make_manifest, tmp_path):
    text = "path,subject_id\ns0.nii.gz,a\ngone.nii.gz,b\ns1.nii.gz,\n../x.nii.gz,c\ns1.nii.gz,d\ns1.nii.gz,e\n"
    write_table(tmp_path, "\ufeff" + text.replace("\n", "\r\n"))
    cohort = describe_cohort(make_manifest(cohorts={"t": {**TABLE, "contrast": "T1w"}}), "t")
    assert list(cohort.scans["scan_uid"]) == ["t/s0"]
    rows = [reason.split(":")[0].split(", ")[-1] for reason in cohort.refused["reason"]]
    assert rows == ["row 3", "row 4", "row 5", "row 6", "row 7"]
    assert list(cohort.refused["rule"]) == ["file", "identifier", "file", "identifier", "identifier"]


def test_a_table_whose_rows_all_have_one_identifier_ends_soon(make_manifest, tmp_path):
    rows = "".join(f"s{i % 2}.nii.gz,p{i},same\n" for i in range(20_000))
    write_table(tmp_path, f"path,subject_id,scan_uid\n{rows}")
    started = time.perf_counter()
    with pytest.raises(InputError, match=r"row 2: the scan t/same stands in rows 2 and 3 and 4 \.\.\.: keep one"):
        describe_cohort(make_manifest(cohorts={"t": {**TABLE, "contrast": "T1w"}}), "t")
    assert time.perf_counter() - started < 20


def test_table_that_is_not_utf8(make_manifest, tmp_path):
    write_table(tmp_path, "")
    (tmp_path / "scans/t.csv").write_bytes("path,subject_id\ns0.nii.gz,Jos\xe9\n".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        describe_cohort(make_manifest(cohorts={"t": TABLE}), "t")


def test_bids_errors_name_row_and_folder(make_bids, make_manifest, tmp_path):
    root = make_bids(2)
    manifest = make_manifest(cohorts={"b": {"kind": "bids", "root": "bids"}, "e": {"kind": "bids", "root": "empty"}})
    (root / "participants.tsv").write_text("participant_id\tgroup\nsub-00\ta\nsub-01\tb\nsub-00\tb\n")
    with pytest.raises(InputError, match=r"participants\.tsv, row 4: sub-00"):
        describe_cohort(manifest, "b")
    (root / "participants.tsv").write_text("id\tgroup\nsub-00\ta\n")
    with pytest.raises(InputError, match=r"no column 'participant_id'.*id, group"):
        describe_cohort(manifest, "b")
    with pytest.raises(InputError, match="empty of cohort e does not exist"):
        describe_cohort(manifest, "e")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no file sub-"):
        describe_cohort(manifest, "e")
    with pytest.raises(InputError, match=r"no cohort 'z'.*b, e"):
        describe_cohort(manifest, "z")


def test_check_reports_the_file_of_a_bad_header(make_bids, make_manifest):
    root = make_bids(3)
    save_scan(root / "sub-01/anat/sub-01_T1w.nii.gz", np.ones((40, 40, 40, 5), np.float32))
    manifest = make_manifest(cohorts={"b": {"kind": "bids", "root": "bids"}})
    errors = [finding.sentence for finding in check(manifest.path) if finding.level == "error"]
    assert len(errors) == 1 and "sub-01_T1w.nii.gz" in errors[0] and "4D" in errors[0]


def test_sample_data(sample_data, monkeypatch):
    monkeypatch.setenv("BRAINFM_SAMPLE_DATA", str(sample_data))
    manifest = load_manifest(__file__.replace("test_cohort.py", "sample_manifest.yaml"))
    cohorts = {name: describe_cohort(manifest, name).scans for name in manifest.cohorts}
    assert sum(scans["subject_id"].nunique() for scans in cohorts.values()) == 38
    assert dict(cohorts["ds002748"]["group"].value_counts()) == {"depr": 17, "control": 11}
    assert dict(cohorts["open_ms"]["contrast"].value_counts()) == {"T1w": 2, "T1c": 2, "T2w": 2, "FLAIR": 2}
    assert dict(cohorts["ds000011"]["contrast"].value_counts()) == {"T1w": 8, "T2w": 8}
    assert all(scans["age"].notna().all() and scans["sex"].isin(["M", "F"]).all() for scans in cohorts.values())
    assert not [finding for finding in check(manifest.path) if finding.level == "error"]
    assert dataclasses.is_dataclass(describe_cohort(manifest, "open_ms").source)


def test_the_order_of_a_tables_rows_changes_nothing(make_manifest, tmp_path):
    rows = ["path,subject_id,scan_uid,contrast"]
    for i in range(4):
        save_scan(tmp_path / f"{i}.nii.gz", head(seed=i))
        rows.append(f"{i}.nii.gz,p{i},s{i},T1w")
    manifest = make_manifest(cohorts={"t": {"kind": "table", "root": ".", "table": "scans.csv"}})
    (tmp_path / "scans.csv").write_text("\n".join(rows) + "\n")
    first = describe_cohort(manifest, "t")
    (tmp_path / "scans.csv").write_text("\n".join([rows[0], *rows[:0:-1]]) + "\n")
    second = describe_cohort(manifest, "t")
    assert first.digest == second.digest and list(first.scans["scan_uid"]) == list(second.scans["scan_uid"])
    # rows of features are rows of `scans`: where their order differs, the digest does too
    assert first.select([3, 2, 1, 0]).digest != first.digest
