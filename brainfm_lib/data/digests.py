"""Digests of scan files, remembered by path, size and time of change, so that a file is read for it once."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from filelock import FileLock
from tqdm import tqdm

from brainfm_lib.identity import write_atomic
from brainfm_lib.integrity import file_digest, read_table, write_table
from brainfm_lib.paths import store_dir

CACHE = "file-digests.parquet"
COLUMNS = ["path", "size", "changed", "digest"]


def file_digests(paths: Sequence[str], *, progress: bool = True) -> tuple[list[str], dict[str, str]]:
    """SHA-256 (hex) of the bytes of each file.

    Returns:
        digests: One a path; empty where the file cannot be read.
        problems: Path -> one sentence, for those.
    """
    problems: dict[str, str] = {}
    keys = [_key(path, problems) for path in paths]
    cache = store_dir() / CACHE
    known = _load(cache)
    new = sorted({key for key in keys if key is not None and key not in known})
    if new:
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            digests = pool.map(_digest, [path for path, _, _ in new])
            bar = tqdm(
                digests, total=len(new), desc="reading scans", unit="file", disable=not progress or len(new) < 100
            )
            made = {key: digest for key, digest in zip(new, bar) if digest}
        cache.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(cache.with_suffix(".lock")):
            known = {**_load(cache), **made}
            rows = [(*key, digest) for key, digest in sorted(known.items())]
            with write_atomic(cache) as temporary:
                write_table(pd.DataFrame(rows, columns=COLUMNS), temporary)
    found = [known.get(key, "") if key is not None else "" for key in keys]
    for path, digest in zip(paths, found):
        if not digest:
            problems.setdefault(path, f"{path} cannot be read: mend the file or its permissions.")
    return found, problems


def _key(path: str, problems: dict[str, str]) -> tuple[str, int, int] | None:
    try:
        status = Path(path).stat()
        real = str(Path(path).resolve())
    except (OSError, RuntimeError) as error:
        said = getattr(error, "strerror", None) or error
        problems[path] = f"{path} cannot be read ({said}): mend the path or the permissions."
        return None
    if not stat.S_ISREG(status.st_mode):
        problems[path] = f"{path} is no regular file: name a NIfTI file."
        return None
    return real, status.st_size, status.st_mtime_ns


def _digest(path: str) -> str:
    """Digest of a file, empty where it cannot be read."""
    try:
        return file_digest(Path(path))
    except OSError:
        return ""


def _load(cache: Path) -> dict[tuple[str, int, int], str]:
    table = read_table(cache)
    if table is None:
        return {}
    return {(path, size, changed): digest for path, size, changed, digest in table[COLUMNS].itertuples(index=False)}
