"""MONAI's convolutional networks, as supervised baselines: what labels alone can teach."""

from __future__ import annotations

from torch import nn


def small_resnet(classes: int) -> nn.Module:
    """A ResNet of ten layers, 16 to 128 channels wide, for volumes (B, 1, D, H, W) of about 32 voxels a side or more.

    Args:
        classes: Outputs.

    Returns:
        MONAI's network, with random weights: logits (B, classes).
    """
    from monai.networks.nets import ResNet

    return ResNet(
        "basic",
        [1, 1, 1, 1],
        [16, 32, 64, 128],
        spatial_dims=3,
        n_input_channels=1,
        conv1_t_size=5,
        conv1_t_stride=2,
        no_max_pool=True,
        num_classes=classes,
    )
