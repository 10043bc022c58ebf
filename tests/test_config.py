"""Profiles: all of them load, and every mistake is named."""

import dataclasses

import pytest
import yaml

from brainfm_lib.config import PROFILES, Profile, load_profile, profile_values
from brainfm_lib.errors import InputError
from brainfm_lib.objectives import ARMS


@pytest.mark.parametrize("name", sorted(path.stem for path in PROFILES.glob("*.yaml")))
def test_every_shipped_profile_loads_and_gives_matched_arms(name):
    profile = load_profile(name)
    assert isinstance(profile, Profile)
    configs = [profile.pretraining(arm, 0) for arm in ARMS]
    for other in configs[1:]:
        for field in ("geometry", "mask", "augment", "seed"):
            assert getattr(other, field) == getattr(configs[0], field)
        assert other.objective.encoder == configs[0].objective.encoder
        if name != "replica":  # the authors' schedules are not matched
            assert dataclasses.replace(other.optimiser, lr=0.0) == dataclasses.replace(configs[0].optimiser, lr=0.0)


def test_the_replica_profile_has_the_authors_schedules_and_switches():
    profile = load_profile("replica.yaml")
    mae, jepa = (profile.pretraining(arm, 0).optimiser for arm in ("sl-mae", "vcr-jepa"))
    assert mae.steps / jepa.steps == pytest.approx(700 / 300, rel=1e-4)
    for optimiser, epochs, first, peak, last in [(mae, 700, 1e-4, 5e-4, 5e-5), (jepa, 300, 1e-4, 2e-4, 1e-6)]:
        assert optimiser.steps * optimiser.batch_size / 58_781 == pytest.approx(epochs, rel=1e-3)
        assert optimiser.lr_at(0) == pytest.approx(first, rel=5e-3)
        assert max(optimiser.lr_at(step) for step in range(0, optimiser.steps, 97)) == pytest.approx(peak, rel=1e-3)
        assert optimiser.lr_at(optimiser.steps) == pytest.approx(last)
    weights = [profile.spectral.weight_at(step, mae.steps) for step in range(mae.steps // 2, mae.steps // 2 + 10)]
    assert sum(weights) / 10 == pytest.approx(0.01)  # the mean gradient weight
    assert profile.mask.kind == "replica" and not profile.vcr.gathered


def test_overrides_reach_into_the_profile():
    profile = load_profile("tiny", {"optimiser.steps": 7, "spectral.weight": "5e-2", "geometry.grid": [16, 24, 32]})
    assert profile.optimiser.steps == 7 and profile.spectral.weight == 0.05 and profile.geometry.grid == (16, 24, 32)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"optimiser.stepz": 1}, "has no 'stepz': its names are lr"),
        ({"optimiser.steps": "many"}, "steps must be int, not 'many'"),
        ({"optimiser.steps": True}, "steps must be int"),
        ({"geometry.grid": [32, 32]}, "must hold 3 values"),
        ({"spectral.mode": "phase"}, "spectral mode must be one of logmag"),
        ({"encoder.embed_dim": 100}, "multiple of heads"),
        ({"optimiser.lr.peak": 1.0}, "reaches into 'lr'"),
        ({"mask": 3}, "must be a mapping"),
        ({"arm_lr": {"sl_mae": 0.1}}, "no arm 'sl_mae' for arm_lr"),
        ({"arm_lr": {"mae": -0.1}}, "not negative"),
        ({"arm_optimiser": {"MAE": {"steps": 5}}}, "no arm 'MAE'"),
        ({"optimiser.lr": -1}, "lr, its factors and weight_decay are not negative"),
        ({"optimiser.lr": "nan"}, "optimiser: lr must be a finite number"),
        ({"optimiser.warmup": 7}, "warmup lies in"),
        ({"jepa.ema_start": 2.0}, "ema_start and ema_end lie in"),
        ({"jepa.predictor_heads": 5}, "multiple of its 5 heads"),
        ({"vcr.weight": -3}, "weights of VCR are not negative"),
        ({"evaluation.batch_size": 0}, "are at least 1"),
        ({"evaluation.shots": [0, 8]}, "are at least 1"),
    ],
)
def test_mistakes_end_in_one_sentence_that_names_the_place(overrides, words):
    with pytest.raises(InputError, match=words) as caught:
        load_profile("tiny", overrides)
    assert "\n" not in str(caught.value)


def test_an_unknown_profile_lists_the_known_ones():
    with pytest.raises(InputError, match="choose among compact, paper, quick, reference, replica, tiny"):
        load_profile("quik")
    with pytest.raises(InputError, match="There is no arm 'mea'"):
        load_profile("tiny").pretraining("mea", 0)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "word"])
def test_a_profile_that_holds_no_names_is_refused_with_overrides_too(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match="must hold names and values"):
        load_profile(str(file), {"optimiser.steps": 1})


def test_a_relative_path_is_looked_for_here_and_then_at_the_root(tmp_path, monkeypatch):
    """A notebook's kernel works in a folder of its own; outside of a project there is no root."""
    (tmp_path / "project").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "project" / "data_manifest.yaml").touch()
    tiny = profile_values("tiny")
    for folder, steps in (("project", 7), ("elsewhere", 8)):
        (tmp_path / folder / "theirs.yaml").write_text(yaml.safe_dump({**tiny, "optimiser": {"steps": steps}}))
    (tmp_path / "project" / "mine.yaml").write_text((tmp_path / "project" / "theirs.yaml").read_text())
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv("BRAINFM_ROOT", raising=False)
    with pytest.raises(InputError, match="There is no profile"):
        load_profile("mine.yaml")
    assert load_profile("tiny.yaml") == load_profile("tiny")
    monkeypatch.setenv("BRAINFM_ROOT", str(tmp_path / "project"))
    assert load_profile("mine.yaml").optimiser.steps == 7 and load_profile("theirs.yaml").optimiser.steps == 8
