"""One sitting of a long work: the time it takes, how it may be stopped, and how busy the device is meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from brainfm_lib.errors import InputError
from brainfm_lib.identity import write_atomic
from brainfm_lib.termination import ended_by_sigterm

TICK = 5.0  # seconds between two notes of the time spent
SAMPLED = 500  # milliseconds between two looks at the device


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Work in a folder in which nobody else works: two sittings at once would each overwrite the other's time.

    Raises:
        InputError: Somebody does.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"Another process works in {folder.parent}: wait for it, or name another folder.") from error
    try:
        yield
    finally:
        lock.release()


class Clock:
    """Time spent over all sittings, and what it was spent on; noted every `TICK` seconds, so that a kill loses no more.

    Attributes:
        log: A row a piece of work: what, seconds, when it began (Unix time), and facts of it.
    """

    def __init__(self, file: Path, minutes: float) -> None:
        self.file, self.budget, self.log = file, 60 * minutes, []  # type: tuple[Path, float, list[dict[str, Any]]]
        self.before = 0.0
        if file.is_file():
            noted = json.loads(file.read_text())
            self.before, self.log = noted["seconds"], noted["log"]
        self._open: tuple[dict[str, Any], float] | None = None
        self.started = time.perf_counter()

    @property
    def spent(self) -> float:
        """Seconds."""
        return self.before + time.perf_counter() - self.started

    @property
    def left(self) -> float:
        """Seconds, those in reserve included."""
        return self.budget - self.spent

    @contextmanager
    def piece(self, what: str, **facts: Any) -> Iterator[dict[str, Any]]:
        """Time a piece of work, also one that does not come to its end."""
        began, started = time.time(), time.perf_counter()
        row: dict[str, Any] = {"what": what, "seconds": 0.0, "began": began, "finished": False}
        self._open = row, started
        self.log.append(row)
        yield facts
        row |= {"seconds": time.perf_counter() - started, "finished": True, **facts}
        self._open = None
        self._write()

    def _write(self) -> None:
        if self._open is not None:
            row, started = self._open
            row["seconds"] = time.perf_counter() - started
        with self._writing, write_atomic(self.file) as path:
            path.write_text(json.dumps({"seconds": self.spent, "log": self.log}, indent=1))

    def _tick(self) -> None:
        while not self._over.wait(TICK):
            self._write()

    def __enter__(self) -> Clock:
        self._writing, self._over = threading.Lock(), threading.Event()
        self._ticking = threading.Thread(target=self._tick, daemon=True)
        self._ticking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._ticking.join()
        self._write()


@contextmanager
def stopped_by_sigterm(sitting: float | None) -> Iterator[None]:
    """End with a sentence when SIGTERM comes, and after `sitting` minutes as if it came.

    A training writes a checkpoint first, see `stopping.Sigterm`.
    """
    timer = threading.Timer(60 * sitting, os.kill, (os.getpid(), signal.SIGTERM)) if sitting is not None else None
    with ended_by_sigterm():
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()


@contextmanager
def sampled(file: Path, device: torch.device) -> Iterator[None]:
    """Note how busy the device is: time (Unix), utilisation (%), power (W), memory (MiB) every `SAMPLED` ms."""
    query = ["nvidia-smi", "--query-gpu=utilization.gpu,power.draw,memory.used", "--format=csv,noheader,nounits"]
    watcher = None
    if device.type == "cuda":
        query += ["-i", f"GPU-{torch.cuda.get_device_properties(device).uuid}"]
        code = (
            "import os, subprocess, sys, time\n"
            "p = subprocess.Popen(sys.argv[2:], stdout=subprocess.PIPE, text=True)\n"
            "f = open(sys.argv[1], 'a', buffering=1)\n"
            "parent = os.getppid()\n"
            "for line in p.stdout:\n"
            "    f.write(f'{time.time():.2f}, {line}')\n"
            "    if os.getppid() != parent:\n"  # it was killed
            "        p.kill()\n"
        )
        command = [sys.executable, "-c", code, str(file), *query, "-lms", str(SAMPLED)]
        watcher = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        if watcher is not None:
            os.killpg(watcher.pid, signal.SIGTERM)
            watcher.wait()
