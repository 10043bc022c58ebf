"""Where the signal of tasks lies, and what came out of the causal test."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from brainfm_lib.figures.style import title


def structure_table(rows: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """High-frequency reliance and discriminative dimension of tasks, with 95 % intervals.

    Args:
        rows: From `brainfm_lib.study.structure.structure_rows`.
        titles: Task -> its name.
    """
    return pd.DataFrame(
        {
            "task": [titles.get(task, task) for task in rows["task"]],
            "AUROC of whole images": [_interval(r, "auroc") for _, r in rows.iterrows()],
            "high-frequency reliance": [_interval(r, "reliance") for _, r in rows.iterrows()],
            "discriminative dimension": [_interval(r, "dimension", digits=1) for _, r in rows.iterrows()],
        }
    )


def seams_table(seams: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Power on the lattice of the patches over power beside it: the mean over held-out scans, an arm a row.

    Args:
        seams: Arm -> table with target, prediction and mosaic, a row a scan.
    """
    rows = [{"arm": title(arm), **table.mean().to_dict()} for arm, table in seams.items()]
    return pd.DataFrame(rows, columns=["arm", "target", "prediction", "mosaic"])


def dimension_table(dimensions: Mapping[str, Mapping[str, pd.DataFrame]], titles: Mapping[str, str]) -> pd.DataFrame:
    """Arms down, tasks across: discriminative dimension of pooled features, and its 95 % interval.

    Args:
        dimensions: Task -> arm -> table with one row: estimate, low, high.
        titles: Task -> its name.
    """
    columns: dict[str, dict[str, str]] = {}
    for task, arms in dimensions.items():
        for arm, table in arms.items():
            r = table.iloc[0]
            said = "not told" if pd.isna(r["estimate"]) else f"{r['estimate']:.1f}"
            cell = "–" if pd.isna(r["low"]) else f"{said}<br><small>[{r['low']:.1f}, {r['high']:.1f}]</small>"
            columns.setdefault(titles.get(task, task), {})[title(arm)] = cell
    return pd.DataFrame(columns).rename_axis("arm").reset_index()


def slope_table(slopes: pd.DataFrame) -> pd.DataFrame:
    """The pre-stated analysis of the causal test, a row a dial and pair.

    Args:
        slopes: From `brainfm_lib.study.causal.slope_table`.
    """
    rows = []
    for _, r in slopes.iterrows():
        rows.append(
            {
                "dial": r["dial"],
                "gain of": f"{title(r['arm'])} over {title(r['baseline'])}",
                "role": "primary" if r["primary"] else "crossed control",
                "slope, 95 % over seeds": f"{r['estimate']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}]",
                "95 % over test subjects": f"[{r['low_subjects']:+.3f}, {r['high_subjects']:+.3f}]",
                "adjusted p": f"{r['p_holm']:.3f}" if r["primary"] else "–",
                "would have been seen": "–" if pd.isna(r["detectable"]) else f"{r['detectable']:.3f}",
                "verdict": r["verdict"] or "–",
            }
        )
    return pd.DataFrame(rows)


def _interval(row: pd.Series, name: str, digits: int = 2) -> str:
    if pd.isna(row[f"{name}_low"]):
        return "–"
    said = "not told" if pd.isna(row[name]) else f"{row[name]:.{digits}f}"
    return f"{said} [{row[f'{name}_low']:.{digits}f}, {row[f'{name}_high']:.{digits}f}]"
