"""The run store: a finished run is found, a broken one is resumed, a missing one is made, and none is made twice."""

import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from filelock import FileLock, Timeout

from brainfm_lib.errors import InputError
from brainfm_lib.identity import canonical, code_digest, stable_hash, write_atomic
from brainfm_lib.integrity import damage, digests, set_aside
from brainfm_lib.paths import project_root, runs_dir, shipped_dir

PROVENANCE = "provenance.json"
# How results are filed says nothing about what they are: changing these modules makes no run stale.
PLUMBING = tuple(f"brainfm_lib.{name}" for name in ("runs", "paths", "errors", "identity", "integrity"))
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "pandas", "accelerate", "numba", "nibabel", "nilearn")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run's result is; and, apart from its identity, where it may be taken from.

    Attributes:
        kind: ``pretrain``, ``features``, ``probe`` and the like.
        settings: Resolved scientific configuration (plain values).
        data: Digest of the scans it uses, by role; no names, no paths.
        inputs: The runs it starts from, by role; known by their own identity, they need not exist yet.
        code: Modules of this package that make it; their import closure counts.
        anew: Whether a run that came with the project does not do: no part of the identity.
    """

    kind: str
    settings: Mapping[str, Any]
    data: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, "RunConfig"] = field(default_factory=dict)
    code: tuple[str, ...] = ()
    anew: bool = False

    @cached_property
    def code_hash(self) -> str:
        """Digest of the code that makes this run."""
        return code_digest(self.code, without=PLUMBING)

    @cached_property
    def id(self) -> str:
        """``kind-hash`` over settings, data, inputs and code: the name of the run's folder."""
        return f"{self.kind}-{self._hash(self.code_hash, {role: run.id for role, run in self.inputs.items()})}"

    @cached_property
    def loose_id(self) -> str:
        """The same without the code, for runs that ship with the project."""
        return f"{self.kind}-{self._hash('', {role: run.loose_id for role, run in self.inputs.items()})}"

    def _hash(self, code: str, inputs: dict[str, str]) -> str:
        return stable_hash([self.kind, self.settings, self.data, inputs, code])


class Run:
    """A finished run: a folder that no longer changes.

    Attributes:
        path: Its folder.
        provenance: What ``provenance.json`` says: commit, versions, device, wall time, memory, digests.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.provenance: dict[str, Any] = json.loads((path / PROVENANCE).read_text())
            self.provenance["id"], self.provenance["kind"], self.provenance["finished"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} is no finished run (no readable {PROVENANCE}): `brainfm runs rm {path.name}` removes it."
            ) from error

    def __repr__(self) -> str:
        return f"Run({self.id})"

    @property
    def id(self) -> str:
        """``kind-hash``."""
        return str(self.provenance["id"])

    @property
    def kind(self) -> str:
        """What sort of run it is."""
        return str(self.provenance["kind"])

    @property
    def shipped(self) -> bool:
        """Whether it came with the project instead of being made here."""
        return self.path.is_relative_to(shipped_dir())

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Its scientific configuration."""
        return yaml.safe_load((self.path / "config.yaml").read_text())["settings"]

    def table(self, name: str) -> pd.DataFrame:
        """Read ``<name>.parquet``."""
        return pd.read_parquet(self.path / f"{name}.parquet")

    def array(self, name: str) -> np.ndarray:
        """Read ``<name>.npy``."""
        return np.load(self.path / f"{name}.npy", allow_pickle=False)

    def values(self, name: str) -> dict[str, Any]:
        """Read ``<name>.json``."""
        return json.loads((self.path / f"{name}.json").read_text())


def find(config: RunConfig) -> Run | None:
    """Return the finished run of `config`, made here or shipped, or None; whether it is whole is not looked at."""
    for folder in _places(config):
        if (folder / PROVENANCE).is_file():
            with suppress(InputError):  # a provenance that cannot be read vouches for nothing
                return Run(folder)
    return None


def ships(config: RunConfig) -> bool:
    """Whether a finished run of `config` came with the project, whatever was made here."""
    return (shipped_dir() / "runs" / config.loose_id / PROVENANCE).is_file()


def find_whole(config: RunConfig, *, held: bool = False) -> Run | None:
    """The same, its files compared with their digests, once in a process: to be used before what is in them is.

    A run that is damaged is set aside; then there is none.

    Args:
        config: Of the run.
        held: Whether the caller holds the run's lock.

    Raises:
        InputError: The damaged run came with the project.
    """
    for folder in _places(config):
        run, wrong = _look(folder)
        if run is not None:
            return run
        if wrong is None:
            continue
        if folder.is_relative_to(shipped_dir()):
            raise InputError(f"{folder / wrong} is not the file that came with the project: restore it.")
        with nullcontext() if held else _hold(runs_dir() / ".locks", config.id):
            run, wrong = _look(folder)  # another process may have made it anew meanwhile
            if run is not None:
                return run
            if wrong is not None:
                set_aside(folder, f"{wrong} is not what was written")
    return None


def _look(folder: Path) -> tuple[Run | None, str | None]:
    """The whole run in a folder, or else the file of it that is wrong, if there is a folder."""
    if not folder.is_dir():
        return None, None
    try:
        run = Run(folder)
        wrong = None if folder in _whole else damage(folder, run.provenance.get("files", {}))
    except InputError:
        return None, PROVENANCE
    if wrong is None:
        _whole.add(folder)
        return run, None
    return None, wrong


_whole: set[Path] = set()  # folders of runs whose files this process has compared


def _places(config: RunConfig) -> tuple[Path, ...]:
    made_here, came_along = runs_dir() / config.id, shipped_dir() / "runs" / config.loose_id
    return (made_here,) if config.anew else (made_here, came_along)


def ensure(config: RunConfig, make: Callable[[Path], Mapping[str, Any] | None]) -> Run:
    """Return the run of `config`: the finished one, or a new one made by `make`.

    `make` gets a folder to write into. After a crash the same folder comes back with what was written before, so that
    long work can resume from its own checkpoints: entries called ``checkpoint-*`` or beginning with a dot are dropped
    once everything else is there. What `make` returns is added to the provenance. The folder takes its
    final name only when everything is in it. A second process that wants the same run waits for the first.

    Raises:
        InputError: The store cannot be written.
    """
    run = find(config)
    if run is not None and run.path in _whole:
        return run
    root = runs_dir()
    try:
        (root / ".locks").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if run is not None and (run := find_whole(config, held=True)) is not None:  # a store that is only read
            return run
        raise InputError(
            f"{root} cannot be written ({error.strerror}): set BRAINFM_RUNS to a folder that can."
        ) from error
    with _hold(root / ".locks", config.id):
        run = find_whole(config, held=True)  # the one who held the lock may have made it
        if run is not None:
            return run
        working = root / f".partial-{config.id}"
        working.mkdir(exist_ok=True)
        if not (working / PROVENANCE).is_file():  # it is written last: where it is, only the new name is missing
            start = time.perf_counter()
            extra = dict(make(working) or {})
            (working / "config.yaml").write_text(yaml.safe_dump(_description(config), sort_keys=False))
            provenance = _provenance(config, time.perf_counter() - start) | extra
            provenance["files"] = digests(working)
            with write_atomic(working / PROVENANCE) as path:
                path.write_text(json.dumps(provenance, indent=2))
        for scratch in [*working.glob("checkpoint-*"), *working.glob(".*")]:
            shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink()
        working.replace(root / config.id)
    _whole.add(root / config.id)
    return Run(root / config.id)


class _hold:
    """Hold the lock of one run; say who has it where one must wait. The kernel frees it when its holder dies."""

    def __init__(self, folder: Path, name: str) -> None:
        self.lock = FileLock(folder / f"{name}.lock")
        self.note = folder / f"{name}.json"
        self.name = name

    def __enter__(self) -> None:
        try:
            self.lock.acquire(timeout=0)
        except PermissionError as error:
            root = self.note.parent.parent
            raise InputError(
                f"{root} cannot be written ({error.strerror}): set BRAINFM_RUNS to a folder that can."
            ) from error
        except Timeout:
            try:
                holder = json.loads(self.note.read_text())
            except (OSError, ValueError):
                holder = {"pid": "?", "host": "?"}
            print(
                f"waiting: {self.name} is being made by process {holder['pid']} on {holder['host']}",
                file=sys.stderr,
                flush=True,
            )
            self.lock.acquire()
        self.note.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))

    def __exit__(self, *_: object) -> None:
        self.note.unlink(missing_ok=True)
        self.lock.release()


def _description(config: RunConfig) -> dict[str, Any]:
    return {
        "kind": config.kind,
        "settings": canonical(config.settings),
        "data": dict(config.data),
        "inputs": {role: run.id for role, run in config.inputs.items()},
        "code": list(config.code),
    }


def _provenance(config: RunConfig, seconds: float) -> dict[str, Any]:
    from brainfm_lib import __version__

    versions = {"python": platform.python_version(), "brainfm_lib": __version__}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "id": config.id,
        "loose_id": config.loose_id,
        "kind": config.kind,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "wall_seconds": round(seconds, 2),
        "process_peak_memory_bytes": usage,
        "code": config.code_hash,
        "data": dict(config.data),
        "inputs": {role: run.id for role, run in config.inputs.items()},
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        **_git_state(),
    }


def _git_state() -> dict[str, Any]:
    """Commit and whether tracked files differ from it; both None outside a checkout.

    Where the code travels without its repository, BRAINFM_COMMIT says which commit it is, unchanged.
    """
    try:
        root = project_root()
        commit, status = (
            subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True, timeout=10).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError, InputError):
        named = os.environ.get("BRAINFM_COMMIT")
        return {"commit": named, "dirty": False if named else None}
    return {"commit": commit.strip(), "dirty": bool(status.strip())}


def list_runs() -> list[Run]:
    """All finished runs, shipped ones first, then by the time they finished; of a damaged one a warning tells."""
    found = []
    for root in (shipped_dir() / "runs", runs_dir()):
        for file in root.glob(f"[!.]*/{PROVENANCE}"):
            try:
                found.append(Run(file.parent))
            except InputError as error:
                warnings.warn(str(error), stacklevel=2)
    return sorted(found, key=lambda run: (not run.shipped, run.provenance["finished"]))


def get_run(name: str) -> Run:
    """Find a run by its identifier or an unambiguous beginning of it.

    Raises:
        InputError: None, or more than one, begins so.
    """
    if (runs_dir() / name / PROVENANCE).is_file():  # by its whole name, without a look at all the others
        return Run(runs_dir() / name)
    matches = [run for run in list_runs() if run.id.startswith(name)]
    exact = [run for run in matches if run.id == name]
    if len(exact or matches) != 1:
        found = f"{len(matches)} runs begin with {name!r}" if matches else f"no run is called {name!r}"
        raise InputError(f"{found}: `brainfm runs list` shows them all.")
    return (exact or matches)[0]


def remove_run(name: str) -> str:
    """Delete a run that was made here, by its identifier or the beginning of it; a damaged one by its whole name.

    Returns:
        Its identifier.

    Raises:
        InputError: It ships with the project, or does not exist.
    """
    folder = runs_dir() / name
    if Path(name).name != name or name.startswith(".") or not (folder / PROVENANCE).is_file():
        run = get_run(name)
        if run.shipped:
            raise InputError(f"{run.id} ships with the project and is read-only.")
        folder = run.path
    doomed = folder.with_name(f".removed-{folder.name}-{os.getpid()}")
    folder.replace(doomed)
    shutil.rmtree(doomed)
    return folder.name
