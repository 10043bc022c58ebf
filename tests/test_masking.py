"""Masks: exact counts, disjoint, complete, reproducible; the authors' draw hides what theory says."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brainfm_lib.masking import random_mask, replica_mask, visible_count


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
