"""Where a prediction errs: by how far a voxel lies from the edge of its patch, and by how bright it is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from brainfm_lib.tokens import patchify

THIRDS = ("darkest third", "middle third", "brightest third")


def error_places(
    target: Tensor, predicted: Tensor, baseline: Tensor, brain: Tensor, kept: Tensor, patch_size: int
) -> pd.DataFrame:
    """Mean squared error over brain voxels of predicted tokens, split by place.

    Brightness is ranked within each scan's brain, so that it means tissue as far as one contrast tells it: in T1w scans
    fluid, grey and white matter from dark to bright, in T2w the other way round.

    Args:
        target, predicted, baseline: (B, 1, D, H, W), every voxel predicted while it was hidden.
        brain: (B, 1, D, H, W) bool.
        kept: (1, K) tokens that are predicted at all.
        patch_size: Edge of a patch, voxels.

    Returns:
        split ("border", "brightness"), place (distance to the nearest face of the patch in voxels, counted from 0; or a
        third), order, model, baseline (errors), voxels.
    """
    index = kept[0]
    truth, counted = patchify(target, patch_size)[:, index], patchify(brain.float(), patch_size)[:, index] > 0
    errors = {
        "model": (patchify(predicted, patch_size)[:, index] - truth).square(),
        "baseline": (patchify(baseline, patch_size)[:, index] - truth).square(),
    }
    axis = torch.arange(patch_size)
    face = torch.minimum(axis, patch_size - 1 - axis)
    distance = torch.minimum(torch.minimum(face[:, None, None], face[:, None]), face).reshape(-1)
    border = distance.expand_as(truth)
    bright = torch.zeros_like(truth, dtype=torch.long)
    for row in range(len(truth)):
        inside = truth[row][counted[row]]
        if len(inside):
            cuts = torch.from_numpy(np.quantile(inside.numpy(), [1 / 3, 2 / 3])).to(truth.dtype)
            bright[row] = torch.bucketize(truth[row], cuts)
    rows = []
    for split, place, names in (
        ("border", border, [str(k) for k in range(int(distance.max()) + 1)]),
        ("brightness", bright, list(THIRDS)),
    ):
        for order, name in enumerate(names):
            here = counted & (place == order)
            voxels = int(here.sum())
            means = {k: float(e[here].mean()) if voxels else float("nan") for k, e in errors.items()}
            rows.append({"split": split, "place": name, "order": order, **means, "voxels": voxels})
    return pd.DataFrame(rows)
