"""Who is in a phantom cohort: its specification and the table of its scans. No voxel is made here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainfm_lib.data.phantom.conditions import CONDITIONS
from brainfm_lib.errors import InputError

CONTRASTS = ("T1w", "T2w", "FLAIR", "PDw", "T1c")
GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class PhantomSpec:
    """Everything that determines a phantom cohort. A scan's voxels follow from this, its subject and its number.

    Subjects of two cohorts with the same seed share their anatomy: give cohorts that must not overlap different seeds.

    Args:
        seed: Seed of all draws.
        subjects: How many subjects; a smaller cohort holds the first of a larger one's.
        scans_per_subject: Scans of each subject, one a year.
        conditions: (name, prevalence) pairs, names from `CONDITIONS`; prevalences need not sum to 1.
        contrasts: Contrasts a scan is drawn from, out of T1w, T2w, FLAIR, PDw and T1c.
        sites: How many scanners, each with its own noise, bias field, intensity curve and resolution.
        severity: Factor on the distance between the conditions' mean latent severities.
        effect: Factor on what one unit of latent severity does to the image.
        nuisance: Factor on the variation between subjects and scans that says nothing about disease.
        site_effect: Factor on what differs between scanners.
        ancestors: (file of labels, its digest) of real anatomies, one drawn for each subject; none: the average brain.
    """

    seed: int = 0
    subjects: int = 400
    scans_per_subject: int = 1
    conditions: tuple[tuple[str, float], ...] = (("NC", 0.5), ("AD", 0.5))
    contrasts: tuple[str, ...] = ("T1w", "T2w", "FLAIR", "PDw")
    sites: int = 4
    severity: float = 1.0
    effect: float = 1.0
    nuisance: float = 1.0
    site_effect: float = 1.0
    ancestors: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "conditions", tuple((str(name), float(share)) for name, share in self.conditions))
        object.__setattr__(self, "contrasts", tuple(self.contrasts))
        for name, known, given in (
            ("condition", tuple(CONDITIONS), [name for name, _ in self.conditions]),
            ("contrast", CONTRASTS, self.contrasts),
        ):
            wrong = [value for value in given if value not in known]
            if wrong or not given:
                raise InputError(f"a phantom cohort has the {name}s {given}; choose from {', '.join(known)}.")
        if min(share for _, share in self.conditions) < 0 or sum(share for _, share in self.conditions) <= 0:
            raise InputError("a phantom cohort's prevalences must not be negative, and one must be above 0.")
        if min(self.subjects, self.scans_per_subject, self.sites) < 1:
            raise InputError("a phantom cohort needs at least one subject, one scan a subject and one site.")

    def severity_mean(self, condition: str) -> float:
        """Mean of the latent severity of a condition."""
        return CONDITIONS[condition].mean * self.severity


def determinants(spec: PhantomSpec) -> dict[str, Any]:
    """What of a specification any volume depends on: not the number of subjects, and no path."""
    settings = asdict(spec)
    del settings["subjects"]
    return {**settings, "ancestors": [digest for _, digest in spec.ancestors]}


def label_maps(folder: str | Path) -> list[Path]:
    """The files of labels in a folder, by name.

    Raises:
        InputError: There is none.
    """
    found = sorted(p for p in Path(folder).glob("*") if p.name.endswith((".nii", ".nii.gz", ".mgz")))
    if not found:
        raise InputError(f"{folder}: there is no label map (.nii, .nii.gz, .mgz) to descend phantoms from.")
    return found


def generator(spec: PhantomSpec, stream: str, *numbers: int) -> np.random.Generator:
    """Random numbers that belong to one purpose (`stream`), subject and scan, and to nothing else."""
    return np.random.default_rng([int(spec.seed), *stream.encode(), *numbers])


@dataclass(frozen=True)
class Subject:
    """What is drawn once for a subject. `severity` is the latent that its condition's Gaussian gave."""

    condition: str
    severity: float
    age: float
    sex: str
    site: int


def draw_subject(spec: PhantomSpec, subject: int) -> Subject:
    """Condition, latent severity, age at the first scan, sex and site of subject number `subject`."""
    names = [name for name, _ in spec.conditions]
    shares = np.cumsum([share for _, share in spec.conditions])
    # Golden-ratio steps keep the shares close to their prevalence in every run of subjects, whatever their number.
    place = (generator(spec, "order").random() + subject * GOLDEN) % 1.0 * shares[-1]
    name = names[min(int(np.searchsorted(shares, place, side="right")), len(names) - 1)]
    condition = CONDITIONS[name]
    rng = generator(spec, "subject", subject)
    severity = spec.severity_mean(name) + rng.standard_normal()
    age = float(np.clip(rng.normal(*condition.ages), *condition.age_range))
    sex = "F" if rng.random() < 0.5 else "M"
    return Subject(name, float(severity), round(age, 1), sex, int(rng.integers(spec.sites)))


def draw_contrast(spec: PhantomSpec, subject: int, scan: int) -> str:
    """Contrast of one scan."""
    return spec.contrasts[int(generator(spec, "contrast", subject, scan).integers(len(spec.contrasts)))]


def numbers_of(scans: pd.DataFrame) -> list[int]:
    """Numbers of the subjects of rows of `describe`, from their names."""
    return [int(str(name).rsplit("-", 1)[-1]) for name in scans["subject_id"]]


def draw_ancestor(spec: PhantomSpec, subject: int) -> str:
    """File of labels that the subject descends from, "" for the average brain."""
    if not spec.ancestors:
        return ""
    return spec.ancestors[int(generator(spec, "ancestor", subject).integers(len(spec.ancestors)))][0]


def describe(spec: PhantomSpec) -> pd.DataFrame:
    """One row a scan: subject_id, session, scan, contrast, site, age (years), sex, diagnosis, severity (latent)."""
    rows = []
    for number in range(spec.subjects):
        subject = draw_subject(spec, number)
        for scan in range(spec.scans_per_subject):
            rows.append(
                {
                    "subject_id": f"sub-{number:05d}",
                    "session": f"ses-{scan + 1:02d}",
                    "scan": scan,
                    "contrast": draw_contrast(spec, number, scan),
                    "site": f"site-{subject.site + 1}",
                    "age": subject.age + scan,
                    "sex": subject.sex,
                    "diagnosis": subject.condition,
                    "severity": subject.severity,
                }
            )
    return pd.DataFrame(rows)
