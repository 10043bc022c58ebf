"""Encoder, and what is trained around it. Needs torch, numpy and safetensors only."""

from brainfm_lib.models.jepa import Jepa, JepaConfig
from brainfm_lib.models.lejepa import Lejepa, LejepaConfig
from brainfm_lib.models.mae import MaeConfig, MaskedAutoencoder
from brainfm_lib.models.monai_vit import import_monai_vit
from brainfm_lib.models.vit import VisionTransformer3d, VisionTransformerConfig

__all__ = [
    "Jepa",
    "JepaConfig",
    "Lejepa",
    "LejepaConfig",
    "MaeConfig",
    "MaskedAutoencoder",
    "VisionTransformer3d",
    "VisionTransformerConfig",
    "import_monai_vit",
]
