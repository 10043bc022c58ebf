"""Figures with a slider: live in Jupyter and, with no kernel, on a page of the book.

plotly.js is not in them: JupyterLab and VS Code bring it, and the book loads the copy that it ships once.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from brainfm_lib.analysis.spectrum import low_pass, radial_power
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.figures import style
from brainfm_lib.figures.brains import LETTERS, PLANES, SCALE_BAR, place_of

STEPS = 12
MOST_SLICES = 32  # of a scan: a page stays light on a fine grid too
CONFIG = {"displayModeBar": False, "responsive": True}


class Interactive:
    """A plotly figure as Jupyter and the book want it; `words` say what it shows to those who do not see it."""

    def __init__(self, figure: go.Figure, words: str) -> None:
        self.figure, self.words = figure, words

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        page = self.figure.to_html(include_plotlyjs=False, full_html=False, config=CONFIG, auto_play=False)
        return {
            "application/vnd.plotly.v1+json": json.loads(self.figure.to_json()) | {"config": CONFIG},
            "text/html": f'<div role="group" aria-label="{escape(self.words)}">{page}</div>',
            "text/plain": self.words,
        }


def cutoff_explorer(
    volumes: Mapping[str, NDArray[np.floating]],
    geometry: Geometry,
    *,
    heading: str = "",
    plane: str = "axial",
    steps: int = STEPS,
) -> Interactive | Figure:
    """One slice of a scan and of its predictions, below and above a cut-off that a slider moves along their spectra.

    Args:
        volumes: "target" or arm -> (D, H, W), z-scored, one and the same scan. Filtering is in three dimensions.
        geometry: Of the volumes.
        heading: What scan this is.
        plane: ``axial``, ``coronal`` or ``sagittal``: its middle slice is shown.
        steps: Positions of the slider, evenly up to the Nyquist frequency.
    """
    if not volumes:
        return style.figure_function(style.nothing)("No arm that is shown here predicts voxels.")
    names = list(volumes)
    stack = np.stack([np.asarray(volumes[name], dtype=np.float32) for name in names])
    frequency, power = radial_power(stack, geometry.spacing)
    cutoffs = np.linspace(0, 1 / (2 * geometry.spacing), steps + 1)[1:]
    parts = [_halves(stack, geometry.spacing, cutoff, plane) for cutoff in cutoffs]
    start = len(cutoffs) // 3
    figure = make_subplots(
        rows=3,
        cols=len(names),
        specs=[[{}] * len(names), [{}] * len(names), [{"colspan": len(names)}, *[None] * (len(names) - 1)]],
        subplot_titles=[style.title(name) for name in names],
        row_heights=[0.32, 0.32, 0.36],
        horizontal_spacing=0.01,
        vertical_spacing=0.03,
    )
    extent = [n / 2 * geometry.spacing for n in np.delete(stack.shape[1:], PLANES[plane])]
    for row in range(2):
        for column in range(len(names)):
            figure.add_trace(_picture(parts[start][row][column], extent), row=row + 1, col=column + 1)
    figure.add_trace(_line(cutoffs[start], power), row=3, col=1)
    for name, values in zip(names, power, strict=True):
        line = {"color": style.colour(name), "dash": "dot" if name == names[0] else "solid"}
        figure.add_trace(go.Scatter(x=frequency, y=values, name=style.title(name), line=line), row=3, col=1)
    moving = list(range(2 * len(names) + 1))
    figure.frames = [
        go.Frame(
            name=f"{cutoff:.3f}",
            traces=moving,
            data=[_picture(picture, extent) for pictures in part for picture in pictures] + [_line(cutoff, power)],
        )
        for cutoff, part in zip(cutoffs, parts, strict=True)
    ]
    _brains(figure, range(1, 3), len(names), extent, plane)
    for text, y in (("below", 0.86), ("above", 0.51)):
        turned = {"textangle": -90, "showarrow": False, "font": {"size": 11}}
        figure.add_annotation(text=text, x=0, y=y, xref="paper", yref="paper", xanchor="right", xshift=-8, **turned)
    last = {"fixedrange": True, "row": 3, "col": 1}
    figure.update_xaxes(title_text="frequency (cycles/mm)", **last)
    figure.update_yaxes(title_text="power (z-score² mm³)", type="log", exponentformat="power", **last)
    _slider(figure, start, "cut-off (cycles/mm): ", f"{heading} · {plane}, {place_of(plane, geometry)}", height=640)
    figure.update_layout(legend={"orientation": "h", "x": 1, "y": 0.32, "xanchor": "right", "yanchor": "top"})
    words = (
        f"Slider over {steps} cut-off frequencies up to {cutoffs[-1]:.3f} cycles/mm. Above: the {plane} slice of "
        f"{', '.join(map(style.title, names))}, below the cut-off and above it. Under them: their radial power spectra."
    )
    return Interactive(figure, words)


def slice_explorer(
    volumes: Mapping[str, NDArray[np.floating]], geometry: Geometry, *, heading: str = "", plane: str = "axial"
) -> Interactive | Figure:
    """A scan and what each arm makes of it, side by side; a slider moves through the slices of a plane.

    Args:
        volumes: "target" or arm -> (D, H, W), one and the same scan, z-scored.
        geometry: Of the volumes.
        heading: What scan this is.
        plane: ``axial``, ``coronal`` or ``sagittal``.
    """
    if not volumes:
        return style.figure_function(style.nothing)("No arm that is shown here predicts voxels.")
    names, number = list(volumes), PLANES[plane]
    stack = np.stack([np.asarray(volumes[name], dtype=np.float32) for name in names])
    low, high = float(stack[0].min()), float(np.quantile(stack[0], 0.998))
    grey = (255 * np.clip((stack - low) / max(high - low, 1e-12), 0, 1)).astype(np.uint8)
    slices = np.moveaxis(grey, 1 + number, 0)
    inside = np.flatnonzero((slices[:, 0] > 0).any((1, 2)))
    first, last = (inside[0], inside[-1]) if len(inside) else (0, len(slices) - 1)
    shown = np.unique(np.linspace(first, last, min(last - first + 1, MOST_SLICES)).round().astype(int)).tolist()
    extent = [n / 2 * geometry.spacing for n in np.delete(stack.shape[1:], number)]
    figure = make_subplots(
        rows=1, cols=len(names), subplot_titles=[style.title(name) for name in names], horizontal_spacing=0.01
    )
    start = len(shown) // 2
    for column in range(len(names)):
        figure.add_trace(_picture(slices[shown[start], column].T, extent), row=1, col=column + 1)
    figure.frames = [
        go.Frame(
            name=place_of(plane, geometry, index).split("= ")[1],
            traces=list(range(len(names))),
            data=[_picture(image.T, extent) for image in slices[index]],
        )
        for index in shown
    ]
    _brains(figure, range(1, 2), len(names), extent, plane)
    _slider(figure, start, f"{plane} slice: {place_of(plane, geometry)[0]} = ", heading, height=300)
    return Interactive(figure, f"Slider through the {plane} slices of {', '.join(map(style.title, names))}: {heading}")


def _halves(stack: NDArray[np.float32], spacing: float, cutoff: float, plane: str) -> list[list[NDArray[np.uint8]]]:
    """Grey levels of what lies below and above the cut-off; the scale is the first volume's, and one for all."""
    below = low_pass(stack, spacing, cutoff)
    number = PLANES[plane]
    low, high = float(stack[0].min()), float(np.quantile(stack[0], 0.998))
    halves = []
    for part, ends in ((below, (low, high)), (stack - below, None)):
        slices = np.take(part, stack.shape[1 + number] // 2, axis=1 + number)
        reach = max(float(np.quantile(np.abs(slices[0]), 0.995)), 1e-6)
        bottom, top = ends or (-reach, reach)
        grey = (255 * np.clip((slices - bottom) / (top - bottom), 0, 1)).astype(np.uint8)
        halves.append([image.T for image in grey])
    return halves


def _picture(image: NDArray[np.uint8], extent: Sequence[float]) -> go.Heatmap:
    y, x = ((np.arange(n) + 0.5) / n * 2 * half - half for n, half in zip(image.shape, extent[::-1], strict=True))
    return go.Heatmap(z=image, x=x, y=y, zmin=0, zmax=255, colorscale="Greys_r", showscale=False, hoverinfo="skip")


def _line(cutoff: float, power: NDArray[np.floating]) -> go.Scatter:
    ends = [float(power.min()), float(power.max())]
    dashed = {"color": "#666666", "dash": "dash", "width": 1.5}
    return go.Scatter(x=[cutoff, cutoff], y=ends, mode="lines", line=dashed, name="cut-off", showlegend=False)


def _brains(figure: go.Figure, rows: Sequence[int], columns: int, extent: Sequence[float], plane: str) -> None:
    """Square voxels without axes; letters in the first picture and a scale bar in the last row's first."""
    for row in rows:
        for column in range(1, columns + 1):
            hidden = {"row": row, "col": column, "visible": False, "fixedrange": True}
            figure.update_xaxes(**hidden, constrain="domain", range=[-extent[0], extent[0]])
            number = (row - 1) * columns + column
            anchor = f"x{number if number > 1 else ''}"
            figure.update_yaxes(**hidden, constrain="domain", range=[-extent[1], extent[1]], scaleanchor=anchor)
    figure.update_annotations(font_size=12)  # so far these are the titles
    white = {"showarrow": False, "font": {"color": "white", "size": 11}, "row": 1, "col": 1}
    spots = ((-0.92, 0), (0.92, 0), (0, -0.92), (0, 0.92))
    for letter, (x, y) in zip(LETTERS[plane], spots, strict=True):
        figure.add_annotation(text=letter, x=x * extent[0], y=y * extent[1], **white)
    left, bottom = -0.93 * extent[0], -0.93 * extent[1]
    bar = {"x0": left, "x1": left + SCALE_BAR, "y0": bottom, "y1": bottom, "line": {"color": "white", "width": 3}}
    figure.add_shape(type="line", **bar, row=rows[-1], col=1)
    middle = {"x": left + SCALE_BAR / 2, "y": bottom * 0.85}
    figure.add_annotation(text=f"{SCALE_BAR:.0f} mm", **middle, **{**white, "row": rows[-1]})


def _slider(figure: go.Figure, start: int, prefix: str, heading: str, *, height: int) -> None:
    """A slider over the figure's frames, its title, and the stamp of all figures."""
    now = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}}
    steps = [{"label": f.name, "method": "animate", "args": [[f.name], now]} for f in figure.frames]
    if style.stamped():
        heading = f"<span style='color:#B00000'><b>{escape(style.stamped())}</b></span><br>{heading}"
    figure.update_layout(
        sliders=[{"active": start, "steps": steps, "pad": {"t": 40}, "currentvalue": {"prefix": prefix}}],
        title={"text": heading, "font": {"size": 12}},
        height=height,
        margin={"l": 60, "r": 10, "t": 70, "b": 10},
        template="plotly_white",
        font={"size": 11},
    )
