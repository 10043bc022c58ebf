"""Digests of scan files, remembered by path, size and time of change, so that a file is read for it once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from filelock import FileLock
from tqdm import tqdm

from brainfm_lib.errors import InputError
from brainfm_lib.identity import write_atomic
from brainfm_lib.paths import store_dir

CACHE = "file-digests.parquet"
COLUMNS = ["path", "size", "changed", "digest"]


def file_digests(paths: Sequence[str], *, progress: bool = True) -> list[str]:
    """SHA-256 (hex) of the bytes of each file.

    Raises:
        InputError: A file cannot be read.
    """
    keys = [_key(path) for path in paths]
    cache = store_dir() / CACHE
    known = _load(cache)
    new = sorted({key for key in keys if key not in known})
    if new:
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            digests = pool.map(_digest, [path for path, _, _ in new])
            bar = tqdm(
                digests, total=len(new), desc="reading scans", unit="file", disable=not progress or len(new) < 100
            )
            made = dict(zip(new, bar))
        cache.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(cache.with_suffix(".lock")):
            known = {**_load(cache), **made}
            rows = [(*key, digest) for key, digest in sorted(known.items())]
            with write_atomic(cache) as temporary:
                pd.DataFrame(rows, columns=COLUMNS).to_parquet(temporary, index=False)
    return [known[key] for key in keys]


def _key(path: str) -> tuple[str, int, int]:
    try:
        status = Path(path).stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): mend the path or the permissions.") from error
    return str(Path(path).resolve()), status.st_size, status.st_mtime_ns


def _digest(path: str) -> str:
    try:
        with Path(path).open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): mend the path or the permissions.") from error


def _load(cache: Path) -> dict[tuple[str, int, int], str]:
    if not cache.is_file():
        return {}
    table = pd.read_parquet(cache)
    return {(path, size, changed): digest for path, size, changed, digest in table[COLUMNS].itertuples(index=False)}
