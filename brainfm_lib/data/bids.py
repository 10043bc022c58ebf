"""Anatomical scans of a BIDS folder, found by a small walker that knows where they lie."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from brainfm_lib.data.folders import dicom_hint, is_folder, once_each, stem
from brainfm_lib.data.quality import SUFFIXES
from brainfm_lib.data.tables import STANDARD, Scans, first_few, read_table, refusals, tidy
from brainfm_lib.errors import InputError

CONTRASTS = {
    "T1w": "T1w",
    "T2w": "T2w",
    "FLAIR": "FLAIR",
    "PDw": "PDw",
    "PD": "PDw",
    "T2starw": "T2star",
    "T2star": "T2star",
    "inplaneT1": "T1w",
    "inplaneT2": "T2w",
}
SCANNER = ("Manufacturer", "ManufacturersModelName")
KEPT = (*SCANNER, "MagneticFieldStrength", "ContrastBolusIngredient")
NAME = re.compile(r"(?P<entities>sub-[^_]+(?:_[A-Za-z]+-[^_]+)*)_(?P<suffix>[A-Za-z0-9]+)\.(?:nii(?:\.gz)?|mgz)")


def bids_scans(root: Path, cohort: str, suffixes: Mapping[str, str]) -> Scans:
    """Scans under ``sub-*/[ses-*/]anat/``, joined with participants.tsv and the sessions.tsv of each subject.

    A T1w file with a ``ce-`` entity or a ``ContrastBolusIngredient`` in its sidecar (contrast agent) has the contrast
    T1c. From the sidecars come the columns scanner and field_strength (T). ``derivatives/`` is left alone.

    Args:
        root: The BIDS folder.
        cohort: Name that the scans' identifiers start with.
        suffixes: File suffixes beyond `CONTRASTS`, with their contrasts.

    Returns:
        The scans, with every column of the joined tables as text; refused are files that are there twice, or whose
        name contradicts their folder. The notes list scans without a row in a table that is there, rows without a
        scan, and images whose names do not say that they are scans of such a contrast.

    Raises:
        InputError: No such folder, no scans in it, or a table that cannot be joined.
    """
    if not root.is_dir():
        raise InputError(f"The folder {root} of cohort {cohort} does not exist: mend the root or the variable in it.")
    contrasts = {**CONTRASTS, **suffixes}
    rows, misplaced, others = [], [], []
    sidecars = _Sidecars(root)
    for subject, session, file in _images(root):
        match = NAME.fullmatch(file.name)
        if match is None or match["suffix"] not in contrasts:
            others.append(file.name)
        elif said := _misplaced(match["entities"], subject, session):
            uid = f"{cohort}/{stem(file.relative_to(root).as_posix())}"
            misplaced.append((uid, "identifier", f"{file}: {said}"))
        else:
            about = sidecars.of(file, match["suffix"])
            contrast = contrasts[match["suffix"]]
            agent = contrast == "T1w" and ("_ce-" in match["entities"] or "ContrastBolusIngredient" in about)
            rows.append(
                {
                    "subject_id": subject,
                    "scan_uid": f"{cohort}/{match['entities']}_{match['suffix']}",
                    "session": session,
                    "contrast": "T1c" if agent else contrast,
                    "path": str(file),
                    "scanner": " ".join(str(about[key]) for key in SCANNER if about.get(key)),
                    "field_strength": str(about.get("MagneticFieldStrength", "")),
                }
            )
    if not rows and misplaced:
        raise InputError(misplaced[0][2])
    if not rows:
        raise InputError(
            f"{root} holds no file sub-*/[ses-*/]anat/*_SUFFIX.nii[.gz] with SUFFIX among {', '.join(contrasts)}: "
            f"point the root of cohort {cohort} at a BIDS folder, or rename what lies there "
            f"({first_few(others) or 'no image'})." + dicom_hint(root)
        )
    found = pd.DataFrame(rows)
    scans, twice = once_each(found)
    refused = refusals(twice + misplaced)
    for name in ("scanner", "field_strength"):
        if not (scans[name] != "").any():
            del scans[name]
    notes = list(sidecars.damaged)
    if others:
        notes.append(
            f"{len(others)} images in anat folders are left alone: {first_few(others)}. Their names do not end with "
            f"_SUFFIX of {', '.join(contrasts)}: rename those that are wanted, or say under 'suffixes' what theirs "
            "stands for."
        )
    scans, unmatched = _with_tables(root, found, scans)
    return Scans(tidy(scans), refused, (*notes, *unmatched))


def _images(root: Path) -> Iterator[tuple[str, str, Path]]:
    """Subject, session ("" where there are none) and file of every image in a folder ``anat``."""
    for subject in _folders(root, "sub-"):
        for place in [subject, *_folders(subject, "ses-")]:
            for file in _files(place / "anat"):
                if file.name.endswith(SUFFIXES):
                    yield subject.name, place.name if place is not subject else "", file


def _with_tables(root: Path, found: pd.DataFrame, scans: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """`scans` joined with participants.tsv and each subject's sessions.tsv, and what of `found` does not match them."""
    notes: list[str] = []
    participants = root / "participants.tsv"
    if participants.is_file():
        people = _keyed(participants, "participant_id", "sub-").rename(columns={"participant_id": "subject_id"})
        notes += _unmatched(found, people, ["subject_id"], "participants.tsv")
        scans = _join(scans, people, ["subject_id"])
    tables = {subject.name: subject / f"{subject.name}_sessions.tsv" for subject in _folders(root, "sub-")}
    visits_of = {
        subject: _keyed(table, "session_id", "ses-").assign(subject_id=subject)
        for subject, table in tables.items()
        if table.is_file()
    }
    if visits_of:
        visits = pd.concat(visits_of.values(), ignore_index=True).rename(columns={"session_id": "session"})
        asked = found[found["subject_id"].isin(list(visits_of))]
        notes += _unmatched(asked, visits, ["subject_id", "session"], "the subjects' sessions.tsv")
        scans = _join(scans, visits.fillna(""), ["subject_id", "session"])
    return scans, notes


def _misplaced(entities: str, subject: str, session: str) -> str:
    """How the entities of a file's name contradict the folders that it lies in; empty where they do not."""
    named = entities.split("_")
    others = [name for name in named if name.startswith("ses-") and name != session] if session else []
    if named[0] != subject:
        return f"the name says {named[0]} and the folder {subject}: move the file, or rename it."
    if others:
        return f"the name says {others[0]} and the folder {session}: move the file, or rename it."
    return ""


def _unmatched(scans: pd.DataFrame, table: pd.DataFrame, keys: list[str], source: str) -> list[str]:
    """Sentences that list the scans without a row in a table, and its rows without a scan."""
    asked, given = pd.MultiIndex.from_frame(scans[keys]), pd.MultiIndex.from_frame(table[keys])
    lost = scans["scan_uid"][~asked.isin(given)]
    unused = [" ".join(key) for key in given[~given.isin(asked)]]
    notes = []
    if len(lost):
        notes.append(f"{len(lost)} of {len(scans)} scans have no row in {source}: {first_few(lost)}.")
    if unused:
        notes.append(f"{len(unused)} of {len(table)} rows of {source} match no scan: {first_few(unused)}.")
    return notes


def _folders(parent: Path, prefix: str) -> list[Path]:
    with os.scandir(parent) as entries:
        return sorted(Path(e.path) for e in entries if e.name.startswith(prefix) and is_folder(e))


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(Path(e.path) for e in entries if not is_folder(e))


class _Sidecars:
    """JSON sidecars of scans: what stands beside a file wins over what stands for its suffix at the root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shared: dict[str, dict[str, Any]] = {}
        self.damaged: list[str] = []

    def of(self, file: Path, suffix: str) -> dict[str, Any]:
        """Keys of `KEPT` alone: the others may name people, and are not looked at."""
        if suffix not in self.shared:
            self.shared[suffix] = self._read(self.root / f"{suffix}.json")
        return {**self.shared[suffix], **self._read(file.parent / f"{file.name.partition('.')[0]}.json")}

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            self.damaged.append(f"{path} is no JSON file ({' '.join(str(error).split())}) and is ignored: mend it.")
            return {}
        return {key: content[key] for key in KEPT if key in content} if isinstance(content, dict) else {}


def _keyed(path: Path, key: str, prefix: str) -> pd.DataFrame:
    """Read a table whose `key` column names each row once, written with or without its BIDS prefix."""
    table = read_table(path)
    if key not in table:
        raise InputError(f"{path} has no column {key!r}: its columns are {', '.join(table.columns)}.")
    table[key] = [value if value.lower().startswith(prefix) else prefix + value for value in table[key]]
    again = table.index[table[key].duplicated()]
    if len(again):
        raise InputError(f"{path}, row {again[0] + 2}: {table[key][again[0]]} has a row already: keep one of them.")
    return table


def _join(scans: pd.DataFrame, table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Add the table's columns by `keys`; where both have one, the table's wins unless it is empty."""
    fixed = set(STANDARD) - {"site", "age", "sex"} - set(keys)
    table = table[[name for name in table.columns if name not in fixed]]
    joined = scans.merge(table, on=keys, how="left", suffixes=("_before", ""), validate="many_to_one")
    for name in table.columns:
        joined[name] = joined[name].fillna("")
        if f"{name}_before" in joined:
            before = joined.pop(f"{name}_before")
            joined[name] = joined[name].where(joined[name] != "", before)
    return joined
