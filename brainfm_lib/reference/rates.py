"""What this machine does in a second: phantoms rendered, read features of, trained on by each arm; probes fitted."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from brainfm_lib.data.bank import PhantomBank
from brainfm_lib.device import best_device
from brainfm_lib.making.budget import seconds_per_step
from brainfm_lib.memory import free_memory
from brainfm_lib.objectives import ARMS
from brainfm_lib.probes.linear import linear_probe
from brainfm_lib.study import Study

if TYPE_CHECKING:
    from brainfm_lib.pretrain.config import PretrainConfig

TIMED_SCANS = {"cpu": 16, "cuda": 512}  # rendered to see how long that takes
MEMORY_SHARE = 0.8  # of the memory that training leaves, at most, for banks
TIMED = 7  # steps, the first two of which do not count
LONGEST = 6.0  # seconds that timing an arm in whole batches may take, or else two volumes a batch have to do


def measure(
    name: str, *, cpu: bool, manifest: str | Path | None, compiled: bool, at_least: float = 0.0
) -> dict[str, float] | None:
    """What this machine does in a second: volumes rendered, read features of, trained on by each arm; probes fitted.

    None where an arm stays below `at_least` volumes a second: the others are not tried then. Beside the rates it says
    how many bytes of memory banks may take.
    """
    from brainfm_lib.features import extract
    from brainfm_lib.pretrain.config import initial_model

    device = best_device(cpu=cpu)
    scans = TIMED_SCANS.get(device.type, TIMED_SCANS["cuda"])
    study = Study(name, manifest, progress=False, cpu=cpu, overrides={"subjects.pretraining": scans})
    cohort = study.cohort(study.pretraining_cohorts[0])
    cohort = cohort.select(range(min(scans, len(cohort))))
    for _ in range(2):  # at first processes start, and what all scans share is read
        bank = PhantomBank(cohort, study.profile.geometry, bank_device(device))
    rates = {"rendered": len(bank) / bank.seconds}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for arm in ARMS:
        rates[arm] = _trained(study.profile.pretraining(arm, 0), bank, cpu=cpu, compiled=compiled)
        if rates[arm] < at_least:
            return None
    config = study.profile.pretraining("mae", 0)
    encoder, few = initial_model(config).encoder, bank.select(range(min(scans, 128)))
    for _ in range(2):
        started = time.perf_counter()
        extract(encoder, few, poolings=("mean",), batch_size=study.profile.evaluation.batch_size, device=device)
        rates["judged"] = len(few) / (time.perf_counter() - started)
    free, needed = free_memory(), 0.0
    if device.type == "cuda":
        free, needed = float(torch.cuda.mem_get_info(device)[1]), 1.3 * torch.cuda.max_memory_allocated(device)
    rates["memory"] = max(MEMORY_SHARE * (free - needed), 0.0)
    rates["probes"] = 1 / _probe_seconds(study, config.objective.encoder.embed_dim)
    return {key: float(np.round(rate, 3)) for key, rate in rates.items()}


def _trained(config: PretrainConfig, bank: PhantomBank, *, cpu: bool, compiled: bool) -> float:
    """Volumes a second of an arm: of whole batches, unless two volumes have shown that these take too long."""
    whole = config.optimiser.batch_size
    small = min(2, whole)
    rate = small / _step_seconds(config, bank, small, cpu=cpu, compile=False)
    if TIMED * whole / rate > LONGEST:
        return rate
    return whole / _step_seconds(config, bank, whole, cpu=cpu, compile=compiled)


def _step_seconds(config: PretrainConfig, bank: PhantomBank, size: int, **trainer: bool) -> float:
    sized = dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, batch_size=size))
    with tempfile.TemporaryDirectory() as folder:
        return seconds_per_step(sized, bank, Path(folder), steps=TIMED - 2, **trainer)


def bank_device(device: torch.device) -> torch.device:
    """Where phantoms are rendered and kept for training on a device."""
    return device if device.type == "cuda" else torch.device("cpu")


def _probe_seconds(study: Study, width: int) -> float:
    """A linear probe on features of noise, of the sizes that an encoder of this width would give."""
    table, rng = study.task_table(study.tasks[0]), np.random.default_rng(0)
    sizes = {"mean": width, "mean+std": 2 * width, "regional": 8 * width}
    features = {
        f"{name}@{block}": rng.standard_normal((len(table), n)) for name, n in sizes.items() for block in (1, 2)
    }
    with threadpool_limits(1):
        started = time.perf_counter()
        linear_probe(features, table)
        return time.perf_counter() - started
