"""Sentences follow the numbers, whatever these are."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from brainfm_lib import notes
from brainfm_lib.notes.study import _cohort
from brainfm_lib.study import dials, structure
from brainfm_lib.words import counted, listed


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.1, 0.4, "explains 22 % [10, 40]."),
        (-0.1, 0.45, "cannot be told"),
        (-0.4, -0.1, "less than the position mean"),
    ],
)
def test_a_share_of_latents_is_told_from_nothing_or_not(low: float, high: float, said: str) -> None:
    table = pd.DataFrame([{"arm": "jepa", "estimate": 0.22, "low": low, "high": high}])
    text = notes.explained_note(table).data
    assert said in text and ("less than" in text) == (high < 0) and ("cannot" in text) == (low <= 0 <= high)


def test_nothing_above_the_cut_off_is_no_percentage() -> None:
    rows = [{"arm": arm, "half": 0.1, "floor": 0.1, "power": np.nan, "coherence": np.nan} for arm in ("mae", "sl-mae")]
    said = notes.resolution_note(pd.DataFrame(rows)).data
    assert "nan" not in said and "No frequency" in said


def dial(*settings: tuple[float, float, float, float]) -> pd.DataFrame:
    rows = [{"value": v, "estimate": e, "low": low, "high": high} for v, e, low, high in settings]
    return pd.DataFrame(rows).assign(dial="dimension")


def test_ends_of_a_dial_are_told_in_their_direction() -> None:
    up = dial((1, 2, 1, 3), (2, 9, 4, 12), (4, 20, 15, 30))
    assert "goes from 2 to 20 where the dial goes from 1 to 4." in notes.ordering_note(up).data
    down = dial((1, 40, 30, 50), (4, 5, 3, 8))
    said = notes.ordering_note(down).data
    assert "goes from 40 to 5 where" in said and "overlap" not in said and not dials.told_apart(down)
    assert "overlap" in notes.ordering_note(dial((1, 4, 1, 9), (4, 5, 3, 8))).data
    wide = notes.ordering_note(dial((1, 1.25, 1, 9), (4, 128.0, 20, 128))).data
    assert "goes from 1.2 to 128 where" in wide
    unknown = notes.ordering_note(dial((1, 4, 1, 9), (2, 5, 4, 6), (4, np.nan, 1, 128))).data
    assert "is not told at both ends" in unknown and "nan" not in unknown.split("alone: ")[1]


def trials(*rows: tuple[str, float, float, bool]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["arm", "lr", "validation", "chosen"])
    return table.assign(profile="", shipped=False)


@pytest.mark.parametrize("chosen", [1e-3, 2e-3])
def test_rates_that_tie_are_both_the_best(chosen: float) -> None:
    reached = {5e-4: 0.7, 1e-3: 0.8, 2e-3: 0.8}
    said = notes.trials_note(trials(*(("mae", lr, v, lr == chosen) for lr, v in reached.items())), ["mae"]).data
    assert "each arm has the best of them" in said and "outermost" not in said
    reached = {5e-4: 0.7, 1e-3: 0.8, 2e-3: 0.9}
    said = notes.trials_note(trials(*(("mae", lr, v, lr == chosen) for lr, v in reached.items())), ["mae"]).data
    assert "outermost" in said and ("could have a better one" in said) == (chosen != 2e-3)


def test_arms_without_trials_are_named() -> None:
    said = notes.trials_note(trials(("mae", 5e-4, 0.7, True), ("mae", 1e-3, 0.6, False)), ["mae", "jepa"]).data
    assert "Learning rates of JEPA were not tried here" in said


def rows(count: int, p: float, p_holm: float) -> pd.DataFrame:
    return pd.DataFrame({"arm": "mae", "task": "ad", "p_permutation": [p] * count, "p_holm": [p_holm] * count})


def test_too_few_permutations_are_no_evidence_of_chance() -> None:
    said = notes.chance_note(rows(24, 1 / 400, 0.06), 399).data
    assert "smallest p, 0.0025, is the least that 399 permutations can give, and 24 rows ask for 0.0021" in said
    assert "smallest p" in notes.chance_note(rows(20, 1 / 400, 0.05), 399).data
    assert "smallest p" not in notes.chance_note(rows(19, 1 / 400, 19 / 400), 399).data
    assert "smallest p" not in notes.chance_note(rows(24, 2 / 400, 0.12), 399).data
    assert "smallest p" not in notes.chance_note(rows(24, 1 / 400, 0.06), 1999).data
    assert "smallest p" not in notes.chance_note(rows(4, 1 / 400, 0.01), 399).data
    assert notes.chance_note(rows(1, 0.4, 0.4), 399).data.startswith("Not even the one row is above chance")


def test_losses_that_were_recorded_once_have_no_course() -> None:
    said = notes.heldout_note({"mae": pd.DataFrame({"heldout": [np.nan, 1.0]})}).data
    assert "recorded twice" in said and "fell" not in said


def test_a_reliance_is_told_only_where_something_can_be_read() -> None:
    def run(low: float) -> SimpleNamespace:
        whole, one = {"estimate": 0.52, "low": low, "high": 0.64}, {"estimate": 0.62, "low": 0.1, "high": 0.95}
        return SimpleNamespace(table=lambda name: pd.DataFrame([whole if name == "whole" else one]))

    found = structure.structure_rows({"unread": run(0.4), "read": run(0.51)}).set_index("task")  # type: ignore[dict-item]
    assert np.isnan(found.loc["unread", "reliance"]) and found.loc["read", "reliance"] == 0.62


def test_one_is_singular() -> None:
    assert [counted(n, "scan") for n in (0, 1, 1200)] == ["0 scans", "1 scan", "1,200 scans"]
    assert [listed(list("abc")[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
    scans = pd.DataFrame({"subject_id": ["s"], "scan_uid": ["x"]})

    def study(beyond: tuple[int, int]) -> SimpleNamespace:
        return SimpleNamespace(cohort=lambda name: SimpleNamespace(scans=scans, beyond=beyond))

    assert _cohort(study((0, 0)), "own") == "own (1 subject, 1 scan)"  # type: ignore[arg-type]
    said = _cohort(study((3, 2)), "own")  # type: ignore[arg-type]
    assert said == "own (1 of 3 subjects, 1 of 4 scans: the profile takes no more)"
