"""The table of arms: which model, which losses, which weights. One line an arm; everything else is shared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from brainfm_lib.losses.prediction import prediction_loss
from brainfm_lib.losses.reconstruction import denormalise, reconstruction_loss
from brainfm_lib.losses.sigreg import SigregConfig, sigreg_loss
from brainfm_lib.losses.spectral import SpectralConfig, spectral_loss
from brainfm_lib.losses.vcr import VcrConfig, covariance_loss, variance_loss
from brainfm_lib.masking import Mask
from brainfm_lib.models import (
    Jepa,
    JepaConfig,
    Lejepa,
    LejepaConfig,
    MaeConfig,
    MaskedAutoencoder,
    VisionTransformer3d,
)
from brainfm_lib.models.vit import VisionTransformerConfig
from brainfm_lib.tokens import gather, mosaic, patchify


@dataclass(frozen=True)
class Arm:
    """One row of the comparison.

    Attributes:
        family: ``mae``, ``jepa`` or ``lejepa``.
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
OPTIONAL_ARMS = {"lejepa": Arm("lejepa", "LeJEPA")}  # not of the paper: made where asked for by name
EVERY_ARM = ARMS | OPTIONAL_ARMS
LATER = ("lejepa", "sigreg")  # parts of an objective that runs of other arms, some made before, are not identified by


@dataclass(frozen=True)
class ObjectiveConfig:
    """Model and losses of one arm; what the arm does not use is None and plays no part in a run's identity."""

    arm: str
    encoder: VisionTransformerConfig
    mae: MaeConfig | None = None
    jepa: JepaConfig | None = None
    spectral: SpectralConfig | None = None
    vcr: VcrConfig | None = None
    lejepa: LejepaConfig | None = None
    sigreg: SigregConfig | None = None


def objective_config(
    arm: str,
    *,
    encoder: VisionTransformerConfig,
    mae: MaeConfig,
    jepa: JepaConfig,
    spectral: SpectralConfig,
    vcr: VcrConfig,
    lejepa: LejepaConfig | None = None,
    sigreg: SigregConfig | None = None,
) -> ObjectiveConfig:
    """Keep of the shared settings what `arm` uses."""
    row = EVERY_ARM[arm]
    return ObjectiveConfig(
        arm,
        encoder,
        mae=mae if row.family == "mae" else None,
        jepa=jepa if row.family == "jepa" else None,
        spectral=spectral if row.spectral else None,
        vcr=vcr if row.vcr else None,
        lejepa=lejepa or LejepaConfig() if row.family == "lejepa" else None,
        sigreg=sigreg or SigregConfig() if row.family == "lejepa" else None,
    )


Model = MaskedAutoencoder | Jepa | Lejepa


def main_term(config: ObjectiveConfig) -> str:
    """Name of the term without auxiliary objectives, which held-out volumes are judged by."""
    return {"mae": "reconstruction", "jepa": "prediction", "lejepa": "invariance"}[EVERY_ARM[config.arm].family]


def build_model(config: ObjectiveConfig) -> Model:
    """Make the arm's model. The encoder is drawn first, so that under one seed every arm starts from the same one."""
    encoder = VisionTransformer3d(config.encoder)
    if config.mae is not None:
        return MaskedAutoencoder(encoder, config.mae)
    if config.jepa is not None:
        return Jepa(encoder, config.jepa)
    if config.lejepa is not None and config.sigreg is not None:
        return Lejepa(encoder, config.lejepa, config.sigreg.directions)
    raise ValueError(f"arm {config.arm!r} has neither a decoder nor a predictor nor a projector")


class Ahead(NamedTuple):
    """Regularisation of a whole batch, for one of the parts it is worked on in.

    Attributes:
        value: Weighted loss of the whole batch, detached.
        terms: Its terms, detached.
        gradient: That of the loss by this part's context (b, V, E), or embeddings (2, b, D), times the number of parts.
        targets: (b, H, E), JEPA's of this part, so that they need not be computed twice.
    """

    value: Tensor
    terms: dict[str, Tensor]
    gradient: Tensor
    targets: Tensor | None = None

    def of(self, latents: Tensor) -> Tensor:
        """The loss, which passes on this part's share of the gradient to its `latents`."""
        passed_on = (self.gradient * latents.float()).sum()
        return self.value + passed_on - passed_on.detach()


def regularise_ahead(
    model: nn.Module, config: ObjectiveConfig, parts: Sequence[tuple[Tensor, Mask]]
) -> list[Ahead] | None:
    """Prepare VCR or SIGReg of a batch worked on in several parts; None where parts do not concern each other.

    The loss couples all samples. So the latents of all parts are computed first, without a graph, and the loss and its
    gradient by them from all at once; each part then passes its share of that gradient on. The result is that of the
    undivided batch; the price is one more pass of the student over visible tokens.
    """
    if len(parts) == 1:
        return None
    if isinstance(model, Lejepa) and config.sigreg is not None:
        with torch.no_grad():
            embedded = [model(volumes, mask).float() for volumes, mask in parts]
        sigreg, directions = config.sigreg, model.directions
        value, terms, shares = _shared_out(embedded, 1, lambda z: _sketched(z, directions, sigreg))
        return [Ahead(value, terms, share) for share in shares]
    if not isinstance(model, Jepa) or config.vcr is None or not config.vcr.gathered:
        return None
    with torch.no_grad():
        contexts = [model.encoder(volumes, mask.visible).float() for volumes, mask in parts]
        targets = [model.targets(volumes, mask) for volumes, mask in parts]
    vcr, target = config.vcr, torch.cat(targets)
    value, terms, shares = _shared_out(contexts, 0, lambda context: _regularisation(context, target, vcr))
    return [Ahead(value, terms, *pair) for pair in zip(shares, targets, strict=True)]


def _shared_out(
    parts: Sequence[Tensor], axis: int, loss: Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]
) -> tuple[Tensor, dict[str, Tensor], Sequence[Tensor]]:
    """Loss of all parts along `axis`, its terms, and each part's share of its gradient, times their number."""
    whole = torch.cat(list(parts), dim=axis).requires_grad_()
    with torch.enable_grad(), torch.autocast(whole.device.type, enabled=False):  # its backward pass in float32 too
        value, terms = loss(whole)
        gradient = torch.autograd.grad(value, whole)[0] * len(parts)
    return value.detach(), terms, gradient.split([part.shape[axis] for part in parts], dim=axis)


def compute_loss(
    model: nn.Module,
    config: ObjectiveConfig,
    volumes: Tensor,
    mask: Mask,
    *,
    spectral_weight: float | Tensor,
    auxiliary: bool = True,
    detail: bool = False,
    ahead: Ahead | None = None,
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
    if config.sigreg is not None:
        return _lejepa_loss(model, config.sigreg, volumes, mask, auxiliary, ahead)
    output = model(volumes, mask, None if ahead is None else ahead.targets)
    loss = prediction_loss(output.predicted, output.target)
    terms = {"prediction": loss.detach()}
    if ahead is not None:
        loss, terms = loss + ahead.of(output.context), terms | ahead.terms
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


def _lejepa_loss(
    model: nn.Module, sigreg: SigregConfig, volumes: Tensor, mask: Mask, auxiliary: bool, ahead: Ahead | None
) -> tuple[Tensor, dict[str, Tensor]]:
    z = model(volumes, mask).float()
    loss = (z - z.mean(dim=0)).square().mean()
    terms = {"invariance": loss.detach()}
    if not auxiliary:
        return loss, terms
    if ahead is not None:
        value, more = ahead.of(z), ahead.terms
    else:
        own = getattr(model, "module", model)  # wrapped where there are several processes
        assert isinstance(own, Lejepa)
        value, more = _sketched(z, own.directions, sigreg)
    return (1 - sigreg.weight) * loss + value, terms | more


def _sketched(z: Tensor, directions: Tensor, sigreg: SigregConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted SIGReg of embeddings (2, B, D), the mean over both views, and its term."""
    value = torch.stack([sigreg_loss(view, directions, gathered=True) for view in z]).mean()
    return sigreg.weight * value, {"sigreg": value.detach()}


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
