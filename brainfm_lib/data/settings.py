"""What a cohort may say about how its scans are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from brainfm_lib.errors import InputError

Brain = Literal["none", "already", "synthstrip", "bet", "hd-bet"]


@dataclass(frozen=True)
class IngestSettings:
    """What ingest accepts and how it scales.

    Args:
        low: Percentile over the foreground that becomes 0.
        high: Percentile over the foreground that becomes 1.
        min_extent: Field of view that every axis must exceed, mm.
        max_spacing: Largest accepted voxel edge, mm.
        max_shear: Largest accepted departure of two axes from a right angle, degrees.
        min_foreground: Smallest accepted share of the cube that is foreground.
        head_height: Only this much below the vertex is centred on, mm, so that necks do not count.
        max_mean: Refuse volumes whose mean intensity is above this.
        min_std: Refuse volumes whose intensities have a standard deviation below this.
        brain: Brain extraction: "none" keeps the head, "already" says that the scans are skull-stripped (and refuses
            those that are not), the others name a program that must be installed: see `brain.PROGRAMS`.
    """

    low: float = 1.0
    high: float = 99.0
    min_extent: float = 50.0
    max_spacing: float = 6.5
    max_shear: float = 5.0
    min_foreground: float = 0.005
    head_height: float = 170.0
    max_mean: float | None = None
    min_std: float | None = None
    brain: Brain = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 100:
            raise InputError(f"the percentiles {self.low} and {self.high} must rise and lie within 0 and 100.")
