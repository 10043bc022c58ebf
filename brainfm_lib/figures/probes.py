"""What the features say about disease."""

from collections.abc import Callable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from brainfm_lib.figures.style import (
    WIDTH,
    colour,
    figure_function,
    legend_below,
    marker,
    nothing,
    panels,
    title,
    wrapped,
)


@figure_function
def forest_plot(
    results: pd.DataFrame,
    titles: Mapping[str, str] | None = None,
    *,
    reference: float = 0.5,
    xlabel: str = "AUROC",
    names: Mapping[str, str] | None = None,
) -> Figure:
    """Estimates with their intervals: a panel a task, a row an arm.

    Args:
        results: One row an arm and task: arm, task, estimate, low, high; at most one row a pair.
        titles: Task -> how to name it.
        reference: Where to draw the line: 0.5 is chance for an AUROC, 0 for a difference.
        xlabel: Axis label.
        names: Arm -> row label where it is not the arm's own name.
    """
    if results.empty:
        return nothing("There is no result to show.")
    tasks, arms = list(dict.fromkeys(results["task"])), list(dict.fromkeys(results["arm"]))[::-1]
    columns = min(len(tasks), 5)
    lines = -(-len(tasks) // columns)
    width = WIDTH if columns > 2 else WIDTH * (0.55 if columns == 1 else 0.8)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(width, (1.0 + 0.28 * len(arms)) * lines),
        squeeze=False,
        layout="constrained",
        sharex=True,
        sharey=True,
    )
    for axis in axes.flat[len(tasks) :]:
        axis.set_axis_off()
    for axis, task in zip(axes.flat, tasks):
        axis.axvline(reference, color="black", linewidth=1)
        for _, row in results[results["task"] == task].iterrows():
            place, shade = arms.index(row["arm"]), colour(row["arm"])
            axis.plot([row["low"], row["high"]], [place, place], color=shade, linewidth=1.8)
            axis.plot(row["estimate"], place, marker(row["arm"]), color=shade, markersize=6)
        axis.set_title(wrapped((titles or {}).get(task) or task), fontsize=9)
        axis.grid(visible=False, axis="y")
        axis.xaxis.set_tick_params(labelbottom=True)
    axes[0, 0].set_yticks(range(len(arms)), [(names or {}).get(arm, title(arm)) for arm in arms])
    axes[0, 0].set_ylim(-0.6, len(arms) - 0.4)
    figure.supxlabel(f"{xlabel}, 95 % interval over subjects", fontsize=9)
    return figure


Predictions = Mapping[str, Mapping[str, pd.DataFrame]]  # task -> arm -> held-out scans, as in `probes.ProbeResult`


@figure_function
def roc_curves(predictions: Predictions, titles: Mapping[str, str] | None = None) -> Figure:
    """ROC curves over subjects, a panel a task of two classes, a line an arm; folds are pooled by rank within fold.

    Args:
        predictions: Of two classes.
        titles: Task -> how to name it.
    """
    from sklearn.metrics import roc_curve

    def draw(axis: Axes, arm: str, table: pd.DataFrame) -> None:
        false, true, _ = roc_curve(*_units(table, ranked=True))
        axis.plot(false, true, color=colour(arm), label=title(arm), linewidth=1.3)

    return _squares(predictions, titles, draw, "false positive rate", "true positive rate")


@figure_function
def calibration_curves(
    predictions: Predictions, titles: Mapping[str, str] | None = None, *, bins: int = 8, least: int = 10
) -> Figure:
    """How often the class is there where a probability says so, equally many subjects a point.

    Args:
        predictions, titles: As in `roc_curves`.
        bins: Points a line, at most.
        least: Subjects a point, at least.
    """

    def draw(axis: Axes, arm: str, table: pd.DataFrame) -> None:
        labels, scores = _units(table)
        parts = np.array_split(np.argsort(scores, kind="stable"), max(min(bins, len(scores) // least), 1))
        points = [(scores[part].mean(), labels[part].mean()) for part in parts]
        axis.plot(*zip(*points), marker(arm), linestyle="-", color=colour(arm), label=title(arm), markersize=4)

    return _squares(predictions, titles, draw, "predicted probability", "observed share")


def _squares(
    predictions: Predictions,
    titles: Mapping[str, str] | None,
    draw: Callable[[Axes, str, pd.DataFrame], None],
    xlabel: str,
    ylabel: str,
) -> Figure:
    """Unit squares with their diagonals, a panel a task, one legend."""
    if not any(predictions.values()):
        return nothing("There is no task of two classes to draw.")
    figure, axes = panels(len(predictions), columns=4, height=2.9)
    for axis, (task, arms) in zip(axes, predictions.items()):
        axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
        for arm, table in arms.items():
            draw(axis, arm, table)
        name = wrapped((titles or {}).get(task) or task, 26)
        axis.set(xlabel=xlabel, ylabel=ylabel, title=name, aspect="equal", xlim=(0, 1), ylim=(0, 1))
    legend_below(figure, axes)
    return figure


@figure_function
def few_shot_curves(draws: Mapping[str, Mapping[str, pd.DataFrame]], titles: Mapping[str, str] | None = None) -> Figure:
    """AUROC against the number of labelled subjects a class: mean over draws of subjects, and their middle half.

    Args:
        draws: Task -> arm -> table with shots, draw and auroc.
        titles: Task -> how to name it.
    """
    if not draws:
        return nothing("No few-shot run is there: `brainfm probe --protocol fewshot` makes them.")
    figure, axes = panels(len(draws), columns=3, sharey=True)
    for axis, (task, arms) in zip(axes, draws.items()):
        axis.axhline(0.5, color="black", linewidth=1)
        for arm, table in arms.items():
            of = table.groupby("shots")["auroc"]
            middle, low, high = of.mean(), of.quantile(0.25), of.quantile(0.75)
            axis.fill_between(middle.index, low, high, color=colour(arm), alpha=0.15, linewidth=0)
            axis.plot(
                middle.index, middle, marker(arm), linestyle="-", color=colour(arm), label=title(arm), markersize=4
            )
        shots = sorted({n for table in arms.values() for n in table["shots"]})
        axis.set_xscale("log", base=2)
        axis.set_xticks(shots, [str(n) for n in shots])
        axis.minorticks_off()
        axis.set(
            xlabel="labelled subjects a class", ylabel="AUROC", title=wrapped((titles or {}).get(task) or task, 34)
        )
    legend_below(figure, axes)
    return figure


@figure_function
def learning_curves(table: pd.DataFrame, titles: Mapping[str, str] | None = None) -> Figure:
    """AUROC against the volumes that an encoder had seen in pretraining, with 95 % intervals over test subjects.

    Args:
        table: One row a task, arm and point: task, arm, volumes, estimate, low, high; rows of 0 volumes are controls,
            drawn as lines across.
        titles: Task -> how to name it.
    """
    if table.empty:
        return nothing("No encoder of the middle of a training was judged: there is no curve.")
    figure, axes = panels(table["task"].nunique(), columns=3, sharey=True)
    for axis, (task, rows) in zip(axes, table.groupby("task", sort=False)):
        seen = rows[rows["volumes"] > 0]
        for row, dashes in zip(rows[rows["volumes"] == 0].itertuples(), ("--", "-", ":")):
            axis.axhline(row.estimate, color=colour(row.arm), linestyle=dashes, linewidth=1.2, label=title(row.arm))
        for arm, part in seen.groupby("arm", sort=False):
            axis.fill_between(part["volumes"], part["low"], part["high"], color=colour(arm), alpha=0.12, linewidth=0)
            axis.plot(
                part["volumes"], part["estimate"], marker(arm), linestyle="-", color=colour(arm), label=title(arm),
                markersize=4,
            )  # fmt: skip
        axis.axhline(0.5, color="black", linewidth=0.8, linestyle=(0, (1, 2)), label="chance")
        axis.set_xscale("log")
        points = sorted(seen["volumes"].unique())
        axis.set_xticks(points, [f"{point / 1000:.3g}" for point in points])
        axis.minorticks_off()
        named = wrapped((titles or {}).get(str(task)) or str(task), 34)
        axis.set(xlabel="thousand volumes seen", ylabel="AUROC", title=named)
    legend_below(figure, axes)
    return figure


def _units(table: pd.DataFrame, *, ranked: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Labels and mean scores of class 1 over (subject, label) units, as ranks within a fold where that is asked for."""
    keys = ["subject_id", "label", *(["fold"] if "fold" in table else [])]
    units = table.groupby(keys)["score_1"].mean().reset_index()
    scores = units.groupby("fold")["score_1"].rank(pct=True) if ranked and "fold" in table else units["score_1"]
    return units["label"].to_numpy(), scores.to_numpy()
