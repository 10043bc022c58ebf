"""Phantoms that descend from label maps: a known brain, turned, scaled and labelled, comes back where it was."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from scipy import ndimage

from brainfm_lib.data.cohort import describe_cohort
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.manifest import load_manifest
from brainfm_lib.data.phantom import PhantomSpec, describe, render
from brainfm_lib.data.phantom.anatomy import CHANNELS, NUCLEI, average, ellipsoids
from brainfm_lib.data.phantom.labelmaps import person
from brainfm_lib.errors import InputError

SPACING = 2.0  # mm, of the label map
TURN, SIZE, SHIFT = 12.0, np.array([0.85, 0.95, 0.9]), np.array([7.0, -11.0, 20.0])  # degrees about x; mm
GRID = Geometry((32, 32, 32), 5.75)


def labelled_average() -> np.ndarray:
    """The average brain as labels, each voxel by its likeliest tissue."""
    full = average()
    axes = full.axes()
    mask, grey, deep, white = full.maps[:4]
    fluid = np.clip(mask - grey - deep - white, 0, 1)
    tissue = np.stack([1 - mask, fluid, grey, white, deep]).argmax(0)
    labels = np.array([0, 24, 3, 2, 3], np.int16)[tissue]
    for name, number in (("thalamus", 10), ("caudate", 11), ("putamen", 12)):
        labels[(ellipsoids(axes, [NUCLEI[name]]) > 0.5) & (mask > 0.5)] = number
    labels[(full.ventricles > 0.5) & (tissue == 1)] = 4
    right = np.broadcast_to(axes[0] > 0, labels.shape) & (labels > 0) & (labels != 24)
    labels[right] += np.where(np.isin(labels[right], (10, 11, 12, 2, 3, 4)), 39, 0)
    return labels


@pytest.fixture(scope="module")
def label_map(tmp_path_factory) -> Path:
    full = average()
    angle = np.radians(TURN)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    world = np.eye(4)  # voxels of the average brain -> mm of this person's scanner
    world[:3, :3] = turn @ np.diag(SIZE)
    world[:3, 3] = world[:3, :3] @ np.array(full.origin) + SHIFT
    affine = np.array([[-SPACING, 0, 0, 110], [0, 0, SPACING, -150], [0, -SPACING, 0, 130], [0, 0, 0, 1.0]])
    to_average = np.linalg.inv(world) @ affine
    labels = ndimage.affine_transform(
        labelled_average(), to_average[:3, :3], to_average[:3, 3], output_shape=(110, 130, 130), order=0
    )
    labels[3:6, 3:6, 3:6] = 511  # outside the brain
    path = tmp_path_factory.mktemp("labels") / "one_seg.nii.gz"
    nib.save(nib.Nifti1Image(labels.astype(np.int16), affine), path)
    return path


def test_a_turned_and_scaled_brain_comes_back_into_the_frame(label_map):
    mine, full = person(str(label_map)), average()
    assert mine.maps.shape == full.maps.shape and mine.origin == full.origin
    for name, least in (("mask", 0.95), ("white", 0.85), ("grey", 0.75)):
        a, b = (t.maps[CHANNELS.index(name)] > 0.5 for t in (mine, full))
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > least, name
    middle = [np.array(ndimage.center_of_mass(t.ventricles)) for t in (mine, full)]
    assert np.abs(middle[0] - middle[1]).max() < 3
    assert (mine.maps[1:4].sum(0) <= mine.maps[0] + 1e-5).all() and mine.maps.min() >= 0


def test_subjects_descend_from_it_and_bytes_repeat(label_map):
    settings = {"seed": 3, "subjects": 4, "conditions": (("NC", 0.5), ("4", 0.5)), "contrasts": ("T1w",)}
    spec = PhantomSpec(**settings, ancestors=((str(label_map), "a"), ("", "b")))
    scans = describe(spec)
    volumes, average_brain = render(spec, scans, GRID), render(PhantomSpec(**settings), scans, GRID)
    assert torch.equal(render(spec, scans.iloc[[2]], GRID)[0], volumes[2])
    other = [not torch.equal(a, b) for a, b in zip(volumes, average_brain)]
    assert any(other) and not all(other)
    assert torch.isfinite(volumes).all() and (volumes > 0).float().mean((1, 2, 3)).min() > 0.1


def manifest(folder: Path, root: str) -> Path:
    cohort = {"kind": "phantom", "root": root, "spec": {"seed": 1, "subjects": 3}}
    text = {"version": 1, "pretraining": ["own"], "cohorts": {"own": cohort}, "tasks": {}}
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump(text))
    return path


def test_the_folder_may_move_and_its_files_may_not_change(label_map, tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINFM_STORE", str(tmp_path / "store"))
    path = manifest(tmp_path, "${OWN_BRAINS}")
    monkeypatch.delenv("OWN_BRAINS", raising=False)
    assert "own" in load_manifest(path).missing()
    monkeypatch.setenv("OWN_BRAINS", str(label_map.parent))
    here = describe_cohort(load_manifest(path), "own")
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / label_map.name).write_bytes(label_map.read_bytes())
    monkeypatch.setenv("OWN_BRAINS", str(moved))
    there = describe_cohort(load_manifest(path), "own")
    assert here.digest == there.digest and here.source_key == there.source_key
    (moved / label_map.name).write_bytes(label_map.read_bytes() + b"x")
    assert describe_cohort(load_manifest(path), "own").source_key != here.source_key


def test_what_is_no_label_map_is_named(label_map, tmp_path, monkeypatch):
    image = nib.load(label_map)
    labels = np.asarray(image.dataobj)

    def saved(data: np.ndarray) -> str:
        path = tmp_path / "x.nii.gz"
        nib.save(nib.Nifti1Image(data, image.affine), path)
        return str(path)

    for data, words in (
        (labels[..., None], "three dimensions"),
        (labels.astype(np.float32) + 0.5, "whole numbers"),
        (np.where(labels == 49, 41, labels), "label 49"),
        (np.where(labels == 511, 511, 0).astype(np.int16), "no label of a brain"),
    ):
        with pytest.raises(InputError, match=words):
            person(saved(data))
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    with pytest.raises(InputError, match="cannot be read"):
        person(str(tmp_path / "broken.nii.gz"))
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("OWN_BRAINS", str(tmp_path / "empty"))
    with pytest.raises(InputError, match="no label map"):
        describe_cohort(load_manifest(manifest(tmp_path, "${OWN_BRAINS}")), "own")
