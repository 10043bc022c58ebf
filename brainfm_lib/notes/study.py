"""What a page is made of: data, profile, seed, and what was left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brainfm_lib.config import SHIPPED
from brainfm_lib.findings.comparison import came_along
from brainfm_lib.verdict import TRANSDUCTIVE
from brainfm_lib.words import Words, counted, listed

if TYPE_CHECKING:
    from brainfm_lib.study import Study


def study_note(study: Study) -> Words:
    """What data this is: simulated or real, how much of it, under which profile and seed."""
    names = study.cohorts_in_use
    phantom = [name for name in names if study.manifest.cohorts[name].kind == "phantom"]
    real = [name for name in names if name not in phantom]
    parts = []
    if phantom:
        parts.append(
            f"**Phantom data.** The scans of {listed(phantom)} are simulated: anatomy bent from a template, made-up "
            "pathology. Results on them test the methods and say nothing about a disease."
        )
    if real:
        parts.append(f"**Real scans**: {listed([_cohort(study, name) for name in real])}.")
    if study.manifest.transductive:
        parts.append(TRANSDUCTIVE)
    if study.stamp:
        parts.append(f"Every figure says: **{study.stamp}**.")
    if study.profile_name == SHIPPED:
        seen = study.profile.volumes_seen
        read = "Read, not trained here" if came_along(study) else "Trained here as those that ship were"
        parts.append(
            f"**{read}**: encoders that have seen {seen:,} volumes each; `BRAINFM_PROFILE=quick` trains for minutes."
        )
    geometry = study.profile.geometry
    grid = " × ".join(map(str, geometry.grid))
    parts.append(
        f"Profile `{study.profile_name}`, seed {study.seed}; volumes of {grid} voxels of {geometry.spacing:g} mm."
    )
    return Words(" ".join(parts))


def skipped_note(study: Study) -> Words:
    """Tasks that cannot be run because their cohort is absent."""
    skipped = "; ".join(f"`{task}` ({why})" for task, why in study.manifest.skipped_tasks().items())
    whole = "Every task of the manifest has its data present."
    return Words(f"Left out, because their data are absent: {skipped}." if skipped else whole)


def _cohort(study: Study, name: str) -> str:
    scans, (more, others) = study.cohort(name).scans, study.cohort(name).beyond
    parts = (scans["subject_id"].nunique(), others, "subject"), (len(scans), more, "scan")
    taken = (f"{n:,} of {counted(n + left, noun)}" if left else counted(n, noun) for n, left, noun in parts)
    return f"{name} ({', '.join(taken)}{': the profile takes no more' if more else ''})"
