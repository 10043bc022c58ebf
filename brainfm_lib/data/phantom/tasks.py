"""The simulated conditions, the latent severity that each draws from, and what an ideal observer could reach.

Every subject has one latent severity, Gaussian with unit variance about its condition's mean; the image changes with
it smoothly and without a step between conditions. So no observer, however good, can beat `ideal_auroc`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from brainfm_lib.data.phantom.dials import FACTORS, POPULATION, SEPARATION

if TYPE_CHECKING:
    from brainfm_lib.data.phantom.cohort import PhantomSpec


@dataclass(frozen=True)
class Condition:
    """A diagnosis.

    Args:
        family: Which signs it shows: "dementia", "tumour", "autism" or "dial".
        mean: Mean of the latent severity, in its standard deviations, at `PhantomSpec.severity` 1.
        ages: Mean and standard deviation of age, years; the same for every condition of a family, so that age says
            nothing about the diagnosis.
        age_range: Youngest and oldest, years.
        setting: Of the dials, a key of `dials.FACTORS`; "" elsewhere and for subjects who carry every factor.
    """

    family: str
    mean: float
    ages: tuple[float, float]
    age_range: tuple[float, float]
    setting: str = ""


_OLD = ((73.0, 7.0), (55.0, 92.0))
_MIDDLE = ((52.0, 13.0), (20.0, 85.0))
_YOUNG = ((20.0, 8.0), (7.0, 50.0))
CONDITIONS: dict[str, Condition] = {
    "NC": Condition("dementia", 0.0, *_OLD),
    "MCI": Condition("dementia", 1.2, *_OLD),
    "AD": Condition("dementia", 2.6, *_OLD),
    "2": Condition("tumour", 0.0, *_MIDDLE),
    "3": Condition("tumour", 1.5, *_MIDDLE),
    "4": Condition("tumour", 3.0, *_MIDDLE),
    "control": Condition("autism", 0.0, *_YOUNG),
    "autism": Condition("autism", 1.6, *_YOUNG),
}
CONDITIONS[POPULATION] = Condition("dial", 0.0, *_MIDDLE)
for _setting in FACTORS:
    for _name, _mean in (("control", -SEPARATION / 2), ("case", SEPARATION / 2)):
        CONDITIONS[f"{_setting}-{_name}"] = Condition("dial", _mean, *_MIDDLE, setting=_setting)


def severity_mean(condition: str, spec: PhantomSpec) -> float:
    """Mean of the latent severity of a condition under `spec`."""
    return CONDITIONS[condition].mean * spec.severity


def ideal_auroc(classes: Sequence[Sequence[str]], spec: PhantomSpec) -> float:
    """AUROC of an observer who knows the latent severity and the cohort: the ceiling of a task.

    A class may be several conditions, mixed by their prevalence in `spec`. The score is the likelihood ratio of the
    class against the rest, so nothing can be better; for two conditions it is Phi(d' / sqrt 2) of means d' apart.

    Args:
        classes: Conditions of each class.
        spec: The cohort; its severity scales the distance of the means.

    Returns:
        For two classes the AUROC of the second; for more the mean over classes of each against the rest.
    """
    prevalence = dict(spec.conditions)
    weights = [np.array([prevalence.get(name, 1.0) for name in names]) for names in classes]
    means = [np.array([severity_mean(name, spec) for name in names]) for names in classes]
    every = np.concatenate(means)
    places = np.linspace(every.min() - 7, every.max() + 7, 20_001)
    densities = np.stack(
        [(w * np.exp(-((places[:, None] - m) ** 2) / 2)).sum(axis=1) for w, m in zip(weights, means, strict=True)]
    )
    found = []
    for one in range(1 if len(classes) == 2 else 0, len(classes)):
        mine, rest = densities[one], densities.sum(axis=0) - densities[one]
        order = np.argsort(mine / np.maximum(rest, 1e-300), kind="stable")
        mine, rest = mine[order] / mine.sum(), rest[order] / rest.sum()
        found.append(float((mine * (np.cumsum(rest) - rest / 2)).sum()))
    return float(np.mean(found))
