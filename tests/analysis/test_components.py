"""Directions: the dimension and the curve follow what was planted."""

import numpy as np
import pytest

from brainfm_lib.analysis.components import component_curve, discriminative_dimension
from brainfm_lib.analysis.reading import coordinates_of
from brainfm_lib.errors import InputError
from tests.analysis.tasks import features_with, table_of


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
    nothing = discriminative_dimension(features, shuffled, names)  # so it may be anything that is possible
    assert np.isnan(nothing.estimate) and nothing.low == 1 and nothing.high == features.shape[1]
    with pytest.raises(InputError, match="needs eight"):
        discriminative_dimension(np.eye(8), np.array([0, 0, 0, 0, 0, 0, 0, 1]), names[:8])


@pytest.mark.parametrize("directions", [4, 16])
def test_the_interval_holds_the_truth_where_the_signal_is_weak(directions: int) -> None:
    held = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = np.arange(600) % 2
        features = rng.standard_normal((600, 40))
        features[:, :directions] += 0.3 * (labels * 2 - 1)[:, None] / np.sqrt(directions)
        found = discriminative_dimension(features, labels, np.array([f"s{i}" for i in range(600)]))
        held.append(found.low <= directions <= found.high and found.high <= 40)
    assert np.mean(held) >= 0.9


@pytest.mark.parametrize(
    ("deviations", "planted", "subjects"),
    [
        (np.arange(1, 97) ** -0.5, [11], 250),  # one direction of many, that a sample turns into its neighbours
        (np.linspace(2, 1, 32), [10], 1000),
        (np.linspace(2, 1, 32), range(8, 24), 1000),
        (np.linspace(2, 1, 32), [10], 60),  # where nothing can be told
    ],
)
def test_the_interval_holds_the_truth_where_variances_are_close(deviations, planted, subjects: int) -> None:
    truth, found = len(planted), []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1], subjects)
        features = rng.standard_normal((len(labels), len(deviations)))
        features[np.ix_(labels == 1, planted)] += 3.5 / np.sqrt(truth)
        names = np.array([f"s{i}" for i in range(len(labels))])
        found.append(discriminative_dimension(features * deviations, labels, names))
    assert np.mean([one.low <= truth <= one.high for one in found]) > 0.8
    assert all(1 <= one.low <= one.estimate <= one.high <= len(deviations) for one in found)
    if subjects > 100:
        assert np.median([one.estimate for one in found]) == pytest.approx(truth, rel=0.3, abs=2)
    else:
        assert all(one.low < 2 and one.high > 16 for one in found)


def test_a_dimension_that_no_equal_share_explains_is_bounded_by_what_was_measured() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 250)
    features = rng.standard_normal((500, 96))
    features[np.ix_(labels == 1, [0, 60])] += 3 / np.sqrt(2)  # far apart; neighbours there are turned into many
    found = discriminative_dimension(features / np.sqrt(np.arange(1, 97)), labels, np.arange(500).astype(str))
    assert found.low <= 2 <= found.high < 10


def test_the_dimension_follows_a_dial() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 400)
    noise = rng.standard_normal((800, 64))
    found = []
    for directions in (1, 2, 4, 8, 16, 32):
        shift = np.where(np.arange(64) < directions, 3 / np.sqrt(directions), 0)
        features = (noise + labels[:, None] * shift) / np.sqrt(np.arange(1, 65))
        found.append(discriminative_dimension(features, labels, np.arange(800).astype(str)).estimate)
    assert np.all(np.diff(found) > 0)


def test_the_curve_rises_where_the_signal_comes_in() -> None:
    rng = np.random.default_rng(4)
    labels = np.arange(400) % 2
    x = rng.standard_normal((400, 20)) * np.linspace(4, 1, 20)
    x[:, 10] += 1.5 * labels * np.linspace(4, 1, 20)[10]  # not so much that it becomes the first component
    curve = component_curve(x, table_of(labels), [4, 8], draws=100)
    assert curve["estimate"].iloc[0] < 0.65 and curve["estimate"].iloc[1] > 0.75


def test_a_dimension_of_images_is_that_of_their_coordinates() -> None:
    features, labels = features_with(4)
    names = np.array([f"s{i}" for i in range(len(labels))])
    direct = discriminative_dimension(features, labels, names)
    through = discriminative_dimension(coordinates_of(features @ features.T, 400), labels, names)
    assert through.estimate == pytest.approx(direct.estimate, rel=1e-6)
