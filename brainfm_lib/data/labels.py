"""Labels that stand in a table of their own: by subject, or by the visit that lies nearest to the scan."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator

from brainfm_lib.data.tables import STANDARD, first_few, read_table
from brainfm_lib.errors import InputError

DAY_NUMBER = re.compile(r"(?:ses-)?[dDmM]?(\d{1,6})")
DISTANCE = "visit_days"
FIXED = frozenset(STANDARD) - {"site", "age", "sex"} | {"digest", DISTANCE}


class LabelTable(BaseModel):
    """A table of labels beside a cohort.

    Attributes:
        table: CSV or TSV, relative to the cohort's root.
        subject: Its column with the subject.
        columns: Name that a column gets among the scans -> its name in the table.
        match: How subjects are compared: "exact" (a leading ``sub-`` aside), or "number" by their last number alone
            (IXI002 is 2).
        date: Its column with the visit's date (2011-07-23, or a number of days: 129, d0129). None: one row a subject.
        scan_date: Column of the scans with their date, written in the same way.
        window_days: A visit further from the scan than this is not taken; scans without one have no label.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    table: str
    subject: str
    columns: dict[str, str] = Field(min_length=1)
    match: Literal["exact", "number"] = "exact"
    date: str | None = None
    scan_date: str = "date"
    window_days: int = Field(180, ge=0)

    @model_validator(mode="after")
    def _free_names(self) -> LabelTable:
        taken = sorted(FIXED & set(self.columns))
        if taken:
            raise ValueError(f"columns name {taken[0]!r}, which comes from the scans themselves: choose another name")
        return self


def add_labels(scans: pd.DataFrame, settings: LabelTable, path: Path) -> pd.DataFrame:
    """Join a table of labels to the scans.

    Args:
        scans: With subject_id, and the column `settings.scan_date` where visits have dates.
        settings: How to join.
        path: The table.

    Returns:
        The scans with the new columns (text, empty where nothing matches) and ``visit_days``: days between scan and
        visit (0 for a table without dates), NaN where nothing matches.

    Raises:
        InputError: A column is missing, a date cannot be read, a subject (on one date) has two rows, or subjects that
            are compared by number share one.
    """
    table = read_table(path)
    wanted = [settings.subject, *settings.columns.values(), *([settings.date] if settings.date else [])]
    for name in wanted:
        if name not in table:
            raise InputError(f"{path} has no column {name!r}: its columns are {', '.join(table.columns)}.")
    keys = _keys(table[settings.subject], settings.match, str(path))
    table = table.assign(_key=keys)[keys != ""]
    own = _keys(scans["subject_id"], settings.match, f"The scans that {path} is joined to")
    if settings.date is None:
        again = table.index[table["_key"].duplicated()]
        if len(again):
            raise InputError(
                f"{path}, row {again[0] + 2}: subject {table[settings.subject][again[0]]} has a row already: keep one, "
                "or name the visits' column under 'date'."
            )
        place = pd.Series(np.arange(len(table)), index=table["_key"]).reindex(own).to_numpy()
        distance = np.where(np.isnan(place), np.nan, 0.0)
    else:
        place, distance = _nearest(scans, own, table, settings, path)
    matched = ~np.isnan(place)
    rows = np.where(matched, place, 0).astype(int)
    joined = scans.copy()
    for name, column in settings.columns.items():
        values = table[column].to_numpy(dtype=object)[rows] if len(table) else np.full(len(scans), "", object)
        joined[name] = np.where(matched, values, "")
    joined[DISTANCE] = distance
    return joined


def unmatched_note(scans: pd.DataFrame, settings: LabelTable, path: Path) -> str:
    """A sentence that lists the scans without a row in the table of labels; empty where all have one."""
    lost = scans["scan_uid"][scans[DISTANCE].isna()]
    if lost.empty:
        return ""
    within = f" within {settings.window_days} days" if settings.date else ""
    return f"{len(lost)} of {len(scans)} scans have no row{within} in {path.name} and so no label: {first_few(lost)}."


def _nearest(
    scans: pd.DataFrame, own: pd.Series, table: pd.DataFrame, settings: LabelTable, path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """For each scan the row of the nearest visit within the window and its distance in days, NaN where there is none.

    Of two visits at equal distance the earlier is taken.
    """
    assert settings.date is not None
    if settings.scan_date not in scans:
        raise InputError(
            f"{path} gives dates of visits, but the scans have no column {settings.scan_date!r}: name theirs under "
            f"'scan_date' (they have {', '.join(scans.columns)})."
        )
    visit_days, visit_kind = _days(table[settings.date], str(path))
    scan_days, scan_kind = _days(scans[settings.scan_date], "The table of the scans")
    if visit_kind and scan_kind and visit_kind != scan_kind:
        raise InputError(
            f"{path}: visits are dated by {visit_kind} and scans by {scan_kind}: give both in the same way."
        )
    visits = pd.DataFrame({"key": table["_key"].to_numpy(), "day": visit_days, "row": np.arange(len(table))})
    visits = visits.dropna().sort_values(["day", "row"], kind="stable")
    twice = visits.duplicated(["key", "day"])
    if twice.any():
        at = table.index[int(visits["row"][twice].iloc[0])]
        raise InputError(
            f"{path}, row {at + 2}: subject {table[settings.subject][at]} has a row for {table[settings.date][at]} "
            "already: keep one of them."
        )
    asked = pd.DataFrame({"key": own.to_numpy(), "day": scan_days, "scan": np.arange(len(scans))})
    asked = asked.dropna().sort_values(["day", "scan"], kind="stable")
    place, distance = np.full(len(scans), np.nan), np.full(len(scans), np.nan)
    # pandas prefers a visit after the scan to one before it at the same distance; we take the earlier
    found = [
        pd.merge_asof(asked, visits.assign(at=visits["day"]), on="day", by="key", direction=direction)
        for direction in ("backward", "forward")
    ]
    gaps = [(f["at"] - f["day"]).abs().to_numpy() for f in found]
    before = np.nan_to_num(gaps[0], nan=np.inf) <= np.nan_to_num(gaps[1], nan=np.inf)
    gap, row = np.where(before, gaps[0], gaps[1]), np.where(before, found[0]["row"], found[1]["row"])
    near = gap <= settings.window_days
    place[asked["scan"]] = np.where(near, row, np.nan)
    distance[asked["scan"]] = np.where(near, gap, np.nan)
    return place, distance


def _keys(subjects: pd.Series, match: str, source: str) -> pd.Series:
    """What subjects are compared by; InputError where it is a number that two of them share (021 and 21 are one)."""
    text = subjects.astype(str).str.strip().str.removeprefix("sub-")
    if match == "exact":
        return text
    text = text.str.replace(r"0*(\d+\D*)$", r"\1", regex=True)
    numbers = text.str.extract(r"(\d+)\D*$", expand=False).fillna("")
    people = pd.DataFrame({"number": numbers, "text": text, "given": subjects})[numbers != ""]
    people = people.drop_duplicates(["number", "text"])
    shared = people[people["number"].duplicated(keep=False)]
    if len(shared):
        number = shared["number"].iloc[0]
        one, other, *_ = shared["given"][shared["number"] == number]
        raise InputError(
            f"{source}: the subjects {one!r} and {other!r} share the number {number}, so 'match: number' would mix up "
            "their labels: write 'match: exact' to compare whole identifiers, or give each subject its own number."
        )
    return numbers


def _days(values: pd.Series, source: str) -> tuple[np.ndarray, str]:
    """Days as float64 (NaN where empty), and how they are given: "day numbers", "dates", or "" where all are empty."""
    text = values.astype(str).str.strip()
    given = text != ""
    if not given.any():
        return np.full(len(text), np.nan), ""
    if text[given].str.fullmatch(DAY_NUMBER.pattern).all():
        return pd.to_numeric(text.str.extract(rf"^{DAY_NUMBER.pattern}$", expand=False)).to_numpy(float), "day numbers"
    read = pd.to_datetime(text.where(given), format="ISO8601", errors="coerce")
    bad = text.index[given & read.isna()]
    if len(bad):
        raise InputError(
            f"{source}: the date {text[bad[0]]!r} of column {values.name!r} cannot be read: write it as 2011-07-23, or "
            "as a number of days."
        )
    days = (read - pd.Timestamp(0)) / pd.Timedelta(days=1)
    return days.to_numpy(dtype=float), "dates"
