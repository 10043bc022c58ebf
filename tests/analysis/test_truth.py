"""The truth of simulated tasks is measured on images whose signal is set."""

import numpy as np
import pandas as pd
import pytest

from brainfm_lib.analysis.truth import make_truth, measure_truth
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.phantom import PhantomSpec, dials

GRID = Geometry((32, 32, 32), 5.75)


def dial(setting):
    names = [f"{setting}-control", f"{setting}-case"]
    return PhantomSpec(seed=1, subjects=4, conditions=tuple((name, 0.5) for name in names)), [[n] for n in names]


def test_the_frequency_dial_moves_the_discriminative_spectrum():
    middles = []
    for band in (dials.FREQUENCIES[0], dials.FREQUENCIES[2], dials.FREQUENCIES[-1]):
        spec, classes = dial(f"frequency-{band}")
        truth, spectrum = measure_truth(spec, classes, GRID, subjects=3)
        assert truth["ideal_auroc"] == pytest.approx(0.921, abs=0.001) and truth["rank"] == dials.PER_BAND
        assert truth["frequency_50"] * GRID.spacing == pytest.approx(band / 100, abs=0.04)
        assert (spectrum["power"] >= 0).all()
        middles.append(truth["frequency_50"])
    assert np.diff(middles).min() > 0.01


def test_the_dimension_dial_moves_the_rank_and_nothing_else():
    truths = [measure_truth(*dial(f"dimension-{d}"), GRID, subjects=2)[0] for d in (1, 16, 64)]
    assert [truth["rank"] for truth in truths] == [1, 16, 64]
    assert np.ptp([truth["ideal_auroc"] for truth in truths]) < 1e-9
    middles = [truth["frequency_50"] * GRID.spacing for truth in truths]
    assert min(middles) > dials.BROAD[0] and max(middles) < dials.BROAD[1]


def test_atrophy_changes_coarse_and_fine_structure(tmp_path):
    spec = PhantomSpec(seed=1, conditions=(("NC", 0.5), ("AD", 0.5)), contrasts=("T1w",))
    make_truth(spec, [["NC"], ["AD"]], GRID)(tmp_path)
    truth = pd.read_parquet(tmp_path / "truth.parquet").iloc[0]
    assert truth["frequency_10"] * GRID.spacing < 0.15
    assert truth["frequency_10"] < truth["frequency_50"] < truth["frequency_90"]
