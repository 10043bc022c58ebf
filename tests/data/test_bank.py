"""A bank in memory hands out what the store would."""

import dataclasses

import numpy as np
import pytest
import torch

from brainfm_lib.data.bank import PhantomBank
from brainfm_lib.data.batches import Batches
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.store import VolumeSet, open_volumes
from brainfm_lib.errors import InputError
from brainfm_lib.features import extract
from brainfm_lib.models import VisionTransformer3d, VisionTransformerConfig
from brainfm_lib.study import Study

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]


@pytest.fixture(scope="module")
def cohort():
    study = Study("tiny", progress=False)
    return study.cohort("phantom-tumour").select(range(20))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("storage", ["float16", "uint8"])
def test_it_equals_the_store(cohort, storage, device):
    geometry = Geometry((16, 20, 24), 8.0, storage)
    stored, bank = open_volumes(cohort, geometry, progress=False), PhantomBank(cohort, geometry, device)
    rows = [7, 0, 19]
    assert bank[rows].dtype == stored[rows].dtype
    if device == "cpu":
        assert np.array_equal(bank[rows], stored[rows])
        np.testing.assert_allclose(bank.info["foreground"], stored.info["foreground"], rtol=1e-6)
    else:  # up to rounding, which moves few voxels across the border of a mask
        assert (np.abs(bank.read(rows) - stored.read(rows)) > 0.01).mean() < 1e-3
    assert len(bank) == len(bank.scans) == 20 and len(bank.refused) == 0


def test_a_part_shares_the_memory_of_the_whole(cohort):
    bank = PhantomBank(cohort, Geometry((16, 16, 16), 10.0))
    part = bank.select(np.arange(20) % 3 == 0).select([4, 1])
    assert part.tensor is bank.tensor
    assert np.array_equal(part[:], bank[[12, 3]]) and np.array_equal(part[1:], bank[[3]])
    assert list(part.scans["scan_uid"]) == list(cohort.scans["scan_uid"].iloc[[12, 3]])


def test_training_and_features_read_it_like_the_store(cohort):
    geometry = Geometry((16, 16, 16), 10.0, "uint8")
    stored, bank = open_volumes(cohort, geometry, progress=False), PhantomBank(cohort, geometry)
    rows = np.array([3, 11, 3])
    here = [Batches(VolumeSet([one.select(range(5, 20))]), torch.device("cpu"))(rows) for one in (stored, bank)]
    assert torch.equal(*here)
    encoder = VisionTransformer3d(VisionTransformerConfig(patch_size=8, embed_dim=24, depth=2, heads=2))
    found = [extract(encoder, one, batch_size=7) for one in (stored, bank)]
    for name in found[0]:
        np.testing.assert_allclose(found[1][name], found[0][name], atol=1e-5)


def test_it_is_made_of_phantoms_alone(cohort):
    with pytest.raises(InputError, match="are real"):
        PhantomBank(dataclasses.replace(cohort, source=None), Geometry((16, 16, 16), 10.0))
