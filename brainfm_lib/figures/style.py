"""One visual language: a colour and a marker for each arm, units on every axis, figures that show once."""

from collections.abc import Callable, Iterable
from functools import wraps
from textwrap import fill
from typing import Any, ParamSpec, cast

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from brainfm_lib.figures.about import describe
from brainfm_lib.words import Words

P = ParamSpec("P")

# Okabe and Ito's colours: a family has a hue, its regularised form is the lighter one; controls are grey.
COLOURS = {
    "label-shuffle": "#CCCCCC",
    "nuisance": "#B3B3B3",
    "random-init": "#7F7F7F",
    "cnn": "#404040",
    "raw-voxels": "#999999",
    "mae": "#0072B2",
    "sl-mae": "#56B4E9",
    "jepa": "#D55E00",
    "vcr-jepa": "#E69F00",
    "lejepa": "#009E73",
}
MARKERS = {
    "label-shuffle": "v",
    "nuisance": "P",
    "random-init": "s",
    "cnn": "*",
    "raw-voxels": "X",
    "mae": "o",
    "sl-mae": "D",
    "jepa": "o",
    "vcr-jepa": "D",
    "lejepa": "^",
}
TITLES = {
    "label-shuffle": "labels shuffled",
    "nuisance": "covariates alone",
    "random-init": "untrained",
    "cnn": "supervised CNN",
    "raw-voxels": "raw voxels",
    "mae": "MAE",
    "sl-mae": "SL-MAE",
    "jepa": "JEPA",
    "vcr-jepa": "VCR-JEPA",
    "lejepa": "LeJEPA",
}
TARGET = "#000000"
OTHERS = ("#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00", "#56B4E9")
SETTINGS: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "figure.dpi": 120,
    "figure.facecolor": "white",
    "font.size": 9,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
WIDTH = 9.0  # inches, of a full-width figure


_stamp = ""


def stamp(text: str) -> None:
    """Write `text` across the top of every figure from now on; empty text stops that."""
    global _stamp
    _stamp = text


def stamped() -> str:
    """What stands across the top of every figure; see `stamp`."""
    return _stamp


def figure_function(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the house style and close the figure, so that a notebook shows it once: as the value of the cell.

    Beside its picture the figure tells what it shows and the numbers behind it, see `figures.about`. Where there is
    nothing to draw, a sentence takes its place.
    """

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with plt.rc_context(SETTINGS):
            figure = draw(*args, **kwargs)
            if _stamp:
                said = "\n".join(filter(None, [fill(_stamp, round(12 * figure.get_figwidth())), figure.get_suptitle()]))
                figure.suptitle(said, color="#B00000", fontsize=8.5, fontweight="bold")
            describe(figure, draw, args, kwargs)
        plt.close(figure)
        reason = str(figure.get_label() or "")
        return cast("Figure", Words(reason)) if reason else figure

    return drawn


def colour(arm: str) -> str:
    """Colour of an arm, the same in every figure."""
    return COLOURS.get(arm, "#000000")


def marker(arm: str) -> str:
    """Marker of an arm, for those who do not see the colour."""
    return MARKERS.get(arm, "^")


def title(arm: str) -> str:
    """Name of an arm as the report writes it."""
    return TITLES.get(arm, arm)


def wrapped(text: str, width: int = 22) -> str:
    """Text on several lines, so that it fits beside an axis."""
    return fill(text, width)


def panels(count: int, *, columns: int = 3, height: float = 2.6, **more: Any) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels in rows of at most `columns`, full width; one panel alone is narrower."""
    columns = max(min(columns, count), 1)
    rows = max(-(-count // columns), 1)
    width = WIDTH if columns > 1 else WIDTH * 0.6
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, height * rows), squeeze=False, layout="constrained", **more
    )
    flat = list(axes.flat)
    for axis in flat[count:]:
        axis.set_axis_off()
    return figure, flat[: max(count, 1)]


def nothing(text: str) -> Figure:
    """What a figure function returns that has nothing to draw: the reason why."""
    return plt.figure(label=text)


def legend_below(figure: Figure, axes: Iterable[Axes], *, columns: int = 6) -> None:
    """One legend for all panels, under them."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(
            list(handles.values()), list(handles), loc="outside lower center", ncols=min(columns, len(handles))
        )
