"""What pages say of settings, read from profiles: those of the report that is built, and which profiles there are."""

from __future__ import annotations

import math
from collections.abc import Sequence

from brainfm_lib.config import PROFILES, load_profile
from brainfm_lib.masking import visible_count
from brainfm_lib.objectives import ARMS

FOR = {  # profile -> what it is for
    "tiny": "tests: seconds",
    "quick": "the default: two CPU cores, minutes",
    "compact": "small encoders, trained for long",
    "reference": "one large GPU, minutes",
    "paper": "the full recipe, on a cohort and a machine of one's own",
    "replica": "the authors' masks, schedules and losses",
}


def settings_of(name: str) -> str:
    """Markdown of the settings behind the formulas, as a profile has them."""
    profile = load_profile(name)
    mask, spectral, vcr, jepa = profile.mask, profile.spectral, profile.vcr, profile.jepa
    tokens = math.prod(n // profile.encoder.patch_size for n in profile.geometry.grid)
    hidden = tokens - visible_count(tokens, mask.ratio)
    optimisers = {arm: profile.pretraining(arm, 0).optimiser for arm in ARMS}
    plain = optimisers["mae"]
    rates = ", ".join(f"{arm} {optimiser.lr:g}" for arm, optimiser in optimisers.items())
    rows = [
        (
            "hidden share $r$",
            f"{mask.ratio:g} ({mask.kind}): {hidden} of {tokens} tokens; "
            f"the authors' draw would hide {1 - (1 - 1 / tokens) ** round(mask.ratio * tokens):.1%} in expectation",
        ),
        ("spectral cut-off $\\rho$, mode", f"{spectral.high_pass:g}, {spectral.mode}"),
        (
            "spectral weight $\\lambda$",
            f"{spectral.weight:g}, from 0 at {spectral.ramp_start:.1%} to whole at {spectral.ramp_end:.1%} of training",
        ),
        ("VCR weights $w$, $v$, $c$", f"{vcr.weight:g}, {vcr.variance:g}, {vcr.covariance:g}"),
        ("slow copy $\\mu$", f"{jepa.ema_start:g} at first, {jepa.ema_end:g} at the end"),
        ("batch, steps", f"{plain.batch_size} volumes, {plain.steps:,} steps"),
        ("learning rate", rates),
    ]
    return _table(("setting", f"profile `{name}`"), rows)


def profile_table() -> str:
    """Markdown of the profiles that ship: what each is for, and its sizes."""
    rows = []
    for name in sorted(path.stem for path in PROFILES.glob("*.yaml")):
        profile = load_profile(name)
        geometry, encoder, optimiser = profile.geometry, profile.encoder, profile.optimiser
        grid = " × ".join(map(str, geometry.grid))
        rows.append(
            (
                f"`{name}`",
                FOR.get(name, ""),
                f"{grid} of {geometry.spacing:g} mm",
                f"{encoder.embed_dim} × {encoder.depth}, patch {encoder.patch_size}",
                f"{optimiser.batch_size * optimiser.accumulate * optimiser.steps:,}",
            )
        )
    order = list(FOR)
    rows.sort(key=lambda row: order.index(row[0].strip("`")) if row[0].strip("`") in order else len(order))
    return _table(("profile", "for", "voxels", "encoder: width × blocks", "volumes seen"), rows)


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
