"""Files that are not what was written are noticed before they are used, set aside under another name, and remade."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

DAMAGED = ".damaged-"  # how the name of what was set aside begins


def file_digest(file: Path) -> str:
    """SHA-256 (hex) of a file's bytes.

    Raises:
        OSError: It cannot be read.
    """
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def file_identity(kind: str, file: Path) -> str:
    """``kind-hash`` of a file's bytes, as pages note what they rest on; "absent" where there is none."""
    return f"{kind}-{file_digest(file)[:12]}" if file.is_file() else "absent"


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 (hex) of every file below a folder, by its path in it; hidden ones and checkpoints are left out."""
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        parts = file.relative_to(folder).parts
        if not any(part.startswith((".", "checkpoint-")) for part in parts):
            found["/".join(parts)] = file_digest(file)
    return found


def damage(folder: Path, expected: Mapping[str, str]) -> str | None:
    """The first file below a folder that is missing or not what was written, or None.

    Raises:
        OSError: A file cannot be read, which says nothing of what is in it.
    """
    for name, digest in expected.items():
        try:
            if file_digest(folder / name) != digest:
                return name
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return name
    return None


def set_aside(path: Path, why: str) -> None:
    """Give a damaged file or folder another name, beside its own, and say so on stderr; nothing is deleted."""
    target = path.with_name(f"{DAMAGED}{path.name}-{time.time_ns()}")
    try:
        path.replace(target)
    except FileNotFoundError:  # another process was first
        return
    print(f"brainfm: {path.name} is damaged ({why}): it is set aside as {target.name} and made again.", file=sys.stderr)


def read_table(path: Path, columns: list[str] | None = None, *, aside: bool = True) -> pd.DataFrame | None:
    """A table of our own, its checksums compared; None where there is none, or where it is damaged.

    Args:
        path: The file.
        columns: Which; default all.
        aside: Set a damaged one aside; for whoever holds the lock of its folder.

    Raises:
        OSError: It cannot be read, which says nothing of what is in it.
    """
    try:
        return pd.read_parquet(path, columns=columns, page_checksum_verification=True)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's; pyarrow's own have no number
            raise
        if aside:
            set_aside(path, "its checksums do not hold")
        return None


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table with checksums."""
    table.to_parquet(path, index=False, write_page_checksum=True)
