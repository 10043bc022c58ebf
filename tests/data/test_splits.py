import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfm_lib.data.cohort import describe_cohort
from brainfm_lib.data.prepare import check
from brainfm_lib.data.splits import (
    assign_folds,
    assign_splits,
    check_disjoint,
    held_out_subjects,
    split_notes,
    task_table,
)
from brainfm_lib.errors import InputError

SPEC = {"subjects": 60, "scans_per_subject": 2, "conditions": {"NC": 0.4, "MCI": 0.3, "AD": 0.3}}
COHORT = {"p": {"kind": "phantom", "spec": SPEC}}
TASK = {"cohort": "p", "label": "diagnosis", "mapping": {"NC": 0, "AD": 1, "MCI": None}, "classes": ["NC", "AD"]}


@st.composite
def tables(draw):
    """Scans of subjects with one to four scans each, some with several labels, rows in any order."""
    subjects = draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=60))
    names = draw(st.lists(st.text(min_size=1, max_size=4), min_size=len(subjects), max_size=len(subjects), unique=True))
    rows = [(name, label) for name, labels in zip(names, subjects) for label in labels]
    return pd.DataFrame(draw(st.permutations(rows)), columns=["subject_id", "label"])


@settings(max_examples=150, deadline=None)
@given(table=tables(), seed=st.integers(0, 9), test=st.floats(0.05, 0.6), val=st.floats(0.0, 0.3))
def test_splits_keep_subjects_whole_and_shares_exact(table, seed, test, val):
    split = assign_splits(table, seed=seed, test=test, val=val)
    check_disjoint(table, split)
    assert set(split) <= {"train", "val", "test"} and split.index.equals(table.index)
    place = dict(zip(table["subject_id"], split))
    strata = table.groupby("subject_id")["label"].agg(lambda values: tuple(sorted(set(values))))
    for stratum in set(strata):
        places = [place[subject] for subject in strata.index[strata == stratum]]
        n = len(places)
        assert abs(places.count("test") - n * test) <= 1
        assert abs(places.count("val") - n * val) <= 1.5
        if n >= 3:
            assert "train" in places and "test" in places
    shuffled = table.sample(frac=1, random_state=1)
    assert assign_splits(shuffled, seed=seed, test=test, val=val).sort_index().equals(split)


@settings(max_examples=100, deadline=None)
@given(table=tables(), seed=st.integers(0, 9), folds=st.integers(2, 5))
def test_folds_keep_subjects_whole_and_are_even(table, seed, folds):
    if table.groupby("label")["subject_id"].nunique().min() < folds:
        with pytest.raises(InputError, match="smallest class"):
            assign_folds(table, seed=seed, folds=folds)
        return
    fold = assign_folds(table, seed=seed, folds=folds)
    check_disjoint(table, fold.astype(str))
    sizes = table.assign(fold=fold).groupby("fold")["subject_id"].nunique().reindex(range(folds), fill_value=0)
    assert sizes.max() - sizes.min() <= 1


def test_split_is_the_same_on_every_machine():
    table = pd.DataFrame({"subject_id": [f"sub-{i}" for i in range(10)], "label": [0, 1] * 5})
    assert "".join(split[:2] for split in assign_splits(table, seed=0)) == "tetrtetetrtetrtrvava"
    assert list(assign_splits(table, seed=1)) != list(assign_splits(table, seed=0))


def test_task_table_maps_labels_and_points_at_rows(make_manifest):
    manifest = make_manifest(cohorts=COHORT, tasks={"t": {**TASK, "contrasts": ["T1w", "T2w"]}})
    cohort = describe_cohort(manifest, "p")
    table = task_table(manifest, "t", cohort)
    rows = cohort.scans.iloc[table["row"]].reset_index(drop=True)
    assert (rows["scan_uid"] == table["scan_uid"]).all() and set(rows["contrast"]) == {"T1w", "T2w"}
    assert (rows["diagnosis"].map({"NC": 0, "AD": 1}) == table["label"]).all()
    assert (
        len(table)
        == (cohort.scans["diagnosis"].isin(["NC", "AD"]) & cohort.scans["contrast"].isin(["T1w", "T2w"])).sum()
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": "dx"}, r"task t: cohort p has no column 'dx'.*diagnosis"),
        ({"mapping": {"NC": 0, "AD": 1}}, r"task t: the column 'diagnosis' holds 'MCI'.*null"),
        ({"mapping": {"NC": 0, "ad": 1, "*": None}}, r"no scan has the class AD"),
        ({"contrasts": ["SWI"]}, r"contrast 'SWI'.*T1w"),
    ],
)
def test_bad_tasks(make_manifest, change, words):
    manifest = make_manifest(cohorts=COHORT, tasks={"t": {**TASK, **change}})
    with pytest.raises(InputError, match=words):
        task_table(manifest, "t", describe_cohort(manifest, "p"))
    assert any(finding.level == "error" and finding.where == "task t" for finding in check(manifest.path))


def test_unlisted_labels_can_be_left_out_and_unknown_ones_named(make_bids, make_manifest):
    root = make_bids(4)
    table = root / "participants.tsv"
    table.write_text(table.read_text().replace("03\t23\tf\tcontrol", "03\t23\tf\tn/a"))
    task = {"cohort": "b", "label": "group", "classes": ["control", "patient"]}
    for extra in ({"n/a": None}, {"*": None}):
        manifest = make_manifest(
            cohorts={"b": {"kind": "bids", "root": "bids"}},
            tasks={"t": {**task, "mapping": {"control": 0, "patient": 1, **extra}}},
        )
        assert list(task_table(manifest, "t", describe_cohort(manifest, "b"))["label"]) == [1, 1, 0]


def write_splits(folder, cohort, **parts):
    for name, subjects in parts.items():
        scans = cohort.scans[cohort.scans["subject_id"].isin(subjects)]
        uids = scans["scan_uid"].str.removeprefix("p/")
        pd.DataFrame({"subject_id": scans["subject_id"], "scan_uid": uids}).to_csv(folder / f"{name}.csv", index=False)


def official(make_manifest):
    splits = {name: f"{name}.csv" for name in ("train", "val", "test")}
    return make_manifest(cohorts=COHORT, tasks={"t": {**TASK, "splits": splits}})


def test_official_split_files_are_followed(make_manifest, tmp_path):
    manifest = official(make_manifest)
    cohort = describe_cohort(manifest, "p")
    subjects = sorted(cohort.scans["subject_id"].unique())
    write_splits(tmp_path, cohort, train=subjects[:30], val=subjects[30:40], test=subjects[40:55])
    table = task_table(manifest, "t", cohort)
    assert set(table["subject_id"]) <= set(subjects[:55])
    assert (table["split"] == table["subject_id"].map(dict.fromkeys(subjects[:30], "train")).fillna("x")).any()
    assert held_out_subjects([table]) == {s for s in table["subject_id"] if s in subjects[30:55]}


def test_split_files_and_cohort_say_what_they_do_not_share(make_manifest, tmp_path):
    manifest = official(make_manifest)
    cohort = describe_cohort(manifest, "p")
    subjects = sorted(cohort.scans["subject_id"].unique())
    write_splits(tmp_path, cohort, train=subjects[:30], val=subjects[30:40], test=subjects[40:])
    assert "MCI" in set(cohort.scans["diagnosis"]) and split_notes(manifest, "t", cohort) == []
    write_splits(tmp_path, cohort, test=subjects[40:55])
    with (tmp_path / "test.csv").open("a") as file:
        file.write("x,sub-x_ses-1\nx,p/broken\n")
    refused = pd.DataFrame({"scan_uid": ["p/broken"], "rule": ["file"], "reason": ["It is damaged."]})
    left_out = cohort.scans["subject_id"].isin(subjects[55:]) & (cohort.scans["diagnosis"] != "MCI")
    used = (cohort.scans["diagnosis"] != "MCI").sum()
    lost, unlisted = split_notes(manifest, "t", dataclasses.replace(cohort, refused=refused))
    assert lost == "1 scan_uid of its split files match no scan: sub-x_ses-1."
    assert unlisted.startswith(f"{left_out.sum()} of {used} labelled scans stand in no split file and are left out: p/")


def test_a_split_file_of_scans_that_the_task_leaves_out_names_the_mapping(make_manifest, tmp_path):
    manifest = official(make_manifest)
    cohort = describe_cohort(manifest, "p")
    mild = cohort.scans[cohort.scans["diagnosis"] == "MCI"]["subject_id"].iloc[0]
    write_splits(tmp_path, cohort, train=[mild])
    listed = r"none of its 2 scan_uid is a scan of cohort p that this task labels .* check mapping"
    with pytest.raises(InputError, match=listed):
        task_table(manifest, "t", cohort)


def test_without_official_validation_subjects_some_training_ones_serve(make_manifest, tmp_path):
    splits = {name: f"{name}.csv" for name in ("train", "test")}
    manifest = make_manifest(cohorts=COHORT, tasks={"t": {**TASK, "splits": splits}})
    cohort = describe_cohort(manifest, "p")
    subjects = sorted(cohort.scans["subject_id"].unique())
    write_splits(tmp_path, cohort, train=subjects[:40], test=subjects[40:])
    table = task_table(manifest, "t", cohort)
    sides = table.groupby("split")["subject_id"].unique()
    assert set(sides.index) == {"train", "val", "test"} and set(sides["test"]) <= set(subjects[40:])
    assert set(sides["val"]) <= set(subjects[:40]) and len(sides["val"]) < len(sides["train"])


def test_subject_on_both_sides_of_official_splits_is_an_error(make_manifest, tmp_path):
    manifest = official(make_manifest)
    cohort = describe_cohort(manifest, "p")
    subjects = sorted(cohort.scans["subject_id"].unique())
    write_splits(tmp_path, cohort, train=subjects[:30], val=subjects[30:40], test=subjects[29:55])
    with pytest.raises(InputError, match=r"test\.csv, row 2: subject sub-00029 is in the train file too"):
        task_table(manifest, "t", cohort)
    assert any(finding.level == "error" and "sub-00029" in finding.sentence for finding in check(manifest.path))


def test_bad_split_files(make_manifest, tmp_path):
    manifest = official(make_manifest)
    cohort = describe_cohort(manifest, "p")
    with pytest.raises(InputError, match=r"train\.csv does not exist"):
        task_table(manifest, "t", cohort)
    (tmp_path / "train.csv").write_text("subject_id,scan\nx,y\n")
    with pytest.raises(InputError, match="no column 'scan_uid'"):
        task_table(manifest, "t", cohort)
    (tmp_path / "train.csv").write_text("subject_id,scan_uid\nx,y\n")
    with pytest.raises(InputError, match=r"none of its 1 scan_uid is a scan of cohort p"):
        task_table(manifest, "t", cohort)


def test_disjointness_names_the_subject():
    table = pd.DataFrame({"subject_id": ["a", "a", "b"]})
    with pytest.raises(InputError, match="subject a is in test and train"):
        check_disjoint(table, pd.Series(["train", "test", "val"]))


def test_held_out_subjects_of_splits_and_folds():
    table = pd.DataFrame({"subject_id": list("abc"), "split": ["train", "val", "test"]})
    folded = pd.DataFrame({"subject_id": list("de"), "fold": [0, 1]})
    assert held_out_subjects([table, folded]) == set("bcde")
    assert held_out_subjects([]) == set()


def by_site(sizes, seed=0):
    """A table with sites of these sizes; both classes at each, some subjects scanned twice."""
    rng = np.random.default_rng(seed)
    rows = []
    for site, size in enumerate(sizes):
        for number in range(size):
            for scan in range(rng.integers(1, 3)):
                rows.append((f"c/{site}-{number}-{scan}", f"{site}-{number}", number % 2, f"site{site}"))
    return pd.DataFrame(rows, columns=["scan_uid", "subject_id", "label", "site"])


def test_sites_are_kept_whole_and_shares_are_met_as_sites_allow():
    table = by_site([12, 8, 30, 9, 14, 20, 6, 11, 17, 23])
    split = assign_splits(table, seed=0, by_site=True)
    assert (split.groupby(table["site"]).nunique() == 1).all()
    share = table.assign(split=split).drop_duplicates("subject_id")["split"].value_counts(normalize=True)
    assert abs(share["test"] - 0.3) < 0.15 and abs(share["val"] - 0.15) < 0.12
    folds = assign_folds(table, seed=0, folds=3, by_site=True)
    assert (folds.groupby(table["site"]).nunique() == 1).all()
    sizes = table.assign(fold=folds).drop_duplicates("subject_id")["fold"].value_counts()
    assert sizes.max() - sizes.min() <= 8
    shuffled = table.sample(frac=1, random_state=1)
    assert assign_splits(shuffled, seed=0, by_site=True).sort_index().equals(split)


def test_sites_that_share_a_subject_stay_together():
    table = by_site([10] * 6)
    traveller = table.iloc[[0]].assign(scan_uid="c/again", site="site4")
    table = pd.concat([table, traveller], ignore_index=True)
    split = assign_splits(table, seed=3, by_site=True)
    assert split[table["site"] == "site0"].iloc[0] == split[table["site"] == "site4"].iloc[0]
    check_disjoint(table, split)


def test_sites_that_cannot_be_kept_whole_are_one_sentence():
    table = by_site([10] * 4)
    with pytest.raises(InputError, match="has no site"):
        assign_splits(table.assign(site=""), seed=0, by_site=True)
    with pytest.raises(InputError, match="has no scan of class 1"):
        assign_splits(table.assign(label=(table["site"] == "site0").astype(int)), seed=0, by_site=True)
    with pytest.raises(InputError, match="5 folds of whole sites cannot be made of 4 sites"):
        assign_folds(table, seed=0, folds=5, by_site=True)
