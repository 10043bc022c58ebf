"""How well hidden voxels and hidden latents are predicted, with intervals over subjects."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from brainfm_lib.figures.style import WIDTH, colour, figure_function, marker, nothing, panels, plt, title

PREDICTORS = {"position_mean": "position mean", "interpolation": "position mean + interpolation"}


@figure_function
def error_intervals(errors: pd.DataFrame) -> Figure:
    """Error on hidden brain voxels: of each arm and of the trivial predictors, and the paired differences.

    Args:
        errors: From `brainfm_lib.findings.comparison.error_table`: arm, baseline (empty for the error itself),
            estimate, low, high. Mean squared errors in z-scored units.
    """
    if errors.empty:
        return nothing("No arm that is shown here predicts hidden voxels.")
    own = errors[errors["baseline"] == ""]
    figure, axes = plt.subplots(
        1, 2, figsize=(WIDTH, 1.1 + 0.36 * len(own)), layout="constrained", gridspec_kw={"width_ratios": [1, 1.25]}
    )
    own = own.iloc[::-1].reset_index(drop=True)
    for place, row in own.iterrows():
        _interval(axes[0], place, row, filled=True)
    axes[0].set_yticks(range(len(own)), [_name(row) for _, row in own.iterrows()])
    axes[0].set(xlabel="mean squared error\non hidden brain voxels (z-score²)", title="error")
    axes[0].set_xlim(left=0)
    arms = [arm for arm in own["arm"] if arm not in PREDICTORS]
    for place, arm in enumerate(arms):
        for shift, baseline in zip((0.13, -0.13), PREDICTORS):
            for _, row in errors[(errors["arm"] == arm) & (errors["baseline"] == baseline)].iterrows():
                _interval(axes[1], place + shift, row, filled=baseline == "interpolation")
    axes[1].axvline(0, color="black", linewidth=1)
    axes[1].set_yticks(range(len(arms)), [title(arm) for arm in arms])
    axes[1].set(xlabel="arm − predictor, same scans (z-score²)\n← arm better", title="paired difference")
    axes[1].set_ylim(-0.6, len(arms) - 0.4)
    for baseline, text in PREDICTORS.items():
        face = "black" if baseline == "interpolation" else "white"
        axes[1].plot([], [], "o", color="black", markerfacecolor=face, label=f"against {text}")
    figure.legend(loc="outside lower right", ncols=2)
    for axis in axes:
        axis.grid(visible=False, axis="y")
    return figure


@figure_function
def explained_latents(explained: pd.DataFrame) -> Figure:
    """Share of the hidden latents' variation that is predicted beyond their mean at that position.

    Args:
        explained: From `brainfm_lib.findings.comparison.explained_table`: arm, estimate, low, high (shares of 1).
    """
    if explained.empty:
        return nothing("No arm that is shown here predicts latents.")
    figure, (axis,) = panels(1, height=0.9 + 0.35 * len(explained))
    rows = explained.iloc[::-1].reset_index(drop=True)
    for place, row in rows.iterrows():
        _interval(axis, place, row, filled=True)
    axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(range(len(rows)), [title(arm) for arm in rows["arm"]])
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("explained share of hidden latents, 1 − error ÷ error of the position mean")
    return figure


def _interval(axis: Axes, place: float, row: pd.Series, *, filled: bool) -> None:
    shade = colour(row["arm"])
    axis.plot([row["low"], row["high"]], [place, place], color=shade, linewidth=1.8)
    axis.plot(
        row["estimate"],
        place,
        marker(row["arm"]),
        color=shade,
        markersize=6,
        markerfacecolor=shade if filled else "white",
    )


def _name(row: pd.Series) -> str:
    name = PREDICTORS.get(row["arm"], title(row["arm"]))
    return f"{name} (linear read-out)" if row.get("readout") else name
