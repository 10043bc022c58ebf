"""What pages say of settings, read from profiles: those of the report that is built, and which profiles there are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from brainfm_lib.config import load_profile, profile_names
from brainfm_lib.masking import visible_count
from brainfm_lib.objectives import ARMS

FOR = {  # profile -> what it is for
    "tiny": "tests: seconds",
    "quick": "two CPU cores, minutes",
    "shipped": "the encoders that ship, as they were trained",
    "compact": "small encoders, trained for long",
    "reference": "one large GPU, minutes",
    "paper": "the full recipe, on a cohort and a machine of one's own",
    "replica": "the authors' masks, schedules and losses",
}


def settings_of(name: str, overrides: Mapping[str, Any] | None = None) -> str:
    """Markdown of the settings behind the formulas: a profile's, some of its values changed."""
    profile = load_profile(name, overrides)
    mask, spectral, vcr, jepa = profile.mask, profile.spectral, profile.vcr, profile.jepa
    tokens = math.prod(n // profile.encoder.patch_size for n in profile.geometry.grid)
    hidden = tokens - visible_count(tokens, mask.ratio)
    drawn = f"{1 - (1 - 1 / tokens) ** round(mask.ratio * tokens):.1%}"  # with replacement
    optimisers = {arm: profile.pretraining(arm, 0).optimiser for arm in ARMS}
    plain = optimisers["mae"]
    rows = [
        (
            "hidden share $r$",
            f"{mask.ratio:g}: drawn as the authors do, {drawn} of {tokens} tokens in expectation"
            if mask.kind == "replica"
            else f"{mask.ratio:g} ({mask.kind}): {hidden} of {tokens} tokens; the authors' draw would hide {drawn} in "
            "expectation",
        ),
        ("spectral cut-off $\\rho$, mode", f"{spectral.high_pass:g}, {spectral.mode}"),
        (
            "spectral weight $\\lambda$",
            f"{spectral.weight:g}, from 0 at {spectral.ramp_start:.1%} to whole at {spectral.ramp_end:.1%} of training",
        ),
        ("VCR weights $w$, $v$, $c$", f"{vcr.weight:g}, {vcr.variance:g}, {vcr.covariance:g}"),
        ("slow copy $\\mu$", f"{jepa.ema_start:g} at first, {jepa.ema_end:g} at the end"),
        ("batch", f"{plain.batch_size} volumes"),
        ("steps", _each({arm: f"{optimiser.steps:,}" for arm, optimiser in optimisers.items()})),
        ("learning rate", ", ".join(f"{arm} {optimiser.lr:g}" for arm, optimiser in optimisers.items())),
    ]
    return _table(("setting", f"profile `{name}`"), rows)


def profile_table() -> str:
    """Markdown of the profiles that ship: what each is for, and its sizes."""
    rows = []
    for name in profile_names():
        profile = load_profile(name)
        geometry, encoder = profile.geometry, profile.encoder
        optimisers = {arm: profile.pretraining(arm, 0).optimiser for arm in ARMS}
        grid = " × ".join(map(str, geometry.grid))
        rows.append(
            (
                f"`{name}`",
                FOR.get(name, ""),
                f"{grid} of {geometry.spacing:g} mm",
                f"{encoder.embed_dim} × {encoder.depth}, patch {encoder.patch_size}",
                _each({arm: f"{one.batch_size * one.steps:,}" for arm, one in optimisers.items()}),
            )
        )
    order = list(FOR)
    rows.sort(key=lambda row: order.index(row[0].strip("`")) if row[0].strip("`") in order else len(order))
    return _table(("profile", "for", "voxels", "encoder: width × blocks", "volumes seen"), rows)


def _each(values: Mapping[str, str]) -> str:
    """One value where all arms have the same, else each arm's."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{arm} {value}" for arm, value in values.items())


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
