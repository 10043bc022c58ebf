"""Scans that lie in folders under names that say what they are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from brainfm_lib.data.tables import Scans, refusals, tidy
from brainfm_lib.errors import InputError

FIELD = re.compile(r"\{(\w+)(?::([^{}]*))?\}")
FIELDS = ("subject_id", "session", "site", "contrast", "scan")
DICOM_LOOKED_AT = 200  # files


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Turn ``{subject_id:IXI*}-{site}-{contrast}.nii.gz`` into a regular expression for a whole name.

    ``{field}`` stands for any text without a slash, ``{field:glob}`` for such a text that fits the glob; a field that
    comes again stands for the same text again, and ``*`` for any text without a slash.

    Raises:
        InputError: An unknown field, or no subject_id.
    """
    parts, seen, end = [], set(), 0
    for match in FIELD.finditer(pattern):
        name, glob = match[1], match[2] or "*"
        if name not in FIELDS:
            raise InputError(f"the pattern {pattern!r} has the field {name!r}: the fields are {', '.join(FIELDS)}.")
        parts.append(_literal(pattern[end : match.start()]))
        parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{_glob(glob)})")
        seen.add(name)
        end = match.end()
    parts.append(_literal(pattern[end:]))
    if "subject_id" not in seen:
        raise InputError(f"the pattern {pattern!r} has no field {{subject_id}}: say where the subject stands.")
    return re.compile("".join(parts))


def folder_scans(
    root: Path, cohort: str, pattern: str, contrasts: Mapping[str, str], contrast: str | None = None
) -> Scans:
    """Scans under `root` whose name fits a pattern.

    Args:
        root: The folder; links to folders are followed once.
        cohort: Name that the scans' identifiers start with.
        pattern: See `compile_pattern`; one with a slash is for paths below `root`, one without for file names.
        contrasts: What ``{contrast}`` stands for; files with other names are left alone. Empty: the name itself.
        contrast: Of all scans, where the pattern does not say.

    Returns:
        The standard columns, path absolute; refused are files that are there twice, with different endings.

    Raises:
        InputError: No such folder, or nothing fits.
    """
    if not root.is_dir():
        raise InputError(f"The folder {root} of cohort {cohort} does not exist: mend the root or the variable in it.")
    expression = compile_pattern(pattern)
    if "contrast" not in expression.groupindex and contrast is None:
        raise InputError(
            f"cohort {cohort}: the pattern {pattern!r} has no field {{contrast}}: add one or give 'contrast: T1w'."
        )
    rows = []
    for file in walk(root):
        relative = file.relative_to(root).as_posix()
        match = expression.fullmatch(relative if "/" in pattern else file.name)
        if match is None:
            continue
        found = match.groupdict()
        kind = found.pop("contrast", None) or contrast or ""
        if contrasts and "contrast" in expression.groupindex:
            if kind not in contrasts:
                continue
            kind = contrasts[kind]
        found.pop("scan", None)
        rows.append({**found, "contrast": kind, "scan_uid": f"{cohort}/{stem(relative)}", "path": str(file)})
    if not rows:
        raise InputError(
            f"{root} holds no file that fits {pattern!r}: point the root of cohort {cohort} at the right folder."
            + dicom_hint(root)
        )
    scans, twice = once_each(pd.DataFrame(rows))
    return Scans(tidy(scans), refusals(twice))


def once_each(scans: pd.DataFrame) -> tuple[pd.DataFrame, list[tuple[str, str, str]]]:
    """Scans of which there is one file, and for `tables.refusals` those with several: `X.nii` beside `X.nii.gz`."""
    again = scans["scan_uid"].duplicated(keep=False)
    twice = [
        (uid, "identifier", f"{path} is there twice, with different endings: remove one of the two.")
        for uid, path in zip(scans["scan_uid"][again], scans["path"][again])
    ]
    return scans[~again].reset_index(drop=True), twice


def walk(root: Path) -> Iterator[Path]:
    """All files below a folder, in a fixed order; a folder that was visited is not entered again through a link."""
    seen, queue = set(), [str(root)]
    while queue:
        folder = queue.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue
        below = []
        for entry in entries:
            if is_folder(entry):
                below.append(entry.path)
            else:
                yield Path(entry.path)
        queue.extend(reversed(below))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def dicom_hint(root: Path) -> str:
    """What to do where a folder holds DICOM files, which are not read; empty where it holds none."""
    for number, file in enumerate(walk(root)):
        if number >= DICOM_LOOKED_AT:
            break
        try:
            with file.open("rb") as handle:
                start = handle.read(132) if file.is_file() else b""
        except OSError:
            continue
        if start[128:] == b"DICM" or file.suffix.lower() in (".dcm", ".ima"):
            return f" It holds DICOM files: convert them first (dcm2niix -z y -f %i_%t_%p -o OUT {root})."
    return ""


def stem(name: str) -> str:
    """A name without the suffix of a scan."""
    return name.removesuffix(".gz").removesuffix(".nii").removesuffix(".mgz").removesuffix(".mgh")


def _literal(text: str) -> str:
    return "[^/]*".join(re.escape(part) for part in text.split("*"))


def _glob(glob: str) -> str:
    if glob == "*":
        return "[^/]+?"
    return "".join({"*": "[^/]*?", "?": "[^/]"}.get(letter, re.escape(letter)) for letter in glob)
