"""The model card of a pretrained encoder: what it is, what it was trained on, what it is not for."""

import dataclasses
from collections.abc import Mapping

from brainfm_lib import __version__
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.objectives import EVERY_ARM, ObjectiveConfig

TRAINED_ON = "trained_on.txt"  # beside the weights: what an encoder has seen, a key a scan
KEY = 16  # hexadecimal digits of a scan's digest that are its key


def model_card(objective: ObjectiveConfig, geometry: Geometry, facts: Mapping[str, str]) -> str:
    """Write the card as Markdown with the YAML header that model hubs read.

    Args:
        objective: Arm, encoder and losses.
        geometry: Grid (voxels) and spacing (mm) it was trained on.
        facts: Further rows of the table: training, data, run.
    """
    arm, size = EVERY_ARM[objective.arm], objective.encoder
    grid = " × ".join(str(n) for n in geometry.grid)
    rows = {
        "Objective": arm.title,
        "Encoder": f"vision transformer, {size.embed_dim} wide, {size.depth} blocks, {size.heads} heads",
        "Input": f"{grid} voxels of {geometry.spacing:g} mm, RAS, z-scored; patches of {size.patch_size}³",
        **facts,
        "Written by": f"brainfm_lib {__version__}",
    }
    if objective.spectral is not None:
        rows["Spectral loss"] = _listed(objective.spectral)
    if objective.vcr is not None:
        rows["Variance-covariance regularisation"] = _listed(objective.vcr)
    if objective.lejepa is not None and objective.sigreg is not None:
        rows["Projector, not part of the encoder"] = _listed(objective.lejepa)
        rows["SIGReg"] = _listed(objective.sigreg)
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    use = "path/to/this/folder"
    return f"""---
library_name: brainfm_lib
tags: [brain-mri, self-supervised-learning, {arm.family}]
---

# Encoder pretrained with {arm.title}

| | |
|---|---|
{table}

```python
from brainfm_lib.models import VisionTransformer3d

encoder = VisionTransformer3d.from_pretrained("{use}")
tokens = encoder(volumes)  # (B, 1, D, H, W) -> (B, N, {size.embed_dim})
```

Positions are computed, so any grid of whole patches is accepted; away from the grid and spacing above nothing is known
of its quality. For research; not a medical device. Sites, contrasts, ages and diseases that the training data lack
need a validation of their own. The licences of the data bind its use.
"""


def _listed(config: object) -> str:
    assert dataclasses.is_dataclass(config) and not isinstance(config, type)
    return ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(config).items())
