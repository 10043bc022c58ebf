"""In how many directions an encoder's features vary."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from brainfm_lib.figures.style import colour, figure_function, legend_below, marker, nothing, panels, title

RANK_MEASURES = {
    "rankme_centred": "RankMe, centred (directions)",
    "participation_ratio": "participation ratio (directions)",
    "alpha_req": "α-ReQ (exponent)",
}


@figure_function
def eigenspectra(spectra: Mapping[str, pd.DataFrame]) -> Figure:
    """Eigenvalues of the features' covariance in falling order, each as a share of the total: a panel a level.

    Args:
        spectra: Arm -> table with level, rank (from 1), eigenvalue.
    """
    if not spectra:
        return nothing("There is no encoder to show.")
    levels = list(dict.fromkeys(level for table in spectra.values() for level in table["level"]))
    figure, axes = panels(len(levels), height=2.8, sharey=True)
    for axis, level in zip(axes, levels):
        for arm, table in spectra.items():
            rows = table[table["level"] == level]
            share = rows["eigenvalue"] / rows["eigenvalue"].sum()
            kept = share > 1e-8
            axis.plot(rows["rank"][kept], share[kept], color=colour(arm), label=title(arm))
        axis.set(xscale="log", yscale="log", title=level, xlabel="rank of the direction")
    axes[0].set_ylabel("share of the variance (of 1)")
    legend_below(figure, axes)
    return figure


@figure_function
def rank_measures(measures: Mapping[str, pd.DataFrame], names: Mapping[str, str] = RANK_MEASURES) -> Figure:
    """Rank measures at each level, one panel a measure.

    Args:
        measures: Arm -> table with level, n and the measures.
        names: Column of a measure -> how the axis names it, unit included.
    """
    if not measures:
        return nothing("There is no encoder to show.")
    levels = list(dict.fromkeys(level for table in measures.values() for level in table["level"]))
    figure, axes = panels(len(names), height=0.9 + 0.55 * len(levels), sharey=True)
    for axis, (name, text) in zip(axes, names.items()):
        for number, (arm, table) in enumerate(measures.items()):
            rows = table.set_index("level")[name].reindex(levels)
            places = [i + 0.12 * (number - (len(measures) - 1) / 2) for i in range(len(levels))]
            axis.plot(rows, places, marker(arm), color=colour(arm), label=title(arm), markersize=6)
        axis.set_xlabel(text)
        axis.grid(visible=False, axis="y")
    axes[0].set_yticks(range(len(levels)), levels)
    axes[0].set_ylim(len(levels) - 0.5, -0.5)
    legend_below(figure, axes)
    return figure
