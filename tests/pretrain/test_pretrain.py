"""The loop: matched arms, exact resume, honest failure."""

import dataclasses
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from brainfm_lib.data.batches import batch_rows
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.errors import InputError
from brainfm_lib.losses.sigreg import SigregConfig
from brainfm_lib.losses.spectral import SpectralConfig
from brainfm_lib.losses.vcr import VcrConfig
from brainfm_lib.making.budget import seconds_per_step
from brainfm_lib.masking import MaskConfig
from brainfm_lib.models import JepaConfig, LejepaConfig, MaeConfig, VisionTransformer3d, VisionTransformerConfig
from brainfm_lib.objectives import EVERY_ARM, objective_config
from brainfm_lib.pretrain import loop
from brainfm_lib.pretrain.config import PretrainConfig
from brainfm_lib.pretrain.loop import Trainer
from brainfm_lib.pretrain.optimiser import OptimiserConfig

GRID = (16, 24, 32)


def make_config(arm="mae", **changes) -> PretrainConfig:
    objective = objective_config(
        arm,
        encoder=VisionTransformerConfig(8, 48, 2, 3),
        mae=MaeConfig(24, 1, 3),
        jepa=JepaConfig(24, 1, 3, ema_start=0.9),
        spectral=SpectralConfig(0.01, ramp_start=0.0, ramp_end=0.2),
        vcr=VcrConfig(),
        lejepa=LejepaConfig(32, 16),
        sigreg=SigregConfig(directions=24),
    )
    optimiser = OptimiserConfig(**{"lr": 1e-3, "batch_size": 4, "steps": 12, "precision": "fp32", **changes})
    return PretrainConfig(objective, Geometry(GRID, 6.0), optimiser=optimiser)


def make_volumes(n=10, seed=0) -> np.ndarray:
    """Smooth blobs, so that there is something to predict."""
    rng = np.random.default_rng(seed)
    axes = np.stack(np.meshgrid(*(np.linspace(-1, 1, s) for s in GRID), indexing="ij"))
    centres = rng.uniform(-0.4, 0.4, (n, 3, 1, 1, 1))
    return np.exp(-4 * ((axes[None] - centres) ** 2).sum(1)).astype(np.float16)


def train(folder, config, steps=None):
    folder.mkdir(exist_ok=True)
    trainer = Trainer(config, make_volumes(), make_volumes(4, seed=1), folder, cpu=True)
    return trainer, trainer.run(progress=False)


@pytest.mark.parametrize("arm", EVERY_ARM)
def test_held_out_volumes_take_no_more_room_than_a_part_of_a_batch_and_are_judged_alike(arm, tmp_path, monkeypatch):
    taken, values, compute = [], [], loop.compute_loss
    monkeypatch.setattr(loop, "compute_loss", lambda *a, **k: taken.append(len(a[2])) or compute(*a, **k))
    for parts in (1, 2, 4):
        config = make_config(arm, batch_size=8, steps=250, accumulate=parts)
        trainer = Trainer(config, make_volumes(), make_volumes(10, seed=1), tmp_path, cpu=True)
        values.append(trainer.validate())
        assert max(taken) == 8 // parts and sum(taken) == len(trainer.heldout) == 10
        taken.clear()
    np.testing.assert_allclose(values, values[0], rtol=1e-5)


@pytest.mark.parametrize("arm", EVERY_ARM)
def test_every_arm_trains_and_leaves_an_encoder(arm, tmp_path):
    _, provenance = train(tmp_path, make_config(arm))
    metrics = pd.read_parquet(tmp_path / "metrics.parquet")
    assert metrics["step"].iloc[-1] == 12 and np.isfinite(metrics["loss"]).all()
    assert metrics["heldout"].notna().any() and provenance["volumes_seen"] == 48
    encoder = VisionTransformer3d.from_pretrained(tmp_path / "encoder")
    assert encoder(torch.randn(1, 1, *GRID)).shape == (1, 24, 48)


def test_training_lowers_the_loss(tmp_path):
    train(tmp_path, make_config(steps=150, batch_size=8, lr=3e-3))
    metrics = pd.read_parquet(tmp_path / "metrics.parquet")
    assert metrics["loss"].iloc[-5:].mean() < 0.7 * metrics["loss"].iloc[:5].mean()


def test_lejepa_brings_embeddings_together_and_keeps_them_apart(tmp_path):
    """Two views of a volume come closer than two volumes are, and embeddings do not collapse."""
    trainer, _ = train(tmp_path / "kept", make_config("lejepa", steps=200, batch_size=8, lr=3e-3))
    config = make_config("lejepa", steps=200, batch_size=8, lr=3e-3)
    without = dataclasses.replace(config, objective=dataclasses.replace(config.objective, sigreg=SigregConfig(0.0, 24)))
    collapsed, _ = train(tmp_path / "collapsed", without)
    spread = []
    for one in (trainer, collapsed):
        volumes, mask, _ = one._masked(one.batches(np.arange(10)), 10, slice(None), "test")
        with torch.no_grad():
            z = one.raw.eval()(volumes, mask)
        spread.append(z.std(dim=1).mean())
        within, between = (z[0] - z[1]).square().mean(), (z[0] - z[0].roll(1, 0)).square().mean()
        assert within < 0.5 * between or one is collapsed
    assert spread[0] > 0.3 and spread[0] > 5 * spread[1]


def test_arms_see_the_same_volumes_under_the_same_masks(tmp_path):
    """What enters the loss of the first step is equal for all arms, augmentation and mask included."""
    seen = []
    for arm in EVERY_ARM:
        trainer = Trainer(make_config(arm), make_volumes(), make_volumes(2), tmp_path, cpu=True)
        inner = trainer.raw.encoder
        inputs = []
        inner.embed.register_forward_hook(lambda _m, args, _o, inputs=inputs: inputs.append(args[0].detach().clone()))
        trainer.train_step(next(batch_rows(10, 4, 0)))
        seen.append(inputs[0])
    assert all(torch.equal(seen[0], other) for other in seen[1:])


def test_every_volume_comes_once_an_epoch_and_a_resumed_order_is_the_same():
    rows = batch_rows(10, 4, seed=3)
    first = np.concatenate([next(rows) for _ in range(5)])
    assert sorted(first[:10]) == list(range(10)) == sorted(first[10:])
    assert np.array_equal(next(batch_rows(10, 4, seed=3, first_step=3)), first[12:16])
    assert len(next(batch_rows(3, 8, seed=0))) == 8


@pytest.mark.parametrize("arm", ["sl-mae", "vcr-jepa", "lejepa"])
def test_killed_and_resumed_equals_undisturbed_bit_for_bit(arm, tmp_path):
    train(tmp_path / "whole", make_config(arm, steps=60))
    script = textwrap.dedent(f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        import brainfm_lib.pretrain.loop as loop, time
        from test_pretrain import make_config, make_volumes
        loop.CHECKPOINT_SECONDS = 0.0
        step = loop.Trainer.train_step
        def slow(self, *args, **kwargs):
            time.sleep(0.02)
            return step(self, *args, **kwargs)
        loop.Trainer.train_step = slow
        loop.Trainer(make_config({arm!r}, steps=60), make_volumes(), make_volumes(4, seed=1),
                         Path({str(tmp_path / "killed")!r}), cpu=True).run(progress=False)
    """)
    (tmp_path / "killed").mkdir()
    worker = subprocess.Popen([sys.executable, "-c", script])
    while worker.poll() is None and not list((tmp_path / "killed").glob("checkpoint-*")):
        time.sleep(0.05)
    time.sleep(0.3)
    worker.send_signal(signal.SIGKILL)
    assert worker.wait() == -signal.SIGKILL
    train(tmp_path / "killed", make_config(arm, steps=60))
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    traces = [pd.read_parquet(tmp_path / n / "metrics.parquet").drop(columns="seconds") for n in ("whole", "killed")]
    pd.testing.assert_frame_equal(*traces)


def test_interrupted_in_a_notebook_and_run_again_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    train(tmp_path / "whole", make_config(steps=30))
    step = Trainer.train_step

    def interrupt(self, *args, **kwargs):
        terms = step(self, *args, **kwargs)
        if self.step == 17:  # weights have moved, the counter has not
            raise KeyboardInterrupt
        return terms

    monkeypatch.setattr(Trainer, "train_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", make_config(steps=30))
    monkeypatch.setattr(Trainer, "train_step", step)
    train(tmp_path / "broken", make_config(steps=30))
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    steps = [len(pd.read_parquet(tmp_path / name / "metrics.parquet")) for name in ("whole", "broken")]
    assert steps == [30, 30]


def gradients_of_one_step(config, folder, rows=4, **trainer):
    """Gradients before clipping, of the first step on the first rows; the optimiser is kept from moving."""
    config = dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, clip=1e9))
    trainer = Trainer(config, make_volumes(), make_volumes(2), folder, cpu=True, **trainer)
    trainer.optimiser.step = lambda *_: None
    trainer.optimiser.zero_grad = lambda **_: None
    terms = trainer.train_step(np.arange(rows))
    return {n: p.grad.clone() for n, p in trainer.raw.named_parameters() if p.requires_grad}, terms


def assert_equal_gradients(a, b):
    assert a.keys() == b.keys()
    scale = max(float(gradient.abs().max()) for gradient in a.values())
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5 * min(scale, 1.0), rtol=1e-4, msg=name)


VARIANTS = {
    **{arm: make_config(arm) for arm in EVERY_ARM},
    "dropped": dataclasses.replace(make_config("vcr-jepa"), mask=MaskConfig(budget=0.6)),
    "blocks": dataclasses.replace(make_config("sl-mae"), mask=MaskConfig(kind="block", shared=False, budget=0.7)),
    "replica": dataclasses.replace(make_config("vcr-jepa"), mask=MaskConfig(kind="replica")),
    "context only": dataclasses.replace(
        make_config("vcr-jepa"),
        objective=dataclasses.replace(make_config("vcr-jepa").objective, vcr=VcrConfig(context_only=True)),
    ),
    "pooled": dataclasses.replace(
        make_config("vcr-jepa"),
        objective=dataclasses.replace(make_config("vcr-jepa").objective, vcr=VcrConfig(pooled=True)),
        mask=MaskConfig(shared=False),
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_accumulation_gives_the_same_gradient(variant, tmp_path):
    """VCR couples all samples, and still does when a batch is worked on one volume at a time."""
    config = VARIANTS[variant]
    whole, terms = gradients_of_one_step(config, tmp_path)
    for parts in (2, 4):
        split = dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, accumulate=parts))
        gradients, same_terms = gradients_of_one_step(split, tmp_path)
        assert_equal_gradients(gradients, whole)
        for name, value in terms.items():
            torch.testing.assert_close(same_terms[name], value, atol=1e-6, rtol=1e-4, msg=name)


def test_per_process_statistics_depend_on_the_split_as_the_authors_do(tmp_path):
    config = make_config("vcr-jepa")
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, vcr=VcrConfig(gathered=False)))
    whole, _ = gradients_of_one_step(config, tmp_path)
    split = dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, accumulate=2))
    halves, _ = gradients_of_one_step(split, tmp_path)
    assert max(float((whole[n] - halves[n]).abs().max()) for n in whole) > 1e-4
    with pytest.raises(InputError, match="at least two volumes"):
        gradients_of_one_step(
            dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, accumulate=4)), tmp_path
        )


def test_sigreg_refuses_a_batch_of_one(tmp_path):
    with pytest.raises(InputError, match="SIGReg needs the distribution of at least two volumes"):
        train(tmp_path, make_config("lejepa", batch_size=1))


def test_a_loss_that_is_not_finite_stops_with_a_sentence(tmp_path):
    config = make_config(steps=40)
    trainer = Trainer(config, make_volumes(), make_volumes(2), tmp_path, cpu=True)
    with torch.no_grad():
        trainer.raw.encoder.embed.weight.fill_(float("nan"))
    with pytest.raises(InputError, match=r"not finite at step 1 .*lower optimiser\.lr"):
        trainer.run(progress=False)


def test_schedules_are_those_stated():
    optimiser = OptimiserConfig(lr=1.0, start_factor=0.2, end_factor=0.1, warmup=0.1, steps=100)
    assert optimiser.lr_at(9) == pytest.approx(1.0) and optimiser.lr_at(0) == pytest.approx(0.28)
    assert optimiser.lr_at(99) == pytest.approx(0.1, abs=1e-3)
    assert optimiser.weight_decay_at(100) == pytest.approx(0.0005)


def test_impossible_settings_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not divide"):
        Trainer(make_config(batch_size=5, accumulate=2), make_volumes(), make_volumes(2), tmp_path, cpu=True)
    with pytest.raises(InputError, match="no volume"):
        Trainer(make_config(), make_volumes()[:0], make_volumes(2), tmp_path, cpu=True)
    with pytest.raises(ValueError, match="mask kind"):
        MaskConfig(kind="stripes")


def test_step_time_is_measured(tmp_path):
    assert 0 < seconds_per_step(make_config(), make_volumes(), tmp_path, steps=2, cpu=True) < 5


def test_replica_masks_train(tmp_path):
    config = dataclasses.replace(make_config(), mask=MaskConfig(kind="replica"))
    train(tmp_path, config)


def test_a_sparse_spectral_loss_still_shows_in_the_metrics(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_POINTS", 20)
    config = make_config("sl-mae", steps=60)
    spectral = dataclasses.replace(config.objective.spectral, every=5, ramp_start=0.0, ramp_end=0.0)
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, spectral=spectral))
    train(tmp_path, config)
    metrics = pd.read_parquet(tmp_path / "metrics.parquet")  # logged every third step: most log points miss it
    assert metrics["spectral"].notna().mean() > 0.5


def test_what_would_make_vcr_wrong_is_refused(tmp_path):
    with pytest.raises(InputError, match="at least two volumes"):
        train(tmp_path, make_config("vcr-jepa", batch_size=1))
    config = make_config("vcr-jepa")
    with pytest.raises(InputError, match=r"vcr\.pooled"):
        train(tmp_path, dataclasses.replace(config, mask=MaskConfig(shared=False)))


def test_background_dropping_is_reported_in_the_metrics(tmp_path):
    train(tmp_path, dataclasses.replace(make_config(), mask=MaskConfig(budget=0.5)))
    dropped = pd.read_parquet(tmp_path / "metrics.parquet")["foreground_dropped"]
    assert ((dropped > 0) & (dropped < 1)).all()  # these blobs fill the whole volume


def test_a_run_may_go_on_in_another_number_of_parts_and_says_what_that_means(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    config = make_config("vcr-jepa", steps=20)
    train(tmp_path / "whole", config)
    step = Trainer.train_step

    def interrupt(self, *args, **kwargs):
        if self.step == 11:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", config)
    monkeypatch.setattr(Trainer, "train_step", step)
    split = dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, accumulate=2))
    _, provenance = train(tmp_path / "broken", split)
    assert provenance["splits"] == ["1 × 1", "1 × 2"]
    assert (
        "goes on at step 11 on 1 × 2 processes × parts, 1 × 1 before: equal up to rounding" in capsys.readouterr().out
    )
    losses = [pd.read_parquet(tmp_path / name / "metrics.parquet")["loss"].to_numpy() for name in ("whole", "broken")]
    assert np.array_equal(losses[0][:11], losses[1][:11])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def test_the_encoder_comes_with_a_model_card(tmp_path):
    train(tmp_path, make_config("sl-mae"))
    card = (tmp_path / "encoder" / "README.md").read_text()
    for fact in ("SL-MAE", "16 × 24 × 32 voxels of 6 mm", "12 steps of 4 volumes, seed 0", "high_pass 0.3", "0.1.0"):
        assert fact in card
    train(tmp_path / "other", make_config("lejepa"))
    card = (tmp_path / "other" / "encoder" / "README.md").read_text()
    for fact in ("pretrained with LeJEPA", "projector_dim 16", "directions 24"):
        assert fact in card


def test_one_process_may_train_in_two_precisions(tmp_path):
    for precision in ("fp32", "bf16"):
        trainer, _ = train(tmp_path / precision, make_config(precision=precision))
        assert trainer.accelerator.mixed_precision == {"fp32": "no", "bf16": "bf16"}[precision]
    with pytest.raises(ValueError, match="precision"):
        make_config(precision="fp16")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("arm", EVERY_ARM)
def test_a_step_never_waits_for_the_device(arm, tmp_path):
    config = dataclasses.replace(make_config(arm, precision="bf16"), mask=MaskConfig(budget=0.7))
    trainer = Trainer(config, make_volumes(), make_volumes(2), tmp_path)
    rows = batch_rows(10, 4, 0)
    for _ in range(3):  # the first steps build what is kept
        trainer.train_step(next(rows), detail=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.train_step(next(rows), detail=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("arm", EVERY_ARM)
def test_replayed_graphs_train_like_separate_launches(arm, tmp_path):
    traces = []
    for graphs in (False, True):
        trainer = Trainer(make_config(arm, precision="fp32"), make_volumes(), make_volumes(2), tmp_path, graphs=graphs)
        assert (trainer.graphed is not None) == graphs
        rows = batch_rows(10, 4, 0)
        terms = []
        for step in range(8):
            trainer.step = step
            terms.append({n: float(v) for n, v in trainer.train_step(next(rows), detail=step % 3 == 2).items()})
        traces.append(pd.DataFrame(terms))
    pd.testing.assert_frame_equal(*traces, rtol=1e-3)
