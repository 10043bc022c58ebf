"""What encoders predict, down to which detail, and in how many directions their features vary."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from brainfm_lib.figures.style import title
from brainfm_lib.findings.comparison import PREDICTORS
from brainfm_lib.verdict import REGULARISED
from brainfm_lib.words import Words, listed

COLLAPSED = 0.02  # share of the width: fewer directions than this are called a collapse,
SHARE = 0.01  # and so is a smaller share of variance that is not the position's
LEVEL = "tokens, position removed"
UNTOLD = ", which cannot be told from what the position mean explains"
THROUGH = {"position_mean": "the position mean", "interpolation": "the position mean with interpolation"}


def error_note(errors: pd.DataFrame) -> Words:
    """Which arms beat which trivial predictor, by whether the paired interval excludes zero."""
    sentences = []
    for arm in dict.fromkeys(errors.loc[errors["baseline"] != "", "arm"]):
        rows = errors[(errors["arm"] == arm) & (errors["baseline"] != "")].set_index("baseline")
        better = [THROUGH[b] for b in PREDICTORS if rows.loc[b, "high"] < 0]
        worse = [THROUGH[b] for b in PREDICTORS if rows.loc[b, "low"] > 0]
        level = [THROUGH[b] for b in PREDICTORS if not rows.loc[b, "high"] < 0 and not rows.loc[b, "low"] > 0]
        said = [f"beats {listed(better)}"] if better else []
        said += [f"is worse than {listed(worse)}"] if worse else []
        said += [f"cannot be told from {listed(level)}"] if level else []
        name = f"{title(arm)}, through a linear read-out," if rows["readout"].any() else title(arm)
        sentences.append(f"{name} {' and '.join(said)}")
    if not sentences:
        return Words("No arm that is shown here predicts hidden voxels.")
    text = "; ".join(sentences) + ". (A paired 95 % interval over held-out subjects that excludes zero decides.)"
    if not (errors.loc[errors["baseline"] == PREDICTORS[-1], "high"] < 0).any():
        text += (
            f" No arm beats {THROUGH[PREDICTORS[-1]]}: where a probe finds no difference between encoders further on, "
            "they may simply not have been trained for long enough."
        )
    return Words(text)


def explained_note(explained: pd.DataFrame) -> Words:
    """How much of the hidden latents JEPA arms explain."""
    if explained.empty:
        return Words("No arm that is shown here predicts latents.")
    parts = [
        f"{title(r['arm'])} explains {100 * r['estimate']:.0f} % [{100 * r['low']:.0f}, {100 * r['high']:.0f}]"
        + ("" if r["low"] > 0 else ", less than the position mean does" if r["high"] < 0 else UNTOLD)
        for _, r in explained.iterrows()
    ]
    return Words(
        f"Of what varies in hidden latents at a given position, {'; '.join(parts)}. Each is a share of the arm's own "
        "latents: a large share of latents that vary in few directions is worth little, so read it beside their rank."
    )


def resolution_note(table: pd.DataFrame) -> Words:
    """Down to which wavelength predictions are right, and what the spectral loss changed above its cut-off."""
    if table.empty:
        return Words("No arm that is shown here predicts voxels.")
    rows = table.set_index("arm")
    reach = [f"{title(arm)} {_wavelength(half)}" for arm, half in rows["half"].items()]
    text = f"Coherence stays above one half down to wavelengths of: {', '.join(reach)}."
    if rows["power"].isna().all():
        text += " No frequency of these volumes lies above the spectral loss's cut-off."
    elif {"mae", "sl-mae"} <= set(rows.index):
        plain, spectral = rows.loc["mae"], rows.loc["sl-mae"]
        power = "more" if spectral["power"] > plain["power"] else "no more"
        right = "higher" if spectral["coherence"] > plain["coherence"] else "no higher"
        joint = "and" if (power == "more") == (right == "higher") else "but"
        text += (
            f" Above the cut-off SL-MAE predicts {power} power than MAE ({100 * spectral['power']:.1f} % against "
            f"{100 * plain['power']:.1f} % of the target's) {joint} its coherence there is {right} "
            f"({spectral['coherence']:.3f} against {plain['coherence']:.3f})."
        )
    return Words(text)


def collapse_note(measures: Mapping[str, pd.DataFrame]) -> Words:
    """Whether any encoder's features, with positions removed, have collapsed into a few directions."""
    if not measures:
        return Words("No encoder that is shown here has latents to measure.")
    rows = {arm: table.set_index("level").loc[LEVEL] for arm, table in measures.items()}
    collapsed = [
        title(arm)
        for arm, row in rows.items()
        if row["rankme_centred"] < max(COLLAPSED * row["width"], 2) or row["variance_share"] < SHARE
    ]
    said = "; ".join(
        f"{title(arm)} {row['rankme_centred']:.1f} of {row['width']:.0f} ({100 * row['variance_share']:.1f} %)"
        for arm, row in rows.items()
    )
    verdict = f"{listed(collapsed)} **collapsed**" if collapsed else "No encoder collapsed"
    text = (
        f"{verdict}. RankMe of the centred token features with positions removed (and the share of all token variance "
        f"that this leaves): {said}."
    )
    for arm, plain in REGULARISED.items():
        if {arm, plain} <= set(rows) and arm == "vcr-jepa":
            more = "more" if rows[arm]["rankme_centred"] > rows[plain]["rankme_centred"] else "no more"
            text += f" {title(arm)} varies in {more} directions than {title(plain)}."
    return Words(
        f"{text} (A collapse is a RankMe below {100 * COLLAPSED:.0f} % of the width or below 2, or a share below "
        f"{100 * SHARE:.0f} %.)"
    )


def _wavelength(frequency: float) -> str:
    return f"{1 / frequency:.0f} mm" if frequency > 0 else "(at no scale)"
