"""Brain extraction by a program that is installed on the machine. Nothing is downloaded by us."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from scipy import ndimage

from brainfm_lib.data.quality import words
from brainfm_lib.errors import InputError, RefusedScan

# Name in the manifest -> program, and its words after ``INPUT OUTPUT``. HD-BET fetches its weights when it is first
# run: run it once by hand where there is a network.
PROGRAMS: dict[str, tuple[str, ...]] = {
    "synthstrip": ("mri_synthstrip", "-i", "{input}", "-o", "{output}"),
    "bet": ("bet", "{input}", "{output}"),
    "hd-bet": ("hd-bet", "-i", "{input}", "-o", "{output}", "-device", "cpu"),
}
HOME = {"synthstrip": "FreeSurfer", "bet": "FSL", "hd-bet": "HD-BET (pip install hd-bet)"}
PATIENCE = 3600  # seconds for one scan


def require_program(brain: str) -> None:
    """Raise an InputError if the program of this setting is not on the search path."""
    if brain in PROGRAMS and shutil.which(PROGRAMS[brain][0]) is None:
        raise InputError(
            f"Brain extraction by {brain} needs the program {PROGRAMS[brain][0]}, which is not on the search path: "
            f"install {HOME[brain]}, or set 'brain: none' under 'ingest' in the manifest."
        )


def brain_mask(path: str | Path, data: np.ndarray, affine: np.ndarray, brain: str) -> np.ndarray:
    """Find the brain in a scan.

    The program gets voxels and affine in a file of ours, so that nothing else of the scan's header reaches it.

    Args:
        path: Of the scan, for messages.
        data: (X, Y, Z) float32.
        affine: (4, 4).
        brain: A key of `PROGRAMS`.

    Returns:
        (X, Y, Z) bool: what the program kept, without holes.

    Raises:
        RefusedScan: The program failed, or kept nothing.
    """
    import nibabel

    require_program(brain)
    with tempfile.TemporaryDirectory(prefix="brainfm-") as folder:
        given, made = Path(folder) / "scan.nii.gz", Path(folder) / "brain.nii.gz"
        nibabel.Nifti1Image(data, affine).to_filename(given)
        command = [word.format(input=given, output=made) for word in PROGRAMS[brain]]
        environment = {**os.environ, "FSLOUTPUTTYPE": "NIFTI_GZ"}
        try:
            done = subprocess.run(command, capture_output=True, timeout=PATIENCE, env=environment, check=False)
        except subprocess.TimeoutExpired:
            sentence = f"{path}: {command[0]} took over {PATIENCE} s: look at the scan."
            raise RefusedScan("brain", sentence, lasting=False) from None
        if done.returncode or not made.is_file():
            said = words(ValueError(done.stderr.decode(errors="replace")[-300:]))
            raise RefusedScan(
                "brain",
                f"{path}: {command[0]} failed with status {done.returncode} ({said}): look at the scan.",
                lasting=False,  # it may be the licence, the memory or the card
            )
        kept = np.asarray(nibabel.load(made).dataobj) != 0  # type: ignore[attr-defined]
    if kept.shape != data.shape or not kept.any():
        raise RefusedScan("brain", f"{path}: {command[0]} found no brain: look at the scan or leave it out.")
    return ndimage.binary_fill_holes(kept)
