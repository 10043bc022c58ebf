"""A byte that is not what was written is noticed before it is used; what held it is set aside and made again."""

import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from brainfm_lib import integrity, runs
from brainfm_lib.data import store
from brainfm_lib.data.reading import Reader
from brainfm_lib.errors import InputError
from brainfm_lib.integrity import DAMAGED
from brainfm_lib.paths import runs_dir, store_dir
from brainfm_lib.pretrain.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from brainfm_lib.runs import RunConfig, ensure, find, find_whole
from brainfm_lib.study import Study
from tests.faults.soak import times


def flip(file: Path, place: int) -> None:
    """Turn one bit of a byte."""
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= 1 << (place % 8)
    file.write_bytes(content)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another process would see it: nothing has been compared yet."""
    monkeypatch.setattr(runs, "_whole", set())
    monkeypatch.setattr(store, "_reader", Reader())


def make(folder: Path) -> None:
    pd.DataFrame({"x": np.arange(50.0)}).to_parquet(folder / "table.parquet")
    np.save(folder / "array.npy", np.arange(100))
    (folder / "inner").mkdir(exist_ok=True)
    (folder / "inner" / "values.json").write_text(json.dumps({"a": 1}))


CONFIG = RunConfig("example", {"a": 1})


@pytest.mark.parametrize("seed", range(times(12, 200)))
def test_a_flipped_bit_in_a_run_is_noticed_wherever_it_is(
    seed: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, rng = ensure(CONFIG, make).path, random.Random(seed)
    before = {name: (folder / name).read_bytes() for name in integrity.digests(folder) if name != runs.PROVENANCE}
    file = folder / rng.choice(sorted(before))
    flip(file, rng.randrange(10**6))
    assert find_whole(CONFIG) is not None  # compared once in a process, when it was made
    forget(monkeypatch)
    assert find_whole(CONFIG) is None and "is damaged" in capsys.readouterr().err
    assert len(list(runs_dir().glob(f"{DAMAGED}*"))) == 1 and all(run.shipped for run in runs.list_runs())
    again = ensure(CONFIG, make).path
    assert {name: (again / name).read_bytes() for name in before} == before


def test_a_provenance_that_cannot_be_read_vouches_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ensure(CONFIG, make).path
    (folder / runs.PROVENANCE).write_text('{"id": "exam')
    forget(monkeypatch)
    assert find(CONFIG) is None
    assert ensure(CONFIG, make).provenance["files"] and len(list(runs_dir().glob(f"{DAMAGED}*"))) == 1


def test_a_folder_without_a_provenance_is_no_run_and_in_nobody_s_way() -> None:
    (runs_dir() / CONFIG.id).mkdir(parents=True)
    (runs_dir() / CONFIG.id / "half").write_text("of a copy")
    assert ensure(CONFIG, make).id == CONFIG.id
    assert [folder.name for folder in runs_dir().glob(f"{DAMAGED}*/*")] == ["half"]


def test_a_file_that_cannot_be_read_now_is_not_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ensure(CONFIG, make).path
    forget(monkeypatch)

    def stale(file: Path) -> str:
        raise OSError(116, "Stale file handle", str(file))

    with monkeypatch.context() as patch:
        patch.setattr(integrity, "file_digest", stale)
        with pytest.raises(OSError, match="Stale"):
            find_whole(CONFIG)
    assert folder.is_dir() and find_whole(CONFIG) is not None


def test_a_missing_file_is_damage_too(monkeypatch: pytest.MonkeyPatch) -> None:
    (ensure(CONFIG, make).path / "array.npy").unlink()
    forget(monkeypatch)
    assert find_whole(CONFIG) is None


def test_a_shipped_run_is_not_made_again_behind_its_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ensure(CONFIG, make).path
    shipped = tmp_path / "reference" / "runs" / CONFIG.loose_id
    shipped.parent.mkdir(parents=True)
    folder.rename(shipped)
    monkeypatch.setattr(runs, "shipped_dir", lambda: tmp_path / "reference")
    forget(monkeypatch)
    assert find_whole(CONFIG) is not None
    flip(shipped / "table.parquet", 40)
    forget(monkeypatch)
    with pytest.raises(InputError, match="restore it"):
        find_whole(CONFIG)
    assert shipped.is_dir()


@pytest.fixture
def study() -> Study:
    return Study("tiny", overrides={"subjects.pretraining": 12, "subjects.downstream": 20}, progress=False)


@pytest.mark.parametrize("seed", range(times(4, 50)))
def test_a_damaged_volume_is_made_again(
    study: Study, seed: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    volumes, rng = study.volumes(study.pretraining_cohorts[0]), random.Random(seed)
    rows = np.arange(len(volumes))
    before = volumes[rows]
    file = rng.choice(sorted(volumes.folder.glob("*.npy")))
    if seed % 2:
        flip(file, 128 + rng.randrange(file.stat().st_size - 128))
    else:
        file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])  # written by half
    forget(monkeypatch)
    again = Study("tiny", overrides=study.overrides, progress=False).volumes(study.pretraining_cohorts[0])
    assert np.array_equal(again[rows], before)
    assert ("is damaged" in capsys.readouterr().err) == bool(seed % 2)  # a short one is no volume, and simply made
    assert len(list(volumes.folder.glob(f"{DAMAGED}*"))) == seed % 2


@pytest.mark.parametrize("place", [5, 400, -40])
def test_a_damaged_table_of_the_store_is_made_again(study: Study, place: int) -> None:
    volumes = study.volumes(study.pretraining_cohorts[0])
    before, index = volumes[np.arange(len(volumes))], volumes.folder / store.INDEX
    told = pd.read_parquet(index)
    flip(index, place)
    again = Study("tiny", overrides=study.overrides, progress=False).volumes(study.pretraining_cohorts[0])
    assert np.array_equal(again[np.arange(len(again))], before)
    pd.testing.assert_frame_equal(pd.read_parquet(index), told)
    assert list(store_dir().rglob(f"{DAMAGED}*")) or place < 0  # what a footer says beside the values may pass


@pytest.mark.parametrize("seed", range(times(6, 100)))
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    model = torch.nn.Linear(4, 4)
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    for step in (1, 2, 3):
        optimiser.step()
        save_checkpoint(tmp_path, step, model, optimiser, [{"step": float(step)}], seconds=0.0)
    assert [int(folder.name[-8:]) for folder in checkpoints(tmp_path)] == [2, 3]
    rng = random.Random(seed)
    newest = checkpoints(tmp_path)[-1]
    flip(rng.choice(sorted(newest.iterdir())), rng.randrange(10**5))
    other = torch.nn.Linear(4, 4)
    found = load_checkpoint(tmp_path, other, torch.optim.AdamW(other.parameters()))
    assert found is not None and found[1]["step"] == 2 and "is damaged" in capsys.readouterr().err
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-00000002"]


def test_a_checkpoint_that_is_whole_is_the_newest(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 4)
    optimiser = torch.optim.AdamW(model.parameters())
    save_checkpoint(tmp_path, 7, model, optimiser, [{"step": 7.0}], seconds=0.0)
    found = load_checkpoint(tmp_path, model, optimiser)
    assert found is not None and found[1]["step"] == 7
    (checkpoints(tmp_path)[0] / "digests.json").unlink()
    assert load_checkpoint(tmp_path, model, optimiser) is None
