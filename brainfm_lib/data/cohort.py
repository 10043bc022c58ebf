"""A cohort: the table of its scans and everything that determines their voxels."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import TypeAdapter, ValidationError

from brainfm_lib.data.bids import bids_scans
from brainfm_lib.data.brain import require_program
from brainfm_lib.data.digests import file_digests
from brainfm_lib.data.folders import folder_scans
from brainfm_lib.data.labels import add_labels, unmatched_note
from brainfm_lib.data.manifest import BidsCohort, FolderCohort, Manifest, PhantomCohort, TableCohort, one_sentence
from brainfm_lib.data.phantom import PhantomSpec, describe
from brainfm_lib.data.phantom.cohort import determinants, label_maps
from brainfm_lib.data.recipes import RECIPES, Recipe
from brainfm_lib.data.settings import IngestSettings
from brainfm_lib.data.tables import Scans, refusals, table_scans, tidy
from brainfm_lib.errors import InputError
from brainfm_lib.identity import stable_hash


@dataclass(frozen=True, eq=False)
class Cohort:
    """Scans and how their volumes come about; no voxel has been read or made.

    Attributes:
        name: As in the manifest.
        kind: Where volumes come from.
        scans: One row a scan, RangeIndex: subject_id, scan_uid (starts with the cohort's name), session, contrast,
            site, age (years), sex (M, F or empty), digest, for real data path, and the cohort's own columns.
        source: What determines the voxels besides the scans.
        code: Modules that turn a scan into a volume.
        refused: Scans that the manifest names and that cannot be used: scan_uid, rule, reason.
        notes: What else is worth a look, a sentence each.
        beyond: Scans, and their subjects, that a cap on the number of subjects leaves out.
    """

    name: str
    kind: Literal["phantom", "bids", "folder", "table"]
    scans: pd.DataFrame
    source: PhantomSpec | IngestSettings
    code: tuple[str, ...]
    refused: pd.DataFrame = field(default_factory=lambda: refusals([]))
    notes: tuple[str, ...] = ()
    beyond: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return len(self.scans)

    @cached_property
    def source_key(self) -> str:
        """Hash of the source; a phantom cohort's number of subjects is left out: it changes no volume."""
        source = self.source
        settings = determinants(source) if isinstance(source, PhantomSpec) else dataclasses.asdict(source)
        return stable_hash([self.kind == "phantom", settings])

    @cached_property
    def digest(self) -> str:
        """Hash of scans, labels and source; no paths."""
        return self._digest([name for name in self.scans.columns if name != "path"])

    @cached_property
    def voxel_digest(self) -> str:
        """As `digest`, without labels and other covariates: what pretraining depends on."""
        return self._digest(["scan_uid", "subject_id", "digest"])

    def _digest(self, columns: list[str]) -> str:
        table = self.scans[sorted(columns)]  # rows as they stand: features and batches follow their order
        text = table.to_csv(index=False, lineterminator="\n", na_rep="")
        return stable_hash([self.source_key, text])

    def select(self, rows: Any) -> Cohort:
        """The same cohort with some of its scans: a boolean mask, or positions in `scans`."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        return dataclasses.replace(self, scans=self.scans.iloc[rows].reset_index(drop=True))


def describe_cohort(manifest: Manifest, name: str, *, max_subjects: int | None = None) -> Cohort:
    """Describe a cohort's scans. Cheap: phantoms are not rendered; real files are read once, for their digest.

    Args:
        manifest: From `load_manifest`.
        name: Cohort.
        max_subjects: Cap: fewer phantoms, or the first subjects of a real cohort in a fixed hash order.

    Raises:
        InputError: One sentence: which folder, table, row or file is wrong and how to mend it.
    """
    cohort = list_scans(manifest, name, max_subjects=max_subjects)
    if cohort.kind == "phantom":
        return cohort
    digests, problems = file_digests(list(cohort.scans["path"]))
    cohort.scans["digest"] = digests
    scans = cohort.scans
    bad = [(uid, "file", problems[path]) for uid, path in zip(scans["scan_uid"], scans["path"]) if path in problems]
    if not bad:
        return cohort
    if len(bad) == len(cohort):
        raise InputError(bad[0][2])
    kept = cohort.select(~scans["path"].isin(list(problems)).to_numpy())
    return dataclasses.replace(kept, refused=pd.concat([cohort.refused, refusals(bad)], ignore_index=True))


def list_scans(manifest: Manifest, name: str, *, max_subjects: int | None = None) -> Cohort:
    """As `describe_cohort`, but no file is read: the digests of real scans are empty."""
    settings = manifest.cohort(name)
    where = f"{manifest.path.name}, cohort {name}"
    if max_subjects is not None and max_subjects < 1:
        raise InputError(f"max_subjects is {max_subjects}: give at least 1, or none to take all.")
    if isinstance(settings, PhantomCohort):
        spec = _typed(PhantomSpec, settings.spec, f"{where}: spec")
        if spec.ancestors:
            raise InputError(f"{where}: spec: ancestors are found by the folder of label maps: give it as root.")
        if settings.root is not None:
            spec = dataclasses.replace(spec, ancestors=_ancestors(manifest.resolve(settings.root)))
        return _phantom_cohort(name, spec if max_subjects is None else _capped(spec, max_subjects), settings, where)
    source = _typed(IngestSettings, settings.ingest, f"{where}: ingest")
    require_program(source.brain)
    scans, refused, notes = _real_scans(manifest, name, settings)
    if scans.empty:
        raise InputError(refused["reason"].iloc[0])
    if settings.labels is not None:
        table = manifest.resolve(settings.labels.table, manifest.resolve(settings.root) if settings.root else None)
        scans = tidy(add_labels(scans, settings.labels, table))
        notes += tuple(filter(None, [unmatched_note(scans, settings.labels, table)]))
    scans = scans.drop(columns="date", errors="ignore").sort_values("scan_uid", ignore_index=True)
    scans = _kept(scans, settings.contrasts, where)
    beyond = (0, 0)
    if max_subjects is not None:
        order = sorted(scans["subject_id"].unique(), key=lambda subject: stable_hash([name, subject], 16))
        taken = scans["subject_id"].isin(order[:max_subjects])
        beyond = int((~taken).sum()), len(order[max_subjects:])
        scans = scans[taken].reset_index(drop=True)
    scans["digest"] = ""
    return Cohort(name, settings.kind, scans, source, ("brainfm_lib.data.ingest",), refused, notes, beyond)


def _ancestors(folder: Path) -> tuple[tuple[str, str], ...]:
    paths = [str(path) for path in label_maps(folder)]
    digests, problems = file_digests(paths)
    for problem in problems.values():
        raise InputError(problem)
    return tuple(zip(paths, digests, strict=True))


def _capped(spec: PhantomSpec, max_subjects: int) -> PhantomSpec:
    return dataclasses.replace(spec, subjects=min(spec.subjects, max_subjects))


def _phantom_cohort(name: str, spec: PhantomSpec, settings: PhantomCohort, where: str) -> Cohort:
    if spec.seed < 0:
        raise InputError(f"{where}: spec: the seed {spec.seed} is negative: give 0 or more.")
    scans = describe(spec)
    uids = [f"{name}/{subject}_{session}" for subject, session in zip(scans["subject_id"], scans["session"])]
    scans.insert(1, "scan_uid", uids)
    key = stable_hash(determinants(spec))
    columns = ["subject_id", "scan", "contrast", "site", "diagnosis", "severity"]
    scans["digest"] = [stable_hash([key, *row], 32) for row in scans[columns].itertuples(index=False)]
    return Cohort(
        name, "phantom", _kept(scans, settings.contrasts, where), spec, ("brainfm_lib.data.phantom.rendering",)
    )


def _real_scans(manifest: Manifest, name: str, settings: BidsCohort | FolderCohort | TableCohort) -> Scans:
    if isinstance(settings, BidsCohort):
        return bids_scans(manifest.resolve(settings.root), name, settings.suffixes)
    if isinstance(settings, FolderCohort):
        recipe = RECIPES[settings.recipe] if settings.recipe else Recipe(settings.pattern or "", {})
        contrasts = {**recipe.contrasts, **settings.contrast_names}
        return folder_scans(manifest.resolve(settings.root), name, recipe.pattern, contrasts, settings.contrast)
    root = manifest.resolve(settings.root) if settings.root else None
    if root is not None and not root.is_dir():
        raise InputError(f"The folder {root} of cohort {name} does not exist: mend the root or the variable in it.")
    table = manifest.resolve(settings.table, root)
    return table_scans(table, root or table.parent, name, settings.columns, settings.contrast)


def _kept(scans: pd.DataFrame, contrasts: tuple[str, ...] | None, where: str) -> pd.DataFrame:
    """Rows of the wanted contrasts; InputError where there is none of one of them."""
    if contrasts is None:
        return scans
    present = sorted(scans["contrast"].unique())
    absent = [contrast for contrast in contrasts if contrast not in present]
    if absent:
        raise InputError(
            f"{where}: there is no scan of contrast {absent[0]!r}: the contrasts there are {', '.join(present)}."
        )
    return scans[scans["contrast"].isin(contrasts)].reset_index(drop=True)


def _typed(cls: type, values: dict[str, Any], where: str) -> Any:
    """Make the dataclass `cls` of manifest values; a mapping may stand for pairs."""
    names = [field.name for field in dataclasses.fields(cls)]
    unknown = [key for key in values if key not in names]
    if unknown:
        raise InputError(f"{where}: unknown key '{unknown[0]}': the keys there are {', '.join(names)}.")
    values = {key: tuple(value.items()) if isinstance(value, dict) else value for key, value in values.items()}
    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        raise InputError(f"{where}: {one_sentence(error)}.") from error
