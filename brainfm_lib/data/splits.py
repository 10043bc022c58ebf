"""Tasks and splits. A subject is the unit: all its scans are on one side, whatever labels they carry."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import pandas as pd

from brainfm_lib.data.cohort import Cohort
from brainfm_lib.data.manifest import OTHER, Manifest, TaskSettings
from brainfm_lib.data.tables import first_few, read_table
from brainfm_lib.errors import InputError

COLUMNS = ["scan_uid", "subject_id", "label", "row", "contrast", "site", "age", "sex"]


def task_table(manifest: Manifest, task: str, cohort: Cohort, *, allow_leak: bool = False) -> pd.DataFrame:
    """Scans of a task.

    Args:
        manifest: From `load_manifest`.
        task: Its name.
        cohort: The task's cohort, or a part of it.
        allow_leak: Take official split files as they are, even with a subject on two sides.

    Returns:
        scan_uid, subject_id, label (class number), row (position in `cohort.scans`), contrast, site, age, sex; where
        the manifest names official split files also split (train, val, test), and only scans that those files name.

    Raises:
        InputError: The label column or a label value is unknown, a class is empty, or the split files leak.
    """
    settings = manifest.task(task)
    table = _labelled(manifest, task, cohort)
    if settings.splits is None:
        return table
    split = read_split_files(manifest, settings, table, cohort.name, allow_leak=allow_leak)
    kept = split.notna()
    table = table[kept].assign(split=split[kept]).reset_index(drop=True)
    if settings.splits.val is None:  # no official validation subjects: some of the training ones, by hash
        train = table[table["split"] == "train"]
        table.loc[train.index, "split"] = assign_splits(train, seed=0, test=0.0)
    if not allow_leak:
        check_disjoint(table, table["split"], f"{manifest.path.name}, task {task}")
    return table


def _labelled(manifest: Manifest, task: str, cohort: Cohort) -> pd.DataFrame:
    """Scans of a task as `task_table` gives them, before any split."""
    settings = manifest.task(task)
    where = f"{manifest.path.name}, task {task}"
    scans = cohort.scans
    if settings.label not in scans.columns:
        known = ", ".join(name for name in scans.columns if name not in ("path", "digest"))
        raise InputError(f"{where}: cohort {cohort.name} has no column {settings.label!r}: its columns are {known}.")
    raw = scans[settings.label].astype(str).str.strip()
    used = pd.Series(True, index=scans.index)
    if settings.contrasts is not None:
        absent = [contrast for contrast in settings.contrasts if contrast not in set(scans["contrast"])]
        if absent:
            known = ", ".join(sorted(scans["contrast"].unique()))
            raise InputError(f"{where}: there is no scan of contrast {absent[0]!r}: the contrasts there are {known}.")
        used = scans["contrast"].isin(settings.contrasts)
    unknown = sorted(set(raw[used]) - set(settings.mapping)) if OTHER not in settings.mapping else []
    if unknown:
        listed = ", ".join(repr(value) for value in unknown[:10])
        raise InputError(
            f"{where}: the column {settings.label!r} holds {listed}, which mapping does not name: map them to a class, "
            "or to null to leave such scans out."
        )
    numbers = raw.map({value: number for value, number in settings.mapping.items() if number is not None})
    used &= numbers.notna()
    table = scans[used].assign(label=numbers[used].astype(int), row=scans.index[used])[COLUMNS]
    table = table.reset_index(drop=True)
    empty = [name for number, name in enumerate(settings.classes) if not (table["label"] == number).any()]
    if empty:
        raise InputError(
            f"{where}: no scan has the class {empty[0]}: check mapping and contrasts, or take more subjects."
        )
    return table


def assign_splits(
    table: pd.DataFrame, *, seed: int, test: float = 0.3, val: float = 0.15, by_site: bool = False
) -> pd.Series:
    """Assign whole subjects to train, val and test, with equal shares of each class.

    Within each class, subjects stand in the order of a hash of their identifier and are cut at the shares: no random
    generator, the same on every machine. Subjects whose scans carry several labels are a class of their own here.
    By site, whole sites are assigned instead (sites that share a subject as one), in hash order, so that shares are met
    as nearly as sites allow and classes as they come.

    Args:
        table: With subject_id and label, one row a scan.
        seed: Another seed is another split.
        test: Share of the subjects for testing.
        val: Share of the subjects for validation.
        by_site: Keep sites whole; `table` then needs the column site.

    Returns:
        "train", "val" or "test" for each row.

    Raises:
        InputError: The shares are impossible, or a side lacks a class where sites are kept whole.
    """
    if not (test >= 0 and val >= 0 and test + val < 1):
        raise InputError(f"the shares test={test:g} and val={val:g} must not be negative and must leave some to train.")
    if by_site:
        return _splits_by_site(table, seed, test, val)
    place = {}
    for subjects in _strata(table, seed).values():
        n = len(subjects)
        least = 1 if n >= 3 else 0
        n_test = max(round(n * test), least if test else 0)
        n_val = min(max(round(n * val), least if val else 0), n - n_test - least)
        for position, subject in enumerate(subjects):
            place[subject] = "test" if position < n_test else "val" if position < n_test + n_val else "train"
    return table["subject_id"].map(place).rename("split")


def assign_folds(table: pd.DataFrame, *, seed: int, folds: int = 5, by_site: bool = False) -> pd.Series:
    """Assign whole subjects to folds 0 ... folds - 1, each class dealt out evenly, by hash as in `assign_splits`.

    By site, whole sites are dealt out, the largest first, each to the fold with the fewest subjects.

    Raises:
        InputError: A class has fewer subjects than there are folds, or by site a fold lacks a class.
    """
    if by_site:
        return _folds_by_site(table, seed, folds)
    smallest = int(table.groupby("label")["subject_id"].nunique().min())
    if not 2 <= folds <= smallest:
        raise InputError(
            f"{folds} folds cannot be made: the smallest class has {smallest} subjects: take 2 to {smallest}."
        )
    place, dealt = {}, 0
    for subjects in _strata(table, seed).values():
        for subject in subjects:
            place[subject] = dealt % folds
            dealt += 1
    return table["subject_id"].map(place).astype(int).rename("fold")


def read_split_files(
    manifest: Manifest, settings: TaskSettings, table: pd.DataFrame, cohort: str, *, allow_leak: bool = False
) -> pd.Series:
    """Splits of a task as its official files give them.

    Args:
        manifest: Relative paths start at its folder.
        settings: Of the task; its `splits` are read.
        table: The task's scans.
        cohort: Its name; identifiers in the files may start with it or not.
        allow_leak: Let a subject be in several files.

    Returns:
        The split of each row, None where no file names the scan.

    Raises:
        InputError: A file is missing or lacks a column, a scan stands twice, or no identifier of a file is known.
    """
    assert settings.splits is not None
    owner = dict(zip(table["scan_uid"], table["subject_id"]))
    place: dict[str, str] = {}
    subjects: dict[str, str] = {}
    for split in ("train", "val", "test"):
        name = getattr(settings.splits, split)
        if name is None:
            continue
        path = manifest.resolve(name)
        listed = read_table(path)
        for needed in ("subject_id", "scan_uid"):
            if needed not in listed:
                raise InputError(f"{path} has no column {needed!r}: its columns are {', '.join(listed.columns)}.")
        found = 0
        for row, subject, uid in zip(listed.index, listed["subject_id"], listed["scan_uid"]):
            if subjects.setdefault(subject, split) != split and not allow_leak:
                raise InputError(
                    f"{path}, row {row + 2}: subject {subject} is in the {subjects[subject]} file too: "
                    "a subject must be in one split only."
                )
            full = uid if uid in owner else f"{cohort}/{uid}"
            if place.setdefault(full, split) != split:
                raise InputError(f"{path}, row {row + 2}: scan {uid} is in the {place[full]} file too: keep it in one.")
            found += full in owner
        if not found:
            raise InputError(
                f"{path}: none of its {len(listed)} scan_uid is a scan of cohort {cohort} that this task labels "
                f"(for example {next(iter(owner))}): use the same identifiers, and check mapping and contrasts."
            )
    return table["scan_uid"].map(place).astype(object).where(lambda split: split.notna(), None)


def unmatched_scans(manifest: Manifest, task: str, table: pd.DataFrame) -> list[str]:
    """Identifiers in a task's official split files that are no scan of `table`."""
    settings = manifest.task(task)
    if settings.splits is None:
        return []
    names = [settings.splits.train, settings.splits.val, settings.splits.test]
    listed = [uid for name in names if name for uid in read_table(manifest.resolve(name))["scan_uid"]]
    known = {uid for full in table["scan_uid"] for uid in (full, full.removeprefix(f"{settings.cohort}/"))}
    return [uid for uid in listed if uid not in known]


def split_notes(manifest: Manifest, task: str, cohort: Cohort) -> list[str]:
    """Sentences on what a task's official split files and its cohort do not share.

    Args:
        manifest: From `load_manifest`.
        task: Its name.
        cohort: The task's cohort, whole.

    Returns:
        One on identifiers in the files that match no scan of the cohort, be it labelled, left out or refused; one on
        labelled scans that stand in no file.

    Raises:
        InputError: As `task_table`.
    """
    settings = manifest.task(task)
    if settings.splits is None:
        return []
    lost = unmatched_scans(manifest, task, pd.concat([cohort.scans[["scan_uid"]], cohort.refused[["scan_uid"]]]))
    labelled = _labelled(manifest, task, cohort)
    split = read_split_files(manifest, settings, labelled, cohort.name, allow_leak=True)
    unlisted = labelled["scan_uid"][split.isna()]
    notes = []
    if lost:
        notes.append(f"{len(lost)} scan_uid of its split files match no scan: {first_few(lost)}.")
    if len(unlisted):
        notes.append(
            f"{len(unlisted)} of {len(labelled)} labelled scans stand in no split file and are left out: "
            f"{first_few(unlisted)}."
        )
    return notes


def check_disjoint(table: pd.DataFrame, split: pd.Series, where: str = "the split") -> None:
    """Raise an InputError that names a subject with scans on two sides of `split`, if there is one."""
    sides = split.groupby(table["subject_id"].to_numpy()).nunique()
    torn = sides.index[sides > 1]
    if len(torn):
        names = " and ".join(sorted(set(split[(table["subject_id"] == torn[0]).to_numpy()])))
        raise InputError(f"{where}: subject {torn[0]} is in {names}: put all scans of a subject into one split.")


def held_out_subjects(tables: Iterable[pd.DataFrame]) -> set[str]:
    """Subjects that some task evaluates on, so that pretraining on the same cohort must leave them out.

    Args:
        tables: Task tables of one cohort with a `split` column, or with a `fold` column: then every subject is tested
            once and all are held out.
    """
    held: set[str] = set()
    for table in tables:
        evaluated = table["split"] != "train" if "split" in table else pd.Series(True, index=table.index)
        held |= set(table["subject_id"][evaluated])
    return held


def _site_groups(table: pd.DataFrame, seed: int) -> list[list[str]]:
    """Subjects by site, sites that share a subject in one group; groups in hash order of their first site."""
    blank = table["site"].astype(str).str.strip() == ""
    if blank.any():
        raise InputError(
            f"scan {table['scan_uid'][blank].iloc[0]} has no site, so sites cannot be kept whole: give every scan a "
            "site, or remove `grouped_by: site` from the task."
        )
    root = {site: site for site in table["site"].astype(str)}

    def find(site: str) -> str:
        while root[site] != site:
            site = root[site]
        return site

    for _, sites in table.groupby("subject_id")["site"]:
        first, *others = sorted({find(str(site)) for site in sites})
        for other in others:
            root[other] = first
    groups: dict[str, set[str]] = {}
    for subject, site in zip(table["subject_id"], table["site"].astype(str)):
        groups.setdefault(find(site), set()).add(subject)
    return [sorted(groups[site]) for site in sorted(groups, key=lambda site: _order(site, seed))]


def _splits_by_site(table: pd.DataFrame, seed: int, test: float, val: float) -> pd.Series:
    groups = _site_groups(table, seed)
    total = sum(map(len, groups))
    place, counts = {}, {"test": 0, "val": 0, "train": 0}
    for group in groups:
        # the side that is furthest below its share takes the next site
        wanted = {"test": test * total, "val": val * total, "train": (1 - test - val) * total}
        side = max(wanted, key=lambda name: wanted[name] - counts[name])
        counts[side] += len(group)
        place.update(dict.fromkeys(group, side))
    split = table["subject_id"].map(place).rename("split")
    _check_classes(table, split, [name for name, share in (("train", 1.0), ("val", val), ("test", test)) if share])
    return split


def _folds_by_site(table: pd.DataFrame, seed: int, folds: int) -> pd.Series:
    groups = sorted(_site_groups(table, seed), key=len, reverse=True)
    if not 2 <= folds <= len(groups):
        raise InputError(
            f"{folds} folds of whole sites cannot be made of {len(groups)} sites: take 2 to {len(groups)}."
        )
    place, sizes = {}, [0] * folds
    for group in groups:
        fold = sizes.index(min(sizes))
        sizes[fold] += len(group)
        place.update(dict.fromkeys(group, fold))
    fold_of = table["subject_id"].map(place).astype(int).rename("fold")
    _check_classes(table, fold_of, range(folds))
    return fold_of


def _check_classes(table: pd.DataFrame, side: pd.Series, sides: Iterable[object]) -> None:
    for name in sides:
        lacking = sorted(set(table["label"]) - set(table["label"][side == name]))
        if lacking:
            raise InputError(
                f"with whole sites, {name} has no scan of class {lacking[0]}: the sites differ too much in their "
                "classes; remove `grouped_by: site` from the task, or take more sites."
            )


def _strata(table: pd.DataFrame, seed: int) -> dict[tuple[int, ...], list[str]]:
    """Subjects by the set of labels they carry, each list in hash order."""
    labels = table.groupby("subject_id")["label"].agg(lambda values: tuple(sorted(set(values))))
    strata: dict[tuple[int, ...], list[str]] = {}
    for subject in sorted(labels.index, key=lambda subject: _order(subject, seed)):
        strata.setdefault(labels[subject], []).append(subject)
    return dict(sorted(strata.items()))


def _order(subject: str, seed: int) -> tuple[str, str]:
    return hashlib.sha256(f"{seed}/{subject}".encode()).hexdigest(), subject
