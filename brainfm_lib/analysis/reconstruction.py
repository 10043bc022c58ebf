"""How well an arm fills in what it does not see, against predictors that know nothing but position and neighbours."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from torch import Tensor

from brainfm_lib.analysis.places import error_places
from brainfm_lib.analysis.spectrum import (
    coherence,
    coherence_noise_floor,
    patch_grid_excess,
    phase_error,
    radial_power,
    slice_log_power,
)
from brainfm_lib.data.augment import zscore
from brainfm_lib.device import autocast, best_device
from brainfm_lib.errors import InputError
from brainfm_lib.losses.reconstruction import denormalise
from brainfm_lib.masking import Mask, foreground_tokens, partition_masks
from brainfm_lib.models import Jepa, Lejepa, MaskedAutoencoder
from brainfm_lib.pretrain.checkpoint import snapshots
from brainfm_lib.pretrain.config import PretrainConfig, initial_model
from brainfm_lib.streams import stream
from brainfm_lib.tokens import gather, mosaic, patch_grid, patchify, scatter, unpatchify

READOUT_PENALTY = 1e-3


@dataclass(frozen=True)
class ReconstructionData:
    """Volumes for one evaluation, each (·, D, H, W) float32 in [0, 1].

    Attributes:
        train: Volumes of training subjects: position means and the linear read-out come from them.
        heldout: Volumes of other subjects, on which everything is reported.
        scans: One row per held-out volume with ``scan_uid``, ``subject_id``, ``contrast``.
    """

    train: np.ndarray
    heldout: np.ndarray
    scans: pd.DataFrame


def load_trained(config: PretrainConfig, run_folder: Path) -> MaskedAutoencoder | Jepa:
    """The whole trained model of a run, decoder or predictor included."""
    return _load(config, run_folder / "model.safetensors")


def _load(config: PretrainConfig, file: Path) -> MaskedAutoencoder | Jepa:
    from safetensors.torch import load_file

    model = initial_model(config)
    if isinstance(model, Lejepa):
        raise InputError("LeJEPA predicts nothing that is hidden: there is no reconstruction to look at.")
    model.load_state_dict(load_file(file))
    return model.eval()


def interpolate_residual(
    visible: np.ndarray, residual: np.ndarray, grid: tuple[int, int, int], patch: int
) -> np.ndarray:
    """Spread token-wise residuals over all voxels, linearly between the centres of visible tokens.

    Args:
        visible: (V,) token positions.
        residual: (V, n) mean residual of each visible token, for n volumes.
        grid: Patch grid (d, h, w).
        patch: Patch size in voxels.

    Returns:
        (D, H, W, n) float32; outside the convex hull of the centres the nearest one counts.
    """
    centres = (np.stack(np.unravel_index(visible, grid), axis=1) + 0.5) * patch - 0.5
    axes = [np.arange(n * patch, dtype=float) for n in grid]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    nearest = NearestNDInterpolator(centres, residual)(points)
    if len(visible) < 5 or np.linalg.matrix_rank(centres - centres[0]) < 3:  # in one plane, perhaps an oblique one
        return nearest.astype(np.float32)
    linear = LinearNDInterpolator(centres, residual)(points)
    return np.where(np.isnan(linear), nearest, linear).astype(np.float32)


def fit_readout(model: Jepa, volumes: Tensor, kept: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Ridge regression from target latents (E) to the voxels of their patch (P³), over the `kept` tokens of `volumes`.

    JEPA has no decoder; this linear one shows what its latents say about voxels. Returns weights (E, P³) and bias (P³).
    """
    size = model.encoder.config
    n = size.embed_dim + 1
    gram = torch.zeros(n, n, dtype=torch.float64)
    moment = torch.zeros(n, size.patch_size**3, dtype=torch.float64)
    for batch in volumes.split(batch_size):
        latents = model.targets(batch, _all_hidden(kept, len(batch))).flatten(0, 1)
        rows = torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1).cpu().double()
        gram += rows.T @ rows
        voxels = gather(patchify(batch, size.patch_size), kept.expand(len(batch), -1))
        moment += rows.T @ voxels.flatten(0, 1).cpu().double()
    penalty = READOUT_PENALTY * gram.diagonal().mean() * torch.eye(n, dtype=torch.float64)
    penalty[-1, -1] = 0.0
    solution = torch.linalg.solve(gram + penalty, moment).float().to(volumes.device)
    return solution[:-1], solution[-1]


def _all_hidden(kept: Tensor, batch: int) -> Mask:
    """The mask under which a target encoder gives the latents of all kept tokens (1, K)."""
    return Mask(kept[:, :0], kept).expand(batch)


def _latent_mean(model: Jepa, volumes: Tensor, kept: Tensor, n_tokens: int, batch_size: int) -> Tensor:
    """Mean target latents by position, (N, E); zero where a token is dropped."""
    total = sum(model.targets(part, _all_hidden(kept, len(part))).sum(0) for part in volumes.split(batch_size))
    table = torch.zeros(n_tokens, model.encoder.config.embed_dim, device=volumes.device)
    table[kept[0]] = total / len(volumes)
    return table


def _inside(volumes: Tensor, kept: Tensor, patch: int) -> Tensor:
    """Volumes with 0, their mean, in the dropped tokens, which nobody predicts: spectra are of what is left."""
    tokens = patchify(volumes, patch)
    if kept.shape[1] == tokens.shape[1]:
        return volumes
    index = kept.expand(len(tokens), -1)
    blank = torch.zeros_like(tokens)
    return unpatchify(scatter(blank, index, gather(tokens, index)), patch_grid(volumes.shape, patch), patch)


@torch.inference_mode()
def evaluate_reconstruction(
    model: MaskedAutoencoder | Jepa,
    config: PretrainConfig,
    data: ReconstructionData,
    *,
    examples: int,
    batch_size: int,
    device: torch.device,
) -> dict[str, Any]:
    """Reconstruct every held-out volume under masks whose visible sets partition the tokens.

    Returns:
        ``errors``: a row per volume with the mean squared error over hidden brain voxels (z-scored units) of the model
        and of both trivial predictors, averaged over the passes. ``spectra``: radial power of target, pure prediction
        and mosaic, their signed coherence with the target and the phase error, per frequency (cycles/mm). ``places``:
        see `places.error_places`. ``seams``: power on the patch lattice of each, per volume. ``slices``: (3, D, H)
        log-spectra of the central axial slices of target, prediction and mosaic. ``examples``: (examples, 4, D, H, W):
        target, visible part, mosaic of the first pass, difference. ``predictions``: (examples, D, H, W), every voxel
        predicted while hidden. For JEPA, errors hold ``latent`` and
        ``latent_position_mean``: squared errors of predicted latents and of the mean latent at each position.
    """
    model = model.to(device).eval()
    patch = config.objective.encoder.patch_size
    train = zscore(torch.from_numpy(data.train).unsqueeze(1).to(device))
    heldout = zscore(torch.from_numpy(data.heldout).unsqueeze(1).to(device))
    brain = torch.from_numpy(data.heldout > 0).unsqueeze(1).to(device)
    grid = patch_grid(heldout.shape, patch)
    n_tokens = grid[0] * grid[1] * grid[2]
    kept = torch.arange(n_tokens, device=device).unsqueeze(0)
    if config.mask.budget < 1:  # air dropped in training is dropped here
        kept = foreground_tokens(brain.float(), patch, config.mask.budget, shared=True)
    masks = partition_masks(kept.shape[1], config.mask.ratio, generator=stream("cpu", config.seed, "partition"))
    masks = [Mask(*(index.to(device) for index in mask.among(kept.cpu()))) for mask in masks]
    position_mean = train.mean(0, keepdim=True)

    with autocast(device):
        readout = fit_readout(model, train, kept, batch_size) if isinstance(model, Jepa) else None
        latent_mean = _latent_mean(model, train, kept, n_tokens, batch_size) if isinstance(model, Jepa) else None

    squared = torch.zeros(3, len(heldout), device=device)  # model, position mean, mean + interpolated residual
    weight = torch.zeros(len(heldout), device=device)
    latent = torch.zeros(2, len(heldout), device=device)
    pure = torch.zeros_like(heldout)
    first: Tensor | None = None
    brain_tokens = patchify(brain.float(), patch)
    target_tokens = patchify(heldout, patch)
    mean_tokens = patchify(position_mean, patch).expand(len(heldout), -1, -1)
    residual_tokens = target_tokens - mean_tokens
    for mask in masks:
        shared = mask.expand(len(heldout))
        parts = []
        for start in range(0, len(heldout), batch_size):
            rows = slice(start, start + batch_size)
            piece = Mask(shared.visible[rows], shared.hidden[rows])
            with autocast(device):
                output = model(heldout[rows], piece)
            if isinstance(model, Jepa):
                assert readout is not None and latent_mean is not None
                predicted = output.predicted.float()
                expected = latent_mean[mask.hidden[0]]
                latent[0, rows] += (predicted - output.target).square().mean((1, 2))
                latent[1, rows] += (expected - output.target).square().mean((1, 2))
                parts.append(predicted @ readout[0] + readout[1])
            elif config.objective.mae is not None and config.objective.mae.normalise_patches:
                parts.append(denormalise(output, gather(target_tokens[rows], piece.hidden)))
            else:
                parts.append(output.float())
        predicted = torch.cat(parts)
        seen = mask.visible[0]
        spread = interpolate_residual(
            seen.cpu().numpy(), residual_tokens[:, seen].mean(-1).T.cpu().numpy(), grid, patch
        )
        interpolated = mean_tokens + patchify(
            torch.from_numpy(spread).permute(3, 0, 1, 2).unsqueeze(1).to(device), patch
        )
        counted = gather(brain_tokens, shared.hidden)
        truth = gather(target_tokens, shared.hidden)
        for row, guess in enumerate(
            (predicted, gather(mean_tokens, shared.hidden), gather(interpolated, shared.hidden))
        ):
            squared[row] += ((guess - truth).square() * counted).sum((1, 2))
        weight += counted.sum((1, 2))
        pure += unpatchify(scatter(torch.zeros_like(target_tokens), shared.hidden, predicted), grid, patch)
        if first is None:
            first = mosaic(heldout, predicted, shared, patch)
    assert first is not None
    pure /= len(masks) - 1
    squared /= weight.clamp_min(1)
    errors = (
        data.scans[["scan_uid", "subject_id", "contrast"]]
        .reset_index(drop=True)
        .assign(
            model=squared[0].cpu().numpy(),
            position_mean=squared[1].cpu().numpy(),
            interpolation=squared[2].cpu().numpy(),
        )
    )
    if isinstance(model, Jepa):
        passes = len(masks)
        errors = errors.assign(
            latent=(latent[0] / passes).cpu().numpy(), latent_position_mean=(latent[1] / passes).cpu().numpy()
        )
    guessed = unpatchify(mean_tokens, grid, patch)
    places = error_places(heldout.cpu(), pure.cpu(), guessed.cpu(), brain.cpu(), kept.cpu(), patch)
    target, prediction, filled = (_inside(v, kept, patch).cpu() for v in (heldout, pure, first))
    each = {"target": target, "prediction": prediction, "mosaic": filled}
    shown = slice(0, examples)
    unseen = masks[0].hidden.expand(len(target_tokens[shown]), -1)
    blank = torch.full_like(gather(target_tokens[shown], unseen), float("nan"))
    visible = unpatchify(scatter(target_tokens[shown], unseen, blank), grid, patch)
    pictures = torch.cat([heldout[shown], visible, first[shown], first[shown] - heldout[shown]], dim=1)
    return {
        "errors": errors,
        "spectra": spectra_table(target, prediction, filled, config.geometry.spacing),
        "places": places,
        "seams": pd.DataFrame({name: patch_grid_excess(volumes, patch) for name, volumes in each.items()}),
        "slices": np.stack([slice_log_power(volumes) for volumes in each.values()]),
        "examples": pictures.cpu().numpy().astype(np.float16),
        "predictions": prediction[shown, 0].numpy().astype(np.float16),
    }


def spectra_table(target: Tensor, pure: Tensor, mosaicked: Tensor, spacing: float) -> pd.DataFrame:
    """Radial power of target, pure prediction and mosaic (B, 1, D, H, W), and coherence with the target, per shell."""
    frequency, power = radial_power(target, spacing)
    columns: dict[str, Any] = {"frequency": frequency, "power_target": power.mean(0)}
    for name, volumes in (("prediction", pure), ("mosaic", mosaicked)):
        columns[f"power_{name}"] = radial_power(volumes, spacing)[1].mean(0)
        columns[f"coherence_{name}"] = coherence(volumes, target, spacing)[1]
        columns[f"phase_error_{name}"] = phase_error(volumes, target, spacing)[1]
    columns["noise_floor"] = coherence_noise_floor(target.shape, spacing)[1]
    return pd.DataFrame({name: np.asarray(values) for name, values in columns.items()})


def make_reconstruction(
    config: PretrainConfig,
    run_folder: Path,
    data: Callable[[], ReconstructionData],
    *,
    examples: int,
    batch_size: int,
    cpu: bool = False,
) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls."""

    def make(folder: Path) -> dict[str, Any]:
        device = best_device(cpu=cpu)
        result = evaluate_reconstruction(
            load_trained(config, run_folder), config, data(), examples=examples, batch_size=batch_size, device=device
        )
        for name in ("errors", "spectra", "places", "seams"):
            result[name].to_parquet(folder / f"{name}.parquet")
        for name in ("examples", "predictions", "slices"):
            np.save(folder / f"{name}.npy", result[name], allow_pickle=False)
        return {"device": device.type}

    return make


def make_progress(
    config: PretrainConfig,
    run_folder: Path,
    data: Callable[[], ReconstructionData],
    *,
    batch_size: int,
    cpu: bool = False,
) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls: the spectra of predictions by each model that a pretraining kept.

    Writes ``progress``: volumes (seen so far), frequency (cycles/mm), power_ratio and coherence with the target.
    """

    def make(folder: Path) -> dict[str, Any]:
        device = best_device(cpu=cpu)
        loaded, rows = data(), []
        for step, file in snapshots(run_folder).items():
            found = evaluate_reconstruction(
                _load(config, file), config, loaded, examples=1, batch_size=batch_size, device=device
            )["spectra"]
            ratio = found["power_prediction"] / found["power_target"]
            kept = {"frequency": found["frequency"], "power_ratio": ratio, "coherence": found["coherence_prediction"]}
            rows.append(pd.DataFrame({"volumes": step * config.optimiser.batch_size, **kept}))
        pd.concat(rows, ignore_index=True).to_parquet(folder / "progress.parquet", index=False)
        return {"device": device.type}

    return make
