"""A synthetic cohort of brains with simulated disease: `describe` lists its scans, `render` makes their volumes.

Everything shown from it is simulated. Its anatomy descends from one average template, so it can say how much of a
known signal a method recovers and nothing about how well any method would do in patients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from brainfm_lib.data.phantom.cohort import PhantomSpec, describe
from brainfm_lib.data.phantom.conditions import CONDITIONS

if TYPE_CHECKING:
    import pandas
    import torch

    from brainfm_lib.data.geometry import Geometry

__all__ = ["CONDITIONS", "PhantomSpec", "describe", "render"]


def render(
    spec: PhantomSpec, scans: pandas.DataFrame, geometry: Geometry, device: str | torch.device = "cpu"
) -> torch.Tensor:
    """Volumes (B, D, H, W) of rows of `describe(spec)`: see `rendering.render` (torch is imported only here)."""
    from brainfm_lib.data.phantom import rendering

    return rendering.render(spec, scans, geometry, device)
