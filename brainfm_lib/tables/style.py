"""How a table of the report looks."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from brainfm_lib.identity import stable_hash
from brainfm_lib.words import cell

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

    from brainfm_lib.study import Study


def show(table: pd.DataFrame, caption: str = "", *, digits: int = 3) -> Styler:
    """The table without its index, numbers rounded, under a caption; the same HTML for the same content.

    Text in it is text: of tags none but a few of our own, see `words.cell`, lay out anything.
    """
    table, caption = table.map(cell).rename(columns=cell), str(cell(caption))
    style = table.style.hide(axis="index").format(precision=digits, na_rep="–", thousands=",")
    style = style.set_uuid(stable_hash([caption, list(map(str, table.columns))], 8))
    left = [name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]
    style = style.set_properties(subset=left, **{"text-align": "left"})
    styles = [{"selector": "caption", "props": "caption-side: top; text-align: left; padding-bottom: 0.4em"}]
    styles.append({"selector": "th", "props": "text-align: left"})
    if table.empty:
        caption = "Nothing of this was made for this report."
        styles.append({"selector": "caption", "props": "white-space: nowrap"})
        style = style.hide(axis="columns")
    return style.set_caption(caption).set_table_styles(styles)


def task_titles(study: Study) -> dict[str, str]:
    """Task -> its title; simulated ones say so, and those of one title their names."""
    cohorts = study.manifest.cohorts
    tasks = {name: study.manifest.tasks[name] for name in study.tasks}
    titles = {name: task.title or name for name, task in tasks.items()}
    of = Counter(titles.values())
    return {
        name: f"{title}{f', {name}' * (of[title] > 1)}{' (phantom)' * (cohorts[tasks[name].cohort].kind == 'phantom')}"
        for name, title in titles.items()
    }


def percent(share: float) -> str:
    """Per cent of an efficiency; an AUROC of 1 or 0 has no finite one."""
    return f"{round(100 * share)}" if np.isfinite(share) else "> 100" if share > 0 else "< 0"


def p_text(value: float) -> str:
    """A p-value as it stands in a cell."""
    if pd.isna(value):
        return "p –"
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
