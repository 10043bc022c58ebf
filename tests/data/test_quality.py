"""Bad scans, tables and manifests: never a traceback, never a hang, and the good scans are always prepared."""

import gzip
import os
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainfm_lib.data.cohort import describe_cohort
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.quality import check_headers, open_scan, shear_degrees
from brainfm_lib.data.settings import IngestSettings
from brainfm_lib.data.store import open_volumes
from brainfm_lib.errors import RefusedScan
from tests.data.scans import head, save_scan

GRID = Geometry((16, 18, 16), 10.0)
GOOD = 2  # scans beside each bad one


def rgb():
    return np.zeros((40, 40, 40), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))


def poke(value):
    data = head()
    data[3, 4, 5] = value
    return data


def scan(data=None, affine=None):
    return lambda path: save_scan(path, data, affine)


def raw(change):
    """A good scan whose bytes are changed: `change(packed, plain) -> bytes`."""

    def make(path):
        save_scan(path, head())
        packed = path.read_bytes()
        path.write_bytes(change(packed, gzip.decompress(packed)))

    return make


def overflowing(path):
    image = nib.Nifti1Image(
        np.full((40, 40, 40), 2**62, np.int64) + np.arange(40), np.diag([4.0, 4, 4, 1]), dtype=np.int64
    )
    image.to_filename(path)
    plain = bytearray(gzip.decompress(path.read_bytes()))
    plain[112:116] = np.float32(1e30).tobytes()  # scl_slope
    path.write_bytes(gzip.compress(bytes(plain)))


def bomb(path):
    """A small file that unpacks to what its header claims: 512 x 512 x 512 zeros of eight bytes."""
    header = bytearray(nib.Nifti1Image(np.zeros((1, 1, 1)), np.diag([1.0, 1, 1, 1])).header.binaryblock)
    header[40:56] = np.array([3, 512, 512, 512, 1, 1, 1, 1], "<i2").tobytes()
    header[70:74] = np.array([2, 8], "<i2").tobytes()
    header[108:112] = np.float32(352).tobytes()
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(bytes(header) + bytes(4))
        for _ in range(128):
            stream.write(bytes(2**20))


def fifo(path):
    os.mkfifo(path)


def sheared(degrees):
    affine = np.diag([4.0, 4, 4, 1])
    affine[:3, 1] = 4 * np.array([np.sin(np.radians(degrees)), np.cos(np.radians(degrees)), 0])
    return affine


def cut(start, new):
    return raw(lambda packed, plain: gzip.compress(plain[:start] + new + plain[start + len(new) :]))


BAD = {
    "4D": (scan(np.ones((20, 20, 20, 7), np.float32)), "dimensions"),
    "2D": (scan(np.ones((64, 64), np.float32)), "dimensions"),
    "complex": (scan(np.ones((40, 40, 40), np.complex64)), "voxel type"),
    "RGB": (scan(rgb()), "voxel type"),
    "NaN": (scan(poke(np.nan)), "finite"),
    "Inf": (scan(poke(np.inf)), "finite"),
    "all zero": (scan(np.zeros((40, 40, 40), np.float32)), "constant"),
    "constant": (scan(np.full((40, 40, 40), 7, np.int16)), "constant"),
    "overflow in scaling": (overflowing, "finite"),
    "thin": (scan(head((40, 40, 10))), "field of view"),
    "thick": (scan(head(), np.diag([4, 4, 7, 1.0])), "spacing"),
    "singular affine": (scan(head(), np.array([[4, 4, 0, 0], [4, 4, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1.0]])), "affine"),
    "sheared": (scan(head(), sheared(12)), "affine"),
    "NaN affine": (cut(280, np.full(12, np.nan, "<f4").tobytes()), "affine"),
    "one bright voxel": (scan(np.pad(np.full((1, 1, 1), 9.0, np.float32), [(20, 19)] * 3)), "foreground"),
    "truncated gzip": (raw(lambda packed, plain: packed[: len(packed) // 2]), "file"),
    "flipped byte": (raw(lambda packed, plain: packed[:-900] + bytes([packed[-900] ^ 255]) + packed[-899:]), "file"),
    "missing voxels": (raw(lambda packed, plain: gzip.compress(plain[:-1000])), "file"),
    "zero bytes": (raw(lambda packed, plain: b""), "file"),
    "not gzip": (raw(lambda packed, plain: b"hello" * 100), "file"),
    "wrong magic": (cut(344, b"zzzz"), "file"),
    "unknown voxel type": (cut(70, b"\xe7\x03"), "file"),
    "huge dimensions": (cut(42, b"\xff\x7f\xff\x7f\xff\x7f"), None),
    "negative dimensions": (cut(42, b"\xff\xff\xff\xff\xff\xff"), None),
    "bomb": (bomb, "constant"),
    "text file": (lambda path: path.write_text("a,b\n1,2\n" * 100), "file"),
}


def table_of(folder: Path, bad_name: str) -> dict:
    for number in range(GOOD):
        save_scan(folder / f"good{number}.nii.gz", head(seed=number))
    names = [*(f"good{number}.nii.gz" for number in range(GOOD)), bad_name]
    rows = [f"{name},s{number}" for number, name in enumerate(names)]
    (folder / "scans.csv").write_text("\n".join(["path,subject_id", *rows]) + "\n")
    return {"kind": "table", "table": "scans.csv", "root": str(folder), "contrast": "T1w"}


@pytest.fixture(autouse=True)
def _store(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINFM_STORE", str(tmp_path / "store"))


@pytest.mark.parametrize("case", BAD)
def test_a_bad_scan_is_refused_by_its_rule_and_the_good_ones_are_prepared(case, tmp_path, make_manifest):
    make, rule = BAD[case]
    make(tmp_path / "bad one.nii.gz")
    manifest = make_manifest(cohorts={"c": table_of(tmp_path, "bad one.nii.gz")})
    volumes = open_volumes(describe_cohort(manifest, "c"), GRID, progress=False, on_error="report")
    assert len(volumes) == GOOD and np.isfinite(volumes.read([0, 1])).all()
    (refusal,) = volumes.refused.itertuples()
    assert refusal.scan_uid == "c/bad one" and "bad one.nii.gz: " in refusal.reason and "\n" not in refusal.reason
    assert rule is None or refusal.rule == rule, refusal


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("gone.nii.gz", None, "does not exist"),
        ("folder.nii.gz", lambda path: path.mkdir(), "is a folder"),
        ("pipe.nii.gz", fifo, "no regular file"),
        ("loop.nii.gz", lambda path: path.symlink_to(path), "does not exist"),
        ("../outside.nii.gz", None, "leaves the folder"),
        ("x.dcm", lambda path: path.write_bytes(b"DICM"), "dcm2niix"),
    ],
)
def test_what_is_no_file_is_refused_and_the_good_ones_are_prepared(name, make, words, tmp_path, make_manifest):
    folder = tmp_path / "scans"
    folder.mkdir()
    if make:
        make(folder / name)
    manifest = make_manifest(cohorts={"c": table_of(folder, name)})
    volumes = open_volumes(describe_cohort(manifest, "c"), GRID, progress=False, on_error="report")
    assert len(volumes) == GOOD and words in volumes.refused["reason"].iloc[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path, make_manifest):
    save_scan(tmp_path / "secret.nii.gz").chmod(0)
    manifest = make_manifest(cohorts={"c": table_of(tmp_path, "secret.nii.gz")})
    volumes = open_volumes(describe_cohort(manifest, "c"), GRID, progress=False, on_error="report")
    assert len(volumes) == GOOD and "permissions" in volumes.refused["reason"].iloc[0]


@pytest.mark.parametrize("case", BAD)
def test_headers_judged_together_are_judged_as_one_by_one(case, tmp_path):
    make, _ = BAD[case]
    make(tmp_path / "bad.nii.gz")
    paths = [str(save_scan(tmp_path / "good.nii.gz")), str(tmp_path / "bad.nii.gz"), str(tmp_path / "gone.nii.gz")]
    together = [
        None if answer is None else (answer.rule, str(answer)) for answer in check_headers(paths, IngestSettings())
    ]
    one_by_one = []
    for path in paths:
        try:
            open_scan(path, IngestSettings())
        except RefusedScan as refusal:
            one_by_one.append((refusal.rule, str(refusal)))
        else:
            one_by_one.append(None)
    assert together == one_by_one and together[0] is None and together[2] is not None


def test_every_kind_of_sound_file_is_read_alike(tmp_path):
    data = np.round(head()).astype(np.int16)
    affine = np.array([[-3.9, 0.1, 0, 80], [0.1, 3.9, 0.2, -80], [0, -0.2, 4, -70], [0, 0, 0, 1.0]])
    for name in ("a.nii", "a.nii.gz"):
        nib.Nifti1Image(data, affine).to_filename(tmp_path / name)
    for name in ("a.mgz", "a.mgh"):
        nib.MGHImage(data, affine).to_filename(tmp_path / name)
    big = nib.Nifti1Image(data, affine, nib.Nifti1Header(endianness=">"))
    big.to_filename(tmp_path / "big.nii.gz")
    qform = nib.Nifti1Image(data, affine)
    qform.set_sform(None, code=0)
    qform.to_filename(tmp_path / "q.nii.gz")
    nib.Nifti2Image(data, affine).to_filename(tmp_path / "two.nii.gz")
    from brainfm_lib.data.ingest import prepare_volume

    paths = sorted(map(str, tmp_path.glob("*.*")))
    assert len(paths) == 7 and list(check_headers(paths, IngestSettings())) == [None] * 7
    volumes = [prepare_volume(path, GRID, IngestSettings())[0] for path in paths]
    assert all(np.abs(volume - volumes[0]).max() < 1e-3 for volume in volumes)


def test_shear_is_the_angle_between_axes():
    for degrees in (0.0, 2.0, 30.0):
        axes = sheared(degrees)[:3, :3] / 4
        assert abs(shear_degrees(axes) - degrees) < 1e-6


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("case", ["bomb", "huge dimensions", "missing voxels"])
def test_no_bad_scan_takes_much_memory_or_time(case, tmp_path):
    BAD[case][0](tmp_path / "bad.nii.gz")
    code = (
        "import sys; from brainfm_lib.data.ingest import prepare_volume;"
        "from brainfm_lib.data.settings import IngestSettings; from brainfm_lib.data.geometry import Geometry\n"
        "try: prepare_volume(sys.argv[1], Geometry((16, 18, 16), 10.0), IngestSettings())\n"
        "except ValueError: print(*[line for line in open('/proc/self/status') if line.startswith('VmHWM')])"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "bad.nii.gz")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[1]) * 1024 < 2**30 and time.perf_counter() - started < 60


HEADER_BYTES = st.dictionaries(st.integers(0, 351), st.integers(0, 255), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=HEADER_BYTES)
def test_no_header_ends_in_a_traceback(changes, tmp_path):
    from brainfm_lib.data.ingest import prepare_volume

    path = tmp_path / "x.nii"
    save_scan(path, head((16, 16, 16)), np.diag([8.0, 8, 8, 1]))
    plain = bytearray(path.read_bytes())
    for place, value in changes.items():
        plain[place] = value
    path.write_bytes(bytes(plain))
    together = list(check_headers([str(path)], IngestSettings()))
    try:
        volume, _ = prepare_volume(path, GRID, IngestSettings())
        assert np.isfinite(volume).all()
    except RefusedScan as refusal:
        assert "\n" not in str(refusal)
        if together[0] is not None:
            assert refusal.rule == together[0].rule
    else:
        assert together == [None]
