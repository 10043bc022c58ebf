import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from brainfm_lib.data import store
from brainfm_lib.data.cohort import describe_cohort
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.manifest import load_manifest
from brainfm_lib.data.prepare import prepare
from brainfm_lib.data.reading import Reader
from brainfm_lib.data.storage import as_float, as_stored
from brainfm_lib.data.store import VolumeSet, open_volumes
from brainfm_lib.errors import InputError
from tests.data.scans import head, save_scan

GRID = Geometry((16, 18, 16), 10.0)
BIDS = {"b": {"kind": "bids", "root": "bids"}}
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def store_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINFM_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def cohort(make_bids, make_manifest):
    make_bids(6)
    return describe_cohort(make_manifest(cohorts=BIDS), "b")


def everything(volumes):
    """All volumes as they are stored."""
    return volumes[range(len(volumes))]


def contents(folder):
    """Every visible file below, with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("[!.]*")) if p.is_file()}


def test_volumes_are_made_once_and_read_back(cohort, store_folder, monkeypatch):
    volumes = open_volumes(cohort, GRID, progress=False)
    bank = everything(volumes)
    assert bank.shape == (6, 16, 18, 16) and bank.dtype == np.float16 and volumes.scans.equals(cohort.scans)
    some = volumes.read([4, 1])
    assert some.dtype == np.float32 and np.array_equal(some, bank[[4, 1]].astype(np.float32))
    assert np.array_equal(everything(volumes.select([4, 1])), bank[[4, 1]])
    assert np.array_equal(everything(volumes.select(cohort.scans["sex"] == "F")), bank[1::2])
    assert list(volumes.info["shape"].map(list)) == [[40, 44, 38]] * 6
    before = contents(store_folder)
    monkeypatch.setattr(store, "_prepare", lambda *_: pytest.fail("prepared again"))
    assert np.array_equal(everything(open_volumes(cohort, GRID, progress=False)), bank)
    assert np.array_equal(everything(open_volumes(cohort.select([5, 0]), GRID, progress=False)), bank[[5, 0]])
    assert contents(store_folder) == before


def test_no_file_name_tells_who_was_scanned(cohort, store_folder):
    open_volumes(cohort, GRID, progress=False)
    assert not [path for path in store_folder.rglob("*") if "sub-" in path.name]


def test_other_grid_settings_or_content_are_other_volumes(make_bids, make_manifest, store_folder):
    root = make_bids(2)
    open_volumes(describe_cohort(make_manifest(cohorts=BIDS), "b"), GRID, progress=False)
    open_volumes(describe_cohort(make_manifest(cohorts=BIDS), "b"), Geometry(GRID.grid, 9.0), progress=False)
    clipped = {"b": {**BIDS["b"], "ingest": {"high": 95.0}}}
    open_volumes(describe_cohort(make_manifest(cohorts=clipped), "b"), GRID, progress=False)
    folders = sorted(path for path in store_folder.iterdir() if path.is_dir())
    assert [len(list(folder.glob("*.npy"))) for folder in folders] == [2, 2, 2]
    save_scan(root / "sub-00/anat/sub-00_T1w.nii.gz", head(seed=50))
    open_volumes(describe_cohort(make_manifest(cohorts=BIDS), "b"), GRID, progress=False)
    assert sorted(len(list(folder.glob("*.npy"))) for folder in folders) == [2, 2, 3]


def test_labels_do_not_touch_volumes(make_bids, make_manifest, tmp_path, store_folder):
    root = make_bids(2)
    open_volumes(describe_cohort(make_manifest(cohorts=BIDS), "b"), GRID, progress=False)
    before = contents(store_folder)
    table = root / "participants.tsv"
    table.write_text(table.read_text().replace("patient", "case"))
    open_volumes(describe_cohort(make_manifest(cohorts=BIDS), "b"), GRID, progress=False)
    assert contents(store_folder) == before


def test_truncated_or_deleted_volumes_are_made_again(cohort, store_folder):
    open_volumes(cohort, GRID, progress=False)
    before = contents(store_folder)
    first, second, *_ = sorted(store_folder.rglob("*.npy"))
    first.write_bytes(first.read_bytes()[:500])
    second.unlink()
    open_volumes(cohort, GRID, progress=False)
    assert contents(store_folder) == before


def test_threads_read_what_one_reads_and_a_damaged_volume_is_made_once(cohort, store_folder, monkeypatch):
    volumes = store.open_volumes(cohort, GRID, progress=False)
    rows = [0, 1, 0, 1, 1, 0, 0, 1]
    alone = volumes[rows]
    monkeypatch.setattr(store, "READ_BY_ONE", 1)
    monkeypatch.setattr(store, "bound_cores", lambda: 3)
    threads = set()
    read_again = Reader.again
    monkeypatch.setattr(Reader, "again", lambda *a: threads.add(threading.get_ident()) or read_again(*a))
    assert np.array_equal(volumes[rows], alone) and threading.get_ident() not in threads
    made = []
    prepare = store._prepare
    monkeypatch.setattr(store, "_prepare", lambda *a: made.append(1) or prepare(*a))
    file = volumes._files[0]
    file.write_bytes(file.read_bytes()[:-2] + b"xx")  # after it has been compared, and mapped
    assert np.array_equal(store.open_volumes(cohort, GRID, progress=False)[rows], alone) and made == [1]
    file.unlink()
    assert np.array_equal(volumes[rows], alone) and made == [1, 1]


def test_bad_scans_are_refused_and_the_good_ones_prepared(make_bids, make_manifest, store_folder):
    root = make_bids(5)
    save_scan(root / "sub-01/anat/sub-01_T1w.nii.gz", np.full((40, 40, 40), np.nan, np.float32))
    save_scan(root / "sub-03/anat/sub-03_T1w.nii.gz", np.ones((20, 20, 20, 3), np.float32))
    manifest = make_manifest(cohorts=BIDS)
    cohort = describe_cohort(manifest, "b")
    with pytest.raises(InputError, match=r"sub-01_T1w\.nii\.gz: 64000 of .* NaN.*\(1 more scan"):
        open_volumes(cohort, GRID, progress=False)
    assert len(list(store_folder.rglob("*.npy"))) == 3
    volumes = open_volumes(cohort, GRID, progress=False, on_error="report")
    assert list(volumes.scans["subject_id"]) == ["sub-00", "sub-02", "sub-04"] and len(everything(volumes)) == 3
    assert list(volumes.refused["scan_uid"]) == ["b/sub-01_T1w", "b/sub-03_T1w"]
    assert "4D" in volumes.refused["reason"][1]
    assert list(volumes.refused["rule"]) == ["finite", "dimensions"]
    ((name, made),) = prepare(manifest, GRID, progress=False)
    assert (name, made.named, len(made.volumes), len(made.volumes.refused)) == ("b", 5, 3, 2)
    save_scan(root / "sub-01/anat/sub-01_T1w.nii.gz", head(seed=9))
    save_scan(root / "sub-03/anat/sub-03_T1w.nii.gz", head(seed=8))
    assert len(open_volumes(describe_cohort(manifest, "b"), GRID, progress=False)) == 5


def test_a_refusal_names_the_scan_at_hand(make_bids, make_manifest, tmp_path):
    """What is remembered is remembered of a content, which two files may share, and which may be moved."""
    root = make_bids(4)
    for name in ("sub-01", "sub-02"):
        save_scan(root / f"{name}/anat/{name}_T1w.nii.gz", np.ones((20, 20, 20, 3), np.float32))
    for _ in range(2):  # made, and remembered
        found = open_volumes(describe_cohort(make_manifest(cohorts=BIDS), "b"), GRID, progress=False, on_error="report")
        reasons = list(found.refused["reason"])
        assert "sub-01_T1w" in reasons[0] and "sub-02_T1w" in reasons[1] and "sub-01" not in reasons[1]
    root.rename(tmp_path / "elsewhere")
    moved = make_manifest(cohorts={"b": {"kind": "bids", "root": "elsewhere"}})
    found = open_volumes(describe_cohort(moved, "b"), GRID, progress=False, on_error="report")
    assert all(f"{tmp_path}/elsewhere/" in reason for reason in found.refused["reason"])


def test_cohort_without_a_single_good_scan(make_bids, make_manifest):
    root = make_bids(1)
    save_scan(root / "sub-00/anat/sub-00_T1w.nii.gz", np.zeros((40, 40, 40), np.float32))
    cohort = describe_cohort(make_manifest(cohorts=BIDS), "b")
    with pytest.raises(InputError, match=r"No scan of cohort b.*every voxel is 0"):
        open_volumes(cohort, GRID, progress=False, on_error="report")


def test_what_was_made_before_a_kill_is_kept(cohort, store_folder, monkeypatch):
    """A kill leaves the list of what was made, perhaps with half a line at its end; nothing in it is made again."""
    volumes = open_volumes(cohort, GRID, progress=False)
    before, folder = contents(store_folder), volumes.folder
    monkeypatch.setattr(store, "_merge", lambda folder: None)
    (folder / "index.parquet").unlink()
    for file in folder.glob("*.npy"):
        file.unlink()
    open_again = pytest.raises(FileNotFoundError)
    with open_again:
        _ = open_volumes(cohort, GRID, progress=False).info
    monkeypatch.undo()
    monkeypatch.setenv("BRAINFM_STORE", str(store_folder))
    pending = folder / ".pending.jsonl"
    assert len(pending.read_text().splitlines()) == 6
    pending.write_text(pending.read_text() + '{"file": "half a li')
    monkeypatch.setattr(store, "_scans", lambda *_: pytest.fail("made again"))
    assert np.array_equal(everything(open_volumes(cohort, GRID, progress=False)), everything(volumes))
    assert contents(store_folder) == before and not pending.exists()


def test_several_cohorts_read_as_one(make_bids, make_manifest):
    make_bids(3, "one")
    make_bids(4, "two")
    manifest = make_manifest(cohorts={n: {"kind": "bids", "root": n} for n in ("one", "two")})
    parts = [open_volumes(describe_cohort(manifest, name), GRID, progress=False) for name in ("one", "two")]
    together = np.concatenate([everything(part) for part in parts])
    joined = VolumeSet(parts)
    assert joined.shape == (7, 16, 18, 16) and joined.nbytes == together.nbytes and len(joined) == 7
    rows = np.array([6, 0, 3, 2, 3])
    assert np.array_equal(joined[rows], together[rows]) and joined[rows].dtype == np.float16
    assert np.array_equal(joined[:2], together[:2]) and joined[:0].shape == (0, 16, 18, 16)
    assert np.array_equal(joined.read(rows), together[rows].astype(np.float32))


@pytest.mark.parametrize("storage", ["float16", "uint8"])
def test_batches_are_the_same_whether_volumes_are_held_or_read_as_needed(cohort, storage, monkeypatch):
    import torch

    from brainfm_lib.data import batches

    volumes = VolumeSet([open_volumes(cohort, Geometry(GRID.grid, GRID.spacing, storage), progress=False)])
    held = batches.Batches(volumes, torch.device("cpu"))
    monkeypatch.setattr(batches, "HELD", 0.0)
    read = batches.Batches(volumes, torch.device("cpu"))
    assert isinstance(held.volumes, np.ndarray) and read.volumes is volumes
    first, second = np.array([3, 0, 5]), np.array([1, 4, 2])
    read.read_ahead(first)
    read.read_ahead(second)
    for rows in (first, second, first):  # the last was not announced
        assert torch.equal(read(rows), held(rows))
        assert np.allclose(read(rows)[:, 0].numpy(), volumes.read(rows), atol=1e-7)
    assert not read.ahead


def test_uint8_takes_half_the_space_at_a_known_loss(cohort, store_folder):
    volumes = open_volumes(cohort, GRID, progress=False)
    small = open_volumes(cohort, Geometry(GRID.grid, GRID.spacing, "uint8"), progress=False)
    a, b = volumes.read(range(6)), small.read(range(6))
    assert small.folder != volumes.folder and everything(small).nbytes * 2 == everything(volumes).nbytes
    assert np.array_equal(a > 0, b > 0), "foreground is the same"
    error = np.abs(a - b)
    assert error[a > 0.01].max() < 1 / 510 + 2**-12 and error.max() < 1 / 255
    exact = np.linspace(0, 1, 1001, dtype=np.float32)
    assert np.abs(as_float(as_stored(exact, "float16")) - exact).max() <= 2**-12


PHANTOMS = {"kind": "phantom", "spec": {"subjects": 40, "conditions": {"NC": 0.5, "AD": 0.5}}}


def test_phantoms_do_not_depend_on_how_many_are_asked_for(make_manifest, store_folder):
    manifest = make_manifest(cohorts={"p": PHANTOMS})
    few = open_volumes(describe_cohort(manifest, "p", max_subjects=3), GRID, progress=False)
    more = open_volumes(describe_cohort(manifest, "p", max_subjects=20), GRID, progress=False)
    assert few.folder == more.folder and np.array_equal(everything(few), everything(more)[:3])
    again = describe_cohort(manifest, "p", max_subjects=20).select([19, 2])
    os.environ["BRAINFM_STORE"] = str(store_folder.with_name("other"))
    assert np.array_equal(everything(open_volumes(again, GRID, progress=False)), everything(more)[[19, 2]])
    assert (everything(more) > 0).mean() > 0.02 and everything(more).max() <= 1


WORKER = """
import sys
from brainfm_lib.data import Geometry, describe_cohort, load_manifest, open_volumes
cohort = describe_cohort(load_manifest(sys.argv[1]), sys.argv[2])
print(len(open_volumes(cohort, Geometry((16, 18, 16), 10.0), progress=False)), flush=True)
"""


def start(manifest, name, folder):
    environment = {**os.environ, "BRAINFM_STORE": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(manifest), name],
        env=environment,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return int(out)


def test_killed_preparation_goes_on_and_ends_like_an_undisturbed_one(make_bids, make_manifest, tmp_path):
    make_bids(24)
    manifest = make_manifest(cohorts=BIDS).path
    whole = finish(start(manifest, "b", tmp_path / "undisturbed"))
    process = start(manifest, "b", tmp_path / "killed")
    folder = tmp_path / "killed"
    deadline = time.monotonic() + 60
    while len(list(folder.rglob("*.npy"))) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    made = len(list(folder.rglob("[!.]*.npy")))
    assert process.returncode == -signal.SIGKILL and 0 < made < whole, made
    assert finish(start(manifest, "b", folder)) == whole
    left, right = contents(tmp_path / "undisturbed"), contents(folder)
    for found in (left, right):
        found.pop("file-digests.parquet", None)  # holds the same, written by another thread order
    assert left == right
    assert not list(folder.rglob("*.tmp*"))


def test_two_processes_at_once_share_the_work(make_bids, make_manifest, tmp_path):
    make_bids(16)
    manifest = make_manifest(cohorts=BIDS).path
    processes = [start(manifest, "b", tmp_path / "shared") for _ in range(2)]
    assert [finish(process) for process in processes] == [16, 16]
    (folder,) = [path for path in (tmp_path / "shared").iterdir() if path.is_dir()]
    index = pd.read_parquet(folder / "index.parquet")
    assert len(index) == index["file"].nunique() == len(list(folder.glob("*.npy"))) == 16


def test_opening_prepared_volumes_needs_no_heavy_import():
    code = "import sys, brainfm_lib.data.store; print({'torch', 'nibabel', 'nilearn', 'pydantic'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_sample_data_prepares_whole(sample_data, monkeypatch):
    monkeypatch.setenv("BRAINFM_SAMPLE_DATA", str(sample_data))
    manifest = load_manifest(Path(__file__).with_name("sample_manifest.yaml"))
    geometry = Geometry((32, 32, 32), 6.0)
    subjects = 0
    for name in manifest.cohorts:
        volumes = open_volumes(describe_cohort(manifest, name), geometry, progress=False)
        subjects += volumes.scans["subject_id"].nunique()
        bank = everything(volumes).astype(np.float32)
        share = (bank > 0).mean(axis=(1, 2, 3))
        assert ((share > 0.1) & (share < 0.55)).all()
        if name != "ds000011":  # brains alone: all have about the same size, 0.9 to 2.1 litres with fluid
            litres = share * 32**3 * 0.6**3 / 1000
            assert ((litres > 0.9) & (litres < 2.1)).all()
        # Upright: brains are longer front to back than from side to side, in every scan.
        for volume in bank if name != "ds000011" else []:
            spans = [np.ptp(np.flatnonzero((volume > 0).any(axis=axes))) for axes in ((1, 2), (0, 2), (0, 1))]
            assert spans[1] > spans[0]
    assert subjects == 38


def test_a_disk_error_is_no_property_of_a_scan(make_bids, make_manifest, store_folder, monkeypatch):
    from brainfm_lib.data import quality

    make_bids(3)
    cohort = describe_cohort(make_manifest(cohorts=BIDS), "b")
    voxels = quality._unpacked

    def broken(image, path):
        if "sub-01" in path:
            raise OSError(5, "Input/output error")
        return voxels(image, path)

    monkeypatch.setattr(quality, "_unpacked", broken)
    with pytest.raises(InputError, match=r"sub-01_T1w\.nii\.gz: .*Input/output error.*try again"):
        open_volumes(cohort, GRID, progress=False, on_error="report")
    monkeypatch.setattr(quality, "_unpacked", voxels)
    assert len(open_volumes(cohort, GRID, progress=False)) == 3
