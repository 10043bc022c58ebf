"""What a pretraining run is made of, but for its data; which are refused; and the model that training starts from."""

from dataclasses import dataclass, field

import torch

from brainfm_lib.data.augment import AugmentConfig
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.errors import InputError
from brainfm_lib.identity import stable_hash
from brainfm_lib.masking import MaskConfig
from brainfm_lib.objectives import Model, ObjectiveConfig, build_model
from brainfm_lib.pretrain.optimiser import OptimiserConfig


@dataclass(frozen=True)
class PretrainConfig:
    """One pretraining run, but for its data."""

    objective: ObjectiveConfig
    geometry: Geometry
    mask: MaskConfig = field(default_factory=MaskConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    seed: int = 0


def initial_model(config: PretrainConfig) -> Model:
    """The untrained model of a run: a pure function of its configuration and seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stable_hash((config.seed, "weights"), 15), 16))
        return build_model(config.objective)


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
