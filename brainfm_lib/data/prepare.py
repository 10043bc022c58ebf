"""What `brainfm check` and `brainfm prepare` do: look at everything that the manifest names, and prepare it once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from brainfm_lib.data.audit import too_few
from brainfm_lib.data.cohort import Cohort, describe_cohort, list_scans
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.manifest import Manifest, load_manifest
from brainfm_lib.data.quality import check_headers
from brainfm_lib.data.settings import IngestSettings
from brainfm_lib.data.splits import split_notes, task_table
from brainfm_lib.data.store import Volumes, open_volumes
from brainfm_lib.errors import InputError


@dataclass(frozen=True)
class Finding:
    """One thing that `check` says. An error must be mended; a warning is worth a look; a note needs nothing.

    `rule` is the rule of quality that a scan breaks, where that is the finding.
    """

    level: Literal["ok", "note", "warning", "error"]
    where: str
    sentence: str
    rule: str = ""


def check(
    manifest_path: str | Path | None = None,
    *,
    progress: bool = True,
    also: Callable[[Manifest], Iterable[Finding]] = lambda _: (),
) -> list[Finding]:
    """Look at the manifest, its cohorts (every scan's header too) and its tasks. Nothing is written.

    Args:
        manifest_path: As in `load_manifest`.
        progress: Show a bar while headers are read.
        also: What else of the manifest is looked at, last.

    Returns:
        Findings in the manifest's order; everything can be used if none has the level "error".
    """
    try:
        manifest = load_manifest(manifest_path)
    except InputError as error:
        return [Finding("error", "manifest", str(error))]
    findings, cohorts = [], {}
    for name, reason in manifest.missing().items():
        findings.append(Finding("note", f"cohort {name}", f"absent: {reason}."))
    for name in manifest.available_cohorts():
        try:
            cohorts[name] = list_scans(manifest, name)
        except InputError as error:
            findings.append(Finding("error", f"cohort {name}", str(error)))
            continue
        findings += _check_cohort(cohorts[name], progress)
        if manifest.cohorts[name].verified is False:
            sentence = "its layout follows the documentation and has not been tried on the real data set: look twice."
            findings.append(Finding("note", f"cohort {name}", sentence))
    for name, reason in manifest.skipped_tasks().items():
        findings.append(Finding("note", f"task {name}", f"skipped: {reason}."))
    for name in manifest.available_tasks():
        if manifest.tasks[name].cohort in cohorts:
            findings += _check_task(manifest, name, cohorts[manifest.tasks[name].cohort])
    if manifest.transductive:
        sentence = "transductive: true lets pretraining see validation and test subjects; results will say so."
        findings.append(Finding("warning", "pretraining", sentence))
    return findings + list(also(manifest))


@dataclass(frozen=True)
class Prepared:
    """A cohort that has been prepared: its volumes (with what was refused), and how long it took."""

    volumes: Volumes
    seconds: float

    @property
    def named(self) -> int:
        """Scans that the manifest names."""
        return len(self.volumes) + len(self.volumes.refused)


def prepare(
    manifest: Manifest,
    geometry: Geometry,
    *,
    caps: Mapping[str, int | None] | None = None,
    progress: bool = True,
) -> Iterator[tuple[str, Prepared | InputError]]:
    """Prepare the cohorts that are present; refused scans are listed and the rest goes on.

    Args:
        manifest: From `load_manifest`.
        geometry: Target grid.
        caps: Cohort -> most subjects; None takes all.
        progress: Show bars.

    Yields:
        Cohort by cohort its name and what was made, or why it cannot be described or none of its scans be used.
    """
    for name in manifest.available_cohorts():
        started = time.perf_counter()
        try:
            cohort = describe_cohort(manifest, name, max_subjects=(caps or {}).get(name))
            volumes = open_volumes(cohort, geometry, progress=progress, on_error="report")
        except InputError as error:
            yield name, error
        else:
            yield name, Prepared(volumes, time.perf_counter() - started)


def _check_cohort(cohort: Cohort, progress: bool) -> list[Finding]:
    where = f"cohort {cohort.name}"
    scans = cohort.scans
    counts = ", ".join(f"{count} {contrast}" for contrast, count in scans["contrast"].value_counts().items())
    what = "simulated subjects" if cohort.kind == "phantom" else "subjects"
    findings = [Finding("ok", where, f"{scans['subject_id'].nunique()} {what}, {len(scans)} scans: {counts}.")]
    findings += [Finding("warning", where, note) for note in cohort.notes]
    reasons = [(row.rule, row.reason) for row in cohort.refused.itertuples()]
    if isinstance(cohort.source, IngestSettings):
        answers = tqdm(
            check_headers(list(scans["path"]), cohort.source),
            total=len(scans),
            desc=f"headers of {cohort.name}",
            unit="scan",
            disable=not progress or len(scans) < 100,
        )
        reasons += [(refusal.rule, str(refusal)) for refusal in answers if refusal is not None]
    return findings + [Finding("error", where, reason, rule) for rule, reason in reasons]


def _check_task(manifest: Manifest, name: str, cohort: Cohort) -> list[Finding]:
    where = f"task {name}"
    try:
        table = task_table(manifest, name, cohort)
    except InputError as error:
        return [Finding("error", where, str(error))]
    settings = manifest.tasks[name]
    subjects = table.groupby("label")["subject_id"].nunique()
    counts = ", ".join(f"{count} {settings.classes[label]}" for label, count in subjects.items())
    findings = [Finding("ok", where, f"{len(table)} scans of subjects {counts}.")]
    few = too_few(manifest, name, table)
    if few:
        alone = "split" not in table and subjects.reindex(range(len(settings.classes)), fill_value=0).min() < 2
        findings.append(Finding("error" if alone else "warning", where, few))
    several = int((table.groupby("subject_id")["label"].nunique() > 1).sum())
    if several:
        sentence = f"{several} subjects have scans of several classes; each stays in one split as a whole."
        findings.append(Finding("note", where, sentence))
    if settings.cohort in manifest.pretraining and not manifest.transductive:
        every, asked = cohort.scans["subject_id"].nunique(), table["subject_id"].nunique()
        sentence = f"{settings.cohort} is pretrained on too: without the validation and test subjects of this task."
        if "split" not in table:
            sentence += (
                f" Where it has so few subjects that a profile cross-validates it (`evaluation.cross_validate_below`), "
                f"these are all {asked:,}, and this task leaves {every - asked:,} of the cohort's {every:,}."
            )
        findings.append(Finding("note", where, sentence))
    findings += [Finding("warning", where, note) for note in split_notes(manifest, name, cohort)]
    return findings
