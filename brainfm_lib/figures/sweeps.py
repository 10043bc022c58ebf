"""What parameters do: main effects, pairs of them, and what quality costs."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from brainfm_lib.figures.style import OTHERS, figure_function, nothing, panels


@figure_function
def main_effects(effects: pd.DataFrame) -> Figure:
    """Mean AUROC at each level of each parameter, with 95 % intervals over test subjects: a panel a parameter.

    Args:
        effects: From `brainfm_lib.sweep.effects.main_effects`.
    """
    if effects.empty:
        return nothing("No parameter of this sweep differs between its cells.")
    names = list(dict.fromkeys(effects["parameter"]))
    figure, axes = panels(len(names), height=2.6, sharey=True)
    for axis, name in zip(axes, names):
        rows = effects[effects["parameter"] == name]
        axis.vlines(rows["order"], rows["low"], rows["high"], color=OTHERS[3])
        axis.plot(rows["order"], rows["estimate"], "o-", color=OTHERS[3], markersize=4)
        axis.set_xticks(rows["order"], rows["level"], rotation=0 if rows["level"].str.len().max() < 8 else 20)
        axis.set_xlabel(name.removeprefix("overrides."))
    for axis in axes[:: min(3, len(axes))]:
        axis.set_ylabel("mean AUROC (0 to 1)")
    return figure


@figure_function
def interactions(tables: Mapping[tuple[str, str], pd.DataFrame]) -> Figure:
    """Mean AUROC at each pair of levels: a panel a pair of parameters.

    Args:
        tables: (first, second) -> table with the first's levels down and the second's across.
    """
    if not tables:
        return nothing("Fewer than two parameters of this sweep differ between its cells.")
    figure, axes = panels(len(tables), columns=2, height=2.8)
    values = np.concatenate([table.to_numpy(float).ravel() for table in tables.values()])
    low, high = np.nanmin(values), np.nanmax(values)
    for axis, ((first, second), table) in zip(axes, tables.items()):
        drawn = axis.imshow(table.to_numpy(float), vmin=low, vmax=high, cmap="viridis", aspect="auto")
        axis.set_xticks(range(table.shape[1]), table.columns)
        axis.set_yticks(range(table.shape[0]), table.index)
        axis.set(xlabel=second.removeprefix("overrides."), ylabel=first.removeprefix("overrides."))
        axis.grid(visible=False)
        for i, row in enumerate(table.to_numpy(float)):
            for j, value in enumerate(row):
                light = value > (low + high) / 2
                axis.text(
                    j, i, f"{value:.3f}", ha="center", va="center", color="black" if light else "white", fontsize=8
                )
    figure.colorbar(drawn, ax=axes, label="mean AUROC (0 to 1)", shrink=0.8)
    return figure


@figure_function
def cost_against_quality(cells: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Each cell's mean AUROC on test subjects against the seconds its pretraining took.

    Args:
        cells: From `brainfm_lib.sweep.effects.cell_table`.
        names: Parameters that are varied; the first one colours the dots.
    """
    shown = cells.dropna(subset=["train_seconds"])
    if shown.empty:
        return nothing("No cell of this sweep pretrained an encoder.")
    figure, (axis,) = panels(1, height=2.8)
    levels = list(dict.fromkeys(shown[names[0]].map(str))) if names else [""]
    for number, level in enumerate(levels):
        rows = shown[shown[names[0]].map(str) == level] if names else shown
        axis.plot(
            rows["train_seconds"],
            rows["auroc"],
            "o^sDvPX<>*"[number % 10],
            color=OTHERS[number % len(OTHERS)],
            label=level,
            markersize=5,
            linestyle="none",
        )
    axis.set(xlabel="pretraining (seconds)", ylabel="mean AUROC (0 to 1)")
    axis.legend(title=names[0].removeprefix("overrides.") if names else None, fontsize=7)
    return figure
