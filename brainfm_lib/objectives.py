"""The table of arms: which model, which losses, which weights. One line an arm; everything else is shared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from brainfm_lib.losses.prediction import prediction_loss
from brainfm_lib.losses.reconstruction import denormalise, reconstruction_loss
from brainfm_lib.losses.spectral import SpectralConfig, spectral_loss
from brainfm_lib.losses.vcr import VcrConfig, covariance_loss, variance_loss
from brainfm_lib.masking import Mask
from brainfm_lib.models import Jepa, JepaConfig, MaeConfig, MaskedAutoencoder, VisionTransformer3d
from brainfm_lib.models.vit import VisionTransformerConfig
from brainfm_lib.tokens import gather, mosaic, patchify


@dataclass(frozen=True)
class Arm:
    """One row of the comparison.

    Attributes:
        family: ``mae`` or ``jepa``.
        spectral: Adds the spectral loss.
        vcr: Adds variance-covariance regularisation.
        title: As the report writes it.
    """

    family: str
    title: str
    spectral: bool = False
    vcr: bool = False


ARMS = {
    "mae": Arm("mae", "MAE"),
    "sl-mae": Arm("mae", "SL-MAE", spectral=True),
    "jepa": Arm("jepa", "JEPA"),
    "vcr-jepa": Arm("jepa", "VCR-JEPA", vcr=True),
}
CONTROL = "random-init"


@dataclass(frozen=True)
class ObjectiveConfig:
    """Model and losses of one arm; what the arm does not use is None and plays no part in a run's identity."""

    arm: str
    encoder: VisionTransformerConfig
    mae: MaeConfig | None = None
    jepa: JepaConfig | None = None
    spectral: SpectralConfig | None = None
    vcr: VcrConfig | None = None


def objective_config(
    arm: str,
    *,
    encoder: VisionTransformerConfig,
    mae: MaeConfig,
    jepa: JepaConfig,
    spectral: SpectralConfig,
    vcr: VcrConfig,
) -> ObjectiveConfig:
    """Keep of the shared settings what `arm` uses."""
    row = ARMS[arm]
    return ObjectiveConfig(
        arm,
        encoder,
        mae=mae if row.family == "mae" else None,
        jepa=jepa if row.family == "jepa" else None,
        spectral=spectral if row.spectral else None,
        vcr=vcr if row.vcr else None,
    )


def build_model(config: ObjectiveConfig) -> MaskedAutoencoder | Jepa:
    """Make the arm's model. The encoder is drawn first, so that under one seed every arm starts from the same one."""
    encoder = VisionTransformer3d(config.encoder)
    if config.mae is not None:
        return MaskedAutoencoder(encoder, config.mae)
    if config.jepa is not None:
        return Jepa(encoder, config.jepa)
    raise ValueError(f"arm {config.arm!r} has neither a decoder nor a predictor")


class VcrAhead(NamedTuple):
    """Variance-covariance regularisation of a whole batch, for one of the parts it is worked on in.

    Attributes:
        value: Weighted loss of the whole batch, detached.
        terms: Its terms, detached.
        gradient: (b, V, E), that of the loss by this part's context, times the number of parts.
        targets: (b, H, E), those of this part, so that they need not be computed twice.
    """

    value: Tensor
    terms: dict[str, Tensor]
    gradient: Tensor
    targets: Tensor


def regularise_ahead(
    model: Jepa, config: ObjectiveConfig, parts: Sequence[tuple[Tensor, Mask]]
) -> list[VcrAhead] | None:
    """Prepare VCR of a batch that is worked on in several parts; None where parts do not concern each other.

    The loss couples all samples. So the latents of all parts are computed first, without a graph, and the loss and its
    gradient by them from all at once; each part then passes its share of that gradient on. The result is that of the
    undivided batch; the price is one more pass of the student over visible tokens.
    """
    if config.vcr is None or not config.vcr.gathered or len(parts) == 1:
        return None
    with torch.no_grad():
        contexts = [model.encoder(volumes, mask.visible).float() for volumes, mask in parts]
        targets = [model.targets(volumes, mask) for volumes, mask in parts]
    context = torch.cat(contexts).requires_grad_()
    with torch.enable_grad(), torch.autocast(context.device.type, enabled=False):  # its backward pass in float32 too
        value, terms = _regularisation(context, torch.cat(targets), config.vcr)
        gradient = torch.autograd.grad(value, context)[0] * len(parts)
    pieces = gradient.split([len(piece) for piece in contexts])
    return [VcrAhead(value.detach(), terms, *pair) for pair in zip(pieces, targets, strict=True)]


def compute_loss(
    model: nn.Module,
    config: ObjectiveConfig,
    volumes: Tensor,
    mask: Mask,
    *,
    spectral_weight: float | Tensor,
    auxiliary: bool = True,
    detail: bool = False,
    ahead: VcrAhead | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one batch, or of one part of it.

    Args:
        model: What `build_model` made, perhaps wrapped for several processes.
        config: The arm.
        volumes: (B, 1, D, H, W) float32, z-scored.
        mask: Visible and hidden positions, (B, ·) each.
        spectral_weight: λ at this step; at 0.0 the spectral loss is not evaluated, as a tensor (scalar) it always is.
        auxiliary: Take the auxiliary objective into the loss; without it, every arm of a family has the same loss.
        detail: Also measure the ratio of the auxiliary to the main gradient on the predictions (costs a pass).
        ahead: What `regularise_ahead` says of this part.

    Returns:
        The loss to descend, and its terms (unweighted, detached, on the device).
    """
    if config.mae is not None:
        return _mae_loss(model, config, volumes, mask, spectral_weight if auxiliary else 0.0, detail)
    output = model(volumes, mask, None if ahead is None else ahead.targets)
    loss = prediction_loss(output.predicted, output.target)
    terms = {"prediction": loss.detach()}
    if ahead is not None:
        passed_on = (ahead.gradient * output.context.float()).sum()
        loss, terms = loss + ahead.value + passed_on - passed_on.detach(), terms | ahead.terms
    elif config.vcr is not None and auxiliary:
        value, more = _regularisation(output.context.float(), output.target, config.vcr)
        loss, terms = loss + value, terms | more
    return loss, terms


def _regularisation(context: Tensor, target: Tensor, vcr: VcrConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted VCR of context (B, V, E) and target latents (B, H, E), and its terms."""
    settings = {"pooled": vcr.pooled, "gathered": vcr.gathered}
    if vcr.context_only:
        variance, covariance = variance_loss(context, **settings), covariance_loss(context, gathered=vcr.gathered)
    else:  # as of both side by side, but no gradient is computed for targets
        covariance = covariance_loss(context, target, gathered=vcr.gathered)
        if vcr.pooled:
            variance = variance_loss(torch.cat([context, target], dim=1), **settings)
        else:
            seen, hidden = context.shape[1], target.shape[1]
            of_both = seen * variance_loss(context, **settings) + hidden * variance_loss(target, **settings)
            variance = of_both / (seen + hidden)
    value = vcr.weight * (vcr.variance * variance + vcr.covariance * covariance)
    return value, {"variance": variance.detach(), "covariance": covariance.detach()}


def _mae_loss(
    model: nn.Module,
    config: ObjectiveConfig,
    volumes: Tensor,
    mask: Mask,
    spectral_weight: float | Tensor,
    detail: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    assert config.mae is not None
    patch_size = config.encoder.patch_size
    predicted = model(volumes, mask).float()
    target = gather(patchify(volumes, patch_size), mask.hidden)
    loss = reconstruction_loss(predicted, target, normalise_patches=config.mae.normalise_patches)
    terms = {"reconstruction": loss.detach()}
    if config.spectral is not None and (isinstance(spectral_weight, Tensor) or spectral_weight > 0):
        filled = denormalise(predicted, target) if config.mae.normalise_patches else predicted
        spectral = spectral_loss(
            mosaic(volumes, filled, mask, patch_size),
            volumes,
            high_pass=config.spectral.high_pass,
            mode=config.spectral.mode,
            band=config.spectral.band,
            kept_only=config.spectral.kept_only,
        )
        terms["spectral"] = spectral.detach()
        if detail:
            main = torch.autograd.grad(loss, predicted, retain_graph=True)[0].norm()
            extra = torch.autograd.grad(spectral, predicted, retain_graph=True)[0].norm()
            terms["gradient_ratio"] = spectral_weight * extra / main.clamp_min(1e-20)
        loss = loss + spectral_weight * spectral
    return loss, terms


def describe_arm(config: ObjectiveConfig) -> dict[str, Any]:
    """Short facts for tables: title, family, auxiliary weight."""
    row = ARMS[config.arm]
    weight = config.spectral.weight if config.spectral else config.vcr.weight if config.vcr else None
    return {"arm": config.arm, "title": row.title, "family": row.family, "auxiliary_weight": weight}
