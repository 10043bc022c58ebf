"""Volumes of a phantom cohort made on the fly and kept in a device's memory: nothing is written, nothing is read."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.phantom.cohort import PhantomSpec, numbers_of
from brainfm_lib.data.phantom.draws import Draw, draw
from brainfm_lib.data.phantom.rendering import GPU_STEP, render, render_draws, single_threaded
from brainfm_lib.data.storage import LEVELS, as_float
from brainfm_lib.data.tables import refusals
from brainfm_lib.errors import InputError
from brainfm_lib.processes import end_with_parent, in_order

if TYPE_CHECKING:
    from brainfm_lib.data.cohort import Cohort

AHEAD = 3  # batches that each process may be ahead of the device


class PhantomBank:
    """Volumes of a phantom cohort in memory; used wherever `store.Volumes` are.

    Random numbers are drawn by processes of their own, volumes are rendered on the device. On an accelerator they equal
    those of the store up to rounding.

    Args:
        cohort: From `describe_cohort`, of phantoms.
        geometry: Target grid; its storage says how voxels are kept.
        device: Where volumes are made and kept.
        workers: Processes that draw, on a CPU threads that render; 0: none. Default: one for each core, at most 16.

    Raises:
        InputError: The cohort is real.

    Attributes:
        tensor: (N, D, H, W) of the whole cohort as stored, on the device.
        rows: (n,) int64 positions in `tensor` of the volumes of this bank, which may be a part.
        refused: Empty: a phantom is never refused.
        seconds: That making them took.
    """

    def __init__(
        self, cohort: Cohort, geometry: Geometry, device: torch.device | str = "cpu", *, workers: int | None = None
    ) -> None:
        if not isinstance(cohort.source, PhantomSpec):
            raise InputError(f"The scans of cohort {cohort.name} are real: they are prepared, not made on the fly.")
        self.cohort, self.geometry, self.refused = cohort, geometry, refusals([])
        self.rows = np.arange(len(cohort))
        started = time.perf_counter()
        kind = torch.uint8 if geometry.storage == "uint8" else torch.float16
        self.tensor = torch.empty(len(cohort), *geometry.grid, dtype=kind, device=device)
        for at, volumes in rendered(cohort.source, cohort.scans, geometry, device, workers=workers):
            self.tensor[at : at + len(volumes)] = stored(volumes, kind)
        if self.tensor.is_cuda:
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - started

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def scans(self) -> pd.DataFrame:
        """One row a volume, as in `cohort.scans`."""
        return self.cohort.scans

    @property
    def info(self) -> pd.DataFrame:
        """What is noted of each volume, as in `store.Volumes.info`: the share that is foreground."""
        shares = [float((self.on_device([row]) > 0).float().mean()) for row in range(len(self))]
        return pd.DataFrame({"foreground": shares})

    def on_device(self, rows: Sequence[int] | np.ndarray | slice) -> Tensor:
        """Volumes (B, D, H, W) of these rows as they are stored, on the device."""
        wanted = torch.from_numpy(self.rows[rows if isinstance(rows, slice) else np.asarray(rows, np.int64)])
        return self.tensor[wanted.to(self.tensor.device)]

    def __getitem__(self, rows: Sequence[int] | np.ndarray | slice) -> np.ndarray:
        """The same on the host."""
        return self.on_device(rows).cpu().numpy()

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Volumes (B, D, H, W) float32 in [0, 1] of these rows, on the host, background exactly 0."""
        return as_float(self[rows])

    def select(self, rows: Any) -> PhantomBank:
        """Some of the volumes, without copying one: a boolean mask or positions."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        part = object.__new__(PhantomBank)
        part.cohort, part.geometry, part.refused = self.cohort.select(rows), self.geometry, self.refused
        part.tensor, part.rows, part.seconds = self.tensor, self.rows[rows], self.seconds
        return part


def stored(volumes: Tensor, kind: torch.dtype) -> Tensor:
    """Volumes in [0, 1] in the type they are stored in, as `storage.as_stored` on any device."""
    if kind == torch.float16:
        return volumes.half()
    return torch.where(volumes > 0, (volumes * LEVELS).round().clamp(1, LEVELS), 0.0).to(torch.uint8)


@torch.no_grad()
def rendered(
    spec: PhantomSpec,
    scans: pd.DataFrame,
    geometry: Geometry,
    device: torch.device | str,
    *,
    workers: int | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Render scans in order: yields the first row of each batch, and its volumes (B, D, H, W) float32 on the device.

    Args:
        spec, scans, geometry, device: As in `render`.
        workers: As in `PhantomBank`.
    """
    place = torch.device(device)
    batches = [scans.iloc[at : at + GPU_STEP] for at in range(0, len(scans), GPU_STEP)]
    count = min(os.cpu_count() or 1, 16) if workers is None else workers
    if place.type == "cpu" and count:
        render(spec, scans.iloc[:1], geometry)  # reads what all scans share, once, before the threads
        with single_threaded(), ThreadPoolExecutor(count) as pool:
            made = in_order(pool, lambda batch: render(spec, batch, geometry), batches, count)
            yield from ((number * GPU_STEP, volumes) for number, volumes in enumerate(made))
    elif spec.ancestors or not count:
        for number, batch in enumerate(batches):
            yield number * GPU_STEP, render(spec, batch, geometry, place)
    else:
        drawn = in_order(_drawers(count), partial(draws_of, spec), batches, AHEAD * count)
        for number, draws in enumerate(drawn):
            yield number * GPU_STEP, render_draws(draws, geometry, str(place))


@lru_cache(maxsize=1)
def _drawers(count: int) -> ProcessPoolExecutor:
    """Processes that draw random numbers; they stay, because starting them takes seconds."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(os.getpid(),))


def draws_of(spec: PhantomSpec, scans: pd.DataFrame) -> list[Draw]:
    """All random numbers of these scans."""
    return [draw(spec, number, int(scan)) for number, scan in zip(numbers_of(scans), scans["scan"], strict=True)]


def _begin(parent: int) -> None:
    from threadpoolctl import threadpool_limits

    end_with_parent(parent)
    threadpool_limits(1)
    torch.set_num_threads(1)
