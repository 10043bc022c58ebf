"""Which device there is, and which precision it is faster in."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from brainfm_lib.processes import bound_cores

NARROW = 256  # width of an encoder below which one alone cannot keep a CPU busy


def best_device(*, cpu: bool = False) -> torch.device:
    """The accelerator of this process where there is one."""
    if not cpu and torch.cuda.is_available():
        return torch.device("cuda")
    if not cpu and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def device_name(device: torch.device) -> str:
    """What a plan holds for, on whichever host: the name of a GPU, or the number of a CPU's cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {bound_cores()} cores"


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a host tensor to `device`; the host waits unless that is safe for memory that is soon freed (CUDA)."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def faster_precision(device: torch.device) -> str:
    """``bf16`` where the device has matrix units for it, else ``fp32``."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if device.type == "cpu":
        return "bf16" if getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)() else "fp32"
    return "fp32"


def training_precision(device: torch.device, width: int) -> str:
    """The same for training an encoder of that width: on a CPU, conversions cost narrow ones more than they win."""
    return "fp32" if device.type == "cpu" and width < NARROW else faster_precision(device)


@contextmanager
def fixed_threads(device: torch.device, width: int) -> Iterator[None]:
    """What an encoder of that width trains and computes features with: a narrow one on a CPU with one thread.

    Training would not be faster with more, and what comes out depends on their number: so it is the same on any number
    of cores, and whether an encoder is made alone or beside others.
    """
    before = torch.get_num_threads()
    if device.type == "cpu" and width < NARROW:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Mixed precision where it is faster on `device`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=faster_precision(device) == "bf16")


def peak_memory(device: torch.device) -> dict[str, int]:
    """For a provenance: the most bytes that tensors took on a CUDA device since the process began, if it is one."""
    return {"device_peak_memory_bytes": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}
