"""Detail: how much of it is predicted, and how much of that is right."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from brainfm_lib.data.geometry import Geometry
from brainfm_lib.figures.brains import draw_slice, place_of
from brainfm_lib.figures.style import TARGET, colour, figure_function, legend_below, marker, nothing, panels, title

PLAIN = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5}  # keeps text readable over curves


@figure_function
def radial_spectra(
    spectra: Mapping[str, pd.DataFrame], *, of: str = "prediction", marks: Mapping[str, float] | None = None
) -> Figure:
    """Radial power of target and prediction, their ratio, and their signed coherence.

    Args:
        spectra: Arm -> table with frequency (cycles/mm), power_target, power_<of>, coherence_<of>, noise_floor.
        of: ``prediction`` (every voxel predicted while hidden) or ``mosaic`` (true voxels where visible).
        marks: Text -> frequency (cycles/mm) at which to draw a vertical line.
    """
    if not spectra:
        return nothing("No arm that is shown here predicts voxels.")
    figure, axes = panels(3, height=3.0)
    power, ratio, coherence = axes
    first = next(iter(spectra.values()))
    power.plot(first["frequency"], first["power_target"], color=TARGET, label="target")
    ratio.axhline(1, color=TARGET)
    coherence.fill_between(
        first["frequency"],
        -first["noise_floor"],
        first["noise_floor"],
        color="#D9D9D9",
        linewidth=0,
        label="noise floor",
    )
    coherence.axhline(0, color="black", linewidth=0.8)
    for arm, table in spectra.items():
        line: dict[str, Any] = {"color": colour(arm), "label": title(arm)}
        power.plot(table["frequency"], table[f"power_{of}"], **line)
        ratio.plot(table["frequency"], table[f"power_{of}"] / table["power_target"], **line)
        coherence.plot(table["frequency"], table[f"coherence_{of}"], **line)
    power.set(yscale="log", title="power", ylabel="power (z-score² mm³)")
    ratio.set(yscale="log", title=f"power of {of} ÷ target", ylabel="ratio")
    coherence.set(
        title="coherence with the target",
        ylabel="signed coherence (−1 to 1)",
        ylim=(min(-0.15, *coherence.get_ylim()), 1.02),
    )
    for axis in axes:
        axis.set_xlabel("frequency (cycles/mm)")
        low, high = axis.get_ylim()
        for name, place in (marks or {}).items():
            axis.axvline(place, color="#666666", linewidth=0.9, linestyle=":")
            if axis is power:
                axis.text(
                    place,
                    low,
                    f" {name}",
                    fontsize=7,
                    color="#444444",
                    rotation=90,
                    va="bottom",
                    ha="right",
                    bbox=PLAIN,
                )
        axis.set_ylim(low, high)
    legend_below(figure, axes)
    return figure


@figure_function
def phase_errors(spectra: Mapping[str, pd.DataFrame], *, of: str = "prediction") -> Figure:
    """Mean phase difference from the target at each frequency; a right angle is what unrelated volumes have.

    Args:
        spectra: Arm -> table with frequency (cycles/mm), phase_error_<of> (radians).
        of: As in `radial_spectra`.
    """
    if not spectra:
        return nothing("No arm that is shown here predicts voxels.")
    figure, (axis,) = panels(1, height=2.8)
    axis.axhline(90, color="#666666", linewidth=0.9, linestyle=":", label="unrelated")
    for arm, table in spectra.items():
        axis.plot(table["frequency"], np.degrees(table[f"phase_error_{of}"]), color=colour(arm), label=title(arm))
    axis.set(xlabel="frequency (cycles/mm)", ylabel="phase error (degrees)", ylim=(0, 100))
    legend_below(figure, [axis], columns=3)
    return figure


@figure_function
def errors_by_place(places: Mapping[str, pd.DataFrame]) -> Figure:
    """Squared error of predictions against the distance to the patch's face, and by brightness.

    Args:
        places: Arm -> table with split (border, brightness), place, order, model and baseline (squared errors).
    """
    if not places:
        return nothing("No arm that is shown here predicts voxels.")
    figure, (border, bright) = panels(2, columns=2, height=2.8)
    for axis, split in ((border, "border"), (bright, "brightness")):
        for number, (arm, table) in enumerate(places.items()):
            rows = table[table["split"] == split]
            shift = 0.0 if split == "border" else 0.08 * (number - (len(places) - 1) / 2)
            line = "-" if split == "border" else "none"
            axis.plot(
                rows["order"] + shift, rows["model"], marker(arm), linestyle=line, color=colour(arm), label=title(arm)
            )
        rows = next(iter(places.values()))
        rows = rows[rows["split"] == split]
        axis.plot(rows["order"], rows["baseline"], "_", color=TARGET, markersize=16, label="position mean")
        axis.set_xticks(rows["order"], rows["place"])
        axis.set_ylim(bottom=0)
    border.set(xlabel="distance to the patch's nearest face (voxels)", ylabel="squared error (z-score²)")
    bright.set(xlabel="brightness within the scan's brain (thirds)")
    legend_below(figure, [border, bright])
    return figure


@figure_function
def slice_spectra(slices: Mapping[str, np.ndarray], spacing: float) -> Figure:
    """Mean log-spectrum of the central axial slice of the target and of each arm's prediction, on one scale.

    Args:
        slices: Arm -> (3, D, H) log10 power of target, prediction and mosaic, zero frequency in the middle.
        spacing: Voxel size, mm.
    """
    if not slices:
        return nothing("No arm that is shown here predicts voxels.")
    shown = {"target": next(iter(slices.values()))[0], **{arm: array[1] for arm, array in slices.items()}}
    figure, axes = panels(len(shown), columns=5, height=2.2, sharex=True, sharey=True)
    top = float(shown["target"].max())
    reach = 1 / (2 * spacing)
    for axis, (arm, image) in zip(axes, shown.items()):
        drawn = axis.imshow(
            image.T, origin="lower", cmap="gray", vmin=top - 6, vmax=top, extent=(-reach, reach, -reach, reach)
        )
        axis.set_title(title(arm), fontsize=9)
        axis.set_xlabel("right–left\n(cycles/mm)")
        axis.grid(visible=False)
    axes[0].set_ylabel("front–back (cycles/mm)")
    figure.colorbar(drawn, ax=axes, label="log₁₀ power", shrink=0.8)
    return figure


@figure_function
def coherence_progress(progress: Mapping[str, pd.DataFrame]) -> Figure:
    """Coherence of predictions with the target after ever more training: a panel an arm, a shade a model.

    Args:
        progress: Arm -> table with volumes (seen so far), frequency (cycles/mm), coherence.
    """
    if not progress:
        return nothing("No arm that is shown here predicts voxels.")
    figure, axes = panels(len(progress), columns=4, height=2.5, sharey=True)
    for axis, (arm, table) in zip(axes, progress.items()):
        stages = sorted(table["volumes"].unique())
        for number, volumes in enumerate(stages):
            rows = table[table["volumes"] == volumes]
            shade = plt.get_cmap("viridis_r")(0.1 + 0.9 * number / max(len(stages) - 1, 1))
            axis.plot(rows["frequency"], rows["coherence"], color=shade, label=f"{volumes:,} volumes")
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_title(title(arm), fontsize=9)
        axis.set_xlabel("frequency (cycles/mm)")
    axes[0].set_ylabel("signed coherence (−1 to 1)")
    legend_below(figure, axes)
    return figure


@figure_function
def loss_view(above: Mapping[str, np.ndarray], geometry: Geometry, value: float, heading: str) -> Figure:
    """What the spectral loss compares: the detail of a scan and of its filled-in form, and how their magnitudes differ.

    Args:
        above: "target" and an arm -> (D, H, W), z-scored, what lies above the loss's cut-off.
        geometry: Of the volumes.
        value: The loss.
        heading: Mode and cut-off of the loss.
    """
    if not above:
        return nothing("No arm that is shown here predicts voxels.")
    figure, axes = panels(3, height=2.9)
    (name, target), (arm, filled) = above.items()
    reach = max(float(np.quantile(np.abs(target), 0.995)), 1e-6)
    for axis, part, words in ((axes[0], target, title(name)), (axes[1], filled, f"{title(arm)}, gaps filled in")):
        first = axis is axes[0]
        draw_slice(axis, part, "axial", geometry, letters=first, scale_bar=first, vmin=-reach, vmax=reach)
        axis.set_title(f"{words}\naxial, {place_of('axial', geometry)}", fontsize=9)
    one, other = (np.log1p(np.abs(np.fft.fftn(part))) for part in (filled, target))
    difference = np.fft.fftshift(one - other)[:, :, target.shape[2] // 2]
    nyquist = 1 / (2 * geometry.spacing)
    scale = max(float(np.quantile(np.abs(difference), 0.99)), 1e-6)
    drawn = axes[2].imshow(
        difference.T, origin="lower", cmap="RdBu_r", vmin=-scale, vmax=scale, extent=(-nyquist, nyquist) * 2
    )
    axes[2].set(xlabel="right–left (cycles/mm)", ylabel="front–back (cycles/mm)")
    axes[2].set_title(f"log-magnitude, filled in − target\nloss {value:.3g} ({heading})", fontsize=9)
    axes[2].grid(visible=False)
    figure.colorbar(drawn, ax=axes[2], shrink=0.8, label="difference")
    return figure
