"""What cannot be trained is refused before anything is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brainfm_lib.errors import InputError

if TYPE_CHECKING:
    from brainfm_lib.pretrain import PretrainConfig


def refuse_untrainable(config: PretrainConfig, n_volumes: int, world: int) -> None:
    """Go on only where settings fit each other, the number of volumes and that of processes.

    Raises:
        InputError: Says what to change.
    """
    batch_size, parts = config.optimiser.batch_size, config.optimiser.accumulate
    if batch_size % (world * parts):
        raise InputError(
            f"batch_size {batch_size} does not divide over {world} processes × {parts} parts: choose another."
        )
    vcr = config.objective.vcr
    if vcr is not None and (batch_size if vcr.gathered else batch_size // (world * parts)) < 2:
        raise InputError(
            "VCR needs the variance over at least two volumes: raise optimiser.batch_size, or set vcr.gathered "
            "true where the batch is split."
        )
    if config.objective.sigreg is not None and batch_size < 2:
        raise InputError("SIGReg needs the distribution of at least two volumes: raise optimiser.batch_size.")
    if vcr is not None and not (config.mask.shared or vcr.pooled):
        raise InputError(
            "With mask.shared false VCR would take position codes for variance: set vcr.pooled true as well."
        )
    if n_volumes == 0:
        raise InputError("There is no volume to pretrain on: see `brainfm check` for what the manifest offers.")
