"""Encoders made elsewhere, as rows beside the arms: our layout, a MONAI ViT's weights, or a function of your own."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brainfm_lib.card import TRAINED_ON
from brainfm_lib.data.digests import file_digests
from brainfm_lib.data.manifest import EncoderSettings, Manifest
from brainfm_lib.device import best_device
from brainfm_lib.errors import InputError
from brainfm_lib.features import VolumeReader, batches
from brainfm_lib.identity import stable_hash
from brainfm_lib.models import VisionTransformer3d, import_monai_vit


def weights_digest(settings: EncoderSettings, manifest: Manifest) -> str:
    """Hash of everything that decides what an encoder from elsewhere computes.

    Raises:
        InputError: A file is not there.
    """
    path = manifest.resolve(settings.path)
    names = ("model.safetensors", "config.json") if settings.kind == "folder" else ("",)
    files = [str(path / name) for name in names] + [str(manifest.resolve(name)) for name in settings.files]
    digests, problems = file_digests(files)
    if problems:
        raise InputError(f"{manifest.path.name}, encoder: {next(iter(problems.values()))}")
    return stable_hash(digests)


def trained_on(settings: EncoderSettings, manifest: Manifest) -> set[str] | None:
    """Keys of the scans that an encoder was pretrained on; None where its makers do not say."""
    file = manifest.resolve(settings.path) / TRAINED_ON
    return set(file.read_text().split()) if settings.kind == "folder" and file.is_file() else None


def load_encoder(settings: EncoderSettings, path: Path) -> VisionTransformer3d:
    """Read the weights of a folder of ours or of a MONAI ViT.

    Raises:
        InputError: They are not what `settings` says.
    """
    if settings.kind == "folder":
        return VisionTransformer3d.from_pretrained(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
    except (OSError, RuntimeError, ValueError, AttributeError, EOFError) as error:
        raise InputError(f"{path} holds no weights ({str(error).splitlines()[0]}): save a state dict.") from error
    except Exception as error:  # safetensors and the unpickler have errors of their own
        raise InputError(f"{path} cannot be read as weights alone ({str(error).splitlines()[0]}).") from error
    return import_monai_vit(state, heads=settings.heads, grid=settings.grid)


def make_import(settings: EncoderSettings, path: Path) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls: the encoder in our layout under ``encoder/``, as a pretraining run leaves it."""

    def make(folder: Path) -> dict[str, Any]:
        load_encoder(settings, path).save_pretrained(folder / "encoder")
        if (path / TRAINED_ON).is_file():
            shutil.copy(path / TRAINED_ON, folder / "encoder" / TRAINED_ON)
        return {}

    return make


def load_function(path: Path, name: str) -> Callable[[torch.Tensor], Any]:
    """The function `name` of a Python file, which is executed.

    Raises:
        InputError: The file fails, or has no such function.
    """
    spec = importlib.util.spec_from_file_location(f"_encoder_{stable_hash(str(path))}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return getattr(module, name)
    except Exception as error:  # whatever a user's file raises
        raise InputError(f"{path} gives no function {name!r} ({type(error).__name__}: {error}).") from error


def make_function_features(
    path: Path, name: str, volumes: Callable[[], VolumeReader], *, batch_size: int, cpu: bool = False
) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls: what a function says of every volume of a cohort, as ``features.npy``."""

    def make(folder: Path) -> dict[str, Any]:
        function, device, parts = load_function(path, name), best_device(cpu=cpu), []
        with torch.inference_mode():
            for batch in batches(volumes(), batch_size, device):
                found = function(batch)
                found = found.detach().float().cpu().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
                if found.ndim != 2 or len(found) != len(batch) or not np.isfinite(found).all():
                    raise InputError(
                        f"{path.name}: {name} must turn volumes {tuple(batch.shape)} into finite features "
                        f"({len(batch)}, F); it gave {found.shape}{'' if found.ndim != 2 else ' or values not finite'}."
                    )
                parts.append(found.astype(np.float32))
        np.save(folder / "features.npy", np.concatenate(parts), allow_pickle=False)
        return {"device": device.type}

    return make
