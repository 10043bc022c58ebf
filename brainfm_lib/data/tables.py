"""Tables of scans and subjects as people keep them: CSV or TSV, with or without a byte-order mark."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from brainfm_lib.errors import InputError

STANDARD = ("subject_id", "scan_uid", "session", "contrast", "site", "age", "sex", "path")
OPTIONAL = ("date",)  # may be named under `columns` too
UNKNOWN = {"", "n/a", "nan"}
REFUSED = ["scan_uid", "rule", "reason"]
SEPARATORS = (",", ";", "\t")


class Scans(NamedTuple):
    """Scans as a cohort lists them.

    Attributes:
        table: The columns of `STANDARD` (path absolute) and every other column as text, a row a scan.
        refused: Scans that cannot be used, with the rule that they break and one sentence: the columns of `REFUSED`.
        notes: What else is worth a look, a sentence each.
    """

    table: pd.DataFrame
    refused: pd.DataFrame
    notes: tuple[str, ...] = ()


def refusals(rows: Sequence[tuple[str, str, str]]) -> pd.DataFrame:
    """A table of refused scans: (scan_uid, rule, reason)."""
    return pd.DataFrame(rows, columns=REFUSED, dtype=object)


def first_few(names: Iterable[str]) -> str:
    """The first five of some names in a fixed order, with dots where there are more."""
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (" ..." if len(ordered) > 5 else "")


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV or TSV file as text; unknown values (n/a, NaN) become the empty string.

    The index counts rows below the header as they stand in the file; blank lines are left out. Where the first rows
    hold another separator than the file's name promises, alike and more often, it is taken: comma, semicolon or tab.

    Raises:
        InputError: The file is missing, empty, not UTF-8, or has rows of unequal length or columns of one name.
    """
    try:
        raw = pd.read_csv(
            path,
            sep=_separator(path),
            dtype=str,
            header=None,
            keep_default_na=False,
            encoding="utf-8-sig",
            skipinitialspace=True,
            skip_blank_lines=False,
        )
    except FileNotFoundError:
        raise InputError(f"The table {path} does not exist: check the manifest's path.") from None
    except pd.errors.EmptyDataError:
        raise InputError(f"The table {path} is empty: it needs a header row and a row for each scan.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"The table {path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error
    except (pd.errors.ParserError, OSError) as error:
        raise InputError(f"The table {path} cannot be read ({' '.join(str(error).split())}): mend it.") from error
    names = [str(name).strip() for name in raw.iloc[0]]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"The table {path} has the column {twice[0]!r} twice: rename one of them.")
    table = raw.iloc[1:].reset_index(drop=True)
    table.columns = pd.Index(names)
    table = table[table.notna().any(axis=1) & (table.fillna("") != "").any(axis=1)]
    for name in names:
        values = table[name].fillna("").str.strip()
        table[name] = values.where(~values.str.lower().isin(UNKNOWN), "")
    return table


def _separator(path: Path) -> str:
    """What separates the columns of a file: what its name promises, or what its first two rows hold more often."""
    rows = pd.read_csv(
        path,
        sep="\x1f",  # in no table: lines come as one piece
        nrows=2,
        dtype=str,
        header=None,
        keep_default_na=False,
        encoding="utf-8-sig",
        quoting=csv.QUOTE_NONE,
    )
    expected = "\t" if path.suffix.lower() in (".tsv", ".txt") else ","
    header, *others = [re.sub(r'"[^"]*"', "", str(row)) for row in rows.iloc[:, 0]]
    alike = [mark for mark in SEPARATORS if all(header.count(mark) == row.count(mark) for row in others)]
    return max((expected, *alike), key=lambda mark: header.count(mark) if mark in alike else 0)


def pick_columns(table: pd.DataFrame, columns: Mapping[str, str], path: Path) -> pd.DataFrame:
    """Give the table's own columns their standard names.

    Args:
        table: As `read_table` gives it.
        columns: Standard name to the table's own name.
        path: Named in errors.

    Raises:
        InputError: A standard name or a column that does not exist.
    """
    for standard, own in columns.items():
        if standard not in STANDARD + OPTIONAL:
            known = ", ".join(STANDARD + OPTIONAL)
            raise InputError(f"The manifest's columns for {path.name} name {standard!r}: the names are {known}.")
        if own not in table.columns:
            raise InputError(f"{path} has no column {own!r}: its columns are {', '.join(table.columns)}.")
    taken = table.rename(columns={name: f"{name} (as given)" for name in columns if name in table.columns})
    for standard, own in columns.items():
        taken[standard] = table[own]
    return taken


def tidy(table: pd.DataFrame) -> pd.DataFrame:
    """Complete the standard columns: sex as M, F or empty, age in years as a number, order as in `STANDARD`."""
    table = table.copy()
    if "sex" not in table:
        table["sex"] = table.get("gender", "")
    for name in ("session", "site"):
        if name not in table:
            table[name] = ""
    initial = table["sex"].astype(str).str.strip().str.upper().str[:1]
    table["sex"] = initial.where(initial.isin(["M", "F"]), "")
    ages = table["age"].astype(str).str.replace(",", ".") if "age" in table else None
    number = ages.str.extract(r"^0*(\d+(?:\.\d*)?|\.\d+)", expand=False) if ages is not None else None
    table["age"] = pd.to_numeric(number, errors="coerce") if number is not None else float("nan")
    rest = [name for name in table.columns if name not in STANDARD]
    return table[[*STANDARD, *rest]].reset_index(drop=True)


def table_scans(path: Path, root: Path, cohort: str, columns: Mapping[str, str], contrast: str | None) -> Scans:
    """Scans of a table with one row each.

    Args:
        path: The table.
        root: Folder to which its paths are relative.
        cohort: Name that the scans' identifiers start with.
        columns: Standard names to the table's own.
        contrast: Contrast of all scans, where there is no such column.

    Returns:
        The scans; refused are rows without a path, subject or contrast, with a file that is not there, and rows of
        one identifier.

    Raises:
        InputError: A column is missing, or there is no row at all.
    """
    table = pick_columns(read_table(path), columns, path)
    if contrast is not None:
        table["contrast"] = contrast
    for needed in ("path", "subject_id", "contrast"):
        if needed not in table:
            cure = " or give 'contrast: T1w' in the manifest" if needed == "contrast" else ""
            raise InputError(
                f"{path} has no column {needed!r}: name it under 'columns' in the manifest{cure} "
                f"(its columns are {', '.join(table.columns)})."
            )
    if table.empty:
        raise InputError(f"The table {path} has a header and no row: it needs a row for each scan.")
    stems = [text.removesuffix(".gz").removesuffix(".nii").removesuffix(".mgz") for text in table["path"]]
    own = table.get("scan_uid", stems)
    table["scan_uid"] = [f"{cohort}/{uid or stem}" for uid, stem in zip(own, stems)]
    rows_of: dict[str, list[int]] = {}
    for row, uid in zip(table.index, table["scan_uid"]):
        rows_of.setdefault(uid, []).append(row + 2)
    kept, refused = [], []
    for row, uid, text, subject, kind in zip(
        table.index, table["scan_uid"], table["path"], table["subject_id"], table["contrast"]
    ):
        said = _row_problem(root, text, subject, kind)
        if not said and len(rows_of[uid]) > 1:
            rows = " and ".join(map(str, rows_of[uid][:3])) + (" ..." if len(rows_of[uid]) > 3 else "")
            said = ("identifier", f"the scan {uid} stands in rows {rows}: keep one row a scan.")
        kept.append(not said)
        if said:
            refused.append((uid, said[0], f"{path}, row {row + 2}: {said[1]}"))
    table = table[kept]
    table["path"] = [str(root / text) for text in table["path"]]
    return Scans(tidy(table), refusals(refused))


def _row_problem(root: Path, text: str, subject: str, contrast: str) -> tuple[str, str] | None:
    """What is wrong with a row of a table of scans: the rule, and the sentence's end; None where nothing is."""
    for name, value in (("path", text), ("subject_id", subject), ("contrast", contrast)):
        if value == "":
            return "identifier", f"{name} is empty: fill it in or remove the row."
    if not text.startswith("/") and ".." in text and ".." in Path(text).parts:
        return "file", f"{text} leaves the folder {root}: give a path inside it."
    file = root / text
    if file.is_file():
        return None
    if file.is_dir():
        return "file", f"{file} is a folder: name a NIfTI file (DICOM: dcm2niix -z y -o OUT {file})."
    if file.exists():
        return "file", f"{file} is no regular file: name a NIfTI file."
    return "file", f"the file {file} does not exist: mend the path or remove the row."
