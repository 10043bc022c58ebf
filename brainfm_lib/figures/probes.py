"""What the features say about disease."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from brainfm_lib.figures.style import WIDTH, colour, figure_function, marker, nothing, title


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
        axis.set_title(_wrapped((titles or {}).get(task) or task), fontsize=9)
        axis.grid(visible=False, axis="y")
        axis.xaxis.set_tick_params(labelbottom=True)
    axes[0, 0].set_yticks(range(len(arms)), [(names or {}).get(arm, title(arm)) for arm in arms])
    axes[0, 0].set_ylim(-0.6, len(arms) - 0.4)
    figure.supxlabel(f"{xlabel}, 95 % interval over subjects", fontsize=9)
    return figure


def _wrapped(text: str, width: int = 22) -> str:
    lines: list[str] = [""]
    for word in text.split():
        lines[-1:] = [f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < width else [lines[-1], word]
    return "\n".join(line for line in lines if line)
