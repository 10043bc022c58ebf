"""Where the signal of a task lies, and what an objective gains along the dials."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from brainfm_lib.figures.style import (
    OTHERS,
    colour,
    figure_function,
    legend_below,
    marker,
    nothing,
    panels,
    title,
    wrapped,
)

CHANCE = 0.5
LEGEND_DIRECTIONS = {"weights": "weights of the reading", "pattern": "pattern that the score stands for"}
LEGEND_BANDS = {"low": "what lies below the cut-off", "high": "what lies above"}


@figure_function
def cutoff_curves(
    curves: Mapping[str, pd.DataFrame],
    structure: pd.DataFrame,
    titles: Mapping[str, str] | None = None,
    truths: Mapping[str, float] | None = None,
) -> Figure:
    """AUROC of a linear reading of band-limited scans against the cut-off: a panel a task.

    Args:
        curves: Task -> table with band (low, high), cutoff (cycles/mm), estimate, low, high.
        structure: task, reliance, reliance_low and reliance_high, from `brainfm_lib.study.structure.structure_rows`.
        titles: Task -> its name.
        truths: Task -> frequency (cycles/mm) below which half of its known signal's power lies.
    """
    if not curves:
        return nothing("No task has been looked into.")
    figure, axes = panels(len(curves), height=2.7, sharey=True)
    for axis, (task, table) in zip(axes, curves.items()):
        for band, shade in zip(LEGEND_BANDS, (OTHERS[3], OTHERS[4]), strict=True):
            rows = table[table["band"] == band]
            axis.fill_between(rows["cutoff"], rows["low"], rows["high"], color=shade, alpha=0.18, linewidth=0)
            axis.plot(
                rows["cutoff"],
                rows["estimate"],
                color=shade,
                linestyle="-" if band == "low" else "--",
                label=LEGEND_BANDS[band],
            )
        axis.axhline(CHANCE, color="black", linewidth=0.8)
        if task in (truths or {}):
            axis.axvline((truths or {})[task], color="#666666", linewidth=0.9, linestyle=":", label="half of the truth")
        one = structure.set_index("task").loc[task]
        said = f"{one['reliance']:.2f} [{one['reliance_low']:.2f}, {one['reliance_high']:.2f}]"
        said = "not told" if np.isnan(one["reliance"]) else said
        axis.set_title(f"{wrapped((titles or {}).get(task, task), 34)}\nreliance {said}", fontsize=8.5)
        axis.set_xlabel("cut-off (cycles/mm)")
    for axis in axes[:: min(3, len(axes))]:
        axis.set_ylabel("AUROC (0 to 1)")
    legend_below(figure, axes)
    return figure


@figure_function
def direction_spectra(directions: Mapping[str, pd.DataFrame], titles: Mapping[str, str] | None = None) -> Figure:
    """Where in frequency a linear reading of whole scans looks, and where that lies which it reads: a panel a task.

    Args:
        directions: Task -> table with low, high (edges of a band, cycles/mm), weights, pattern (shares of 1).
        titles: Task -> its name.
    """
    if not directions:
        return nothing("No task has been looked into.")
    figure, axes = panels(len(directions), height=2.4, sharey=True)
    for axis, (task, table) in zip(axes, directions.items()):
        edges = [*table["low"], table["high"].iloc[-1]]
        for (name, said), shade in zip(LEGEND_DIRECTIONS.items(), (OTHERS[4], OTHERS[3]), strict=True):
            axis.stairs(table[name], edges, color=shade, label=said, linewidth=1.6)
        axis.set_title(wrapped((titles or {}).get(task, task), 34), fontsize=8.5)
        axis.set_xlabel("frequency (cycles/mm)")
    for axis in axes[:: min(3, len(axes))]:
        axis.set_ylabel("power (share of 1)")
    legend_below(figure, axes)
    return figure


@figure_function
def component_curves(
    curves: Mapping[str, Mapping[str, pd.DataFrame]], titles: Mapping[str, str] | None = None
) -> Figure:
    """AUROC of a linear reading of the first principal components of features against their number: a panel a task.

    Args:
        curves: Task -> arm -> table with components, estimate, low, high.
        titles: Task -> its name.
    """
    if not curves:
        return nothing("No task has been looked into.")
    figure, axes = panels(len(curves), height=2.7, sharey=True)
    for axis, (task, arms) in zip(axes, curves.items()):
        for arm, table in arms.items():
            axis.fill_between(
                table["components"], table["low"], table["high"], color=colour(arm), alpha=0.10, linewidth=0
            )
            axis.plot(
                table["components"],
                table["estimate"],
                marker(arm),
                linestyle="-",
                color=colour(arm),
                label=title(arm),
                markersize=3.5,
            )
        axis.axhline(CHANCE, color="black", linewidth=0.8)
        axis.set(xscale="log", xlabel="principal components read")
        axis.set_title(wrapped((titles or {}).get(task, task), 34), fontsize=8.5)
    for axis in axes[:: min(3, len(axes))]:
        axis.set_ylabel("AUROC (0 to 1)")
    legend_below(figure, axes)
    return figure


@figure_function
def gains_along_dials(gains: pd.DataFrame, slopes: pd.DataFrame, units: Mapping[str, str]) -> Figure:
    """Gain of the arms with an auxiliary objective along each dial: a dot a seed, the mean, and the fitted line.

    Args:
        gains: From `brainfm_lib.study.causal.gain_table`.
        slopes: From `brainfm_lib.study.causal.slope_table`.
        units: Dial -> unit of its values.
    """
    if gains.empty:
        return nothing("No seed has been run to the end.")
    dials = list(dict.fromkeys(gains["dial"]))
    figure, axes = panels(len(dials), columns=2, height=3.0, sharey=True)
    for axis, dial in zip(axes, dials):
        for number, (arm, rows) in enumerate(gains[gains["dial"] == dial].groupby("arm", sort=False)):
            shade, name = colour(str(arm)), f"{title(str(arm))} − {title(rows['baseline'].iloc[0])}"
            shift = 0.012 * (number - 0.5)
            axis.plot(rows["position"] + shift, rows["gain"], ".", color=shade, alpha=0.35, markersize=4)
            mean = rows.groupby("position")["gain"].mean()
            axis.plot(mean.index + shift, mean, marker(str(arm)), color=shade, markersize=5, label=name)
            slope, start = np.polyfit(rows["position"], rows["gain"], 1)
            chosen = slopes[(slopes["dial"] == dial) & (slopes["arm"] == arm)]
            thick = len(chosen) and bool(chosen["primary"].iloc[0])
            axis.plot([0, 1], [start, start + slope], color=shade, linewidth=2.0 if thick else 1.0)
        _dial(axis, dial, units[dial], gains, level=0)
    axes[0].set_ylabel("gain in d′ (of a probe's on the latents)")
    legend_below(figure, axes)
    return figure


@figure_function
def dial_levels(levels: pd.DataFrame, units: Mapping[str, str]) -> Figure:
    """AUROC of every row along each dial, with the ideal observer: equal detectability is not equal difficulty.

    Args:
        levels: dial, position, value, arm, auroc (mean over seeds), ideal.
        units: Dial -> unit of its values.
    """
    if levels.empty:
        return nothing("No setting has been probed.")
    dials = list(dict.fromkeys(levels["dial"]))
    figure, axes = panels(len(dials), columns=2, height=3.0, sharey=True)
    for axis, dial in zip(axes, dials):
        part = levels[levels["dial"] == dial]
        ideal = part.drop_duplicates("position")
        axis.plot(ideal["position"], ideal["ideal"], color="black", linestyle=":", label="ideal observer")
        for arm, rows in part.groupby("arm", sort=False):
            name = "the latents, same subjects" if arm == "oracle" else title(str(arm))
            axis.plot(
                rows["position"],
                rows["auroc"],
                marker(str(arm)),
                linestyle="-",
                color=colour(str(arm)),
                label=name,
                markersize=4,
            )
        _dial(axis, dial, units[dial], levels, level=CHANCE)
    axes[0].set_ylabel("AUROC (0 to 1)")
    legend_below(figure, axes)
    return figure


@figure_function
def measured_dials(measured: pd.DataFrame, units: Mapping[str, str]) -> Figure:
    """What is measured of the settings' structure against what the dial is set to.

    Args:
        measured: dial, value, estimate, low, high: the high-frequency reliance along one dial, the discriminative
            dimension along the other.
        units: Dial -> unit of its values.
    """
    if measured.empty:
        return nothing("No setting has been looked into.")
    dials = list(dict.fromkeys(measured["dial"]))
    figure, axes = panels(len(dials), columns=2, height=2.8)
    names = {"frequency": "high-frequency reliance (0 to 1)", "dimension": "discriminative dimension (directions)"}
    for axis, dial in zip(axes, dials):
        rows = measured[measured["dial"] == dial]
        axis.vlines(rows["value"], rows["low"], rows["high"], color=OTHERS[3])
        axis.plot(rows["value"], rows["estimate"], "o", color=OTHERS[3], markersize=4)
        if dial == "dimension":
            axis.set(xscale="log", yscale="log")
            axis.set_xticks(rows["value"], [f"{v:g}" for v in rows["value"]])
            places = [n for n in (1, 2, 5, 10, 20, 50, 100) if rows["low"].min() <= n <= rows["high"].max()]
            axis.set_yticks(places, map(str, places))
            axis.minorticks_off()
        axis.set(title=f"dial: {dial}", xlabel=f"{dial} set ({units[dial]})", ylabel=names[dial])
    return figure


def _dial(axis: Axes, dial: str, unit: str, table: pd.DataFrame, *, level: float) -> None:
    """Ticks at the settings of a dial, its name and unit, and a line at `level`."""
    ticks = table[table["dial"] == dial].drop_duplicates("position")
    axis.set_xticks(ticks["position"], [f"{v:g}" for v in ticks["value"]])
    axis.axhline(level, color="black", linewidth=0.8)
    axis.set(title=f"dial: {dial}", xlabel=f"{dial} ({unit})")
