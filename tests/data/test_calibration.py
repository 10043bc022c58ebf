"""The simulated cohorts are those that benchmarks/calibration.py measured: their scans, voxels and effects."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from brainfm_lib.config import load_profile
from brainfm_lib.data.cohort import describe_cohort
from brainfm_lib.data.manifest import load_manifest

PROJECT = Path(__file__).parents[2]
FROZEN = json.loads((PROJECT / "benchmarks" / "calibration.json").read_text())
CHANGED = "changed since they were calibrated: run benchmarks/calibration.py again before any encoder is probed on it"


@pytest.fixture(scope="module")
def calibration():
    spec = importlib.util.spec_from_file_location("calibration", PROJECT / "benchmarks" / "calibration.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def witness(calibration, name: str, **changes) -> dict:
    cohort = describe_cohort(load_manifest(PROJECT / "data_manifest.yaml"), name, max_subjects=calibration.SUBJECTS)
    source = dataclasses.replace(cohort.source, **changes)
    return calibration.witness(dataclasses.replace(cohort, source=source), load_profile("quick").geometry)


def same_effect(known: dict, found: dict) -> bool:
    a, b = np.array(known["effect"]), np.array(found["effect"])
    return bool(np.abs(a - b).max() < 0.03 * np.abs(a).max())


@pytest.mark.parametrize("name", FROZEN)
def test_the_cohort_is_the_calibrated_one(calibration, name):
    known, found = FROZEN[name], witness(calibration, name)
    assert found["scans"] == known["scans"] and found["sha256"] == known["sha256"], f"The scans of {name} {CHANGED}."
    np.testing.assert_allclose(found["blocks"], known["blocks"], atol=2e-3, err_msg=f"The voxels of {name} {CHANGED}.")
    assert same_effect(known, found), f"The effects of {name} {CHANGED}."
    assert not same_effect(known, witness(calibration, name, effect=1.1))  # the test can fail


def test_every_simulated_task_of_the_manifest_is_calibrated():
    manifest = load_manifest(PROJECT / "data_manifest.yaml")
    cohorts = {t.cohort for t in manifest.tasks.values() if manifest.cohorts[t.cohort].kind == "phantom"}
    assert cohorts == set(FROZEN)
