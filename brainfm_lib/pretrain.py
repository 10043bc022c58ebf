"""The pretraining loop, on Hugging Face Accelerate: any device, resumable at any checkpoint.

Every random draw is a pure function of (seed, purpose, step): the order of the volumes, the masks and the augmentation
are the same for every arm, and a resumed run continues exactly as if nothing had happened.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from brainfm_lib.checkpoint import host_state, load_checkpoint, save_checkpoint
from brainfm_lib.data.augment import AugmentConfig, augment, zscore
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.errors import InputError
from brainfm_lib.identity import stable_hash
from brainfm_lib.masking import Mask, random_mask, replica_mask
from brainfm_lib.models import Jepa, MaskedAutoencoder
from brainfm_lib.objectives import ObjectiveConfig, build_model, compute_loss
from brainfm_lib.optimiser import OptimiserConfig, make_optimiser
from brainfm_lib.tokens import patch_grid

CHECKPOINT_SECONDS = 30.0
# Points of the validation curve, and volumes in each, at most: a short run has fewer, so that they cost few steps.
VALIDATIONS, VALIDATION_VOLUMES = 20, 64


@dataclass(frozen=True)
class MaskConfig:
    """How tokens are hidden.

    Attributes:
        ratio: Share hidden.
        kind: ``random`` (exact share, without replacement) or ``replica`` (the authors' draw with replacement).
        shared: One mask for the whole global batch, which the variance term of VCR needs; else one a volume.
    """

    ratio: float = 0.75
    kind: str = "random"
    shared: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("random", "replica"):
            raise ValueError(f"mask kind must be random or replica, got {self.kind!r}")
        if self.kind == "replica" and not self.shared:
            raise ValueError("replica masks are shared by the batch: their number of hidden tokens varies")

    def draw(self, batch: int, n_tokens: int, generator: torch.Generator, device: torch.device) -> Mask:
        """Masks (batch, ·) drawn on `device`."""
        draw = replica_mask if self.kind == "replica" else random_mask
        if self.shared:
            return draw(1, n_tokens, self.ratio, generator=generator, device=device).expand(batch)
        return draw(batch, n_tokens, self.ratio, generator=generator, device=device)


@dataclass(frozen=True)
class PretrainConfig:
    """One pretraining run, but for its data."""

    objective: ObjectiveConfig
    geometry: Geometry
    mask: MaskConfig = field(default_factory=MaskConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    seed: int = 0


def stream(device: torch.device | str, *key: int | str) -> torch.Generator:
    """A generator on `device` whose state is a pure function of `key`."""
    return torch.Generator(device=device).manual_seed(int(stable_hash(key, 15), 16))


def faster_precision(device: torch.device) -> str:
    """``bf16`` where the device has matrix units for it, else ``fp32``."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if device.type == "cpu":
        return "bf16" if getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)() else "fp32"
    return "fp32"


def batch_rows(n_volumes: int, batch_size: int, seed: int, first_step: int = 0) -> Iterator[np.ndarray]:
    """Rows of each batch, from `first_step` on: every volume once an epoch, in an order that only the seed decides."""

    @lru_cache(maxsize=2 + batch_size // n_volumes)
    def order(epoch: int) -> np.ndarray:
        return torch.randperm(n_volumes, generator=stream("cpu", seed, "order", epoch)).numpy()

    for step in count(first_step):
        positions = range(step * batch_size, (step + 1) * batch_size)
        yield np.array([order(position // n_volumes)[position % n_volumes] for position in positions])


class Batches:
    """Volumes on their way to the device: resident there where they fit, else read as they are needed.

    Args:
        volumes: (N, D, H, W) float16 in [0, 1], an array or a memory map.
        device: Where batches are wanted.
    """

    def __init__(self, volumes: np.ndarray, device: torch.device) -> None:
        self.volumes, self.device = volumes, device
        self.resident: Tensor | None = None
        if device.type == "cuda" and volumes.nbytes < 0.5 * torch.cuda.mem_get_info(device)[0]:
            self.resident = torch.from_numpy(np.ascontiguousarray(volumes)).to(device)

    def __len__(self) -> int:
        return len(self.volumes)

    def __call__(self, rows: np.ndarray) -> Tensor:
        """Rows (B,) -> (B, 1, D, H, W) float32 on the device."""
        if self.resident is not None:
            chosen = self.resident[torch.from_numpy(rows).to(self.device)]
        else:
            chosen = torch.from_numpy(np.ascontiguousarray(self.volumes[rows])).to(self.device)
        return chosen.unsqueeze(1).float()


def initial_model(config: PretrainConfig) -> MaskedAutoencoder | Jepa:
    """The untrained model of a run: a pure function of its configuration and seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stable_hash((config.seed, "weights"), 15), 16))
        return build_model(config.objective)


class Trainer:
    """One pretraining run.

    Args:
        config: What to train.
        volumes: (N, D, H, W) float16 in [0, 1].
        heldout: (M, D, H, W) of other subjects, for the validation curve.
        folder: Where checkpoints and results go.
        cpu: Stay on the CPU whatever else there is.
    """

    def __init__(
        self,
        config: PretrainConfig,
        volumes: np.ndarray,
        heldout: np.ndarray,
        folder: Path,
        *,
        cpu: bool = False,
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, PartialState

        self.config, self.folder = config, folder
        device = torch.device("cpu") if cpu else PartialState().device
        wanted = config.optimiser.precision
        self.precision = faster_precision(device) if wanted == "auto" else wanted
        AcceleratorState._reset_state()  # it outlives a run, and would refuse another precision in the same process
        self.accelerator = Accelerator(mixed_precision="bf16" if self.precision == "bf16" else "no", cpu=cpu)
        self.device = self.accelerator.device
        self.raw = initial_model(config).to(self.device)
        self.optimiser = make_optimiser(self.raw, config.optimiser)
        self.model = self.accelerator.prepare_model(self.raw)
        self.batches = Batches(volumes, self.device)
        seen = config.optimiser.steps * config.optimiser.batch_size
        count = min(max(seen // (10 * VALIDATIONS), 8), VALIDATION_VOLUMES)
        self.heldout = Batches(heldout[:count], self.device)
        self.validations = min(max(seen // (4 * count), 1), VALIDATIONS)
        self.n_tokens = math.prod(patch_grid(config.geometry.grid, config.objective.encoder.patch_size))
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []
        self.pending: list[dict[str, Tensor]] = []
        world, parts = self.accelerator.num_processes, config.optimiser.accumulate
        if config.optimiser.batch_size % (world * parts):
            raise InputError(
                f"batch_size {config.optimiser.batch_size} does not divide over {world} processes × {parts} parts: "
                "choose a multiple."
            )
        vcr = config.objective.vcr
        if vcr is not None and world * parts > 1:
            raise InputError(
                "VCR takes variance and covariance over the whole batch: it needs accumulate 1 and one process."
            )
        if vcr is not None and not (config.mask.shared or vcr.pooled):
            raise InputError(
                "With mask.shared false VCR would take position codes for variance: set vcr.pooled true as well."
            )
        if len(volumes) == 0:
            raise InputError("There is no volume to pretrain on: see `brainfm check` for what the manifest offers.")

    def run(self, *, progress: bool = True) -> dict[str, Any]:
        """Train from the last checkpoint, or from the start, to the end; return what belongs in the provenance.

        Raises:
            InputError: Loss or gradient is not finite.
        """
        optimiser = self.config.optimiser
        self.resume()
        log_every = max(optimiser.steps // 200, 1)
        rows = batch_rows(len(self.batches), optimiser.batch_size, self.config.seed, self.step)
        started = saved = time.perf_counter()
        before = self.seconds
        bar = tqdm(
            total=optimiser.steps,
            initial=self.step,
            desc=self.config.objective.arm,
            disable=not progress or not self.accelerator.is_main_process,
            mininterval=1.0,
        )
        try:
            while self.step < optimiser.steps:
                last = self.step + 1 == optimiser.steps
                logs = last or (self.step + 1) % log_every == 0
                self.pending.append(self.train_step(next(rows), detail=logs))
                self.step += 1
                self.seconds = before + time.perf_counter() - started
                bar.update()
                if logs:
                    self.log()
                    bar.set_postfix(loss=f"{self.history[-1]['loss']:.4f}")
                    if time.perf_counter() - saved > CHECKPOINT_SECONDS and not last:
                        self.save()
                        saved = time.perf_counter()
        finally:  # Ctrl-C may come in the middle of a step: the last checkpoint stands, nothing is saved here
            bar.close()
        return self.finish()

    def train_step(self, rows: np.ndarray, *, detail: bool = False) -> dict[str, Tensor]:
        """One optimiser step on the global batch `rows`; returns its terms, still on the device."""
        config, accelerator = self.config, self.accelerator
        optimiser, step = config.optimiser, self.step
        for group in self.optimiser.param_groups:
            group["lr"] = optimiser.lr_at(step)
            group["weight_decay"] = optimiser.weight_decay_at(step) if group["decays"] else 0.0
        weight = config.objective.spectral.weight_at(step, optimiser.steps) if config.objective.spectral else 0.0
        volumes = self.batches(rows)
        volumes = zscore(augment(volumes, stream(self.device, config.seed, "augment", step), config.augment))
        mask = config.mask.draw(len(rows), self.n_tokens, stream(self.device, config.seed, "mask", step), self.device)
        share = len(rows) // accelerator.num_processes
        mine = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
        part = share // optimiser.accumulate
        total: dict[str, Tensor] = {}
        for i in range(optimiser.accumulate):
            piece = slice(mine.start + i * part, mine.start + (i + 1) * part)
            with accelerator.autocast():
                loss, terms = compute_loss(
                    self.model,
                    config.objective,
                    volumes[piece],
                    Mask(mask.visible[piece], mask.hidden[piece]),
                    spectral_weight=weight,
                    detail=detail,
                )
            accelerator.backward(loss / optimiser.accumulate)
            for name, value in {"loss": loss.detach(), **terms}.items():
                total[name] = total.get(name, 0.0) + value / optimiser.accumulate
        total["gradient_norm"] = nn.utils.clip_grad_norm_(self.raw.parameters(), optimiser.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if isinstance(self.raw, Jepa):
            self.raw.update_target(self.raw.config.decay_at(step, optimiser.steps))
        return total

    def resume(self) -> None:
        """Take up the newest checkpoint in the run's folder, if there is one."""
        found = load_checkpoint(self.folder, self.raw, self.optimiser)
        if found is not None:
            self.history, state = found
            self.step, self.seconds = state["step"], state["seconds"]
            self.pending = [
                {n: torch.tensor(v, device=self.device) for n, v in row.items()} for row in state["pending"]
            ]

    def save(self) -> None:
        """Write a checkpoint of this very step."""
        if self.accelerator.is_main_process:
            pending = [{name: float(value) for name, value in terms.items()} for terms in self.pending]
            save_checkpoint(
                self.folder,
                self.step,
                self.raw,
                self.optimiser,
                self.history,
                seconds=self.seconds,
                pending=pending,
            )
        self.accelerator.wait_for_everyone()

    def log(self) -> None:
        """Read the terms of the last steps off the device, once, and note their means."""
        pending, self.pending = self.pending, []
        names = dict.fromkeys(name for terms in pending for name in terms)
        means = {n: torch.stack([terms[n] for terms in pending if n in terms]).mean() for n in names}
        values = dict(zip(means, torch.stack(list(means.values())).tolist()))
        if not math.isfinite(values["loss"] + values["gradient_norm"]):
            raise InputError(
                f"Loss or gradient of {self.config.objective.arm} is not finite at step {self.step} (learning rate "
                f"{self.config.optimiser.lr_at(self.step):.2g}): lower optimiser.lr."
            )
        seen = self.step * self.config.optimiser.batch_size
        row = {"step": float(self.step), "volumes": float(seen), "seconds": self.seconds, **values}
        row["lr"] = self.config.optimiser.lr_at(self.step - 1)
        steps = self.config.optimiser.steps
        due = self.step * self.validations // steps > (self.step - len(pending)) * self.validations // steps
        if len(self.heldout) and (due or self.step == steps):
            row["heldout"] = self.validate()
        self.history.append(row)

    @torch.no_grad()
    def validate(self) -> float:
        """Main loss term on held-out subjects, without augmentation, under masks that never change."""
        volumes = zscore(self.heldout(np.arange(len(self.heldout))))
        mask = self.config.mask.draw(
            len(volumes), self.n_tokens, stream(self.device, self.config.seed, "validation"), self.device
        )
        with self.accelerator.autocast():
            _, terms = compute_loss(
                self.raw, self.config.objective, volumes, mask, spectral_weight=0.0, auxiliary=False
            )
        return float(terms["reconstruction" if self.config.objective.mae else "prediction"])

    def finish(self) -> dict[str, Any]:
        """Write metrics, model and encoder; the run store drops the checkpoints once the run is whole."""
        from safetensors.torch import save_file

        if self.accelerator.is_main_process:
            pd.DataFrame(self.history).to_parquet(self.folder / "metrics.parquet")
            save_file(host_state(self.raw), self.folder / "model.safetensors")
            exported = self.raw.target_encoder if isinstance(self.raw, Jepa) else self.raw.encoder
            exported.save_pretrained(self.folder / "encoder")
        self.accelerator.wait_for_everyone()
        return {
            "device": str(self.device.type),
            "precision": self.precision,
            "processes": self.accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "train_seconds": round(self.seconds, 2),
            "volumes_seen": self.step * self.config.optimiser.batch_size,
            "volumes_per_second": round(self.step * self.config.optimiser.batch_size / max(self.seconds, 1e-9), 1),
        }


def seconds_per_step(
    config: PretrainConfig,
    volumes: np.ndarray,
    folder: Path,
    *,
    steps: int = 6,
    enough: float = 15.0,
    cpu: bool = False,
) -> float:
    """Measure one optimiser step on this machine: the median of `steps` after two that do not count.

    Where steps are slow, it is the last one once `enough` seconds have gone by.
    """
    trainer = Trainer(config, volumes, volumes[:0], folder, cpu=cpu)
    rows = batch_rows(len(volumes), config.optimiser.batch_size, config.seed)
    times = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        float(trainer.train_step(next(rows))["loss"])  # reading the loss waits for the device
        times.append(time.perf_counter() - start)
        if sum(times) > enough and len(times) > 1:
            return float(np.median(times[2:] or times[-1:]))
    return float(np.median(times[2:]))


def make_pretrain(
    config: PretrainConfig,
    volumes: Callable[[], tuple[np.ndarray, np.ndarray]],
    *,
    progress: bool = True,
    cpu: bool = False,
) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls: train into a folder; `volumes()` gives the volumes when they are needed."""
    return lambda folder: Trainer(config, *volumes(), folder, cpu=cpu).run(progress=progress)
