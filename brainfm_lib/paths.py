"""Where things are: everything hangs from the nearest parent folder that holds ``data_manifest.yaml``."""

import os
from pathlib import Path

from brainfm_lib.errors import InputError

MANIFEST_NAME = "data_manifest.yaml"


def project_root(start: str | Path | None = None) -> Path:
    """Return the nearest folder at or above `start` (default: the working directory) with a manifest in it.

    ``BRAINFM_ROOT`` wins where it is set.

    Raises:
        InputError: No such folder.
    """
    if os.environ.get("BRAINFM_ROOT"):
        return Path(os.environ["BRAINFM_ROOT"]).expanduser().resolve()
    here = Path(start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / MANIFEST_NAME).is_file():
            return folder
    raise InputError(
        f"No {MANIFEST_NAME} in {here} or above it: start from inside the project, or set BRAINFM_ROOT to its folder."
    )


def anchored(text: str) -> Path:
    """A path as a variable gives it: ``~`` is the home folder, and a relative one starts at the project's root.

    Not at the working directory: a shell, a notebook's kernel and a job of a cluster have one each.
    """
    path = Path(text).expanduser()
    return path if path.is_absolute() else project_root() / path


def store_dir() -> Path:
    """Folder of the prepared volumes (``BRAINFM_STORE``, else ``store/`` under the root)."""
    return anchored(os.environ.get("BRAINFM_STORE") or "store")


def runs_dir() -> Path:
    """Folder of the runs made here (``BRAINFM_RUNS``, else ``runs/`` under the root)."""
    return anchored(os.environ.get("BRAINFM_RUNS") or "runs")


def shipped_dir() -> Path:
    """Read-only layer of runs that ship with the project."""
    return project_root() / "book" / "reference"
