"""In how many directions an encoder's features vary."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from brainfm_lib.figures.style import OTHERS, colour, figure_function, legend_below, marker, nothing, panels, title

MOST_GROUPS = 10  # of a factor, that are told apart by colour

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


@figure_function
def explained_variance(explained: Mapping[str, pd.DataFrame]) -> Figure:
    """Share of the variance of pooled features between contrasts, sites and so on, with 95 % intervals over subjects.

    Args:
        explained: Arm -> table with factor, groups, estimate, low, high.
    """
    factors = list(dict.fromkeys(f for table in explained.values() for f in table["factor"]))
    if not factors:
        return nothing("The scans have nothing by which they could be told apart.")
    figure, (axis,) = panels(1, height=1.0 + 0.5 * len(factors))
    for number, (arm, table) in enumerate(explained.items()):
        rows = table.set_index("factor").reindex(factors)
        places = np.arange(len(factors)) + 0.13 * (number - (len(explained) - 1) / 2)
        reach = np.abs(np.stack([rows["estimate"] - rows["low"], rows["high"] - rows["estimate"]]))
        axis.errorbar(
            rows["estimate"], places, xerr=reach, fmt=marker(arm), color=colour(arm), label=title(arm), markersize=5
        )
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(factors)), factors)
    axis.set_ylim(len(factors) - 0.5, -0.5)
    axis.set_xlabel("variance explained (share of 1)")
    axis.grid(visible=False, axis="y")
    legend_below(figure, [axis], columns=3)
    return figure


@figure_function
def latent_maps(maps: Mapping[str, pd.DataFrame], factor: str = "contrast") -> Figure:
    """Held-out scans on the first two principal components of each encoder's pooled features, coloured by a factor.

    Args:
        maps: Arm -> table with component_1, component_2, share_1, share_2 and the factor.
        factor: A column.
    """
    shown = {arm: table for arm, table in maps.items() if factor in table}
    if not shown:
        return nothing(f"The scans have no {factor}.")
    figure, axes = panels(len(shown), columns=5, height=2.3)
    names = sorted({str(name) for table in shown.values() for name in table[factor]})[:MOST_GROUPS]
    for axis, (arm, table) in zip(axes, shown.items()):
        for number, name in enumerate(names):
            rows = table[table[factor].astype(str) == name]
            axis.plot(
                rows["component_1"],
                rows["component_2"],
                "o^sDvPX<>*"[number],
                color=OTHERS[number % len(OTHERS)],
                markersize=2.5,
                alpha=0.7,
                label=name,
                linestyle="none",
            )
        axis.set_title(title(arm), fontsize=9)
        axis.set_xlabel(f"1st ({100 * table['share_1'].iloc[0]:.0f} % of variance)", fontsize=8)
        axis.set_ylabel(f"2nd ({100 * table['share_2'].iloc[0]:.0f} % of variance)", fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
    legend_below(figure, axes)
    return figure


@figure_function
def similarity_matrix(similarity: pd.DataFrame) -> Figure:
    """Debiased CKA of every two encoders' features of the same scans.

    Args:
        similarity: Square, arms as index and columns.
    """
    if similarity.empty:
        return nothing("There is no encoder to show.")
    size = 1.2 + 0.55 * len(similarity)
    figure, (axis,) = panels(1, height=size)
    drawn = axis.imshow(similarity.to_numpy(), vmin=0, vmax=1, cmap="Blues")
    names = [title(str(arm)) for arm in similarity.index]
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.grid(visible=False)
    for i, row in enumerate(similarity.to_numpy()):
        for j, value in enumerate(row):
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black")
    figure.colorbar(drawn, ax=axis, label="CKA (0 to 1)", shrink=0.8)
    return figure
