"""Frequencies: reliance and the spectrum of a reading follow what was planted."""

import numpy as np
import pandas as pd
import pytest
import torch

from brainfm_lib.analysis.bands import BANDS, band_edges, band_grams, cutoff_curves, direction_spectrum
from brainfm_lib.data.augment import zscore
from tests.analysis.tasks import table_of

GRID = (12, 16, 10)


class Bank:
    def __init__(self, volumes: np.ndarray) -> None:
        self.volumes = volumes.astype(np.float32)

    def __len__(self) -> int:
        return len(self.volumes)

    def read(self, rows) -> np.ndarray:
        return self.volumes[list(rows)]


def wave(frequency: float) -> np.ndarray:
    """A cosine along the longest axis, cycles per voxel."""
    return np.cos(2 * np.pi * frequency * np.arange(GRID[1]))[None, :, None] * np.ones(GRID)


def labelled(frequency: float, n: int = 240, seed: int = 0) -> tuple[Bank, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    strength = (labels * 2 - 1) + rng.standard_normal(n)
    return Bank(rng.standard_normal((n, *GRID)) + 0.25 * strength[:, None, None, None] * wave(frequency)), table_of(
        labels
    )


def test_bands_add_up_to_the_inner_products_of_the_volumes() -> None:
    bank = Bank(np.random.default_rng(0).random((7, *GRID)))
    x = zscore(torch.from_numpy(bank.volumes)[:, None]).flatten(1).double().numpy()
    assert np.allclose(band_grams(bank).sum(0), x @ x.T / x.shape[1], atol=1e-5)


def test_a_cosine_lies_in_its_band_alone() -> None:
    frequency = 3 / 16
    rng = np.random.default_rng(1)
    grams = band_grams(Bank(rng.standard_normal(4)[:, None, None, None] * wave(frequency)))
    share = grams[:, 0, 0] / grams[:, 0, 0].sum()
    assert share[np.digitize(frequency, band_edges()) - 1] == pytest.approx(1, abs=1e-6)


def test_bands_in_small_groups_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = Bank(np.random.default_rng(2).random((5, *GRID)))
    whole = band_grams(bank)
    monkeypatch.setattr("brainfm_lib.analysis.bands.MODES_AT_ONCE", 1)
    assert np.array_equal(band_grams(bank), whole)


@pytest.mark.parametrize("frequency", [1 / 16, 4 / 16, 7 / 16])
def test_reliance_is_the_share_of_the_frequency(frequency: float) -> None:
    bank, table = labelled(frequency)
    grams = band_grams(bank)
    curves, reliance = cutoff_curves(
        lambda k: {"x": grams[: k + 1].sum(0)},
        lambda k: {"x": grams[k + 1 :].sum(0)},
        table,
        band_edges()[1:-1],
        grams=True,
        draws=200,
    )
    assert reliance.estimate == pytest.approx(frequency / 0.5, abs=0.12)
    assert reliance.low <= reliance.estimate <= reliance.high
    assert len(curves) == 2 * (BANDS - 1) and curves["estimate"].between(0, 1).all()
    spectrum = direction_spectrum(grams, table, 1.0)
    inside = spectrum[(spectrum["low"] <= frequency) & (frequency < spectrum["high"])]
    assert spectrum["pattern"].sum() == pytest.approx(1) and inside["pattern"].iloc[0] == spectrum["pattern"].max()


def test_without_a_signal_no_reliance_is_claimed_or_its_interval_is_wide() -> None:
    rng = np.random.default_rng(3)
    grams = band_grams(Bank(rng.standard_normal((240, *GRID))))
    _, reliance = cutoff_curves(
        lambda k: {"x": grams[: k + 1].sum(0)},
        lambda k: {"x": grams[k + 1 :].sum(0)},
        table_of(np.arange(240) % 2),
        band_edges()[1:-1],
        grams=True,
        draws=200,
    )
    assert np.isnan(reliance.estimate) or reliance.high - reliance.low > 0.4
