"""What pages say of settings is what the profiles say."""

import math
import re

import pytest
import torch

from brainfm_lib.config import PROFILES, SHIPPED, load_profile, profile_names
from brainfm_lib.masking import random_mask, replica_mask
from brainfm_lib.report.settings import FOR, profile_table, settings_of
from brainfm_lib.study import Study
from brainfm_lib.tables import split_table

NAMES = sorted(path.stem for path in PROFILES.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_those_of_the_profile(name: str) -> None:
    profile, said = load_profile(name), settings_of(name)
    tokens = math.prod(n // profile.encoder.patch_size for n in profile.geometry.grid)
    hidden = random_mask(1, tokens, profile.mask.ratio).hidden.shape[1]
    assert (f"{hidden} of {tokens} tokens" in said) == (profile.mask.kind != "replica")
    assert f"| {profile.spectral.high_pass:g}, " in said
    for arm in ("mae", "vcr-jepa"):
        assert f"{arm} {profile.pretraining(arm, 0).optimiser.lr:g}" in said


def test_the_authors_draw_hides_what_is_said() -> None:
    share = float(re.search(r"would hide ([\d.]+)%", settings_of("quick")).group(1)) / 100  # type: ignore[union-attr]
    drawn = [
        replica_mask(1, 64, 0.75, generator=torch.Generator().manual_seed(seed)).hidden.shape[1] for seed in range(400)
    ]
    assert share == pytest.approx(sum(drawn) / 400 / 64, abs=0.006)


def test_every_profile_is_listed_with_what_it_is_for() -> None:
    lines = profile_table().splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == [name for name in FOR if name in profile_names()]
    assert sorted(FOR) == sorted({*NAMES, SHIPPED})


def test_what_differs_between_arms_or_was_changed_is_said() -> None:
    replica = load_profile("replica")
    steps = {replica.pretraining(arm, 0).optimiser.steps for arm in ("mae", "jepa")}
    assert len(steps) == 2 and all(f"{n:,}" in settings_of("replica") for n in steps)
    assert "| 0.5, from 0 at" in settings_of("quick", {"spectral.weight": 0.5})


def test_every_subject_stands_on_one_side_of_the_table() -> None:
    study = Study("tiny", progress=False)
    table = split_table(study)
    for row in table.itertuples():
        units = study.task_table(row.task).drop_duplicates(["subject_id", "label"])
        numbers = [re.findall(r"[\d,]+", str(cell)) for cell in row[3:] if cell != "–"]
        assert sum(int(found[0].replace(",", "")) for found in numbers) == len(units)
        assert all(int(found[0].replace(",", "")) == sum(map(int, found[1:])) for found in numbers)
