"""Real anatomies: a person's anatomical labels in FreeSurfer's numbering, brought into the average brain's frame.

Any segmentation in these numbers will do: FreeSurfer's own aseg and aparc+aseg, SynthSeg's, or label maps published for
training. Nothing but the labels is read; the intensities of a phantom are always simulated.
"""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np
from scipy import ndimage

from brainfm_lib.data.phantom.anatomy import NUCLEI, Template, assembled, average
from brainfm_lib.errors import InputError

# FreeSurferColorLUT.txt; left and right. Labels above 500 that are no parcel lie outside the brain.
VENTRICLES = (4, 43, 5, 44, 31, 63)
FLUID = (*VENTRICLES, 14, 15, 24, 30, 62, 72)
DEEP = (10, 49, 11, 50, 12, 51, 13, 52, 26, 58)
WHITE = (2, 41, 7, 46, 16, 28, 60, 77, 85, 192, 250, 251, 252, 253, 254, 255)
OUTSIDE = (500, 1000)
CORTEX, WHITE_PARCELS = (1000, 3000), (3000, 5003)
# What the frames are aligned by: labels, and where the middle of each lies in the average brain, MNI mm.
LANDMARKS = {
    (label, side): (side * centre[0], *centre[1:])
    for name, left in (("thalamus", 10), ("caudate", 11), ("putamen", 12))
    for centre in (NUCLEI[name][0],)
    for label, side in ((left, -1), (left + 39, 1))
}
SULCUS = 4.0  # mm: how far fluid reaches between folds and still counts as inside the brain
EDGE = 0.6  # mm, standard deviation of the blur that stands for partial volume


def _in(labels: np.ndarray, numbers: Sequence[int], span: tuple[int, int] = (0, 0)) -> np.ndarray:
    return np.isin(labels, numbers) | ((labels >= span[0]) & (labels < span[1]))


def _frame(labels: np.ndarray, affine: np.ndarray, brain: np.ndarray, path: str) -> np.ndarray:
    """(4, 4) MNI mm -> voxels: turned so that deep nuclei lie where they should, scaled to the average brain's size."""
    numbers = [label for label, _ in LANDMARKS]
    missing = np.setdiff1d(numbers, labels)
    if len(missing):
        raise InputError(f"{path}: label {missing[0]} of FreeSurfer's numbering is not in it; is it a label map?")
    centres = ndimage.center_of_mass(labels > 0, labels, numbers)
    mine = np.array(centres) @ affine[:3, :3].T + affine[:3, 3]
    known = np.array(list(LANDMARKS.values()))
    middle, target = mine.mean(0), known.mean(0)
    u, _, vt = np.linalg.svd((mine - middle).T @ (known - target))
    turn = vt.T @ np.diag([1, 1, np.sign(np.linalg.det(vt.T @ u.T))]) @ u.T  # Kabsch: known ~ turn (mine - middle)
    places = (np.argwhere(brain) @ affine[:3, :3].T + affine[:3, 3] - middle) @ turn.T
    full = average()
    template = np.argwhere(full.maps[0] > 0.5) + np.array(full.origin)
    scale = template.std(0) / places.std(0)
    to_mni = np.eye(4)
    to_mni[:3, :3] = scale[:, None] * turn
    to_mni[:3, 3] = target - to_mni[:3, :3] @ middle
    return np.linalg.inv(to_mni @ affine)


def person(path: str) -> Template:
    """The brain of a file of labels, on the grid of the average brain and in its frame.

    Args:
        path: Three-dimensional NIfTI or MGH file of integers in FreeSurfer's numbering.

    Raises:
        InputError: It is no such file.
    """
    try:
        image = nib.load(path)
        labels = np.asarray(image.dataobj)  # type: ignore[attr-defined]
        affine = np.array(image.affine, np.float64)  # type: ignore[attr-defined]
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:
        raise InputError(f"{path}: cannot be read as a label map ({error}).") from None
    whole = labels.astype(np.int32)
    if labels.ndim != 3 or not np.array_equal(whole, labels):
        raise InputError(f"{path}: a label map has three dimensions and whole numbers; this is {labels.shape}.")
    outside = (whole <= 0) | (whole == 24) | ((whole >= OUTSIDE[0]) & (whole < OUTSIDE[1]))
    kept = ndimage.find_objects((~outside).astype(np.uint8))
    if not kept:
        raise InputError(f"{path}: no label of a brain is in it.")
    corner = [max(side.start - 8, 0) for side in kept[0]]
    whole = whole[tuple(slice(low, side.stop + 8) for low, side in zip(corner, kept[0], strict=True))]
    affine = affine @ np.block([[np.eye(3), np.array(corner, float)[:, None]], [np.zeros(3), 1.0]])
    spacing = float(np.cbrt(abs(np.linalg.det(affine[:3, :3]))))
    white = _in(whole, WHITE, WHITE_PARCELS)
    deep, fluid = _in(whole, DEEP), _in(whole, FLUID)
    grey = (whole > 0) & ~white & ~deep & ~fluid & ~((whole >= OUTSIDE[0]) & (whole < OUTSIDE[1]))
    tissue = grey | deep | white
    # Fluid of the sulci belongs to a stripped brain, the fluid around it does not.
    near = ndimage.distance_transform_edt(~tissue) * spacing <= SULCUS
    brain = ndimage.distance_transform_edt(near) * spacing > SULCUS
    brain = ndimage.binary_fill_holes(brain | tissue)
    to_voxel = _frame(whole, affine, brain, path)
    full = average()
    shift = to_voxel[:3, :3] @ np.array(full.origin) + to_voxel[:3, 3]

    def resampled(part: np.ndarray) -> np.ndarray:
        smooth = ndimage.gaussian_filter(part.astype(np.float32), EDGE / spacing, truncate=3.0)
        return ndimage.affine_transform(smooth, to_voxel[:3, :3], shift, output_shape=full.maps.shape[1:], order=1)

    mask = np.clip(resampled(brain), 0, 1)
    grey, deep, white = (np.minimum(resampled(part), mask) for part in (grey, deep, white))
    return assembled(mask, grey, deep, white, resampled(_in(whole, VENTRICLES)), full.origin)
