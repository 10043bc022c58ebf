"""Which volumes come when, and how they reach the device."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brainfm_lib.data.storage import LEVELS
from brainfm_lib.device import send
from brainfm_lib.memory import free_memory
from brainfm_lib.streams import stream

HELD = 0.5  # of the free memory of device or host, at most, for volumes that stay in it


def batch_rows(n_volumes: int, batch_size: int, seed: int, first_step: int = 0) -> Iterator[np.ndarray]:
    """Rows of each batch, from `first_step` on: every volume once an epoch, in an order that only the seed decides."""

    @lru_cache(maxsize=2 + batch_size // n_volumes)
    def order(epoch: int) -> np.ndarray:
        return torch.randperm(n_volumes, generator=stream("cpu", seed, "order", epoch)).numpy()

    for step in count(first_step):
        positions = range(step * batch_size, (step + 1) * batch_size)
        yield np.array([order(position // n_volumes)[position % n_volumes] for position in positions])


class Batches:
    """Volumes on their way to the device.

    They stay on the device where they fit, else in the host's memory where they fit, else they are read from the store
    as they are needed.

    Args:
        volumes: (N, D, H, W) float16 or uint8 in their stored type: an array, or a `store.VolumeSet`; one that is made
            of a `bank.PhantomBank` stays where it is.
        device: Where batches are wanted.
    """

    def __init__(self, volumes: Any, device: torch.device) -> None:
        self.device = device
        self.resident: Tensor | None = None
        self.bank = getattr(volumes, "on_device", None)
        if self.bank is not None:
            self.volumes, self.reader = volumes, None
            return
        on_device = device.type == "cuda" and volumes.nbytes < HELD * torch.cuda.mem_get_info(device)[0]
        if on_device or volumes.nbytes < HELD * free_memory():
            volumes = np.ascontiguousarray(volumes[:])
        self.volumes = volumes
        self.ahead: dict[bytes, Future[np.ndarray]] = {}
        self.reader = None if isinstance(volumes, np.ndarray) else ThreadPoolExecutor(1)
        if on_device:
            self.resident = torch.from_numpy(volumes).to(device)

    def __len__(self) -> int:
        return len(self.volumes)

    def __call__(self, rows: np.ndarray) -> Tensor:
        """Rows (B,) -> (B, 1, D, H, W) float32 on the device; the host waits for volumes that are not resident."""
        if self.bank is not None:
            chosen = self.bank(rows).to(self.device)
        elif self.resident is not None:
            chosen = self.resident[send(torch.from_numpy(rows), self.device)]
        else:
            chosen = send(torch.from_numpy(self._read(rows)), self.device)
        return scaled(chosen).unsqueeze(1)

    def read_ahead(self, rows: np.ndarray) -> None:
        """Begin to read a batch that will be asked for next; nothing to do where all are in memory."""
        if self.reader is not None:
            self.ahead[rows.tobytes()] = self.reader.submit(self.volumes.__getitem__, rows)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        begun = self.ahead.pop(rows.tobytes(), None)
        return begun.result() if begun is not None else np.ascontiguousarray(self.volumes[rows])


def scaled(stored: Tensor) -> Tensor:
    """Volumes as they are stored -> float32 in [0, 1], on their device; `storage.as_float` of tensors."""
    return stored.float() / LEVELS if stored.dtype == torch.uint8 else stored.float()
