"""Prepared volumes on disk: each made once, safe against kills and against each other."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from filelock import FileLock
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from brainfm_lib.data.fingerprint import fingerprint, unpack
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.reading import Reader, checksum
from brainfm_lib.data.storage import as_float, as_stored
from brainfm_lib.data.tables import REFUSED as REFUSED_COLUMNS
from brainfm_lib.errors import InputError, RefusedScan
from brainfm_lib.identity import code_digest, stable_hash, write_atomic
from brainfm_lib.integrity import read_table, set_aside, write_table
from brainfm_lib.paths import store_dir
from brainfm_lib.processes import bound_cores, in_order

if TYPE_CHECKING:
    from torch import Tensor

    from brainfm_lib.data.cohort import Cohort

INDEX = "index.parquet"
REFUSED = "refused.parquet"
PENDING = ".pending.jsonl"  # what was made since the index was written, a line a scan: a kill loses none of it
THIS = "{this scan}"  # in what is remembered of a refused scan: others may have its content, and it may be moved
FORMAT = 3  # of the folder
PHANTOM_BATCH = 4
WORKERS = 8  # threads at most
READERS = 4  # threads at most that read one batch: each copies out of the page cache at a core's pace
READ_BY_ONE = 2**20  # bytes below which another thread costs more than it saves
HEADER_ONLY = ("brainfm_lib", "brainfm_lib.data")  # packages that only re-export: no part of what makes a volume


class Volumes:
    """Prepared volumes of a cohort.

    Attributes:
        cohort: Its scans are those that are prepared, in this order: build tables that index volumes from it.
        geometry: The grid.
        refused: Scans of the manifest that cannot be used: scan_uid, rule, reason.
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
        """What ingest noted of each volume, aligned with `scans`: see `ingest.prepare_volume`."""
        return self._index().drop(columns="fingerprint")

    def fingerprints(self) -> np.ndarray:
        """(N, 512) float32, see `fingerprint.fingerprint`; aligned with `scans`."""
        return unpack(self._index(["file", "fingerprint"])["fingerprint"])

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Volumes (B, D, H, W) float32 in [0, 1] of these rows, background exactly 0."""
        return as_float(self[rows])

    def __getitem__(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Volumes (B, D, H, W) of these rows as they are stored."""
        rows, out = np.asarray(rows), np.empty((len(rows), *self.geometry.grid), self.geometry.storage)
        readers = min(READERS, bound_cores(), out.nbytes // READ_BY_ONE)
        if readers < 2:
            self._read_each(rows, out)
        else:
            parts = [slice(start, None, readers) for start in range(readers)]
            for _ in _pool(os.getpid()).map(lambda part: self._read_each(rows[part], out[part]), parts):
                pass  # what went wrong in a thread is raised here
        return out

    def _read_each(self, rows: np.ndarray, out: np.ndarray) -> None:
        for place, row in enumerate(rows):
            self._read(int(row), out[place])

    def _read(self, row: int, out: np.ndarray) -> None:
        """Read a volume into `out`; one that is not as it was written is made again."""
        file = self._files[row]
        if _reader.again(file, out) or self._compare(file, out):
            return
        with _mending:  # two threads may meet the same one
            if not self._compare(file, out):
                set_aside(file, "its checksum does not hold, or it is cut off or gone")
                again = open_volumes(self.cohort.select([row]), self.geometry, progress=False)
                self.__dict__.pop("_checksums", None)
                if not self._compare(again._files[0], out):
                    raise InputError(f"{file} cannot be read as it is written: look after the disk.")

    def _compare(self, file: Path, out: np.ndarray) -> bool:
        """Read a volume and compare its checksum; whether it is as it was written."""
        return _reader.compare(file, out, self._checksums.get(file.name))

    @cached_property
    def _checksums(self) -> dict[str, int]:
        index = read_table(self.folder / INDEX, ["file", "checksum"], aside=False)
        return {} if index is None else dict(zip(index["file"], index["checksum"]))

    def select(self, rows: Any) -> Volumes:
        """Some of the volumes: a boolean mask or positions."""
        return Volumes(self.cohort.select(rows), self.geometry, self.folder, self.refused)

    def _index(self, columns: list[str] | None = None) -> pd.DataFrame:
        index = pd.read_parquet(self.folder / INDEX, columns=columns).set_index("file")
        return index.loc[[file.name for file in self._files]].reset_index(drop=True)


_reader = Reader()
_mending = Lock()


def _after_fork() -> None:
    global _mending
    _mending = Lock()
    _reader.after_fork()


os.register_at_fork(after_in_child=_after_fork)


class VolumeSet:
    """Prepared volumes of at least one cohort as one, on one grid; nothing is read before it is asked for."""

    def __init__(self, parts: Sequence[Volumes]) -> None:
        self.parts = list(parts)
        self._starts = np.cumsum([0, *(len(part) for part in self.parts)])
        self.dtype = np.dtype(self.parts[0].geometry.storage)
        self.shape = (len(self), *self.parts[0].geometry.grid)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def on_device(self) -> Callable[[np.ndarray], Tensor] | None:
        """What hands out rows as a tensor where all volumes are one bank in a device's memory, else None."""
        return getattr(self.parts[0], "on_device", None) if len(self.parts) == 1 else None

    @property
    def nbytes(self) -> int:
        """Bytes that all volumes take as they are stored."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Volumes (B, D, H, W) float32 in [0, 1] of these rows."""
        return as_float(self[rows])

    def __getitem__(self, rows: Sequence[int] | np.ndarray | slice) -> np.ndarray:
        """Volumes (B, D, H, W) of these rows as they are stored."""
        wanted = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows, np.int64)
        if len(self.parts) == 1:
            return self.parts[0][wanted]
        owner = np.searchsorted(self._starts, wanted, side="right") - 1
        out = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        for number, part in enumerate(self.parts):
            mine = np.flatnonzero(owner == number)
            if len(mine):
                out[mine] = part[wanted[mine] - self._starts[number]]
        return out


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
    key = stable_hash([FORMAT, cohort.source_key, geometry, code_digest(cohort.code, without=HEADER_ONLY)])
    folder = store_dir() / f"{cohort.name}-{key}"
    passing: dict[str, tuple[str, str]] = {}
    if _missing(cohort, geometry, folder, aside=False):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            for leftover in folder.glob(".*.tmp*"):
                leftover.unlink(missing_ok=True)
            _merge(folder)
            todo = _missing(cohort, geometry, folder)  # another process may have made them meanwhile
            if todo:
                passing = _prepare(cohort.select(todo), geometry, folder, progress)
    known = {**_known_refusals(folder), **passing}
    found = cohort.scans[["scan_uid", "digest"]]
    found = found[found["digest"].isin(list(known))]
    paths = cohort.scans["path"][found.index] if "path" in cohort.scans else [""] * len(found)
    found = found.assign(
        rule=[known[digest][0] for digest in found["digest"]],
        reason=[known[digest][1].replace(THIS, path) for digest, path in zip(found["digest"], paths)],
    ).reset_index(drop=True)
    if len(found) and on_error == "raise":
        others = f" ({len(found) - 1} more scans are listed in {folder / REFUSED})" if len(found) > 1 else ""
        raise InputError(f"{found['reason'][0]}{others}")
    good = ~cohort.scans["digest"].isin(found["digest"]).to_numpy()
    if not good.any():
        raise InputError(f"No scan of cohort {cohort.name} could be prepared: {found['reason'][0]}")
    kept = cohort if good.all() else cohort.select(good)
    refused = pd.concat([cohort.refused, found[REFUSED_COLUMNS]], ignore_index=True)
    return Volumes(kept, geometry, folder, refused)


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads that read; a forked process has none of its parent's, so they are its own."""
    return ThreadPoolExecutor(READERS)


def file_name(digest: str) -> str:
    """Name of the volume of a scan: a hash of its content, no identifier of a person."""
    return f"{stable_hash(digest, 24)}.npy"


def _missing(cohort: Cohort, geometry: Geometry, folder: Path, *, aside: bool = True) -> list[int]:
    """Rows (one for each distinct scan) that are neither prepared whole nor refused before.

    `aside`: damaged tables are set aside; for whoever holds the folder's lock.
    """
    ready: set[str] = set()
    if (folder / INDEX).is_file():
        size = int(np.prod(geometry.grid)) * np.dtype(geometry.storage).itemsize
        with os.scandir(folder) as entries:
            whole = {entry.name for entry in entries if entry.name.endswith(".npy") and entry.stat().st_size > size}
        index = read_table(folder / INDEX, ["file", "checksum"], aside=aside)
        ready = set() if index is None else whole & set(index["file"])
    refused = _known_refusals(folder, aside=aside)
    first = ~cohort.scans["digest"].duplicated()
    return [
        row
        for row, digest in enumerate(cohort.scans["digest"])
        if first.iloc[row] and digest not in refused and file_name(digest) not in ready
    ]


def _known_refusals(folder: Path, *, aside: bool = False) -> dict[str, tuple[str, str]]:
    """Digest -> rule and reason."""
    table = read_table(folder / REFUSED, aside=aside)
    return {} if table is None else dict(zip(table["digest"], zip(table["rule"], table["reason"])))


def _prepare(cohort: Cohort, geometry: Geometry, folder: Path, progress: bool) -> dict[str, tuple[str, str]]:
    """Make the volumes of a cohort; the caller holds the folder's lock.

    Returns:
        Digest -> rule and reason of the refusals that are not remembered: the scans are tried again the next time.
    """
    passing: dict[str, tuple[str, str]] = {}
    makers = _phantoms(cohort, geometry) if cohort.kind == "phantom" else _scans(cohort, geometry)
    bar = tqdm(makers, total=len(cohort), desc=f"preparing {cohort.name}", unit="scan", disable=not progress)
    try:
        with (folder / PENDING).open("a", encoding="utf-8") as pending:
            for row, outcome in bar:
                digest = cohort.scans["digest"].iloc[row]
                if isinstance(outcome, RefusedScan):
                    reason = str(outcome).replace(cohort.scans["path"].iloc[row], THIS)
                    if not outcome.lasting:
                        passing[digest] = (outcome.rule, reason)
                        continue
                    note = {"digest": digest, "rule": outcome.rule, "reason": reason}
                else:
                    stored, info = outcome
                    name = file_name(digest)
                    with write_atomic(folder / name) as temporary, temporary.open("wb") as handle:
                        np.save(handle, stored, allow_pickle=False)
                    note = {"file": name, "checksum": checksum(stored), **info}
                pending.write(json.dumps(note) + "\n")
                pending.flush()
    finally:
        _merge(folder)
    return passing


def _merge(folder: Path) -> None:
    """Take what is pending into the tables; the caller holds the folder's lock. A line cut off by a kill is dropped."""
    path = folder / PENDING
    if not path.is_file():
        return
    notes = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            notes.append(json.loads(line))
        except ValueError:
            continue
    made = [note for note in notes if "file" in note]
    for note in made:
        note["fingerprint"] = base64.b85decode(note["fingerprint"])
    _append(folder / INDEX, made, "file")
    _append(folder / REFUSED, [note for note in notes if "reason" in note], "digest")
    path.unlink()


def _finished(volume: np.ndarray, info: dict[str, Any], geometry: Geometry) -> tuple[np.ndarray, dict[str, Any]]:
    """What is written of a volume: its voxels as they are stored, and what is noted of it."""
    print_of = base64.b85encode(fingerprint(volume)).decode("ascii")
    return as_stored(volume, geometry.storage), {**info, "fingerprint": print_of}


def _phantoms(cohort: Cohort, geometry: Geometry) -> Iterator[tuple[int, Any]]:
    """Render phantoms, a few at a time in threads that compute on one core each, in order of their ancestor."""
    from brainfm_lib.data.phantom import PhantomSpec, render
    from brainfm_lib.data.phantom.cohort import draw_ancestor, numbers_of
    from brainfm_lib.data.phantom.rendering import single_threaded

    spec = cohort.source
    assert isinstance(spec, PhantomSpec)

    order = np.argsort([draw_ancestor(spec, number) for number in numbers_of(cohort.scans)], kind="stable")

    def batch(start: int) -> Any:
        volumes = render(spec, cohort.scans.iloc[order[start : start + PHANTOM_BATCH]], geometry).numpy()
        return [_finished(volume, {"foreground": float((volume > 0).mean())}, geometry) for volume in volumes]

    with single_threaded():
        render(spec, cohort.scans.iloc[order[:1]], geometry)  # reads what all scans share, once, before the threads
        for start, finished in _in_order(batch, range(0, len(cohort), PHANTOM_BATCH)):
            yield from zip((int(row) for row in order[start : start + PHANTOM_BATCH]), finished, strict=True)


def _scans(cohort: Cohort, geometry: Geometry) -> Iterator[tuple[int, Any]]:
    """Prepare real scans in threads (reading, unpacking and resampling all release the interpreter), in order."""
    from brainfm_lib.data.ingest import prepare_volume
    from brainfm_lib.data.settings import IngestSettings

    settings = cohort.source
    assert isinstance(settings, IngestSettings)

    def one(path: str) -> Any:
        try:
            return _finished(*prepare_volume(path, geometry, settings), geometry)
        except RefusedScan as refusal:  # any other error is no property of the scan: stop, what is done is kept
            return refusal

    paths = list(cohort.scans["path"])
    with threadpool_limits(1, user_api="blas"):  # threads over scans; threads within a product would only wait
        yield from _in_order(lambda row: one(paths[row]), range(len(paths)))


def _in_order(work: Callable[[int], Any], items: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """(item, work(item)) for all items, made in threads; only a few are in flight, because volumes are large."""
    workers = min(WORKERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield from zip(items, in_order(pool, work, items, 2 * workers + 1))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _append(path: Path, rows: list[dict[str, Any]], key: str) -> None:
    """Add rows to a table, atomically; of two rows with one key the new one stays, and order is by key."""
    if not rows:
        return
    table, before = pd.DataFrame(rows), read_table(path)
    if before is not None:
        table = pd.concat([before, table], ignore_index=True)
    table = table.drop_duplicates(key, keep="last").sort_values(key, ignore_index=True)
    with write_atomic(path) as temporary:
        write_table(table, temporary)
