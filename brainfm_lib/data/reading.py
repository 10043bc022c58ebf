"""How prepared volumes come out of their files: compared with their checksums once, then copied from memory maps."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np

from brainfm_lib.memory import total_memory

MAPS = 16_384  # that a process keeps at most; Linux allows it 65,530
HELD = 0.5  # of the memory, at most, below maps: what has left the page cache is read faster without one


@dataclass
class Compared:
    """A volume whose checksum held while its file looked like `stamp`; from its second reading on it has a map."""

    stamp: tuple[int, int, int]
    map: np.ndarray | None = None


class Reader:
    """Reads volumes of which it remembers what it has compared; one serves a whole process and all its threads."""

    def __init__(self) -> None:
        self._compared: dict[Path, Compared] = {}
        self._maps, self._mapped = 0, 0  # how many, and bytes
        self._lock = Lock()
        self._strict = strict_commit()

    def after_fork(self) -> None:
        """In a child: a thread of its parent may have held the lock."""
        self._lock = Lock()

    def compare(self, file: Path, out: np.ndarray, expected: int | None) -> bool:
        """Read a volume of the shape and type of `out` into it and compare its checksum; what holds is remembered.

        Returns:
            Whether the file is there, as long as it should be, and as it was written.
        """
        stamp = _stamp(file)
        if stamp is None or not read_whole(file, out) or checksum(out) != expected:
            return False
        with self._lock:
            before = self._compared.get(file)
            if before is not None and before.map is not None:
                self._maps, self._mapped = self._maps - 1, self._mapped - before.map.nbytes
            self._compared[file] = Compared(stamp)
        return True

    def again(self, file: Path, out: np.ndarray) -> bool:
        """Read a volume into `out` if it has been compared and its file is the same since.

        By a memory map, as long as `MAPS` and `HELD` allow: nothing is opened, and nothing copied twice. As with every
        memory map, a disk that fails below it ends the process (SIGBUS).

        Returns:
            Whether it was read.
        """
        known = self._compared.get(file)
        if known is None or known.stamp != _stamp(file):
            return False
        if known.map is None:
            self._map(file, known, out)
        if known.map is None:
            return read_whole(file, out)
        np.copyto(out, known.map)
        return True

    def _map(self, file: Path, known: Compared, out: np.ndarray) -> None:
        """Map a volume, if one more map is allowed."""
        import torch

        with self._lock:
            if (
                self._strict
                or known.map is not None
                or self._maps >= MAPS
                or self._mapped + out.nbytes > HELD * total_memory()
            ):
                return
            try:  # unlike numpy's, it keeps no file open, of which a process may have few
                content = torch.from_file(str(file), shared=False, size=known.stamp[1], dtype=torch.uint8).numpy()
            except RuntimeError:  # no map is to be had here
                return
            start = _start(content[:10].tobytes())
            volume = content[start : start + out.nbytes].view(out.dtype).reshape(out.shape)
            volume.flags.writeable = False
            known.map = volume
            self._maps, self._mapped = self._maps + 1, self._mapped + volume.nbytes


def read_whole(file: Path, out: np.ndarray) -> bool:
    """Read a volume of the shape and type of `out` into it: files of our own, several times as fast as np.load.

    Returns:
        Whether the file is there and as long as it should be.
    """
    try:
        with file.open("rb", buffering=0) as handle:
            handle.seek(_start(handle.read(10)))
            return handle.readinto(out.reshape(-1).view(np.uint8)) == out.nbytes  # type: ignore[arg-type]
    except FileNotFoundError:
        return False


def checksum(volume: np.ndarray) -> int:
    """CRC-32 of a volume's bytes as they are stored."""
    return zlib.crc32(np.ascontiguousarray(volume).reshape(-1).view(np.uint8).data)


def _start(beginning: bytes) -> int:
    """Where the values of a .npy file begin, by its first ten bytes."""
    return 10 + int.from_bytes(beginning[8:10], "little")


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """What differs once a file has been written to or replaced; None where there is none."""
    try:
        seen = file.stat()
    except FileNotFoundError:
        return None
    return seen.st_ino, seen.st_size, seen.st_mtime_ns


def strict_commit() -> bool:
    """Whether this system counts private maps as memory that it has promised, and keeps its promises."""
    setting = Path("/proc/sys/vm/overcommit_memory")
    return setting.is_file() and setting.read_text().strip() == "2"
