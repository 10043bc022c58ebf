"""Volumes come out of memory maps from their second reading on, and never out of one that is no longer the file."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from brainfm_lib.data import reading
from brainfm_lib.data.reading import Reader, checksum

SHAPE = (8, 9, 10)


def volume(seed: int, storage: str = "float16") -> np.ndarray:
    return (200 * np.random.default_rng(seed).random(SHAPE)).astype(storage)


def write(file: Path, content: np.ndarray) -> int:
    np.save(file, content)
    return checksum(content)


def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that are read as a whole from now on."""
    whole, files = reading.read_whole, []
    monkeypatch.setattr(reading, "read_whole", lambda file, out: files.append(file) or whole(file, out))
    return files


def maps(folder: Path) -> int:
    """Maps of volumes of a folder that this process has."""
    return Path("/proc/self/maps").read_text().count(f"{folder}/")


@pytest.mark.parametrize("storage", ["float16", "uint8"])
def test_a_volume_is_compared_once_and_mapped_after_it(tmp_path, storage, monkeypatch):
    reader, file, content = Reader(), tmp_path / "a.npy", volume(0, storage)
    expected, files, out = write(file, content), opened(monkeypatch), np.empty(SHAPE, storage)
    assert not reader.again(file, out), "nobody has compared it"
    assert reader.compare(file, out, expected) and np.array_equal(out, content) and maps(tmp_path) == 0
    for _ in range(3):
        out[:] = 0
        assert reader.again(file, out) and np.array_equal(out, content)
    assert files == [file] and maps(tmp_path) == 1
    held = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert file not in held, "a map holds no file open"


def flip(file: Path) -> None:
    """Damage in place, of the same length."""
    with file.open("r+b") as handle:
        handle.seek(300)
        handle.write(b"damage")


def replace(file: Path) -> None:
    write(file.with_suffix(".new.npy"), volume(9))
    file.with_suffix(".new.npy").replace(file)


def truncate(file: Path) -> None:
    os.truncate(file, 500)


@pytest.mark.parametrize("change", [flip, replace, truncate, Path.unlink])
def test_a_file_that_changed_is_compared_anew(tmp_path, change: Callable[[Path], None]):
    reader, file, content, out = Reader(), tmp_path / "a.npy", volume(0), np.empty(SHAPE, np.float16)
    expected = write(file, content)
    assert reader.compare(file, out, expected) and reader.again(file, out) and maps(tmp_path) == 1
    change(file)
    assert not reader.again(file, out) and not reader.compare(file, out, expected)
    write(file, content)
    assert not reader.again(file, out), "it is another file, whatever is in it"
    assert reader.compare(file, out, expected) and reader.again(file, out) and np.array_equal(out, content)
    assert maps(tmp_path) == 1, "the old map is given up"


def test_limits_on_maps_are_kept_and_what_is_beyond_is_read_all_the_same(tmp_path, monkeypatch):
    contents = {tmp_path / f"{i}.npy": volume(i) for i in range(6)}
    expected, out = {file: write(file, content) for file, content in contents.items()}, np.empty(SHAPE, np.float16)

    def mapped() -> int:
        reader, before = Reader(), maps(tmp_path)
        for _ in range(3):
            for file, content in contents.items():
                assert reader.again(file, out) or reader.compare(file, out, expected[file])
                assert np.array_equal(out, content)
        return maps(tmp_path) - before

    assert mapped() == 6
    monkeypatch.setattr(reading, "MAPS", 4)
    assert mapped() == 4
    monkeypatch.setattr(reading, "total_memory", lambda: 4 * out.nbytes)  # half of it may lie below maps
    assert mapped() == 2


def test_where_maps_are_charged_for_there_are_none(tmp_path):
    reader, file, out = Reader(), tmp_path / "a.npy", np.empty(SHAPE, np.float16)
    assert reader._strict == (Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2")
    reader._strict = True
    assert reader.compare(file, out, write(file, volume(0)))
    assert reader.again(file, out) and np.array_equal(out, volume(0)) and maps(tmp_path) == 0


def test_a_forked_process_waits_for_no_lock_of_its_parents(tmp_path):
    """As `torch.utils.data.DataLoader` forks its workers, while threads of its parent read."""
    np.save(tmp_path / "a.npy", volume(0))
    code = f"""
import os, signal
from pathlib import Path
import numpy as np
from brainfm_lib.data import store
from brainfm_lib.data.reading import checksum
file, out = Path({str(tmp_path / "a.npy")!r}), np.empty({SHAPE}, np.float16)
assert store._reader.compare(file, out, checksum(np.load(file)))
store._reader._lock.acquire(), store._mending.acquire()  # as a thread that lives on in the parent alone
child = os.fork()
if not child:
    signal.alarm(20)
    with store._mending:
        os._exit(0 if store._reader.again(file, out) else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_no_map_is_to_be_had_volumes_are_read(tmp_path):
    """As with a bound on the addresses of a process, which clusters set."""
    np.save(tmp_path / "a.npy", np.zeros((500, 500, 500), np.float16))
    code = f"""
import resource, sys
from pathlib import Path
import numpy as np, torch
from brainfm_lib.data.reading import Reader, checksum
reader, file, out = Reader(), Path({str(tmp_path / "a.npy")!r}), np.empty((500, 500, 500), np.float16)
assert reader.compare(file, out, checksum(out * 0))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 10**8, resource.RLIM_INFINITY))
out[:] = 1
assert reader.again(file, out) and not out.any() and reader._maps == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True)
