"""Which volumes come when, and how they reach the device."""

from collections.abc import Iterator
from functools import lru_cache
from itertools import count

import numpy as np
import torch
from torch import Tensor

from brainfm_lib.device import send
from brainfm_lib.streams import stream


def batch_rows(n_volumes: int, batch_size: int, seed: int, first_step: int = 0) -> Iterator[np.ndarray]:
    """Rows of each batch, from `first_step` on: every volume once an epoch, in an order that only the seed decides."""

    @lru_cache(maxsize=2 + batch_size // n_volumes)
    def order(epoch: int) -> np.ndarray:
        return torch.randperm(n_volumes, generator=stream("cpu", seed, "order", epoch)).numpy()

    for step in count(first_step):
        positions = range(step * batch_size, (step + 1) * batch_size)
        yield np.array([order(position // n_volumes)[position % n_volumes] for position in positions])


class Batches:
    """Volumes on their way to the device: resident there where they fit, else read as they are needed.

    Args:
        volumes: (N, D, H, W) float16 in [0, 1], an array or a memory map.
        device: Where batches are wanted.
    """

    def __init__(self, volumes: np.ndarray, device: torch.device) -> None:
        self.volumes, self.device = volumes, device
        self.resident: Tensor | None = None
        if device.type == "cuda" and volumes.nbytes < 0.5 * torch.cuda.mem_get_info(device)[0]:
            self.resident = torch.from_numpy(np.ascontiguousarray(volumes)).to(device)

    def __len__(self) -> int:
        return len(self.volumes)

    def __call__(self, rows: np.ndarray) -> Tensor:
        """Rows (B,) -> (B, 1, D, H, W) float32 on the device; the host waits for volumes that are not resident."""
        if self.resident is not None:
            chosen = self.resident[send(torch.from_numpy(rows), self.device)]
        else:
            chosen = send(torch.from_numpy(np.ascontiguousarray(self.volumes[rows])), self.device)
        return chosen.unsqueeze(1).float()
