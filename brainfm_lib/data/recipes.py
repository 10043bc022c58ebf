"""Layouts of known data sets: how their files are named, and which name stands for which contrast.

They follow the data sets' published names and have been tried on generated folders, not on the real downloads.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Where the scans of a data set lie.

    Attributes:
        pattern: As `folders.compile_pattern` reads it.
        contrasts: Name in the pattern's ``{contrast}`` -> contrast; files with other names are left alone.
    """

    pattern: str
    contrasts: dict[str, str]


RECIPES = {
    # IXI002-Guys-0828-T1.nii.gz
    "IXI": Recipe("{subject_id:IXI*}-{site}-{scan}-{contrast}.nii.gz", {"T1": "T1w", "T2": "T2w", "PD": "PDw"}),
    # BraTS-GLI-00005-100/BraTS-GLI-00005-100-t1n.nii.gz
    "BraTS-2024": Recipe(
        "{subject_id:BraTS-GLI-*}-{session}-{contrast}.nii.gz",
        {"t1n": "T1w", "t1c": "T1c", "t2w": "T2w", "t2f": "FLAIR"},
    ),
    # UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_T1.nii.gz
    "UCSF-PDGM": Recipe(
        "{subject_id:UCSF-PDGM-*}_{contrast}.nii.gz",
        {
            "T1": "T1w",
            "T1c": "T1c",
            "T1gad": "T1c",
            "T2": "T2w",
            "FLAIR": "FLAIR",
            "SWI": "SWI",
            "DWI": "DWI",
            "ADC": "ADC",
            "ASL": "ASL",
        },
    ),
}
