"""Encoders made elsewhere, as rows beside the arms: our layout, a MONAI ViT's weights, or a function of your own."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brainfm_lib.card import TRAINED_ON
from brainfm_lib.data.digests import file_digests
from brainfm_lib.data.manifest import EncoderSettings, Manifest
from brainfm_lib.data.prepare import Finding
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
    assert settings.heads is not None
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
        return import_monai_vit(state, heads=settings.heads, grid=settings.grid)
    except InputError:
        raise
    except Exception as error:  # safetensors, the unpickler and strange contents have errors of many kinds
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} holds no weights of a MONAI ViT ({said}): save its state dict.") from error


def check_encoders(manifest: Manifest) -> Iterator[Finding]:
    """Whether the encoders of a manifest are there and hold what it says; files of Python are not executed."""
    available = manifest.available_encoders()
    for name, settings in manifest.encoders.items():
        where = f"encoder {name}"
        if name not in available:
            yield Finding("note", where, f"absent: a variable in {settings.path} is not set.")
            continue
        try:
            weights_digest(settings, manifest)
            said = f"{settings.function} of {settings.path}, which runs when it is asked for features"
            if settings.kind != "python":
                size = load_encoder(settings, manifest.resolve(settings.path)).config
                said = f"{size.embed_dim} wide, {size.depth} blocks, patch {size.patch_size}"
            known = "known" if trained_on(settings, manifest) is not None else "not known, so no leak can be found"
            yield Finding("ok", where, f"{said}; the scans that it was pretrained on are {known}.")
        except InputError as error:
            yield Finding("error", where, str(error))


def check_unchanged(settings: EncoderSettings, manifest: Manifest, digest: str) -> None:
    """Raise an InputError unless an encoder's files still have the digest under which a result will be filed."""
    if weights_digest(settings, manifest) != digest:
        raise InputError(f"{settings.path} was changed after this process had looked at it: start the command again.")


def make_import(
    settings: EncoderSettings, path: Path, unchanged: Callable[[], None]
) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls: the encoder in our layout under ``encoder/``, as a pretraining run leaves it."""

    def make(folder: Path) -> dict[str, Any]:
        load_encoder(settings, path).save_pretrained(folder / "encoder")
        unchanged()
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
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
        return getattr(module, name)
    except Exception as error:  # whatever a user's file raises
        del sys.modules[spec.name]
        raise InputError(f"{path} gives no function {name!r} ({type(error).__name__}: {error}).") from error


def make_function_features(
    path: Path,
    name: str,
    volumes: Callable[[], VolumeReader],
    unchanged: Callable[[], None],
    *,
    batch_size: int,
    cpu: bool = False,
) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls: what a function says of every volume of a cohort, as ``features.npy``."""

    def make(folder: Path) -> dict[str, Any]:
        function, device, parts = load_function(path, name), best_device(cpu=cpu), []
        with torch.inference_mode():
            for batch in batches(volumes(), batch_size, device):
                try:
                    found = function(batch)
                    found = np.asarray(found.detach().float().cpu() if isinstance(found, torch.Tensor) else found)
                    found = found.astype(np.float32)
                except Exception as error:  # whatever a user's function raises
                    raise InputError(f"{path.name}: {name} failed ({type(error).__name__}: {error}).") from error
                if found.ndim != 2 or len(found) != len(batch) or not np.isfinite(found).all():
                    raise InputError(
                        f"{path.name}: {name} must turn volumes {tuple(batch.shape)} into finite features "
                        f"({len(batch)}, F); it gave {found.shape}{'' if found.ndim != 2 else ' or values not finite'}."
                    )
                parts.append(found)
        unchanged()
        np.save(folder / "features.npy", np.concatenate(parts), allow_pickle=False)
        return {"device": device.type}

    return make
