"""Gradient training of a classifier on a labelled task; the epoch is chosen on validation subjects."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brainfm_lib.device import autocast
from brainfm_lib.probes.results import Array, ProbeResult, check_table, prediction_table, subject_auroc

# (rows, generator or None for no augmentation) -> inputs on the device
Load = Callable[[Array, torch.Generator | None], Tensor]


@dataclass(frozen=True)
class TrainingConfig:
    """How a classifier is trained.

    Attributes:
        epochs: Passes over the training subjects' scans.
        batch_size: Scans a step.
        lr: Peak learning rate of the head; cosine to zero after the warm-up.
        warmup: Share of the steps.
        weight_decay: Of matrices; biases and norms are left out.
        clip: Largest global gradient norm.
    """

    epochs: int = 20
    batch_size: int = 32
    lr: float = 5e-4
    warmup: float = 0.1
    weight_decay: float = 0.05
    clip: float = 1.0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size) < 1:
            raise ValueError(f"training: epochs and batch_size are positive, got {self.epochs} and {self.batch_size}")


def train_and_score(
    make_model: Callable[[int], nn.Module],
    load: Load,
    table: pd.DataFrame,
    config: TrainingConfig,
    *,
    rate: Callable[[str], float] = lambda name: 1.0,
    started: Callable[[nn.Module, int], None] = lambda model, epoch: None,
    seed: int = 0,
    device: torch.device,
) -> ProbeResult:
    """Train on the training subjects of each round, keep the epoch with the best AUROC on the validation ones, score.

    Args:
        make_model: Number of classes -> a model with random weights, or copied ones; inputs -> logits.
        load: Rows of the table -> inputs.
        table: As in `probes.linear_probe`. With folds, the next fold is the validation set of each; two folds leave
            none, and the last epoch is taken.
        config: The recipe.
        rate: Name of a parameter -> its share of the learning rate.
        started: Called at the start of each epoch.
        seed: Of weights, order and augmentation.
        device: Where to compute.

    Returns:
        Scores of the epoch with the best AUROC over validation subjects (ties: lowest validation loss).

    Raises:
        InputError: As in `probes.linear_probe`.
    """
    table = table.reset_index(drop=True)
    labels, parts = check_table(table)
    rows, chosen = [], []
    for part, val in _rounds(parts, "split" in table):
        test = parts == part
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = make_model(int(labels.max()) + 1).to(device)
        sides = (~test & (parts != val), parts == val)
        record = _train(model, load, labels, table, sides, config, rate, started, seed, device)
        scores = _probabilities(model, load, np.flatnonzero(test), config, device)
        rows.append(prediction_table(table[test], scores))
        chosen.append(({} if "split" in table else {"fold": part}) | record)
    return ProbeResult(pd.concat(rows).sort_index().reset_index(drop=True), pd.DataFrame(chosen))


def _rounds(parts: Array, split: bool) -> Iterator[tuple[Any, Any]]:
    """Pairs (held-out part, validation part or None)."""
    if split:
        yield "test", "val"
        return
    folds = sorted(set(parts))
    for i, fold in enumerate(folds):
        yield fold, folds[(i + 1) % len(folds)] if len(folds) > 2 else None


def _train(
    model: nn.Module,
    load: Load,
    labels: Array,
    table: pd.DataFrame,
    sides: tuple[Array, Array],
    config: TrainingConfig,
    rate: Callable[[str], float],
    started: Callable[[nn.Module, int], None],
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """Train on the first of `sides`, keep the weights of the best epoch on the second (both (n,) bool)."""
    train, val = sides
    fused = device.type in ("cpu", "cuda")  # the plain one takes longer than the step itself on a busy CPU
    optimiser = torch.optim.AdamW(_parameter_groups(model, config, rate), lr=config.lr, fused=fused)
    peaks = [group["lr"] for group in optimiser.param_groups]
    order, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    where, subjects = np.flatnonzero(train), table["subject_id"].to_numpy()
    per_epoch = max(min(math.ceil(len(where) / config.batch_size), len(where) // 2), 1)  # a norm needs two scans
    best: tuple[tuple[float, float], dict[str, Tensor], dict[str, Any]] | None = None
    for epoch in range(config.epochs):
        model.train()
        started(model, epoch)
        for i, rows in enumerate(np.array_split(order.permutation(where), per_epoch)):
            factor = _schedule((epoch * per_epoch + i + 1) / (config.epochs * per_epoch), config.warmup)
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            batch = load(rows, generator)
            with autocast(device):
                logits = model(batch)
            loss = F.cross_entropy(logits.float(), torch.from_numpy(labels[rows]).to(device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimiser.step()
        record: dict[str, Any] = {"epoch": epoch + 1, "validation_auroc": float("nan")}
        rank = (float(epoch), 0.0)
        if val.any():
            scores = np.full((len(labels), int(labels.max()) + 1), np.nan)
            scores[val] = _probabilities(model, load, np.flatnonzero(val), config, device)
            record["validation_auroc"] = subject_auroc(labels, scores, subjects, val)
            rank = (record["validation_auroc"], float(np.log(scores[val, labels[val]] + 1e-12).mean()))
        if best is None or rank > best[0]:
            best = rank, copy.deepcopy(model.state_dict()), record
    assert best is not None
    model.load_state_dict(best[1])
    return best[2]


@torch.inference_mode()
def _probabilities(model: nn.Module, load: Load, rows: Array, config: TrainingConfig, device: torch.device) -> Array:
    """Class probabilities (len(rows), C), float64, no augmentation."""
    model.eval()
    parts = []
    for start in range(0, len(rows), config.batch_size):
        with autocast(device):
            logits = model(load(rows[start : start + config.batch_size], None))
        parts.append(logits.cpu().double().softmax(1).numpy())
    return np.concatenate(parts)


def _schedule(progress: float, warmup: float) -> float:
    """Linear warm-up, then cosine to zero, over progress in (0, 1]."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1 - warmup, 1e-9)))


def _parameter_groups(model: nn.Module, config: TrainingConfig, rate: Callable[[str], float]) -> list[dict[str, Any]]:
    """One group a share of the learning rate and kind of parameter; matrices alone decay."""
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        key = rate(name), parameter.ndim > 1 and not name.endswith("positions")
        new = {"params": [], "lr": config.lr * key[0], "weight_decay": config.weight_decay * key[1]}
        groups.setdefault(key, new)["params"].append(parameter)
    return list(groups.values())
