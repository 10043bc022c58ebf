"""Masks: exact counts, disjoint, complete, reproducible; the authors' draw hides what theory says."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brainfm_lib.masking import (
    MaskConfig,
    block_mask,
    dropped_foreground,
    foreground_tokens,
    random_mask,
    replica_mask,
    visible_count,
)
from brainfm_lib.tokens import patchify

CPU = torch.device("cpu")
GRID = (6, 8, 5)  # 48×64×40, patch 8


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@given(st.integers(2, 400), st.floats(0.01, 0.99), st.integers(0, 5))
def test_random_masks_partition_the_tokens(n_tokens, ratio, seed):
    mask = random_mask(3, n_tokens, ratio, generator=torch.Generator().manual_seed(seed))
    assert mask.visible.shape == (3, visible_count(n_tokens, ratio))
    both = torch.cat([mask.visible, mask.hidden], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(n_tokens).expand(3, -1))


def test_a_quarter_is_visible_at_the_default_ratio():
    assert visible_count(1728, 0.75) == 432


def test_shared_masks_are_one_and_single_masks_differ():
    shared = random_mask(1, 64, 0.75).expand(4)
    assert (shared.visible == shared.visible[0]).all()
    single = random_mask(4, 64, 0.75, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(single.visible[0], single.visible[1])


def test_replica_draw_hides_one_minus_exp_of_minus_ratio():
    generator = torch.Generator().manual_seed(0)
    shares = [replica_mask(1, 5832, 0.75, generator=generator).hidden.shape[1] / 5832 for _ in range(20)]
    assert sum(shares) / 20 == pytest.approx(1 - math.exp(-0.75), abs=0.003)
    mask = replica_mask(2, 100, 0.75, generator=generator)
    both = torch.cat([mask.visible, mask.hidden], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(100).expand(2, -1))


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5])
def test_impossible_ratios_are_refused(ratio):
    with pytest.raises(ValueError, match="mask"):
        random_mask(1, 64, ratio)


@given(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(2, 9)), st.floats(0.05, 0.95), st.integers(1, 6))
def test_block_masks_hide_exactly_as_many_tokens_as_random_ones(grid, ratio, blocks):
    n = math.prod(grid)
    mask = block_mask(3, grid, ratio, blocks=blocks, generator=seeded())
    assert mask.visible.shape == (3, visible_count(n, ratio))
    both = torch.cat([mask.visible, mask.hidden], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(n).expand(3, -1))


def test_one_block_is_a_box_and_blocks_are_far_less_scattered_than_single_tokens():
    """A slow check: the hidden tokens of a one-box mask fill their bounding box but for one layer on its faces."""
    grid = (12, 14, 10)
    for seed in range(20):
        mask = block_mask(1, grid, 0.2, blocks=1, generator=seeded(seed))
        hidden = torch.zeros(math.prod(grid), dtype=torch.bool)
        hidden[mask.hidden[0]] = True
        where = hidden.view(grid).nonzero()
        low, high = where.amin(0), where.amax(0)
        inner = hidden.view(grid)
        for axis in range(3):  # without the outermost layer, which is filled in part
            start = int(low[axis]) + int(low[axis] > 0)
            stop = int(high[axis]) + 1 - int(high[axis] < grid[axis] - 1)
            inner = inner.narrow(axis, start, max(stop - start, 0))
        assert inner.all()

    def neighbours_alike(mask):
        hidden = torch.zeros(math.prod(grid))
        hidden[mask.hidden[0]] = 1
        volume = hidden.view(grid)
        return float((volume[1:] == volume[:-1]).float().mean())

    boxes, single = (
        [neighbours_alike(draw(seed)) for seed in range(10)]
        for draw in (
            lambda seed: block_mask(1, grid, 0.75, generator=seeded(seed)),
            lambda seed: random_mask(1, math.prod(grid), 0.75, generator=seeded(seed)),
        )
    )
    assert min(boxes) > 0.8 > 0.7 > max(single)


def heads(batch=4, shape=(48, 64, 40)):
    """Volumes on exact 0 whose foreground is an ellipsoid, elsewhere in each."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    shifts = torch.linspace(-0.15, 0.15, batch)
    inside = [sum((a - s) ** 2 for a, s in zip(axes, (shift, -shift, 0))) < 0.45 for shift in shifts]
    return (torch.stack(inside)[:, None] * torch.rand(batch, 1, *shape, generator=seeded()).clamp_min(0.01)).float()


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_dropped_has_the_least_foreground(shared):
    volumes = heads()
    kept = foreground_tokens(volumes, 8, 0.6, shared=shared)
    assert kept.shape == (1 if shared else 4, round(0.6 * 240)) and (kept.diff(dim=1) > 0).all()
    share = (patchify(volumes, 8) > 0).float().mean(-1)
    share = share.mean(0, keepdim=True) if shared else share
    for row, positions in zip(share, kept):
        rest = torch.ones(240, dtype=torch.bool)
        rest[positions] = False
        assert row[rest].max() <= row[positions].min()
    counted = [(patchify(v[None], 8) > 0).float().sum(-1)[0] for v in volumes]
    inside = sum(c[kept[0 if shared else i]].sum() for i, c in enumerate(counted)) / sum(c.sum() for c in counted)
    assert float(dropped_foreground(volumes, 8, kept)) == pytest.approx(1 - float(inside), abs=1e-6)
    assert 0 <= float(dropped_foreground(volumes, 8, kept)) < 0.02


@pytest.mark.parametrize("budget", [1.0, 0.6])
@pytest.mark.parametrize(
    ("kind", "shared"), [("random", True), ("random", False), ("block", True), ("block", False), ("replica", True)]
)
def test_masks_do_not_depend_on_how_a_batch_is_split(kind, shared, budget):
    volumes, config = heads(), MaskConfig(kind=kind, shared=shared, budget=budget)
    kept = config.kept(volumes, 8)
    whole = config.draw(4, GRID, seeded(), CPU, kept=kept)
    assert whole.visible.shape[0] == whole.hidden.shape[0] == 4
    total = whole.visible.shape[1] + whole.hidden.shape[1]
    assert total == round(240 * budget)
    for row in range(4):
        both = whole.both[row].sort().values
        expected = torch.arange(240) if kept is None else kept[0 if shared else row]
        assert torch.equal(both, expected)
    for rows in (slice(0, 2), slice(2, 4)):
        mine = kept if kept is None or shared else kept[rows]
        part = config.draw(4, GRID, seeded(), CPU, kept=mine, rows=rows)
        assert torch.equal(part.visible, whole.visible[rows]) and torch.equal(part.hidden, whole.hidden[rows])
    assert (whole.visible.stride(0) == 0) == shared  # one expanded row is gathered several times as fast


def test_mask_settings_that_are_none_are_refused():
    for wrong in ({"kind": "stripes"}, {"kind": "replica", "shared": False}, {"budget": 0.0}, {"blocks": 0}):
        with pytest.raises(ValueError, match="mask"):
            MaskConfig(**wrong)
