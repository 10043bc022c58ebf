"""How pretraining went."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from brainfm_lib.figures.style import colour, figure_function, legend_below, marker, nothing, panels, title

TERMS = {
    "reconstruction": "reconstruction loss\n(½ z-score²)",
    "prediction": "prediction loss\n(mean |Δ latent|)",
    "spectral": "spectral loss\n(Δ log magnitude)²",
    "variance": "variance loss\n(latent units)",
    "covariance": "covariance loss\n(latent units²)",
    "invariance": "invariance loss\n(mean (Δ view)² / 4)",
    "sigreg": "SIGReg\n(Epps–Pulley statistic)",
    "gradient_ratio": "spectral ÷ reconstruction\ngradient norm (ratio)",
}
UNTRAINED = "No arm that is shown here was trained."


@figure_function
def loss_curves(metrics: Mapping[str, pd.DataFrame]) -> Figure:
    """Each term of each arm's loss on the training volumes.

    Args:
        metrics: Arm -> table with the columns volumes and the terms; terms an arm does not have are absent or NaN.
    """
    shown = [name for name in TERMS if any(name in m and m[name].notna().any() for m in metrics.values())]
    if not shown:
        return nothing(UNTRAINED)
    figure, axes = panels(len(shown), height=2.3)
    for axis, name in zip(axes, shown):
        for arm, table in metrics.items():
            if name in table and table[name].notna().any():
                axis.plot(table["volumes"], table[name], color=colour(arm), label=title(arm), linewidth=1.2)
        axis.set(xlabel="volumes seen", ylabel=TERMS[name])
        if name == "gradient_ratio":
            axis.set_yscale("log")
    legend_below(figure, axes)
    return figure


@figure_function
def heldout_curves(metrics: Mapping[str, pd.DataFrame]) -> Figure:
    """The main term on subjects that no arm is trained on; arms with the same term share a panel.

    Args:
        metrics: Arm -> table with the columns volumes, heldout and reconstruction, prediction or invariance.
    """
    families = {
        "reconstruction": "held-out reconstruction loss\n(½ z-score²)",
        "prediction": "held-out prediction loss\n(mean |Δ latent|)",
        "invariance": "held-out invariance loss\n(mean (Δ view)² / 4)",
    }
    shown = [f for f in families if any(f in m and "heldout" in m for m in metrics.values())]
    if not shown:
        return nothing(UNTRAINED)
    figure, axes = panels(len(shown), columns=2, height=2.7)
    for axis, family in zip(axes, shown):
        for arm, table in metrics.items():
            if family in table and "heldout" in table and table[family].notna().any():
                rows = table.dropna(subset=["heldout"])
                axis.plot(
                    rows["volumes"],
                    rows["heldout"],
                    color=colour(arm),
                    marker=marker(arm),
                    markersize=4,
                    label=title(arm),
                )
        axis.set(xlabel="volumes seen", ylabel=families[family])
    legend_below(figure, axes)
    return figure
