"""What arms share and what they cost, counted from sizes; rates and repeats as rows of tables."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from brainfm_lib import notes, tables
from brainfm_lib.errors import InputError
from brainfm_lib.findings import comparison, matching, repetition
from brainfm_lib.making.judging import judge, to_be_made
from brainfm_lib.models import VisionTransformer3d
from brainfm_lib.models.baselines import small_resnet
from brainfm_lib.objectives import ARMS, build_model, compute_loss
from brainfm_lib.pretrain import compute
from brainfm_lib.pretrain.optimiser import OptimiserConfig
from brainfm_lib.study import Study, trials
from brainfm_lib.tokens import patch_grid


def counted(call):
    """FLOPs that torch counts; its attention on the CPU is not among them."""
    counter = FlopCounterMode(display=False)
    with counter:
        call()
    return counter.get_total_flops()


def test_an_encoders_flops_are_those_that_run():
    config = Study("tiny", progress=False).profile.encoder
    encoder = VisionTransformer3d(config)
    with torch.no_grad():
        found = counted(lambda: encoder(torch.zeros(1, 1, 32, 48, 32)))
    tokens = 4 * 6 * 4
    attention = config.depth * 4 * tokens**2 * config.embed_dim
    assert compute.encoder_flops(config, tokens) == found + attention


@pytest.mark.parametrize("arm", ["mae", "jepa", "lejepa"])
def test_a_steps_flops_are_about_those_that_run(arm):
    """Attention aside, and the embedding's gradient to voxels, which nobody needs and the formula counts."""
    study = Study("tiny", progress=False)
    config = study.profile.pretraining(arm, 0)
    objective, grid = config.objective, patch_grid(config.geometry.grid, config.objective.encoder.patch_size)
    tokens, model = int(np.prod(grid)), build_model(objective)
    mask = config.mask.draw(2, grid, torch.Generator().manual_seed(0), torch.device("cpu"))
    volumes = torch.randn(2, 1, *config.geometry.grid)
    if arm == "lejepa":
        model.redraw(torch.Generator())

    def step():
        compute_loss(model, objective, volumes, mask, spectral_weight=0.0)[0].backward()

    seen = mask.visible.shape[1]
    expected = 2 * compute.step_flops(objective, tokens, seen)
    assert 0.75 * expected < counted(step) < expected
    cost = compute.pretraining_cost(config)
    assert cost.tokens_seen == cost.volumes * seen and cost.flops == cost.volumes * expected / 2


def test_a_cnn_gets_the_epochs_that_its_flops_pay():
    grid = (32, 32, 32)
    model = small_resnet(2).eval()
    with torch.no_grad():
        one = counted(lambda: model(torch.zeros(1, 1, *grid)))
    assert compute.cnn_flops(grid, 5) == 15 * one
    assert compute.matched_epochs(grid, 10, 7 * 30.0 * one, 100) == 7
    assert compute.matched_epochs(grid, 10, 1.0, 100) == 1 and compute.matched_epochs(grid, 10, 1e18, 50) == 50


def test_shipped_arms_are_matched_and_the_authors_are_not():
    for name in ("tiny", "quick", "reference", "paper"):
        assert matching.unmatched(Study(name, progress=False)) == []
    unmatched = matching.unmatched(Study("replica", progress=False))
    assert "optimiser.steps" in unmatched and "not matched**" in notes.matched_note(Study("replica")).data
    study = Study("tiny", progress=False)
    table = matching.matched_table(study, matching.trial_table(study))
    shown = tables.matched_table(table)
    assert shown["arm"].tolist() == ["MAE", "SL-MAE", "JEPA", "VCR-JEPA"] and set(shown["rates on file"]) == {"0"}
    assert list(table["arm"]) == list(ARMS) and table["tokens_seen"].nunique() == 1
    flops = table.set_index("arm")["flops"]
    assert flops["mae"] == flops["sl-mae"] and flops["jepa"] == flops["vcr-jepa"]


@pytest.fixture
def study():
    small = {"subjects.downstream": 60, "optimiser.steps": 2, "trial_lrs": [5e-4, 1e-3]}
    return Study("tiny", objective="mae", overrides=small, progress=False)


def test_rates_are_tried_on_validation_subjects_and_the_table_says_which_is_best(study):
    one = study
    study = Study("tiny", overrides=one.overrides, progress=False)
    one.tasks = study.tasks = ("ad",)
    assert matching.trial_table(study).empty
    assert "not tried" in notes.trials_note(matching.trial_table(study), study.arms).data
    *lines, settings = trials.tune(one)  # one arm makes no table: the others have not been tried
    assert len(lines) == 2 and settings.startswith("arm_lr: {mae: ") and matching.trial_table(one).empty
    *lines, settings, made = trials.tune(study)
    assert len(lines) == 8 and made == f"run: {study.optional('trials').id}"
    table = matching.trial_table(one)  # which any study of the same settings reads, of its own arms
    assert list(table["lr"]) == [5e-4, 1e-3] and list(table["chosen"]) == [False, True] and not table["shipped"].any()
    value = float(study.run("probe:mae:ad").table("chosen")["validation_auroc"].iloc[0])
    assert table["validation"].iloc[1] == pytest.approx(value)
    shown = tables.trial_table(table).iloc[0]
    assert shown["0.001"] == f"<b>{table['validation'].iloc[1]:.3f}</b>" and "<b>" not in shown["0.0005"]
    best = float(settings.split("mae: ")[1].split(",")[0])
    assert table.set_index("lr")["validation"][best] == table["validation"].max()  # perhaps not alone
    said = notes.trials_note(table, one.arms).data
    assert ("best of them" in said) == (best == 1e-3) and "ship with" not in said
    assert one.results()["arm"].eq("mae").all()  # other rates are no rows of the comparison
    other = Study("tiny", objective="mae", overrides={**one.overrides, "arm_lr": {"mae": 5e-4}}, progress=False)
    other.tasks = one.tasks  # which rate is in use changes nothing of what was tried
    assert list(matching.trial_table(other)["chosen"]) == [True, False]


def test_the_rates_of_quick_were_chosen_by_trials_that_ship_with_the_project():
    study = Study("quick", progress=False)
    table = matching.trial_table(study)
    assert set(table["arm"]) == set(ARMS) and table["shipped"].all() and table["validation"].between(0.3, 0.9).all()
    assert all(tuple(rates) == study.profile.trial_lrs for _, rates in table.groupby("arm")["lr"])
    best = table.loc[table.groupby("arm")["validation"].idxmax()]
    assert best["chosen"].all() and "ship with the project" in notes.trials_note(table, study.arms).data
    assert study.results()["arm"].eq("mae").all()  # other rates are no rows of the comparison


@pytest.mark.parametrize("below", [0, 10**6])
def test_what_will_be_pretrained_is_said_of_tasks_that_a_protocol_leaves_out_too(below):
    study = Study("tiny", overrides={"evaluation.cross_validate_below": below}, progress=False)
    assert to_be_made(study, "linear", "mae") and to_be_made(study, "splits", "mae") == (below == 0)


def test_what_one_seed_decides_is_looked_for_under_the_others(study):
    study.tasks = ("ad",)
    for request in ("probe:mae:ad", "probe:random-init:ad", "probe:raw-voxels:ad"):
        study.run(request)
    found = comparison.paired_differences(study)
    assert len(found) == 2
    assert "none to look for" in repetition.replicated_note(study, found.assign(p_holm=1.0), found.iloc[:0]).data
    decided = found.assign(p_holm=[0.01, 1.0])
    assert repetition.replicated(study, decided).empty
    alone = repetition.replicated_note(study, decided, repetition.replicated(study, decided)).data
    assert alone.startswith("1 difference is decided") and "luck of a seed" in alone
    other = study.variant("", "seed=1").run("probe:mae:ad")
    again = repetition.replicated(study, decided)
    assert list(again["seed"]) == [0, 1] and set(again["baseline"]) == {"random-init"}
    there = comparison.compare(other, study.run("probe:random-init:ad"), draws=study.profile.evaluation.bootstrap_draws)
    assert again["estimate"].tolist() == pytest.approx([found["estimate"].iloc[0], there.estimate])
    shown = tables.replicated_table(again, {}).iloc[0]
    assert shown["seed 1"].startswith(f"{there.estimate:+.2f}") and shown["difference"] == "MAE − untrained"
    came_along = decided.assign(run=other.id)  # as an encoder that is the same under every seed
    assert repetition.replicated(study, came_along).empty
    for low, high, same, clear in ((0.1, 0.2, 1, 1), (-0.1, 0.2, 1, 0), (-0.2, -0.1, 0, 0)):
        told = again.assign(estimate=[0.1, (low + high) / 2], low=[0.05, low], high=[0.2, high])
        said = repetition.replicated_note(study, decided, told).data
        assert "1 was looked for again with encoders of seed 1," in said
        assert f"sign is the same each time in {same}," in said and f"excludes zero each time in {clear}." in said


def test_seeds_and_splits_are_read_when_present(study):
    study.tasks = ("ad",)
    assert repetition.repeated(study).empty and repetition.variance_table(repetition.repeated(study)).empty
    lines = list(judge(study, "splits"))
    assert len(lines) == len(study.compared) and "over 10 splits" in lines[0]
    other = study.variant("pretrain:mae", "seed=1")
    for arm in ("mae", "random-init"):
        other.run(f"resplit:{arm}:ad")
    repeats = repetition.repeated(study)
    other.run("resplit:raw-voxels:ad")  # knows no pretraining: the same under every seed
    counts = repetition.repeated(study).groupby("arm")["seed"].nunique()
    assert counts["mae"] == 2 and counts["raw-voxels"] == 1
    spread = repetition.variance_table(repeats).set_index("arm")
    assert spread.loc["mae", ["seed", "split", "rest", "subjects"]].notna().all()
    assert np.isnan(spread.loc["raw-voxels", "seed"]) and (spread["subjects"] > 0).all()
    shown = tables.variance_table(repetition.variance_table(repeats), {"ad": "Dementia"})
    assert (shown["task"] == "Dementia").all() and "sd, seed" in shown and "MAE" in set(shown["arm"])
    differences = repetition.over_splits(study, repeats)
    assert set(differences["baseline"]) == {"random-init", "raw-voxels"} and differences["p_holm"].between(0, 1).all()
    assert study.identify("optional:resplit:mae:ad@seed=1") == other.run("resplit:mae:ad").id
    assert study.identify("optional:resplit:mae:ad@seed=4") == "absent"
    with pytest.raises(InputError, match="changes nothing"):
        study.optional("probe:mae:ad@width=3")


def test_tasks_that_cannot_be_split_anew_say_why(tmp_path):
    study = Study("tiny", overrides={"evaluation.cross_validate_below": 1000}, progress=False)
    with pytest.raises(InputError, match="cross-validated"):
        study.identify("resplit:mae:ad")
    assert repetition.repeated(study).empty and trials.judging_tasks(study) == []
    with pytest.raises(InputError, match="to choose a learning rate on"):
        next(trials.tune(study))


def validation(study, arm):
    return study.run(f"probe:{arm}:ad").table("chosen")["validation_auroc"].iloc[0]


def test_a_cross_validated_difference_has_nadeau_and_bengios_p_and_one_test_set_delongs():
    many = {"subjects.downstream": 160, "optimiser.steps": 2}  # twelve of each class to test on
    study = Study("tiny", objective="mae", overrides=many, progress=False)
    few = {"evaluation.cross_validate_below": 1000, "evaluation.refits": 3, "subjects.downstream": 40}
    one = Study("tiny", objective="mae", overrides={**few, "optimiser.steps": 2}, progress=False)
    for owner, expected in ((one, False), (study, True)):
        owner.tasks = ("ad",)
        for arm in ("random-init", "raw-voxels"):
            owner.run(f"probe:{arm}:ad")
        owner.run("probe:mae:ad")
        table = comparison.paired_differences(owner)
        chosen = comparison.picked(owner)
        rows = owner.results(folds=True)
        each = rows[(rows["fold"] != "all") & (rows["arm"] == "mae")]["estimate"]
        whole = rows[(rows["fold"] == "all") & (rows["arm"] == "mae") & (rows["metric"] == "auroc")]["estimate"].iloc[0]
        assert each.empty if expected else each.mean() == pytest.approx(whole)
        assert len(chosen) == expected  # nothing is picked where validation and test subjects are the same
        if expected:
            (cells,) = tables.picked_table(chosen, {"ad": "Dementia"}).to_dict("records")
            assert cells["task"] == "Dementia" and cells["AUROC, test"].startswith(
                f"{chosen['estimate'].iloc[0]:.2f} ["
            )
            best = max(("random-init", "mae"), key=lambda arm: validation(owner, arm))
            assert chosen["arm"].iloc[0] == best and chosen["validation"].iloc[0] == validation(owner, best)
        assert table["p"].between(0, 1).all() and table["p_delong"].notna().all() == expected
    assert "applies to none" in notes.delong_note(comparison.paired_differences(one)).data
    assert "decides" in notes.delong_note(comparison.paired_differences(study)).data


def test_a_variant_shares_cohorts_and_nothing_else(study):
    variant = study.variant("pretrain:mae", "seed=3")
    assert variant.config("pretrain:mae").settings["seed"] == 3 and study.config("pretrain:mae").settings["seed"] == 0
    assert variant.cohort("phantom-dementia") is study.cohort("phantom-dementia") and variant.used == {}
    rate = study.variant("probe:mae:ad", "lr=0.25").profile.pretraining("mae", 0).optimiser
    assert rate == dataclasses.replace(study.profile.pretraining("mae", 0).optimiser, lr=0.25)
    assert isinstance(rate, OptimiserConfig) and isinstance(study.results(), pd.DataFrame)


def test_a_comparison_of_a_probe_and_a_fine_tuning_is_the_same_from_either_side():
    """One was fitted on four folds of five, the other on three and stopped by the fourth: the shyer test counts."""
    rng = np.random.default_rng(0)
    label, fold = np.arange(60) % 2, np.arange(60) // 2 % 5
    runs = []
    for kind, noise in (("probe", 1.0), ("finetune", 1.6)):
        held_out = pd.DataFrame({"scan_uid": np.arange(60), "subject_id": np.arange(60), "label": label, "fold": fold})
        held_out["score_1"] = label + noise * rng.standard_normal(60)
        runs.append(SimpleNamespace(kind=kind, table=lambda _, held_out=held_out: held_out.copy()))
    there, back = comparison.compare(runs[0], runs[1]), comparison.compare(runs[1], runs[0])
    assert (there.estimate, there.low, there.high, there.p) == pytest.approx(
        (-back.estimate, -back.high, -back.low, back.p)
    )
