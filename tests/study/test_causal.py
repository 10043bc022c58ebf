"""The causal test on a small real run, two settings a dial and three seeds, and its statistics on planted slopes."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from brainfm_lib import advise, notes, tables
from brainfm_lib.analysis.components import WAY
from brainfm_lib.errors import InputError
from brainfm_lib.study import Study, causal, dials
from brainfm_lib.study.dials import ordering, told_apart
from brainfm_lib.study.structure import look_into

SMALL = {"subjects.pretraining": 8, "subjects.downstream": 40, "optimiser.steps": 2, "evaluation.permutations": 20}
SMALL |= {"evaluation.bootstrap_draws": 100, "evaluation.cross_validate_below": 10}


def ends(dial: dials.Dial) -> dials.Dial:
    """A dial's first and last setting."""
    kept = {name: (getattr(dial, name)[0], getattr(dial, name)[-1]) for name in ("settings", "positions", "values")}
    return dataclasses.replace(dial, **kept)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study on the dials, after its causal test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RUNS", "STORE"):
            patch.setenv(f"BRAINFM_{name}", str(tmp_path_factory.mktemp(name.lower())))
        shortened = {name: ends(dial) for name, dial in dials.DIALS.items()}
        for module in (dials, advise):
            patch.setattr(module, "DIALS", shortened)
        study = Study("tiny", causal.MANIFEST, overrides=SMALL, progress=False)
        lines = list(causal.run_causal(study, 3))
        yield study, lines


def test_a_run_ends_with_its_slopes_and_equal_twins(made) -> None:
    study, lines = made
    assert sum("equals its plain arm" in line for line in lines) == 2 and not any("DIFFERS" in line for line in lines)
    test = causal.latest(study)
    assert test is not None and test.id in lines[-1] and test.table("twins")["equal"].all()
    table = test.table("slopes")
    assert list(table["primary"]) == [True, False, False, True] and (table["seeds"] == 3).all()
    assert table["p_holm"].notna().sum() == 2
    assert set(table.loc[table["primary"], "verdict"]) <= {"supported", "refuted", "open"}
    assert (table["low_subjects"] <= table["high_subjects"]).all()


def test_gains_are_those_of_the_probes(made) -> None:
    study, _ = made
    gains = causal.table(causal.latest(study), "gains")
    assert len(gains) == 2 * 2 * 2 * 3
    row = gains[(gains["arm"] == "sl-mae") & (gains["seed"] == 2)].iloc[0]
    seeds = {"sl-mae": "@paired=2", "mae": "@paired=2", "oracle": ""}
    names = [f"probe:{arm}:{row['setting']}{seed}" for arm, seed in seeds.items()]
    known = [study.optional(name).table("results").set_index("metric").loc["auroc", "estimate"] for name in names]
    a, b, c = (norm.ppf(np.clip(v, causal.EXTREME, 1 - causal.EXTREME)) for v in known)
    assert row["gain"] == pytest.approx((a - b) / c)


def test_the_page_says_what_came_out(made) -> None:
    study, _ = made
    test = causal.latest(study)
    said = notes.causal_note(study, test).data
    assert said.count("**open**") + said.count("**supported**") + said.count("**refuted**") == 2
    assert "to the last bit" in said and "phantom results" in said
    gains = test.table("gains").query("dial == 'dimension' and arm == 'vcr-jepa'")["gain"]
    level = f"{gains.mean():+.2f} on average, and below 0 in {(gains < 0).sum()} of {len(gains)} settings and seeds"
    assert f"gain of VCR-JEPA over JEPA along `dimension` is {level}" in said
    wide = test.table("levels").pivot_table(index=["dial", "value"], columns="arm", values="auroc")
    below = (wide["jepa"] < wide["random-init"]).sum()
    assert f", JEPA {below}" in said.split("below that of the untrained encoder: ")[1]
    tested = study.task_table("frequency-12")["split"].eq("test").sum()
    assert f"tested on {tested} subjects" in said
    assert len(tables.slope_table(test.table("slopes"))) == 4
    levels = test.table("levels")
    assert set(levels["arm"]) == {"oracle", "raw-voxels", "random-init", "mae", "sl-mae", "jepa", "vcr-jepa"}
    assert levels["ideal"].between(0.92, 0.922).all()
    measured = causal.measured(study, test)
    assert set(ordering(measured)) <= {"frequency", "dimension"} and "Spearman" in notes.ordering_note(measured).data


def test_the_page_says_that_it_was_looked_at_before(made, monkeypatch: pytest.MonkeyPatch) -> None:
    """With four seeds after three: both are named, and what the first look had said."""
    study, _ = made
    first = causal.latest(study)
    assert "fewer seeds" not in notes.causal_note(study, first).data
    for request in causal.requests(causal.PAIRED):
        study.variant(request, "paired=3").run(request)
    run = study.run("causal:4")
    try:
        assert causal.latest(study).id == run.id and len(causal.finished(study)) == 2
        said = notes.causal_note(study, run).data.split("also made with fewer seeds")[1]
        row = first.table("slopes").query("primary and arm == 'sl-mae'").iloc[0]
        assert f"of the first of these seeds), SL-MAE along `frequency` {row['estimate']:+.2f}" in said
        assert row["verdict"] in said
        assert "with 3 seeds (20" in said and "with 4 seeds" not in said
        assert "fewer seeds" not in notes.causal_note(study, first).data
        monkeypatch.setattr("brainfm_lib.notes.causal._same_encoders", lambda *_: False)
        assert "of encoders that other code had trained), SL-MAE" in notes.causal_note(study, run).data
    finally:
        shutil.rmtree(run.path)  # other tests read the first


def test_a_test_is_found_where_it_was_shipped(made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, _ = made
    test = causal.latest(study)
    shipped = tmp_path / "runs" / study.config("causal:3").loose_id
    shutil.copytree(test.path, shipped)
    monkeypatch.setattr("brainfm_lib.runs.shipped_dir", lambda: tmp_path)
    monkeypatch.setenv("BRAINFM_RUNS", str(tmp_path / "none"))
    again = Study("tiny", causal.MANIFEST, overrides=SMALL, progress=False)
    found = causal.latest(again)
    assert found is not None and found.shipped and "Shipped with the report" in notes.causal_note(again, found).data
    assert causal.measured(again, found).equals(found.table("measured"))


def test_settings_that_were_measured_since_the_test_count(made, monkeypatch: pytest.MonkeyPatch) -> None:
    study, _ = made
    test = causal.latest(study)
    stored = causal.measured(study, test)
    assert stored.equals(test.table("measured")) and set(stored["by"]) == {"", WAY}
    older = stored.assign(estimate=-1.0)
    monkeypatch.setattr(type(test), "table", lambda run, name: older if name == "measured" else pytest.fail(name))
    monkeypatch.setattr(causal, "measured_dials", lambda runs, dials: stored.assign(estimate=float(len(runs))))
    assert (causal.measured(study, test)["estimate"] == 4).all()
    monkeypatch.setattr(study, "optional", lambda request: None)
    assert causal.measured(study, test) is older


def test_before_the_run_the_page_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAINFM_RUNS", str(tmp_path))
    study = Study("tiny", causal.MANIFEST, overrides=SMALL, progress=False)
    assert causal.latest(study) is None and causal.table(None, "gains").empty
    assert "brainfm causal --profile tiny" in notes.causal_note(study, None).data
    with pytest.raises(InputError, match="brainfm causal"):
        advise.advise(Study("tiny", overrides=SMALL, progress=False), "ad", study)
    with pytest.raises(InputError, match="3 to 10"):
        list(causal.run_causal(study, 2))
    with pytest.raises(InputError, match="no task"):
        causal.check_study(Study("tiny", progress=False))


def test_the_frequency_dial_is_read_from_images_alone(made) -> None:
    study, _ = made
    settings = [setting for dial in dials.DIALS.values() for setting in dial.settings]
    found = {setting: run.table("reliance")["estimate"].iloc[0] for setting, run in look_into(study, settings).items()}
    assert found["frequency-44"] - found["frequency-12"] > 0.3


def test_advice_rests_on_what_was_measured(made) -> None:
    study, _ = made
    lines = list(advise.report(study, "frequency-44", study))
    assert lines[0].startswith("high-frequency reliance") and "phantoms" in lines[-1]
    with pytest.raises(InputError, match="no task"):
        advise.advise(study, "nonsense", study)


def planted(slope: float, seeds: int = 5) -> tuple[pd.DataFrame, pd.DataFrame]:
    dial = dials.DIALS["frequency"]
    rng = np.random.default_rng(0)
    rows = [
        {
            "dial": "frequency",
            "arm": "sl-mae",
            "setting": s,
            "seed": k,
            "gain": slope * v + 0.01 * rng.standard_normal(),
        }
        for s, v in zip(dial.settings, dial.values, strict=True)
        for k in range(seeds)
    ]
    measured = [
        {"dial": "frequency", "setting": s, "value": v, "estimate": 2 * v, "low": 2 * v - 0.05, "high": 2 * v + 0.05}
        for s, v in zip(dial.settings, dial.values, strict=True)
    ]
    return pd.DataFrame(rows), pd.DataFrame(measured)


def structure_row(reliance: float, auroc_low: float = 0.6) -> pd.Series:
    ends = {"reliance_low": reliance - 0.05, "reliance_high": reliance + 0.05, "reliance_by": ""}
    return pd.Series({"auroc": 0.7, "auroc_low": auroc_low, "auroc_high": 0.8, "reliance": reliance, **ends})


@pytest.mark.parametrize(
    ("slope", "word"), [(1.0, "pretrain with it"), (-1.0, "leave it out"), (0.0, "choose by cost")]
)
def test_advice_follows_a_planted_gain(slope: float, word: str) -> None:
    gains, measured = planted(slope)
    found = advise._of_dial("frequency", structure_row(0.6), gains, measured)
    assert word in found.said and found.gain == pytest.approx(slope * 0.3, abs=0.03)
    assert found.low <= found.gain <= found.high
    if slope < 0:
        assert f"to lose {-found.gain:.2f} [{-found.high:.2f}, {-found.low:.2f}]" in found.said


def test_measures_of_two_ways_are_not_compared() -> None:
    """A causal test that was made before dimensions were calibrated, and a task that is measured now."""
    dial = dials.DIALS["dimension"]
    settings = list(zip(dial.settings, dial.values, strict=True))
    gains = pd.DataFrame(
        [
            {"dial": "dimension", "arm": dial.arm, "setting": s, "seed": k, "gain": 0.1 * v}
            for s, v in settings
            for k in (0, 1)
        ]
    )
    measured = pd.DataFrame(
        [{"dial": "dimension", "setting": s, "value": v, "estimate": v, "low": v, "high": v} for s, v in settings]
    )
    row = pd.Series({"auroc": 0.7, "auroc_low": 0.6, "auroc_high": 0.8})
    row = pd.concat(
        [row, pd.Series({"dimension": 8.0, "dimension_low": 4.0, "dimension_high": 16.0, "dimension_by": WAY})]
    )
    assert "in another way" in advise._of_dial("dimension", row, gains, measured).said
    assert "pretrain with it" in advise._of_dial("dimension", row, gains, measured.assign(by=WAY)).said
    measured.loc[0, "estimate"] = np.nan
    said = advise._of_dial("dimension", row, gains, measured.assign(by=WAY)).said
    assert advise.NO_BASIS in said and "could be measured" in said


def test_a_dial_whose_ends_look_alike_is_no_basis() -> None:
    gains, settings = planted(1.0)
    assert told_apart(settings) and "overlap" not in notes.ordering_note(settings).data
    alike = settings.assign(low=settings["low"].min())
    assert not told_apart(alike) and "the intervals at its two ends overlap" in notes.ordering_note(alike).data
    found = advise._of_dial("frequency", structure_row(0.6), gains, alike)
    assert advise.NO_BASIS in found.said and "two ends of the dial" in found.said and np.isnan(found.gain)


@pytest.mark.parametrize(
    ("row", "seeds", "why"),
    [
        (structure_row(0.99), 5, "outside"),
        (structure_row(0.6, auroc_low=0.45), 5, "not above chance"),
        (structure_row(float("nan")), 5, "cannot be told"),
    ],
)
def test_there_is_no_advice_without_a_basis(row: pd.Series, seeds: int, why: str) -> None:
    gains, measured = planted(1.0, seeds)
    found = advise._of_dial("frequency", row, gains, measured)
    assert advise.NO_BASIS in found.said and why in found.said and np.isnan(found.gain)


def test_slopes_are_tested_over_seeds() -> None:
    found = causal.slope_test(np.array([0.1, 0.2, 0.3]))
    assert found["estimate"] == pytest.approx(0.2) and found["seeds"] == 3
    assert found["low"] == pytest.approx(0.2 - 4.302653 * 0.1 / 3**0.5, abs=1e-5)  # t of 2 degrees of freedom
    assert found["p"] == pytest.approx(0.0742, abs=1e-4)


@pytest.mark.parametrize(
    ("p", "estimate", "low", "high", "verdict"),
    [
        (0.01, 0.2, 0.1, 0.3, "supported"),
        (0.01, 0.2, -0.1, 0.3, "open"),
        (0.01, -0.2, -0.3, -0.1, "refuted"),
        (0.2, 0.2, 0.1, 0.3, "open"),
    ],
)
def test_the_rule_is_the_one_that_was_stated(p: float, estimate: float, low: float, high: float, verdict: str) -> None:
    row = {"p_holm": p, "estimate": estimate, "low_subjects": low, "high_subjects": high}
    assert causal.judge_slope(row) == verdict
    if verdict == "open":
        said = causal.why_open({**row, "seeds": 3, "detectable": 0.09})
        assert ("test subjects do not [-0.10, +0.30]" in said) == (p < 0.05) != ("seeds cannot tell" in said)
        assert "nan" not in causal.why_open({**row, "seeds": 3, "detectable": np.nan})  # seeds that all agree
