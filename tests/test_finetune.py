import copy

import numpy as np
import pandas as pd
import pytest
import torch

from brainfm_lib.features import extract
from brainfm_lib.finetune import Classifier, FinetuneConfig, _level, finetune, make_finetune
from brainfm_lib.models import VisionTransformer3d, VisionTransformerConfig
from brainfm_lib.models.attentive import AttentivePool
from brainfm_lib.probes.attentive import AttentiveConfig, attentive_probe, make_attentive
from brainfm_lib.probes.linear import linear_probe
from brainfm_lib.probes.results import evaluate
from brainfm_lib.probes.training import _parameter_groups

SHORT = FinetuneConfig(epochs=6, batch_size=16, lr=2e-3)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return VisionTransformer3d(VisionTransformerConfig(patch_size=8, embed_dim=24, depth=2, heads=2))


def split_table(labels):
    """A scan a subject; of every ten, six for training and two for validation."""
    place = np.arange(len(labels)) % 10
    return pd.DataFrame(
        {
            "scan_uid": [f"scan-{i}" for i in range(len(labels))],
            "subject_id": [f"sub-{i}" for i in range(len(labels))],
            "label": labels,
            "split": np.select([place < 6, place < 8], ["train", "val"], "test"),
        }
    )


def task(n=100, seed=0):
    """Volumes (n, 16, 16, 24): class 1 has a bright slab at the front."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    volumes = rng.uniform(0.2, 0.5, (n, 16, 16, 24))
    volumes[labels == 1, :, 8:] += 0.3
    return volumes.astype(np.float16), split_table(labels)


@pytest.mark.parametrize("pooling", ["mean", "attentive", "regional"])
def test_it_learns_and_leaves_the_encoder_alone(encoder, pooling):
    before = copy.deepcopy(encoder.state_dict())
    volumes, table = task()
    config = FinetuneConfig(epochs=6, batch_size=16, lr=2e-3, pooling=pooling, frozen_epochs=1)
    result = finetune(encoder, volumes, table, config)
    assert evaluate(result, draws=100)["estimate"][0] > 0.9
    assert 1 <= result.chosen["epoch"][0] <= 6
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_a_cnn_from_scratch_learns_by_the_same_loop():
    volumes, table = task(80)
    config = FinetuneConfig(epochs=5, batch_size=16, lr=3e-3)
    a, b = (finetune(None, volumes, table, config, seed=1).predictions for _ in range(2))
    assert (a["score_1"] == b["score_1"]).all()
    assert evaluate(finetune(None, volumes, table, config, seed=1), draws=100)["estimate"][0] > 0.9


def test_same_seed_same_scores_and_test_labels_do_not_matter(encoder):
    volumes, table = task()
    shuffled = table.copy()
    test = np.flatnonzero(table["split"] == "test")
    shuffled.loc[test, "label"] = np.roll(table["label"].to_numpy()[test], 1)
    a, b = (finetune(encoder, volumes, t, SHORT, seed=3).predictions for t in (table, shuffled))
    np.testing.assert_array_equal(a["score_1"], b["score_1"])


@pytest.mark.parametrize("folds", [2, 3])
def test_folds(encoder, folds):
    volumes, table = task(36)
    table = table.drop(columns="split").assign(fold=np.arange(36) // 2 % folds)
    result = finetune(encoder, volumes, table, FinetuneConfig(epochs=2, batch_size=16))
    assert result.predictions["score_0"].notna().sum() == 36
    assert result.chosen["fold"].tolist() == list(range(folds))
    if folds == 2:
        assert result.chosen["epoch"].tolist() == [2, 2]


def test_learning_rates_fall_towards_the_input(encoder):
    config = FinetuneConfig(lr=1.0, layer_decay=0.5)
    model = Classifier(encoder, 2, "mean")
    groups = _parameter_groups(model, config, lambda name: 0.5 ** (3 - _level(name, 2)))
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert len(rate) == len(list(model.parameters()))
    assert rate[id(model.head.weight)] == rate[id(encoder.norm.weight)] == 1
    assert rate[id(encoder.blocks[1].fc1.weight)] == 0.5
    assert rate[id(encoder.blocks[0].qkv.bias)] == 0.25
    assert rate[id(encoder.embed.weight)] == 0.125
    assert all(g["weight_decay"] == 0 for g in groups if g["params"][0].ndim == 1)


class Reader:
    def __init__(self, volumes):
        self.volumes = volumes

    def __len__(self):
        return len(self.volumes)

    def read(self, rows):
        return self.volumes[rows].astype(np.float32)


def test_a_run_reads_the_rows_of_its_task(encoder, tmp_path):
    volumes, table = task(60)
    encoder.save_pretrained(tmp_path / "encoder")
    config, settings = FinetuneConfig(epochs=1), {"draws": 50, "permutations": 50, "seed": 0}
    table = table.assign(row=np.arange(60)[::-1].copy())
    make_finetune(tmp_path / "encoder", lambda: Reader(volumes[::-1]), table, config, settings, cpu=True)(tmp_path)
    expected = finetune(encoder, volumes, table, config).predictions
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "predictions.parquet"), expected)


def test_the_number_of_threads_changes_no_score_and_no_feature(encoder):
    volumes, table = task(60)
    tokens = {"last": np.random.default_rng(0).normal(size=(100, 64, 248)).astype(np.float32)}
    wider = VisionTransformer3d(VisionTransformerConfig(patch_size=8, embed_dim=128, depth=2, heads=2))
    makers = {
        "finetune": lambda: finetune(encoder, volumes, table, FinetuneConfig(epochs=1)).predictions["score_1"],
        "attentive": lambda: attentive_probe(tokens, task()[1], AttentiveConfig(epochs=2), heads=4).predictions[
            "score_1"
        ],
        "features": lambda: extract(wider, Reader(volumes[:37]), poolings=["mean+std"], batch_size=36)["mean+std@2"],
    }
    before = torch.get_num_threads()
    try:
        for name, make in makers.items():
            found = []
            for threads in (1, 2, 3, 8):
                torch.set_num_threads(threads)
                found.append(np.asarray(make()))
                assert torch.get_num_threads() == threads
            assert all((found[0] == other).all() for other in found), name
    finally:
        torch.set_num_threads(before)


def test_attentive_pool_is_a_mean_of_values_weighted_by_attention():
    torch.manual_seed(0)
    pool, tokens = AttentivePool(8, heads=1), torch.randn(2, 5, 8)
    key, value = pool.kv(pool.norm(tokens)).chunk(2, dim=-1)
    weights = (key @ pool.query[0, 0] / 8**0.5).softmax(1)
    expected = pool.proj((weights[:, :, None] * value).sum(1))
    torch.testing.assert_close(pool(tokens), expected)
    with pytest.raises(ValueError, match="multiple"):
        AttentivePool(8, heads=3)


def needle(n=300, seed=0):
    """Tokens (n, 12, 8): one of twelve, at a random place, is marked and carries the label; the mean hardly does."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) // 2 % 2
    tokens = rng.standard_normal((n, 12, 8))
    where = rng.integers(0, 12, n)
    tokens[np.arange(n), :, 1] *= 3
    tokens[np.arange(n), where, 0] = 8
    tokens[np.arange(n), where, 1] = 2.0 * labels - 1
    return tokens.astype(np.float16), split_table(labels)


def test_a_query_finds_the_token_that_a_mean_drowns():
    tokens, table = needle()
    blind = np.random.default_rng(1).standard_normal(tokens.shape).astype(np.float16)
    config = AttentiveConfig(epochs=80, batch_size=32, lr=1e-2)
    found = attentive_probe({"1": blind, "2": tokens}, table, config, heads=2)
    assert found.chosen["pooling"].iloc[0] == "attentive@2"
    assert evaluate(found, draws=100)["estimate"][0] > 0.95
    mean = linear_probe({"mean": tokens.mean(1)}, table)
    assert evaluate(mean, draws=100)["estimate"][0] < 0.75
    other = table.assign(label=np.where(table["split"] == "test", 1 - table["label"], table["label"]))
    again = attentive_probe({"1": blind, "2": tokens}, other, config, heads=2)
    np.testing.assert_array_equal(found.predictions["score_1"], again.predictions["score_1"])


def test_an_attentive_run_chooses_in_every_fold_and_leaves_no_tokens(encoder, tmp_path):
    volumes, table = task(36)
    encoder.save_pretrained(tmp_path / "encoder")
    table = table.drop(columns="split").assign(fold=np.arange(36) // 2 % 3, row=np.arange(36)[::-1].copy())
    settings = {"draws": 50, "permutations": 50, "seed": 0}
    folder = tmp_path / "run"
    folder.mkdir()
    config = AttentiveConfig(epochs=8, batch_size=12, lr=1e-2)
    reader = Reader(volumes[::-1])
    make_attentive(tmp_path / "encoder", lambda: reader, table, config, settings, batch_size=8, cpu=True)(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "chosen.parquet",
        "predictions.parquet",
        "results.parquet",
    ]
    held = pd.read_parquet(folder / "predictions.parquet")
    assert held["scan_uid"].is_unique and len(held) == 36
    assert pd.read_parquet(folder / "chosen.parquet")["pooling"].str.fullmatch("attentive@[12]").sum() == 3
    assert pd.read_parquet(folder / "results.parquet")["estimate"][0] > 0.8
