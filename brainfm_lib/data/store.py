"""Prepared volumes on disk: each made once, read by memory map, safe against kills and against each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from filelock import FileLock
from tqdm import tqdm

from brainfm_lib.data.geometry import Geometry
from brainfm_lib.errors import InputError, UnreadableError
from brainfm_lib.identity import code_digest, stable_hash, write_atomic
from brainfm_lib.paths import store_dir

if TYPE_CHECKING:
    from brainfm_lib.data.cohort import Cohort

INDEX = "index.parquet"
REFUSED = "refused.parquet"
PHANTOM_BATCH = 4
WORKERS = 8  # threads at most
CHECKPOINT = 64  # scans between two writings of the index: at most these are made again after a kill
HEADER_ONLY = ("brainfm_lib", "brainfm_lib.data")  # packages that only re-export: no part of what makes a volume


class Volumes:
    """Prepared volumes of a cohort.

    Attributes:
        cohort: Its scans are those that are prepared, in this order: build tables that index volumes from it.
        geometry: The grid.
        refused: Scans that could not be prepared: scan_uid, reason.
    """

    def __init__(self, cohort: Cohort, geometry: Geometry, folder: Path, refused: pd.DataFrame) -> None:
        self.cohort, self.geometry, self.folder, self.refused = cohort, geometry, folder, refused
        self._files = [folder / file_name(digest) for digest in cohort.scans["digest"]]

    def __len__(self) -> int:
        return len(self._files)

    @property
    def scans(self) -> pd.DataFrame:
        """One row a volume, as in `cohort.scans`."""
        return self.cohort.scans

    @property
    def info(self) -> pd.DataFrame:
        """What ingest noted of each volume, aligned with `scans`: shape, spacing, affine, grid_affine, foreground."""
        index = pd.read_parquet(self.folder / INDEX).set_index("file")
        return index.loc[[file.name for file in self._files]].reset_index(drop=True)

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Volumes (B, D, H, W) float32 in [0, 1] of these rows, background exactly 0."""
        out = np.empty((len(rows), *self.geometry.grid), np.float32)
        self._fill(rows, out)
        return out

    def bank(self) -> np.ndarray:
        """All volumes (N, D, H, W) float16 in memory."""
        out = np.empty((len(self), *self.geometry.grid), np.float16)
        self._fill(range(len(self)), out)
        return out

    def select(self, rows: Any) -> Volumes:
        """Some of the volumes: a boolean mask or positions."""
        return Volumes(self.cohort.select(rows), self.geometry, self.folder, self.refused)

    def _fill(self, rows: Sequence[int] | np.ndarray, out: np.ndarray) -> None:
        for place, row in enumerate(rows):
            out[place] = np.load(self._files[row], mmap_mode="r", allow_pickle=False)


def open_volumes(
    cohort: Cohort,
    geometry: Geometry,
    *,
    progress: bool = True,
    on_error: Literal["raise", "report"] = "raise",
) -> Volumes:
    """Open a cohort's volumes on a grid; what is missing is prepared now.

    A volume's place is given by its content, the cohort's settings, the grid and the code that makes it. Killed at any
    time it goes on where it was; of two processes one works and the other waits.

    Args:
        cohort: From `describe_cohort`.
        geometry: Target grid.
        progress: Show a progress bar.
        on_error: After all good scans are prepared, "raise" the first refusal or "report" it in `Volumes.refused`.

    Raises:
        InputError: A scan was refused and on_error is "raise".
    """
    key = stable_hash([cohort.source_key, geometry, code_digest(cohort.code, without=HEADER_ONLY)])
    folder = store_dir() / f"{cohort.name}-{key}"
    if _missing(cohort, geometry, folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            for leftover in folder.glob(".*.tmp*"):
                leftover.unlink(missing_ok=True)
            todo = _missing(cohort, geometry, folder)  # another process may have made them meanwhile
            if todo:
                _prepare(cohort.select(todo), geometry, folder, progress)
    known = _known_refusals(folder)
    uids = cohort.scans[["scan_uid", "digest"]]
    refused = uids.assign(reason=[known.get(digest, "") for digest in uids["digest"]])
    refused = refused[refused["reason"] != ""].reset_index(drop=True)
    if len(refused) and on_error == "raise":
        others = f" ({len(refused) - 1} more scans are listed in {folder / REFUSED})" if len(refused) > 1 else ""
        raise InputError(f"{refused['reason'][0]}{others}")
    good = ~cohort.scans["digest"].isin(refused["digest"]).to_numpy()
    if not good.any():
        raise InputError(f"No scan of cohort {cohort.name} could be prepared: {refused['reason'][0]}")
    kept = cohort if good.all() else cohort.select(good)
    return Volumes(kept, geometry, folder, refused[["scan_uid", "reason"]])


def file_name(digest: str) -> str:
    """Name of the volume of a scan: a hash of its content, no identifier of a person."""
    return f"{stable_hash(digest, 24)}.npy"


def _missing(cohort: Cohort, geometry: Geometry, folder: Path) -> list[int]:
    """Rows (one for each distinct scan) that are neither prepared whole nor refused before."""
    ready: set[str] = set()
    if (folder / INDEX).is_file():
        size = int(np.prod(geometry.grid)) * 2
        with os.scandir(folder) as entries:
            whole = {entry.name for entry in entries if entry.name.endswith(".npy") and entry.stat().st_size > size}
        ready = whole & set(pd.read_parquet(folder / INDEX, columns=["file"])["file"])
    refused = _known_refusals(folder)
    first = ~cohort.scans["digest"].duplicated()
    return [
        row
        for row, digest in enumerate(cohort.scans["digest"])
        if first.iloc[row] and digest not in refused and file_name(digest) not in ready
    ]


def _known_refusals(folder: Path) -> dict[str, str]:
    if not (folder / REFUSED).is_file():
        return {}
    table = pd.read_parquet(folder / REFUSED)
    return dict(zip(table["digest"], table["reason"]))


def _prepare(cohort: Cohort, geometry: Geometry, folder: Path, progress: bool) -> None:
    """Make the volumes of a cohort; the caller holds the folder's lock."""
    made: list[dict[str, Any]] = []
    refused: list[dict[str, str]] = []
    makers = _phantoms(cohort, geometry) if cohort.kind == "phantom" else _scans(cohort, geometry)
    bar = tqdm(makers, total=len(cohort), desc=f"preparing {cohort.name}", unit="scan", disable=not progress)
    try:
        for row, outcome in bar:
            scan = cohort.scans.iloc[row]
            if isinstance(outcome, InputError):
                refused.append({"scan_uid": scan["scan_uid"], "digest": scan["digest"], "reason": str(outcome)})
                continue
            volume, info = outcome
            name = file_name(scan["digest"])
            with write_atomic(folder / name) as temporary, temporary.open("wb") as handle:
                np.save(handle, volume.astype(np.float16), allow_pickle=False)
            made.append({"file": name, **info})
            if len(made) >= CHECKPOINT:
                _append(folder / INDEX, made, "file")
                made = []
    finally:
        _append(folder / INDEX, made, "file")
        _append(folder / REFUSED, refused, "digest")


def _phantoms(cohort: Cohort, geometry: Geometry) -> Iterator[tuple[int, Any]]:
    """Render phantoms, a few at a time in threads that compute on one core each, in order."""
    from brainfm_lib.data.phantom import PhantomSpec, render
    from brainfm_lib.data.phantom.rendering import single_threaded

    spec = cohort.source
    assert isinstance(spec, PhantomSpec)

    def batch(start: int) -> Any:
        return render(spec, cohort.scans.iloc[start : start + PHANTOM_BATCH], geometry).numpy()

    with single_threaded():
        render(spec, cohort.scans.iloc[:1], geometry)  # reads what all scans share, once, before the threads
        for start, volumes in _in_order(batch, range(0, len(cohort), PHANTOM_BATCH)):
            for offset, volume in enumerate(volumes):
                yield start + offset, (volume, {"foreground": float((volume > 0).mean())})


def _scans(cohort: Cohort, geometry: Geometry) -> Iterator[tuple[int, Any]]:
    """Prepare real scans in threads (reading, unpacking and resampling all release the interpreter), in order."""
    from brainfm_lib.data.ingest import IngestSettings, prepare_volume

    settings = cohort.source
    assert isinstance(settings, IngestSettings)

    def one(path: str) -> Any:
        try:
            return prepare_volume(path, geometry, settings)
        except UnreadableError:  # no property of the scan, so nothing to remember: stop, what is done is kept
            raise
        except InputError as error:
            return error

    paths = list(cohort.scans["path"])
    yield from _in_order(lambda row: one(paths[row]), range(len(paths)))


def _in_order(work: Callable[[int], Any], items: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """(item, work(item)) for all items, made in threads; only a few are in flight, because volumes are large."""
    workers = min(WORKERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(items), 2 * workers):
            chunk = items[start : start + 2 * workers]
            yield from zip(chunk, pool.map(work, chunk))


def _append(path: Path, rows: list[dict[str, Any]], key: str) -> None:
    """Add rows to a table, atomically; of two rows with one key the new one stays, and order is by key."""
    if not rows:
        return
    table = pd.DataFrame(rows)
    if path.is_file():
        table = pd.concat([pd.read_parquet(path), table], ignore_index=True)
    table = table.drop_duplicates(key, keep="last").sort_values(key, ignore_index=True)
    with write_atomic(path) as temporary:
        table.to_parquet(temporary, index=False)
