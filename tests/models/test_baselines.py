"""The supervised baseline takes our volumes and learns from them."""

import torch
import torch.nn.functional as F

from brainfm_lib.models.baselines import small_resnet


def test_a_small_resnet_tells_two_kinds_of_volumes_apart():
    torch.manual_seed(0)
    volumes, labels = 0.1 * torch.randn(16, 1, 32, 32, 32), torch.arange(16) % 3
    for row, label in enumerate(labels.tolist()):
        volumes[row, 0, 10 * label : 10 * label + 10] += 1
    model = small_resnet(3)
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(12):
        optimiser.zero_grad()
        loss = F.cross_entropy(model(volumes), labels)
        loss.backward()
        optimiser.step()
    assert model(volumes).shape == (16, 3) and float(loss.detach()) < 0.3
