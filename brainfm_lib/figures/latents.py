"""In how many directions an encoder's features vary."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from brainfm_lib.figures.style import OTHERS, colour, figure_function, legend_below, marker, nothing, panels, title

MAPPED = ("contrast", "site", "diagnosis")
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
        axis.hlines(places, rows["low"], rows["high"], color=colour(arm))
        axis.plot(rows["estimate"], places, marker(arm), color=colour(arm), label=title(arm), markersize=5)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(factors)), factors)
    axis.set_ylim(len(factors) - 0.5, -0.5)
    axis.set_xlabel("variance explained (share of 1)")
    axis.grid(visible=False, axis="y")
    legend_below(figure, [axis], columns=3)
    return figure


@figure_function
def latent_maps(maps: Mapping[str, pd.DataFrame], factors: Sequence[str] = MAPPED) -> Figure:
    """Held-out scans on the first two principal components of each encoder's pooled features, coloured by a factor.

    Args:
        maps: Arm -> table with component_1, component_2, share_1, share_2, and the factors that are known.
        factors: Columns, a row of panels each; those that tell nothing apart are left out.
    """
    first = next(iter(maps.values()), pd.DataFrame())
    rows = [factor for factor in factors if factor in first and first[factor].nunique() > 1]
    if not rows:
        return nothing("The scans have nothing by which they could be told apart.")
    figure, axes = panels(len(rows) * len(maps), columns=len(maps), height=2.1, sharex="col", sharey="col")
    for place, axis in enumerate(axes):
        factor, (arm, table) = rows[place // len(maps)], list(maps.items())[place % len(maps)]
        values = table[factor].astype(str).replace("", pd.NA).fillna("unknown")
        names = values.value_counts().index[:MOST_GROUPS].sort_values()
        rest = table[~values.isin(names)]
        axis.plot(rest["component_1"], rest["component_2"], ".", color="#D9D9D9", markersize=2)
        for number, name in enumerate(names):
            shown = table[values == name]
            shape, shade = "o^sDvPX<>*"[number], OTHERS[number % len(OTHERS)]
            style: dict[str, Any] = {"color": shade, "markersize": 2.5, "alpha": 0.7, "linestyle": "none"}
            axis.plot(shown["component_1"], shown["component_2"], shape, label=name, **style)
        axis.set(xticks=[], yticks=[])
        if place < len(maps):
            axis.set_title(title(arm), fontsize=9)
        if place % len(maps) == 0:
            axis.set_ylabel(f"{factor}\n2nd component", fontsize=8)
        if place % len(maps) == len(maps) - 1:
            axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=7, markerscale=1.6)
        if place >= len(axes) - len(maps):
            shares = " and ".join(f"{100 * table[f'share_{k}'].iloc[0]:.0f} %" for k in (1, 2))
            axis.set_xlabel(f"1st component\n({shares} of variance)", fontsize=8)
    return figure


@figure_function
def similarity_matrix(similarity: pd.DataFrame) -> Figure:
    """Debiased CKA of every two encoders' features of the same scans.

    Args:
        similarity: Square, arms as index and columns.
    """
    if similarity.empty:
        return nothing("There is no encoder to compare, or fewer than four held-out scans to compare them by.")
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
