"""Task structure on planted signals: reliance follows the frequency, the dimension follows the number of directions."""

import numpy as np
import pandas as pd
import pytest
import torch

from brainfm_lib.analysis.bands import BANDS, band_edges, band_grams, cutoff_curves, direction_spectrum
from brainfm_lib.analysis.components import component_curve, discriminative_dimension, standardised
from brainfm_lib.analysis.reading import coordinates_of, read_linearly
from brainfm_lib.data.augment import zscore
from brainfm_lib.errors import InputError

GRID = (12, 16, 10)


class Bank:
    def __init__(self, volumes: np.ndarray) -> None:
        self.volumes = volumes.astype(np.float32)

    def __len__(self) -> int:
        return len(self.volumes)

    def read(self, rows) -> np.ndarray:
        return self.volumes[list(rows)]


def table_of(labels: np.ndarray) -> pd.DataFrame:
    n = len(labels)
    split = np.array(["train", "train", "val", "test", "test"])[np.arange(n) // 2 % 5]
    names = [f"s{i}" for i in range(n)]
    return pd.DataFrame({"scan_uid": names, "subject_id": names, "label": labels, "split": split})


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
    spectrum = direction_spectrum(grams, table)
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


def features_with(directions: int, n: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of 40 directions of falling variance, the first `directions` of which carry equal parts of the label."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    x = rng.standard_normal((n, 40))
    x[:, :directions] += (labels * 2 - 1)[:, None] / np.sqrt(directions)
    rotation = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    return (x * np.geomspace(1e4, 1, 40)) @ rotation, labels


@pytest.mark.parametrize("directions", [1, 4, 16])
def test_dimension_counts_the_directions_that_share_the_distance(directions: int) -> None:
    features, labels = features_with(directions)
    names = np.array([f"s{i}" for i in range(len(labels))])
    found = discriminative_dimension(features, labels, names)
    assert found.low <= directions * 1.35 and found.high >= directions * 0.65
    assert found.estimate == pytest.approx(
        directions, rel=0.45, abs=0.75
    )  # a sample turns neighbouring directions into each other


def test_dimension_counts_a_subject_once_and_needs_a_signal() -> None:
    features, labels = features_with(4)
    names = np.array([f"s{i}" for i in range(len(labels))])
    twice = np.repeat(np.arange(len(labels)), 2)
    once = discriminative_dimension(features, labels, names)
    again = discriminative_dimension(features[twice], labels[twice], names[twice])
    assert again.estimate == pytest.approx(once.estimate) and again.high == pytest.approx(once.high)
    shuffled = np.random.default_rng(0).permutation(labels)
    assert np.isnan(discriminative_dimension(features, shuffled, names).estimate)
    with pytest.raises(InputError, match="needs eight"):
        discriminative_dimension(np.eye(8), np.array([0, 0, 0, 0, 0, 0, 0, 1]), names[:8])


def test_the_curve_rises_where_the_signal_comes_in() -> None:
    rng = np.random.default_rng(4)
    labels = np.arange(400) % 2
    x = rng.standard_normal((400, 20)) * np.linspace(4, 1, 20)
    x[:, 10] += 1.5 * labels * np.linspace(4, 1, 20)[10]  # not so much that it becomes the first component
    curve = component_curve(x, table_of(labels), [4, 8], draws=100)
    assert curve["estimate"].iloc[0] < 0.65 and curve["estimate"].iloc[1] > 0.75


@pytest.mark.parametrize("grams", [False, True])
def test_ridge_equals_its_textbook_form(grams: bool) -> None:
    features, labels = features_with(4, n=200)
    table, x = table_of(labels), standardised(features)
    result = read_linearly({"x": x @ x.T if grams else x}, table, grams=grams)
    penalty = result.chosen["penalty"].iloc[0]
    train = (table["split"] != "test").to_numpy()
    centred = x - x[train].mean(0)
    values = np.linalg.eigvalsh(centred[train].T @ centred[train])
    target = labels[train] - labels[train].mean()
    ridge = centred[train].T @ centred[train] + penalty * values[values > values.max() * 1e-10].mean() * np.eye(40)
    weights = np.linalg.solve(ridge, centred[train].T @ target)
    assert np.allclose(result.predictions["score_1"], labels[train].mean() + centred[~train] @ weights, atol=1e-8)


def test_a_dimension_of_images_is_that_of_their_coordinates() -> None:
    features, labels = features_with(4)
    names = np.array([f"s{i}" for i in range(len(labels))])
    direct = discriminative_dimension(features, labels, names)
    through = discriminative_dimension(coordinates_of(features @ features.T, 400), labels, names)
    assert through.estimate == pytest.approx(direct.estimate, rel=1e-6)
