"""Cells on this machine, several at a time: processes that stay, one thread each, and a line that says how far."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TextIO

from brainfm_lib.sweep.cells import Outcome, run_cell
from brainfm_lib.sweep.plan import Cell, Sweep

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
PATIENCE = 20.0  # seconds that a worker gets to end after it was told


class _Worker:
    """A process that makes one cell after the other."""

    def __init__(self, sweep: Sweep, root: Path, scratch: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_serve, args=(theirs, sweep, root, scratch, os.getpid()), daemon=False
        )
        self.process.start()
        theirs.close()
        self.cell: Cell | None = None
        self.started = 0.0

    def give(self, cell: Cell) -> None:
        self.cell, self.started = cell, time.monotonic()
        with suppress(OSError):  # where the process is gone, `outcome` says so
            self.pipe.send(cell)

    def outcome(self) -> Outcome:
        """What came of the cell: also where the process died under it."""
        assert self.cell is not None
        cell, seconds = self.cell, time.monotonic() - self.started
        self.cell = None
        try:
            return Outcome(cell.id, self.pipe.recv(), seconds)
        except (EOFError, OSError):
            self.process.join(PATIENCE)
            code = self.process.exitcode or 0
            how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
            hint = " (out of memory, most likely: fewer workers)" if code == -signal.SIGKILL else ""
            return Outcome(cell.id, f"The worker {how}{hint}.", seconds)

    def end(self) -> None:
        """Tell it to end."""
        with suppress(OSError):
            self.pipe.send(None)
        if self.cell is not None:
            self.process.terminate()

    def stop(self) -> None:
        """End it: politely, then not."""
        self.end()
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


def run_cells(sweep: Sweep, cells: list[Cell], root: Path, workers: int) -> Iterator[Outcome]:
    """Make cells, `workers` at a time; outcomes come as they end. Closing the iterator ends the workers."""
    before = {name: os.environ.get(name) for name in THREADS}
    size = min(workers, len(cells))
    if size > 1 or not any(before.values()):  # one worker alone has the threads that its user wants
        os.environ.update(dict.fromkeys(THREADS, "1"))  # kernels inherit it
    waiting = list(reversed(cells))
    crew: list[_Worker] = []
    # temporary files of workers, working folders of kernels among them: gone however a worker ends
    scratch = Path(tempfile.mkdtemp(prefix="brainfm-"))
    try:
        for _ in range(size):
            crew.append(_Worker(sweep, root, scratch))
            crew[-1].give(waiting.pop())
        while busy := {worker.pipe: worker for worker in crew if worker.cell is not None}:
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                outcome = worker.outcome()
                if worker.process.exitcode is not None and waiting:  # it died: another takes its place
                    worker.stop()
                    crew[crew.index(worker)] = worker = _Worker(sweep, root, scratch)
                if waiting:
                    worker.give(waiting.pop())
                yield outcome
    finally:
        for worker in crew:  # all at once
            worker.end()
        for worker in crew:
            worker.stop()
        _remove(scratch)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def _remove(folder: Path) -> None:
    """Remove a folder; a kernel whose worker had to be killed may write into it for a moment still."""
    for _ in range(30):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def _serve(pipe: Connection, sweep: Sweep, root: Path, scratch: Path, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it ends this process
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    tempfile.tempdir = str(scratch)
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lives
    while True:
        try:
            cell = pipe.recv()
        except (EOFError, OSError):
            return
        if cell is None:
            return
        pipe.send(run_cell(sweep, cell, root))


def _leave(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a scheduler tells every process, and the parent tells it again
    raise SystemExit(143)  # on the way the kernel is shut down


def _end_with(parent: int) -> None:
    """End this process once its parent is gone: a kernel ends with it, and nobody works on unseen."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


class Line:
    """The line on the terminal: cells done, running, failed, and the time left."""

    def __init__(self, total: int, workers: int, stream: TextIO | None = None) -> None:
        self.total, self.workers, self.stream = total, workers, stream or sys.stdout
        self.done = self.failed = 0
        self.began = time.monotonic()
        self.live = self.stream.isatty()

    def add(self, outcome: Outcome, name: str) -> None:
        """Count an outcome and say it."""
        self.failed += bool(outcome.error)
        self.done += not outcome.error
        said = f"failed: {outcome.error}" if outcome.error else "done"
        lead = "\r\x1b[2K" if self.live else ""
        print(f"{lead}{name}  {outcome.seconds:.0f} s  {said}", file=self.stream)
        print(self, end="" if self.live else "\n", file=self.stream, flush=True)

    def __str__(self) -> str:
        ended = self.done + self.failed
        running = min(self.workers, self.total - ended)
        spent = time.monotonic() - self.began
        left = spent / ended * (self.total - ended) if ended else 0.0
        about = f", about {left / 60:.0f}:{left % 60:02.0f} left" if ended and ended < self.total else ""
        return f"  {self.done} of {self.total} cells done, {running} running, {self.failed} failed{about}"

    def end(self) -> None:
        """Leave the line."""
        if self.live:
            print(file=self.stream)
