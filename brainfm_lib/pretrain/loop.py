"""The pretraining loop, on Hugging Face Accelerate: any device, resumable at any checkpoint.

Every random draw is a pure function of (seed, purpose, step): the order of the volumes, the masks and the augmentation
are the same for every arm, and a resumed run continues exactly as if nothing had happened.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from brainfm_lib.card import KEY, TRAINED_ON, model_card
from brainfm_lib.data.augment import augment, draw_augmentation, zscore
from brainfm_lib.data.batches import Batches, batch_rows
from brainfm_lib.device import fixed_threads, peak_memory, training_precision
from brainfm_lib.errors import InputError
from brainfm_lib.identity import save_tensors
from brainfm_lib.losses.spectral import compile_spectral_loss
from brainfm_lib.masking import Mask, dropped_foreground
from brainfm_lib.models import Jepa, Lejepa
from brainfm_lib.models.vit import compile_blocks, recompute_activations
from brainfm_lib.objectives import compute_loss, main_term, regularise_ahead
from brainfm_lib.pretrain.checkpoint import (
    checkpoints,
    host_state,
    keep_snapshot,
    load_checkpoint,
    save_checkpoint,
    snapshot_steps,
)
from brainfm_lib.pretrain.config import PretrainConfig, initial_model, refuse_untrainable
from brainfm_lib.pretrain.graphed import GraphedLoss
from brainfm_lib.pretrain.optimiser import make_optimiser
from brainfm_lib.pretrain.stopping import Sigterm, Terminated, all_stop, diverged
from brainfm_lib.ranks import sum_over_ranks
from brainfm_lib.streams import stream
from brainfm_lib.tokens import patch_grid

CHECKPOINT_SECONDS = 30.0
LOG_POINTS = 200  # rows of the metrics
# Points of the validation curve, and volumes in each, at most: a short run has fewer, so that they cost few steps.
VALIDATIONS, VALIDATION_VOLUMES = 20, 64


class Trainer:
    """One pretraining run.

    Args:
        config: What to train.
        volumes: (N, D, H, W) in their stored type: an array, or a `store.VolumeSet`.
        heldout: (M, D, H, W) of other subjects, for the validation curve.
        folder: Where checkpoints and results go.
        cpu: Stay on the CPU whatever else there is.
        compile: Compile the transformer blocks (equal up to rounding; pays on long runs).
        graphs: Replay forward and backward pass as CUDA graphs, where that is possible (see `_can_replay`).
        recompute: Keep few activations and compute them again in the backward pass (equal, slower, less memory).
        about: Facts for the encoder's model card: run, data and the like.
        scans: Digests of the training scans: their keys are left beside the weights, so that an audit can find them.

    Raises:
        InputError: The settings do not fit each other, the data or the number of processes.
    """

    def __init__(
        self,
        config: PretrainConfig,
        volumes: Any,
        heldout: Any,
        folder: Path,
        *,
        cpu: bool = False,
        compile: bool = False,
        graphs: bool = True,
        recompute: bool = False,
        about: Mapping[str, str] | None = None,
        scans: Iterable[str] = (),
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, PartialState

        self.config, self.folder, self.about = config, folder, dict(about or {})
        self.scans = sorted({digest[:KEY] for digest in scans})
        device = torch.device("cpu") if cpu else PartialState().device
        wanted, width = config.optimiser.precision, config.objective.encoder.embed_dim
        self.precision = training_precision(device, width) if wanted == "auto" else wanted
        AcceleratorState._reset_state()  # it outlives a run, and would refuse another precision in the same process
        self.accelerator = Accelerator(mixed_precision="bf16" if self.precision == "bf16" else "no", cpu=cpu)
        self.device, self.world = self.accelerator.device, self.accelerator.num_processes
        refuse_untrainable(config, len(volumes), self.world)
        self.raw = initial_model(config).to(self.device)
        if recompute:
            recompute_activations(self.raw)
        if compile:
            compile_blocks(self.raw)
            compile_spectral_loss()
        replays = graphs and self._can_replay()
        self.graphed = GraphedLoss(self.raw, config.objective, self.precision) if replays else None
        self.optimiser = make_optimiser(self.raw, config.optimiser)
        self.model = self.accelerator.prepare_model(self.raw)
        self.batches = Batches(volumes, self.device)
        seen = config.optimiser.steps * config.optimiser.batch_size
        count = min(max(seen // (10 * VALIDATIONS), 8), VALIDATION_VOLUMES)
        self.heldout = Batches(heldout[:count], self.device)
        self.validations = min(max(seen // (4 * count), 1), VALIDATIONS)
        self.grid = patch_grid(config.geometry.grid, config.objective.encoder.patch_size)
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []
        self.kept = snapshot_steps(config.optimiser.steps)
        self.pending: list[dict[str, Tensor]] = []
        self.splits: list[str] = [f"{self.world} × {config.optimiser.accumulate}"]

    def _can_replay(self) -> bool:
        """On one CUDA device, where a step is one pass and its shapes never change."""
        one = self.world == 1 and self.config.optimiser.accumulate == 1
        return self.device.type == "cuda" and one and self.config.mask.kind != "replica"

    def run(self, *, progress: bool | Callable[[int], None] = True) -> dict[str, Any]:
        """Train from the last checkpoint, or from the start, to the end; return what belongs in the provenance.

        Raises:
            InputError: Loss or gradient is not finite.
            Terminated: SIGTERM came; a checkpoint of that very step was written.
        """
        optimiser = self.config.optimiser
        self.resume()
        log_every = max(optimiser.steps // LOG_POINTS, 1)
        rows = batch_rows(len(self.batches), optimiser.batch_size, self.config.seed, self.step)
        started = (saved := time.perf_counter()) - self.seconds  # sittings before count
        shown, arm = progress is True and self.accelerator.is_main_process, self.config.objective.arm
        bar = tqdm(total=optimiser.steps, initial=self.step, desc=arm, disable=not shown, mininterval=1.0)
        upcoming = next(rows)
        with bar, Sigterm() as sigterm:  # Ctrl-C may come in mid-step: the last checkpoint stands, none is written
            while self.step < optimiser.steps:
                last = self.step + 1 == optimiser.steps
                logs = last or (self.step + 1) % log_every == 0
                current, upcoming = upcoming, next(rows)
                if not last:
                    self.batches.read_ahead(upcoming[self._mine(upcoming)])
                self.pending.append(self.train_step(current, detail=logs))
                self.step += 1
                if self.step in self.kept and self.accelerator.is_main_process:
                    keep_snapshot(self.folder, self.step, self.raw)
                self.seconds = time.perf_counter() - started
                bar.update()
                if callable(progress):
                    progress(self.step)
                if logs:
                    self.log()
                    bar.set_postfix(loss=f"{self.history[-1]['loss']:.4f}")
                    if time.perf_counter() - saved > CHECKPOINT_SECONDS and not last:
                        self.save()
                        saved = time.perf_counter()
                if not last and all_stop(sigterm.asked, self.step, self.world, self.device):
                    self.save()
                    self.accelerator.wait_for_everyone()
                    raise Terminated(f"terminated at step {self.step}; the same command goes on from there")
        return self.finish()

    def _mine(self, rows: np.ndarray) -> slice:
        """The part of a global batch that this process takes."""
        share = len(rows) // self.world
        return slice(self.accelerator.process_index * share, (self.accelerator.process_index + 1) * share)

    def train_step(self, rows: np.ndarray, *, detail: bool = False) -> dict[str, Tensor]:
        """One optimiser step on the global batch `rows`; returns its terms, still on the device."""
        config, accelerator = self.config, self.accelerator
        optimiser, step = config.optimiser, self.step
        for group in self.optimiser.param_groups:
            group["lr"] = optimiser.lr_at(step)
            group["weight_decay"] = optimiser.weight_decay_at(step) if group["decays"] else 0.0
        weight = config.objective.spectral.weight_at(step, optimiser.steps) if config.objective.spectral else 0.0
        mine = self._mine(rows)
        draws = draw_augmentation(len(rows), stream("cpu", config.seed, "augment", step))
        volumes = augment(self.batches(rows[mine]), draws[:, mine], config.augment, in_place=True)
        volumes, mask, dropped = self._masked(volumes, len(rows), mine, "mask", step)
        if isinstance(self.raw, Lejepa):
            self.raw.redraw(stream("cpu", config.seed, "directions", step))
        if self.graphed is not None:
            loss, terms = self.graphed(volumes, mask, weight, detail=detail)
            return self._update({"loss": loss, **terms}, dropped)
        part = len(volumes) // optimiser.accumulate
        slices = [slice(i * part, (i + 1) * part) for i in range(optimiser.accumulate)]
        parts = [(volumes[piece], mask.rows(piece)) for piece in slices]
        with accelerator.autocast():
            ahead = regularise_ahead(self.raw, config.objective, parts)
        total: dict[str, Tensor] = {}
        for i, (piece, piece_mask) in enumerate(parts):
            with nullcontext() if i + 1 == len(parts) else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    loss, terms = compute_loss(
                        self.model,
                        config.objective,
                        piece,
                        piece_mask,
                        spectral_weight=weight,
                        detail=detail,
                        ahead=ahead[i] if ahead else None,
                    )
                accelerator.backward(loss / len(parts))
            for name, value in {"loss": loss.detach(), **terms}.items():
                total[name] = total.get(name, 0.0) + value / len(parts)
        return self._update(total, dropped)

    def _update(self, total: dict[str, Tensor], dropped: Tensor | None) -> dict[str, Tensor]:
        """Move the weights along the gradients, and the target encoder after them; returns the terms, completed."""
        if dropped is not None:
            total["foreground_dropped"] = dropped
        total["gradient_norm"] = nn.utils.clip_grad_norm_(self.raw.parameters(), self.config.optimiser.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if isinstance(self.raw, Jepa):
            self.raw.update_target(self.raw.config.decay_at(self.step, self.config.optimiser.steps))
        return total

    def _masked(
        self, volumes: Tensor, batch: int, rows: slice, *purpose: int | str
    ) -> tuple[Tensor, Mask, Tensor | None]:
        """Z-score `rows` of a batch, draw their masks, and say which share of the foreground is dropped, if any may."""
        masks, patch_size = self.config.mask, self.config.objective.encoder.patch_size
        home = torch.device("cpu") if masks.kind == "replica" else self.device
        kept = masks.kept(volumes, patch_size)
        mask = masks.draw(batch, self.grid, stream(home, self.config.seed, *purpose), self.device, kept=kept, rows=rows)
        dropped = None if kept is None else dropped_foreground(volumes, patch_size, kept)
        return zscore(volumes), mask, dropped

    def resume(self) -> None:
        """Take up the newest checkpoint in the run's folder, if there is one.

        On a CPU in one process, what follows is bit for bit what would have been. Else, and on another number of
        processes or parts, volumes and masks are the same and losses equal up to rounding (unless VCR is taken per
        process: then its statistics are over other parts, and the run equal in distribution only).

        Raises:
            InputError: The processes do not see the same checkpoint and data.
        """
        found = load_checkpoint(self.folder, self.raw, self.optimiser)
        self._agree(found[1]["step"] if found else 0)
        if found is None:
            return
        self.history, state = found
        self.step, self.seconds = state["step"], state["seconds"]
        self.pending = [{n: torch.tensor(v, device=self.device) for n, v in row.items()} for row in state["pending"]]
        before, now, vcr = state["splits"], self.splits[-1], self.config.objective.vcr
        self.splits = before if before[-1] == now else [*before, now]
        if before[-1] != now and self.accelerator.is_main_process:
            equal = "in distribution only" if vcr is not None and not vcr.gathered else "up to rounding"
            print(
                f"{self.config.objective.arm}: goes on at step {self.step} on {now} processes × parts, "
                f"{before[-1]} before: equal {equal} from here."
            )

    def _agree(self, step: int) -> None:
        """Refuse to train where processes are not at the same step of the same data."""
        facts = torch.tensor([step, len(self.batches), len(self.heldout)], device=self.device)
        if self.world > 1 and bool((sum_over_ranks(facts**2) * self.world != sum_over_ranks(facts) ** 2).any()):
            raise InputError(
                f"The processes do not see the same run: this one is at step {step} with {len(self.batches)} volumes. "
                "Run store and prepared volumes must lie in a folder that all of them share."
            )

    def save(self) -> None:
        """Write a checkpoint of this very step; the first process alone does, and none waits."""
        if self.accelerator.is_main_process:
            pending = [{name: float(value) for name, value in terms.items()} for terms in self.pending]
            if not all(math.isfinite(one["loss"] + one["gradient_norm"]) for one in pending):
                return  # the checkpoint before is the last good state; `log` will say so
            save_checkpoint(
                self.folder,
                self.step,
                self.raw,
                self.optimiser,
                self.history,
                seconds=self.seconds,
                pending=pending,
                splits=self.splits,
            )

    def log(self) -> None:
        """Read the terms of the last steps off the device, once, and note their means."""
        pending, self.pending = self.pending, []
        names = dict.fromkeys(name for terms in pending for name in terms)
        means = {n: torch.stack([terms[n] for terms in pending if n in terms]).mean() for n in names}
        together = sum_over_ranks(torch.stack(list(means.values()))) / self.world
        values = dict(zip(means, together.tolist()))
        if not math.isfinite(values["loss"] + values["gradient_norm"]):
            arm, kept = self.config.objective.arm, checkpoints(self.folder)
            raise InputError(diverged(arm, self.config.optimiser, self.step, pending, kept))
        steps, seen = self.config.optimiser.steps, self.step * self.config.optimiser.batch_size
        row = {"step": float(self.step), "volumes": float(seen), "seconds": self.seconds, **values}
        row["lr"] = self.config.optimiser.lr_at(self.step - 1)
        due = self.step * self.validations // steps > (self.step - len(pending)) * self.validations // steps
        if len(self.heldout) and (due or self.step == steps):
            row["heldout"] = self.validate()
        self.history.append(row)

    @torch.no_grad()
    def validate(self) -> float:
        """Main loss term on held-out subjects, without augmentation, under masks that never change."""
        config, n, total = self.config, len(self.heldout), 0.0
        size = max(config.optimiser.batch_size // (self.world * config.optimiser.accumulate), 1)  # as training takes
        for piece in (slice(start, min(start + size, n)) for start in range(0, n, size)):
            volumes, mask, _ = self._masked(self.heldout(np.arange(n)[piece]), n, piece, "validation")
            with self.accelerator.autocast(), torch.compiler.set_stance("force_eager"):  # not compiled for other sizes
                _, terms = compute_loss(self.raw, config.objective, volumes, mask, spectral_weight=0, auxiliary=False)
            total += float(terms[main_term(config.objective)]) * len(volumes)
        return total / n

    def finish(self) -> dict[str, Any]:
        """Write metrics, model and encoder; the run store drops the checkpoints once the run is whole."""
        if self.accelerator.is_main_process:
            pd.DataFrame(self.history).to_parquet(self.folder / "metrics.parquet")
            save_tensors(host_state(self.raw), self.folder / "model.safetensors")
            card = model_card(self.config.objective, self.config.geometry, {**self._summary(), **self.about})
            self.raw.exported.save_pretrained(self.folder / "encoder", card=card)
            (self.folder / "encoder" / TRAINED_ON).write_text("".join(f"{key}\n" for key in self.scans))
        self.accelerator.wait_for_everyone()
        return {
            "device": str(self.device.type),
            "precision": self.precision,
            "processes": self.world,
            "splits": self.splits,
            "threads": torch.get_num_threads(),
            "train_seconds": round(self.seconds, 2),
            "volumes_seen": self.step * self.config.optimiser.batch_size,
            "volumes_per_second": round(self.step * self.config.optimiser.batch_size / max(self.seconds, 1e-9), 1),
            **peak_memory(self.device),
        }

    def _summary(self) -> dict[str, str]:
        """What the model card says of the training."""
        optimiser = self.config.optimiser
        return {
            "Training": f"{self.step:,} steps of {optimiser.batch_size} volumes, seed {self.config.seed}",
            "Optimiser": f"AdamW, learning rate {optimiser.lr:g}, precision {self.precision}, {self.device.type}",
            "Last held-out loss": next((f"{r['heldout']:.4g}" for r in self.history[::-1] if "heldout" in r), "none"),
        }


def make_pretrain(
    config: PretrainConfig,
    volumes: Callable[[], tuple[Any, Any]],
    *,
    progress: bool | Callable[[int], None] = True,
    started: Callable[[Path], Any] = lambda folder: None,
    **trainer: Any,
) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls: train into a folder.

    Args:
        config: The run.
        volumes: Gives training and held-out volumes when they are needed.
        progress: Whether to show a bar, or what to tell the steps that are done.
        started: Called with the folder before training.
        trainer: Further arguments of `Trainer`.
    """

    def make(folder: Path) -> dict[str, Any]:
        loaded = volumes()
        started(folder)
        made = Trainer(config, *loaded, folder, **trainer)
        with fixed_threads(made.device, config.objective.encoder.embed_dim):
            return made.run(progress=progress)

    return make
