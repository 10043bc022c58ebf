"""How well an arm fills in what it does not see, against predictors that know nothing but position and neighbours."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

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


@dataclass(frozen=True)
class _Scene:
    """Volumes as models see them, z-scored, and masks under which every kept token of them is hidden at least once.

    Attributes:
        train, heldout: (·, 1, D, H, W).
        brain: (M, 1, D, H, W) whether a voxel of `heldout` counts.
        kept: (1, K) tokens that are not dropped as air.
        masks: Of batch 1; their visible sets partition the kept tokens.
        grid, patch: Patch grid, and patch size in voxels.
    """

    train: Tensor
    heldout: Tensor
    brain: Tensor
    kept: Tensor
    masks: list[Mask]
    grid: tuple[int, int, int]
    patch: int

    @classmethod
    def of(cls, config: PretrainConfig, data: ReconstructionData, device: torch.device) -> Self:
        patch = config.objective.encoder.patch_size
        train, heldout = (zscore(torch.from_numpy(v).unsqueeze(1).to(device)) for v in (data.train, data.heldout))
        brain = torch.from_numpy(data.heldout > 0).unsqueeze(1).to(device)
        grid = patch_grid(heldout.shape, patch)
        kept = torch.arange(math.prod(grid), device=device).unsqueeze(0)
        if config.mask.budget < 1:  # air dropped in training is dropped here
            kept = foreground_tokens(brain.float(), patch, config.mask.budget, shared=True)
        masks = partition_masks(kept.shape[1], config.mask.ratio, generator=stream("cpu", config.seed, "partition"))
        masks = [Mask(*(index.to(device) for index in mask.among(kept.cpu()))) for mask in masks]
        return cls(train, heldout, brain, kept, masks, grid, patch)

    def volumes(self, tokens: Tensor) -> Tensor:
        """(M, N, P³) as volumes."""
        return unpatchify(tokens, self.grid, self.patch)


class _Predictor:
    """What a model fills in; of JEPA, voxels are read off its latents, and errors of these are added up in `latent`."""

    def __init__(self, model: MaskedAutoencoder | Jepa, config: PretrainConfig, scene: _Scene, batch_size: int) -> None:
        self.model, self.scene, self.batch_size = model, scene, batch_size
        self.normalised = config.objective.mae is not None and config.objective.mae.normalise_patches
        self.latent = torch.zeros(2, len(scene.heldout), device=scene.heldout.device)  # model, mean of the position
        if isinstance(model, Jepa):
            with autocast(scene.heldout.device):
                self.readout = fit_readout(model, scene.train, scene.kept, batch_size)
                self.mean = _latent_mean(model, scene.train, scene.kept, math.prod(scene.grid), batch_size)

    def __call__(self, mask: Mask) -> Tensor:
        """Patches (M, H, P³) at the hidden positions of a mask of batch 1."""
        starts = range(0, len(self.scene.heldout), self.batch_size)
        return torch.cat([self._part(mask, slice(start, start + self.batch_size)) for start in starts])

    def _part(self, mask: Mask, rows: slice) -> Tensor:
        volumes = self.scene.heldout[rows]
        shared = mask.expand(len(volumes))
        with autocast(volumes.device):
            output = self.model(volumes, shared)
        if isinstance(self.model, Jepa):
            predicted = output.predicted.float()
            for row, guess in enumerate((predicted, self.mean[mask.hidden[0]])):
                self.latent[row, rows] += (guess - output.target).square().mean((1, 2))
            weights, bias = self.readout
            return predicted @ weights + bias
        if self.normalised:
            return denormalise(output, gather(patchify(volumes, self.scene.patch), shared.hidden))
        return output.float()


def _interpolated(residual: Tensor, mask: Mask, scene: _Scene) -> Tensor:
    """Residuals (M, N, P³) of visible tokens, averaged in each and spread over all, as tokens."""
    seen = mask.visible[0]
    means = residual[:, seen].mean(-1).T.cpu().numpy()
    spread = interpolate_residual(seen.cpu().numpy(), means, scene.grid, scene.patch)
    volumes = torch.from_numpy(spread).permute(3, 0, 1, 2).unsqueeze(1)
    return patchify(volumes.to(residual.device), scene.patch)


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
    scene = _Scene.of(config, data, device)
    predict = _Predictor(model.to(device).eval(), config, scene, batch_size)
    target = patchify(scene.heldout, scene.patch)
    mean = patchify(scene.train.mean(0, keepdim=True), scene.patch).expand(len(target), -1, -1)
    brain = patchify(scene.brain.float(), scene.patch)
    squared = torch.zeros(3, len(target), device=device)  # model, position mean, mean + interpolated residual
    weight = torch.zeros(len(target), device=device)
    pure, first = torch.zeros_like(scene.heldout), scene.heldout
    for number, mask in enumerate(scene.masks):
        shared = mask.expand(len(target))
        predicted = predict(mask)
        interpolated = mean + _interpolated(target - mean, mask, scene)
        counted, truth = gather(brain, shared.hidden), gather(target, shared.hidden)
        guesses = (predicted, gather(mean, shared.hidden), gather(interpolated, shared.hidden))
        for row, guess in enumerate(guesses):
            squared[row] += ((guess - truth).square() * counted).sum((1, 2))
        weight += counted.sum((1, 2))
        pure += scene.volumes(scatter(torch.zeros_like(target), shared.hidden, predicted))
        if number == 0:
            first = mosaic(scene.heldout, predicted, shared, scene.patch)
    pure /= len(scene.masks) - 1
    squared /= weight.clamp_min(1)
    columns = dict(zip(("model", "position_mean", "interpolation"), squared))
    if isinstance(model, Jepa):
        columns |= dict(zip(("latent", "latent_position_mean"), predict.latent / len(scene.masks)))
    scans = data.scans[["scan_uid", "subject_id", "contrast"]].reset_index(drop=True)
    errors = scans.assign(**{name: values.cpu().numpy() for name, values in columns.items()})
    return {"errors": errors, **_looked_at(scene, pure, first, mean, config.geometry.spacing, examples)}


def _looked_at(
    scene: _Scene, pure: Tensor, first: Tensor, mean: Tensor, spacing: float, examples: int
) -> dict[str, Any]:
    """Spectra, places and pictures of `evaluate_reconstruction`.

    Args:
        scene: Volumes and masks.
        pure, first: (M, 1, D, H, W) every voxel predicted while hidden, and the mosaic of the first pass.
        mean: (M, N, P³) mean of the training volumes at each position.
        spacing: Edge of a voxel, mm.
        examples: How many volumes are pictured.
    """
    patch, kept = scene.patch, scene.kept
    guessed = scene.volumes(mean)
    places = error_places(scene.heldout.cpu(), pure.cpu(), guessed.cpu(), scene.brain.cpu(), kept.cpu(), patch)
    target, prediction, filled = (_inside(volumes, kept, patch).cpu() for volumes in (scene.heldout, pure, first))
    each = {"target": target, "prediction": prediction, "mosaic": filled}
    heldout, first = scene.heldout[:examples], first[:examples]
    tokens = patchify(heldout, patch)
    unseen = scene.masks[0].hidden.expand(len(tokens), -1)
    blank = torch.full_like(gather(tokens, unseen), float("nan"))
    visible = scene.volumes(scatter(tokens, unseen, blank))
    return {
        "spectra": spectra_table(target, prediction, filled, spacing),
        "places": places,
        "seams": pd.DataFrame({name: patch_grid_excess(volumes, patch) for name, volumes in each.items()}),
        "slices": np.stack([slice_log_power(volumes) for volumes in each.values()]),
        "examples": torch.cat([heldout, visible, first, first - heldout], dim=1).cpu().numpy().astype(np.float16),
        "predictions": prediction[:examples, 0].numpy().astype(np.float16),
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
