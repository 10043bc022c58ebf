"""Slices of volumes, with orientation letters and a scale in millimetres.

Volumes are (D, H, W) on RAS+ axes: right, anterior, superior. All slices are drawn in the neurological convention: the
subject's left is on the left of the page.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from brainfm_lib.data.geometry import Geometry
from brainfm_lib.figures.style import WIDTH, figure_function, title

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
LETTERS = {"axial": "LRPA", "coronal": "LRIS", "sagittal": "PAIS"}  # left, right, bottom and top of the picture
AXES = "xyz"
HIDDEN = "#8FB8D8"
SCALE_BAR = 50.0  # mm


@figure_function
def cohort_montage(volumes: NDArray[np.floating], titles: Sequence[str], geometry: Geometry) -> Figure:
    """One scan a column, the three planes through the middle of the grid as rows.

    Args:
        volumes: (n, D, H, W) in [0, 1], background 0.
        titles: n names.
        geometry: Of the volumes.
    """
    count = max(len(volumes), 1)
    size = min(WIDTH / count, 2.2)
    figure, axes = plt.subplots(
        3,
        count,
        figsize=(size * count, size * 3.1),
        squeeze=False,
        layout="constrained",
        gridspec_kw={"wspace": 0.02, "hspace": 0.02},
    )
    for column, (volume, name) in enumerate(zip(volumes, titles)):
        for row, plane in enumerate(PLANES):
            draw_slice(axes[row, column], volume, plane, geometry, letters=True, scale_bar=column == 0, vmin=0, vmax=1)
        axes[0, column].set_title(name, loc="center")
    for row, plane in enumerate(PLANES):
        axes[row, 0].set_ylabel(f"{plane}, {place_of(plane, geometry)}")
    return figure


@figure_function
def reconstruction_panel(
    examples: Mapping[str, NDArray[np.floating]],
    geometry: Geometry,
    heading: str = "",
    plane: str = "axial",
    index: int | None = None,
) -> Figure:
    """What each arm makes of one and the same scan: input, visible part, prediction, difference.

    Args:
        examples: Arm -> (4, D, H, W), z-scored: target, visible part (NaN where hidden), visible voxels with the
            predicted ones in the gaps, and that minus the target.
        geometry: Of the volumes.
        heading: What scan this is.
        plane: ``axial``, ``coronal`` or ``sagittal``.
        index: Of the slice; default the middle one.
    """
    rows = max(len(examples), 1)
    figure, axes = plt.subplots(
        rows,
        4,
        figsize=(WIDTH * 0.85, 1.0 + 1.75 * rows),
        squeeze=False,
        layout="constrained",
        gridspec_kw={"wspace": 0.02, "hspace": 0.02},
    )
    difference: AxesImage | None = None
    for row, (arm, pictures) in enumerate(examples.items()):
        target, visible, filled, error = np.asarray(pictures, dtype=np.float32)
        low, high = float(target.min()), float(np.quantile(target, 0.998))
        for axis, volume in zip(axes[row], (target, visible, filled)):
            draw_slice(
                axis,
                volume,
                plane,
                geometry,
                letters=row == 0 and axis is axes[0, 0],
                scale_bar=False,
                vmin=low,
                vmax=high,
                index=index,
            )
        last: dict[str, Any] = {"vmin": -2, "vmax": 2, "cmap": "RdBu_r", "index": index}
        difference = draw_slice(axes[row, 3], error, plane, geometry, letters=False, scale_bar=row == 0, **last)
        axes[row, 0].set_ylabel(title(arm))
    for axis, name in zip(axes[0], ("input", "what the encoder sees", "prediction in the gaps", "prediction − input")):
        axis.set_title(name, loc="center")
    if difference is not None:
        bar = figure.colorbar(difference, ax=axes[:, 3], shrink=min(1.0, 1.6 / rows), pad=0.03)
        bar.set_label("difference (z-score)")
        bar.ax.grid(visible=False)
    figure.suptitle(
        f"{heading} · {plane}, {place_of(plane, geometry, index)}".removeprefix(" · "), fontsize=9.5, x=0.01, ha="left"
    )
    return figure


@figure_function
def masked_scan(
    volume: NDArray[np.floating], visible: NDArray[np.integer], patch_size: int, geometry: Geometry, heading: str = ""
) -> Figure:
    """A scan in three planes, and below it what an encoder sees of it.

    Args:
        volume: (D, H, W) in [0, 1].
        visible: (V,) positions of the tokens that are seen, in C order.
        patch_size: P.
        geometry: Of the volume.
        heading: What scan and what mask.
    """
    grid = tuple(n // patch_size for n in volume.shape)
    seen = np.zeros(grid, bool)
    seen.ravel()[visible] = True
    whole = seen.repeat(patch_size, 0).repeat(patch_size, 1).repeat(patch_size, 2)
    parts = {"the scan": volume, "what is seen": np.where(whole, volume, np.nan)}
    figure, axes = plt.subplots(2, 3, figsize=(WIDTH * 0.62, WIDTH * 0.45), layout="constrained")
    for row, (name, part) in enumerate(parts.items()):
        for column, plane in enumerate(PLANES):
            first = row == 0
            draw_slice(
                axes[row, column], part, plane, geometry, letters=first, scale_bar=first and not column, vmin=0, vmax=1
            )
            if first:
                axes[row, column].set_title(f"{plane}, {place_of(plane, geometry)}", loc="center")
        axes[row, 0].set_ylabel(name)
    said = f"{heading}: {len(visible):,} of {seen.size:,} tokens seen ({len(visible) / seen.size:.1%})"
    figure.suptitle(said.removeprefix(": "), fontsize=9.5, x=0.01, ha="left")
    return figure


@figure_function
def component_view(
    volumes: NDArray[np.floating],
    given: NDArray[np.floating],
    patch_size: int,
    titles: Sequence[str],
    geometry: Geometry,
    heading: str = "",
) -> Figure:
    """Scans, and over them what each patch gives to a scan's place on one direction of feature space.

    Args:
        volumes: (n, D, H, W) in [0, 1].
        given: (n, N) by token; the mean over tokens is a scan's score.
        patch_size: P.
        titles: n names.
        geometry: Of the volumes.
        heading: What encoder and direction.
    """
    count = len(volumes)
    figure, axes = plt.subplots(2, count, figsize=(WIDTH * 0.8, 4.6), squeeze=False, layout="constrained")
    grid = tuple(n // patch_size for n in volumes.shape[1:])
    reach = float(np.quantile(np.abs(given), 0.99)) or 1.0
    drawn: AxesImage | None = None
    for column, (volume, name) in enumerate(zip(volumes, titles)):
        for row, plane in enumerate(("axial", "coronal")):
            axis = axes[row, column]
            one: dict[str, Any] = {"letters": column == 0, "scale_bar": column == 0 and row == 0}
            draw_slice(axis, volume, plane, geometry, **one, vmin=0, vmax=1)
            patches = given[column].reshape(grid)
            for number in range(3):
                patches = patches.repeat(patch_size, number)
            over: dict[str, Any] = {
                "letters": False,
                "scale_bar": False,
                "vmin": -reach,
                "vmax": reach,
                "cmap": "RdBu_r",
            }
            drawn = draw_slice(axis, patches, plane, geometry, **over)
            drawn.set_alpha(0.45)
        axes[0, column].set_title(name, loc="center", fontsize=8.5)
    for row, plane in enumerate(("axial", "coronal")):
        axes[row, 0].set_ylabel(f"{plane}, {place_of(plane, geometry)}")
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=axes, shrink=0.7)
        bar.set_label("what a patch gives to the score")
        bar.ax.grid(visible=False)
    figure.suptitle(heading, fontsize=9.5, x=0.01, ha="left")
    return figure


def reconstruction_panels(
    examples: Mapping[str, NDArray[np.floating]], names: Sequence[str], geometry: Geometry
) -> list[Figure]:
    """One `reconstruction_panel` a scan, each in another plane.

    Args:
        examples: Arm -> (k, 4, D, H, W), the same k scans under the same masks for every arm.
        names: k names, or more.
        geometry: Of the volumes.
    """
    count = min((len(pictures) for pictures in examples.values()), default=0)
    planes = list(PLANES)
    return [
        reconstruction_panel({arm: p[i] for arm, p in examples.items()}, geometry, names[i], planes[i % len(planes)])
        for i in range(count)
    ]


def draw_slice(
    axis: Axes,
    volume: NDArray[np.floating],
    plane: str,
    geometry: Geometry,
    *,
    letters: bool,
    scale_bar: bool,
    vmin: float,
    vmax: float,
    cmap: str = "gray",
    index: int | None = None,
) -> AxesImage:
    """Draw a slice (default: the middle one) in mm; right or anterior is to the right, superior or anterior up."""
    number = PLANES[plane]
    last = volume.shape[number] - 1
    picture = np.take(volume, volume.shape[number] // 2 if index is None else min(index, last), axis=number).T
    colours = plt.get_cmap(cmap).with_extremes(bad=HIDDEN)
    half = [n / 2 * geometry.spacing for n in np.delete(volume.shape, number)]
    box = (-half[0], half[0], -half[1], half[1])
    image = axis.imshow(
        picture, origin="lower", extent=box, cmap=colours, vmin=vmin, vmax=vmax, interpolation="nearest"
    )
    axis.grid(visible=False)
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)
    ink = "white" if cmap == "gray" else "black"
    if letters:
        spots = ((0.03, 0.5), (0.97, 0.5), (0.5, 0.03), (0.5, 0.97))
        alignments = (("left", "center"), ("right", "center"), ("center", "bottom"), ("center", "top"))
        for letter, (x, y), (ha, va) in zip(LETTERS[plane], spots, alignments):
            axis.text(x, y, letter, color=ink, fontsize=7, ha=ha, va=va, transform=axis.transAxes)
    if scale_bar:
        y = -half[1] * 0.93
        start = -half[0] * 0.93
        axis.plot([start, start + SCALE_BAR], [y, y], color=ink, linewidth=2, solid_capstyle="butt")
        axis.text(start, y + 0.04 * half[1], f"{SCALE_BAR:.0f} mm", color=ink, fontsize=7, ha="left", va="bottom")
    return image


def place_of(plane: str, geometry: Geometry, index: int | None = None) -> str:
    """Where a slice (default: the middle one) of a plane lies, in mm."""
    number = PLANES[plane]
    index = geometry.grid[number] // 2 if index is None else min(index, geometry.grid[number] - 1)
    return f"{AXES[number]} = {geometry.affine[number, number] * index + geometry.affine[number, 3]:+.0f} mm"
