import gzip
import itertools

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.ingest import FLOOR, prepare_volume, resample
from brainfm_lib.data.quality import open_scan
from brainfm_lib.data.settings import IngestSettings
from brainfm_lib.errors import InputError
from tests.data.scans import head, save_scan

SETTINGS = IngestSettings()
GRID = Geometry((30, 36, 32), 6.0)


def phantom_with_landmark(affine, shape, landmark):
    """A dim ball around 0 mm with a small bright Gaussian at `landmark` (scanner mm), sampled on any affine."""
    index = np.indices(shape).reshape(3, -1)
    places = (affine[:3, :3] @ index + affine[:3, 3:]).T
    ball = np.linalg.norm(places, axis=1) < 80
    blob = np.exp(-0.5 * (np.linalg.norm(places - landmark, axis=1) / 7) ** 2)
    return np.where(ball, 20 + 100 * blob, 0).reshape(shape).astype(np.float32)


def found(volume, info):
    """Scanner mm of the landmark: the centre of mass of what is bright."""
    bright = np.where(volume > 0.5, volume - 0.5, 0)
    place = np.array(ndimage.center_of_mass(bright))
    affine = np.array(info["grid_affine"]).reshape(4, 4)
    return affine[:3, :3] @ place + affine[:3, 3], place


def tilt(degrees=8.0):
    a = np.radians(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    return about_x @ about_z


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_landmark_lands_within_half_a_voxel_for_all_48_orientations(tmp_path, order, signs):
    landmark = np.array([35.0, -22.0, 28.0])
    zooms = np.array([3.0, 4.5, 6.0])
    shape = (64, 44, 34)
    affine = np.eye(4)
    shear = np.eye(3)
    shear[0, 1], shear[1, 2] = np.tan(np.radians([2.0, -1.5]))  # within tolerance
    affine[:3, :3] = tilt() @ shear @ np.eye(3)[:, order] @ np.diag(np.array(signs) * zooms)
    affine[:3, 3] = [5, -7, 3] - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    path = save_scan(tmp_path / "x.nii.gz", phantom_with_landmark(affine, shape, landmark), affine)
    volume, info = prepare_volume(path, GRID, IngestSettings(high=100.0))
    at, place = found(volume, info)
    assert np.abs(at - landmark).max() < GRID.spacing / 2
    # Axes point right, anterior and superior: the landmark stands on the right, posterior, superior side.
    centre = (np.array(GRID.grid) - 1) / 2
    expected = centre + tilt().T @ landmark / GRID.spacing
    assert np.abs(place - expected).max() < 0.75


def test_stored_convention(tmp_path):
    volume, info = prepare_volume(save_scan(tmp_path / "x.nii", head()), GRID, SETTINGS)
    assert volume.shape == GRID.grid and volume.dtype == np.float32
    inside = volume[volume != 0]
    assert inside.min() >= np.float32(FLOOR) and inside.max() == 1
    assert abs(info["foreground"] - (volume > 0).mean()) < 1e-12
    assert info["shape"] == [40, 44, 38] and info["spacing"] == [4, 4, 4]


@pytest.mark.parametrize("kind", ["stripped", "whole head", "z-scored"])
def test_foreground_is_the_head_whatever_surrounds_it(tmp_path, kind):
    clean = head((44, 48, 46))
    inside = clean != 0
    inside[20:24, 22:26, 20:25] = True
    data = clean.copy()
    data[20:24, 22:26, 20:25] = 3  # a dark ventricle
    rng = np.random.default_rng(0)
    if kind == "whole head":
        data = data + np.abs(4 * rng.standard_normal(data.shape))
    elif kind == "z-scored":
        data = (data - data.mean()) / data.std()
    path = save_scan(tmp_path / "x.nii.gz", data.astype(np.float32))
    geometry = Geometry((48, 48, 48), 4.0)
    volume, _ = prepare_volume(path, geometry, SETTINGS)
    assert abs((volume > 0).sum() - inside.sum()) < 0.06 * inside.sum()
    filled = np.array(ndimage.center_of_mass(volume > 0))
    assert np.abs(filled - 23.5).max() < 0.6, "centred on the foreground"


def test_necks_do_not_pull_the_centre_down(tmp_path):
    shape = (60, 60, 90)
    x, y, z = np.meshgrid(*[np.arange(n) * 4.0 for n in shape], indexing="ij")
    skull = ((x - 120) / 70) ** 2 + ((y - 120) / 80) ** 2 + ((z - 270) / 80) ** 2 < 1
    neck = (np.hypot(x - 120, y - 120) < 50) & (z < 270)
    data = np.where(skull, 100 + x / 10, np.where(neck, 60 + y / 10, 0)).astype(np.float32)
    _, info = prepare_volume(save_scan(tmp_path / "x.nii", data), Geometry((40, 40, 40), 5.0), SETTINGS)
    affine = np.array(info["grid_affine"]).reshape(4, 4)
    centre = affine @ [19.5, 19.5, 19.5, 1]
    assert abs(centre[2] - (350 - 85)) < 6


def test_resampling_matches_a_slow_reference():
    rng = np.random.default_rng(0)
    data = rng.standard_normal((9, 7, 11)).astype(np.float32)
    start, steps, grid = np.array([0.7, -0.2, 1.1]), np.array([2.3, 0.6, 1.0]), (3, 8, 7)
    out = resample(data, start, steps, grid)
    for i, j, k in itertools.product(*map(range, grid)):
        total = norm = 0.0
        place = start + steps * np.array([i, j, k])
        for index in itertools.product(*map(range, data.shape)):
            weight = np.prod(np.clip(1 - np.abs(np.array(index) - place) / np.maximum(1, steps), 0, None))
            total, norm = total + weight * data[index], norm + weight
        assert abs(out[i, j, k] - total / norm) < 1e-5


def test_resampling_averages_before_it_thins_out():
    stripes = np.tile([0.0, 1.0], 30)[:, None, None] * np.ones((1, 8, 8))
    out = resample(stripes.astype(np.float32), np.array([3.0, 2, 2]), np.array([4.0, 1, 1]), (12, 4, 4))
    assert np.abs(out - 0.5).max() < 0.07, "stripes finer than the new voxels must not alias"


def test_outside_the_scan_is_background():
    ones = np.ones((8, 8, 8), np.float32)
    out = resample(ones, np.array([-4.0, 0, 0]), np.ones(3), (16, 8, 8))
    assert (out[:4] == 0).all() and (out[4:12] == 1).all() and (out[12:] == 0).all()
    assert not resample(ones, np.array([50.0, 0, 0]), np.ones(3), (4, 4, 4)).any()


def rgb():
    return np.zeros((40, 40, 40), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))


def with_value(value):
    data = head()
    data[3, 4, 5] = value
    return data


BAD = {
    "4D": (np.ones((20, 20, 20, 7), np.float32), None, r"shape is \(20, 20, 20, 7\), 4D instead of 3D.*one volume"),
    "2D": (np.ones((64, 64), np.float32), None, r"2D instead of 3D"),
    "NaN": (with_value(np.nan), None, r"1 of \d+ voxels are NaN"),
    "Inf": (with_value(np.inf), None, r"voxels are NaN or infinite"),
    "all NaN": (np.full((40, 40, 40), np.nan, np.float32), None, r"64000 of 64000 voxels are NaN"),
    "constant": (np.full((40, 40, 40), 7, np.int16), None, r"every voxel is 7"),
    "complex": (np.ones((40, 40, 40), np.complex64), None, r"complex64 voxels are no intensities"),
    "RGB": (rgb(), None, r"RGB colours are no intensities"),
    "thin": (head((40, 40, 10)), None, r"field of view is 160 x 160 x 40 mm"),
    "thick": (head(), np.diag([4, 4, 7, 1.0]), r"spacing is 4 x 4 x 7 mm, above 6\.5 mm"),
    "singular": (head(), np.array([[4, 4, 0, 0], [4, 4, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1.0]]), r"affine is singular"),
}


@pytest.mark.parametrize("case", BAD)
def test_every_bad_scan_is_one_sentence_that_names_the_file(tmp_path, case):
    data, affine, words = BAD[case]
    path = save_scan(tmp_path / "bad scan.nii.gz", data, affine)
    with pytest.raises(InputError, match=words) as caught:
        prepare_volume(path, GRID, SETTINGS)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message


def damage(path, kind):
    raw = path.read_bytes()
    plain = gzip.decompress(raw)
    if kind == "truncated gzip":
        path.write_bytes(raw[: len(raw) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "not gzip":
        path.write_bytes(b"hello" * 100)
    elif kind == "wrong magic":
        path.write_bytes(gzip.compress(plain[:344] + b"zzzz" + plain[348:]))
    elif kind == "missing voxels":
        path.write_bytes(gzip.compress(plain[:-1000]))
    elif kind == "flipped byte":
        path.write_bytes(raw[:-900] + bytes([raw[-900] ^ 255]) + raw[-899:])
    elif kind == "unknown voxel type":
        path.write_bytes(gzip.compress(plain[:70] + b"\xe7\x03" + plain[72:]))
    elif kind == "huge":
        path.write_bytes(gzip.compress(plain[:42] + b"\xff\x7f\xff\x7f\xff\x7f" + plain[48:]))


@pytest.mark.parametrize(
    "kind",
    [
        "truncated gzip",
        "empty",
        "not gzip",
        "wrong magic",
        "missing voxels",
        "flipped byte",
        "unknown voxel type",
        "huge",
    ],
)
def test_damaged_files_are_refused(tmp_path, kind):
    path = save_scan(tmp_path / "x.nii.gz", head())
    damage(path, kind)
    with pytest.raises(InputError, match=r"x\.nii\.gz: ") as caught:
        prepare_volume(path, GRID, SETTINGS)
    assert "\n" not in str(caught.value)


def test_missing_file_and_foreign_format(tmp_path):
    with pytest.raises(InputError, match=r"gone\.nii"):
        open_scan(tmp_path / "gone.nii", SETTINGS)
    (tmp_path / "x.dcm").write_bytes(b"DICM")
    with pytest.raises(InputError, match="dcm2niix"):
        open_scan(tmp_path / "x.dcm", SETTINGS)


def test_single_volume_kept_as_4d_is_accepted(tmp_path):
    path = save_scan(tmp_path / "x.nii.gz", head()[..., None])
    plain = save_scan(tmp_path / "y.nii.gz", head())
    assert np.array_equal(prepare_volume(path, GRID, SETTINGS)[0], prepare_volume(plain, GRID, SETTINGS)[0])


def test_intensity_rules_of_a_cohort(tmp_path):
    path = save_scan(tmp_path / "x.nii.gz", head())
    with pytest.raises(InputError, match="mean intensity"):
        prepare_volume(path, GRID, IngestSettings(max_mean=5))
    with pytest.raises(InputError, match="deviation"):
        prepare_volume(path, GRID, IngestSettings(min_std=500))


def test_scaled_integers_give_the_same_volume(tmp_path):
    data = head()
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    image = nib.Nifti1Image(data, affine)
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "i.nii.gz")
    volume, _ = prepare_volume(tmp_path / "i.nii.gz", GRID, SETTINGS)
    assert np.abs(volume - prepare_volume(save_scan(tmp_path / "f.nii.gz", data), GRID, SETTINGS)[0]).max() < 1e-3
