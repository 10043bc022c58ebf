"""Detail: how much of it is predicted, and how much of that is right."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from brainfm_lib.figures.style import TARGET, colour, figure_function, legend_below, nothing, panels, title

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
