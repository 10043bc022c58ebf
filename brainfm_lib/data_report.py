"""One HTML page about data: what was found, what was refused and why, and how the scans look.

Nothing is loaded from elsewhere. The page shows file names and pictures of scans, so it belongs where the data are.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from brainfm_lib.data.prepare import Finding, Prepared
from brainfm_lib.data.store import Volumes
from brainfm_lib.identity import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 6  # scans a contrast
LONGEST = 16  # characters of a scan's name above its picture
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;font-size:13px;margin:.5rem 0 1.5rem}"
    "td,th{border-bottom:1px solid #ddd;padding:.25rem .7rem .25rem 0;text-align:left;vertical-align:top}"
    "h2{margin-top:2.5rem}img{max-width:100%}"
)


def write_check_report(path: Path, findings: Sequence[Finding]) -> None:
    """Write what `check` found: one row a finding."""
    rows = [(f.level, f.where, f.rule, f.sentence) for f in findings]
    table = pd.DataFrame(rows, columns=["level", "where", "rule", "what"])
    refused = table[table["rule"] != ""]
    parts = ["<h2>Findings</h2>", _table(table[table["rule"] == ""].drop(columns="rule"))]
    if len(refused):
        parts += [
            "<h2>Scans that cannot be used</h2>",
            _by_rule(refused["rule"]),
            _table(refused.drop(columns="level")),
        ]
    _write(path, "What the manifest offers", parts)


def write_prepare_report(path: Path, prepared: Sequence[Prepared], audit: pd.DataFrame) -> None:
    """Write what `prepare` made: for each cohort counts, refused scans, pictures and histograms.

    Args:
        path: HTML file.
        prepared: Cohorts.
        audit: From `audit.duplicates`.
    """
    parts = ["<h2>Cohorts</h2>", _table(summary(prepared))]
    parts.append("<h2>Scans that are there twice</h2>")
    parts.append(_table(audit) if len(audit) else "<p>None: no two scans are nearly the same.</p>")
    for one in prepared:
        volumes = one.volumes
        parts.append(f"<h2>{html.escape(volumes.cohort.name)}</h2>")
        if len(volumes.refused):
            parts += ["<h3>Refused</h3>", _by_rule(volumes.refused["rule"]), _table(volumes.refused)]
        for contrast in sorted(volumes.scans["contrast"].unique()):
            chosen = np.flatnonzero(volumes.scans["contrast"] == contrast)
            chosen = chosen[np.linspace(0, len(chosen) - 1, min(SHOWN, len(chosen))).round().astype(int)]
            parts.append(f"<h3>{html.escape(contrast)}, {len(chosen)} scans spread over the cohort</h3>")
            parts += [_picture(figure) for figure in _figures(volumes, chosen)]
    _write(path, "Prepared scans", parts)


def summary(prepared: Sequence[Prepared]) -> pd.DataFrame:
    """One row a cohort: subjects, scans ready, refused by rule, seconds."""
    rows = []
    for one in prepared:
        rules = ", ".join(f"{count} {rule}" for rule, count in one.volumes.refused["rule"].value_counts().items())
        rows.append(
            {
                "cohort": one.volumes.cohort.name,
                "subjects": one.volumes.scans["subject_id"].nunique(),
                "scans": one.named,
                "ready": len(one.volumes),
                "refused": rules or "none",
                "seconds": round(one.seconds, 1),
            }
        )
    return pd.DataFrame(rows)


def _figures(volumes: Volumes, rows: np.ndarray) -> list[Figure]:
    from brainfm_lib.figures import cohort_montage, intensity_histogram

    read = volumes.read(rows)
    names = [str(uid).partition("/")[2] for uid in volumes.scans["scan_uid"].iloc[rows]]
    titles = [name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}" for name in names]
    return [cohort_montage(read, titles, volumes.geometry), intensity_histogram(read, titles)]


def _picture(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _by_rule(rules: pd.Series) -> str:
    counts = rules.value_counts().rename_axis("rule").reset_index(name="scans")
    return _table(counts)


def _table(table: pd.DataFrame) -> str:
    return str(table.to_html(index=False, border=0, escape=True, float_format=lambda value: f"{value:.4g}"))


def _write(path: Path, heading: str, parts: Sequence[str]) -> None:
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{heading}</title><style>{STYLE}</style>'
        f"<h1>{heading}</h1>" + "\n".join(parts) + "</html>\n"
    )
    with write_atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
