"""Whatever a file holds, reading it ends in a sentence or in a result: soon, and with nothing touched elsewhere."""

import io
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from brainfm_lib.config import load_profile
from brainfm_lib.data import store
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.ingest import prepare_volume
from brainfm_lib.data.manifest import load_manifest
from brainfm_lib.data.reading import Reader
from brainfm_lib.data.settings import IngestSettings
from brainfm_lib.errors import InputError, RefusedScan
from brainfm_lib.pretrain.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from brainfm_lib.study import Study
from brainfm_lib.sweep.plan import load_sweep
from tests.book import toy
from tests.faults.soak import times

COUNT = times(120, 2000)  # of each of six kinds
SECONDS = 5.0
WORDS = ["null", "-1", "1e309", "nan", ".inf", "''", "[]", "{}", "[[[]]]", "true", "0", "2.5", "~", "2020-01-01"]
WORDS += ["1" * 400, "../../etc/passwd", "/etc/passwd", "${HOME}", "!!python/object/apply:os.system ['true']"]
WORDS += ["*a", "&a [*a]", "<<: *a", "\x00", "é" * 50, "a: b: c", "- - - x", "? !!set", "2020-99-99"]
MARKS = ["[", "{", '"', ":", "\t", "#", "%", "@", "`"]
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "subprocess.Popen", "os.system")


def mangled(text: str, rng: random.Random) -> str:
    """A text of lines with something wrong in it, mostly still of its form."""
    lines = text.splitlines()
    for _ in range(rng.choice([1, 1, 2, 5])):
        place = rng.randrange(len(lines)) if lines else 0
        kind = rng.randrange(8)
        if not lines or kind == 0:
            lines.insert(place, rng.choice(WORDS))
        elif kind == 1:
            del lines[place]
        elif kind == 2:
            lines.insert(place, lines[place])
        elif kind == 3 and ":" in lines[place]:
            lines[place] = f"{lines[place].split(':')[0]}: {rng.choice(WORDS)}"
        elif kind == 4:
            at = rng.randrange(len(lines[place]) + 1)
            lines[place] = lines[place][:at] + rng.choice(MARKS) + lines[place][at:]
        elif kind == 5:
            lines[place] = " " * rng.randrange(8) + lines[place].lstrip()
        elif kind == 6:
            lines[place] = rng.choice(["[", "{a: "]) * rng.choice([10, 3000])
        else:
            lines = [*lines[:place], *lines[place:][::-1]]
    return "\n".join(lines)


def flipped(content: bytes, rng: random.Random, within: int | None = None) -> bytes:
    """Bytes with some changed, or cut off, or grown."""
    found = bytearray(content)
    for _ in range(rng.choice([1, 2, 8, 64])):
        found[rng.randrange(min(len(found), within or len(found)))] = rng.randrange(256)
    if rng.random() < 0.15:
        del found[rng.randrange(len(found)) :]
    return bytes(found) + (b"x" * 1000 if rng.random() < 0.05 else b"")


_watched: dict[str, Path | None] = {"inside": None}
_touched: list[str] = []


def _watch(event: str, arguments: tuple) -> None:
    inside = _watched["inside"]
    if inside is None or event not in (
        "open",
        "os.remove",
        "os.rename",
        "os.mkdir",
        "os.rmdir",
        "subprocess.Popen",
        "os.system",
    ):
        return
    if event == "open":
        path, mode, flags = arguments
        if isinstance(path, int) or not (set(str(mode or "")) & set("wax+") or (isinstance(flags, int) and flags & 3)):
            return
    where = Path(str(arguments[0] if not isinstance(arguments[0], bytes) else arguments[0].decode())).absolute()
    if event in ("subprocess.Popen", "os.system") or not where.is_relative_to(inside):
        _touched.append(f"{event} {where}")


sys.addaudithook(_watch)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project's folder, outside which nothing may be touched."""
    root = tmp_path.resolve()
    for name in ("notebooks", "data_manifest.yaml"):
        source = toy.ROOT / name
        shutil.copytree(source, root / name) if source.is_dir() else shutil.copy(source, root)
    for name in ("runs", "store", "key"):
        monkeypatch.setenv(f"BRAINFM_{name.upper()}", str(root / name))
    monkeypatch.setenv("BRAINFM_ROOT", str(root))
    monkeypatch.chdir(root)
    _touched.clear()
    yield root
    _watched["inside"] = None
    assert _touched == []


def endure(read: Callable[[random.Random], object], root: Path) -> int:
    """Read `COUNT` times; say how often that was refused."""
    refused = 0
    for seed in range(COUNT):
        began = time.perf_counter()
        _watched["inside"] = root
        try:
            read(random.Random(seed))
        except (InputError, RefusedScan) as error:
            refused += 1
            assert str(error) and "Traceback" not in str(error), seed
        except Exception as error:
            _watched["inside"] = None
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        finally:
            _watched["inside"] = None
        assert time.perf_counter() - began < SECONDS, seed
    return refused


def test_manifests(watched: Path) -> None:
    text = (watched / "data_manifest.yaml").read_text()

    def read(rng: random.Random) -> object:
        file = watched / "data_manifest.yaml"
        file.write_text(mangled(text, rng))
        return load_manifest(file)

    assert endure(read, watched) > COUNT / 4


def test_profiles(watched: Path) -> None:
    text = (toy.ROOT / "brainfm_lib" / "profiles" / "quick.yaml").read_text()

    def read(rng: random.Random) -> object:
        (watched / "mine.yaml").write_text(mangled(text, rng))
        return load_profile(str(watched / "mine.yaml"), {})

    assert endure(read, watched) > COUNT / 4


def test_sweeps(watched: Path) -> None:
    files = sorted((watched / "notebooks" / "sweeps").glob("*.yaml"))
    texts = [file.read_text() for file in files]

    def read(rng: random.Random) -> object:
        (watched / "mine.yaml").write_text(mangled(rng.choice(texts), rng))
        return load_sweep(watched / "mine.yaml")

    assert endure(read, watched) > COUNT / 4


def test_headers_of_scans(watched: Path) -> None:
    image = nib.Nifti1Image(
        np.random.default_rng(0).integers(0, 500, (24, 24, 24)).astype(np.int16), np.diag([6.0, 6, 6, 1])
    )
    buffer = io.BytesIO()
    image.to_stream(buffer)
    whole, geometry, settings = buffer.getvalue(), Geometry((16, 16, 16), 10.0), IngestSettings()

    def read(rng: random.Random) -> object:
        (watched / "scan.nii").write_bytes(flipped(whole, rng, within=352))
        return prepare_volume(str(watched / "scan.nii"), geometry, settings)

    assert endure(read, watched) > COUNT / 20


def test_checkpoints(watched: Path) -> None:
    model = torch.nn.Linear(4, 4)
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimiser.step()
    save_checkpoint(watched / "whole", 1, model, optimiser, [{"step": 1.0}], seconds=0.0)
    (folder,) = checkpoints(watched / "whole")

    def read(rng: random.Random) -> object:
        shutil.copytree(folder, watched / "run" / folder.name)
        file = rng.choice(sorted((watched / "run" / folder.name).iterdir()))
        before = file.read_bytes()
        file.write_bytes(flipped(before, rng))
        found = load_checkpoint(watched / "run", model, optimiser)
        assert (found is not None) == (file.read_bytes() == before if file.exists() else False)
        shutil.rmtree(watched / "run")
        return found

    endure(read, watched)


def test_prepared_volumes(watched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study("tiny", overrides={"subjects.pretraining": 2, "subjects.downstream": 20}, progress=False)
    volumes = study.volumes(study.pretraining_cohorts[0])
    whole = {file: file.read_bytes() for file in volumes.folder.glob("*.npy")}
    before = volumes[np.arange(len(volumes))]

    def read(rng: random.Random) -> object:
        file = rng.choice(sorted(whole))
        file.write_bytes(flipped(whole[file], rng))
        monkeypatch.setattr(store, "_reader", Reader())
        again = Study("tiny", overrides=study.overrides, progress=False).volumes(study.pretraining_cohorts[0])
        assert np.array_equal(again[np.arange(len(again))], before)
        for left in volumes.folder.glob(".damaged*"):
            left.unlink()
        return again

    endure(read, watched)
