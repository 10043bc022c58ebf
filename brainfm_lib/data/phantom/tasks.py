"""The simulated conditions, the latent severity that each draws from, and what an ideal observer could reach.

Every subject has one latent severity, Gaussian with unit variance about its condition's mean; the image changes with
it smoothly and without a step between conditions. So no observer, however good, can beat `ideal_auroc`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scipy.special import ndtr

from brainfm_lib.data.phantom.dials import FACTORS, SEPARATION

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
        setting: Of the dials, a key of `dials.FACTORS`; "" elsewhere.
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
for _setting in FACTORS:
    for _name, _mean in (("control", -SEPARATION / 2), ("case", SEPARATION / 2)):
        CONDITIONS[f"{_setting}-{_name}"] = Condition("dial", _mean, *_MIDDLE, setting=_setting)


def severity_mean(condition: str, spec: PhantomSpec) -> float:
    """Mean of the latent severity of a condition under `spec`."""
    return CONDITIONS[condition].mean * spec.severity


def ideal_auroc(condition_a: str | Sequence[str], condition_b: str | Sequence[str], spec: PhantomSpec) -> float:
    """AUROC of the latent severity itself, the ceiling for telling `condition_b` (more severe) from `condition_a`.

    Either side may be several conditions, mixed by their prevalence in `spec`: two Gaussians of unit variance whose
    means lie d' apart give Phi(d' / sqrt 2), and a mixture averages that over its pairs. The likelihood ratio grows
    with the latent as long as every mean on the one side lies above every mean on the other, so this is the ideal.
    """
    sides = [(side,) if isinstance(side, str) else tuple(side) for side in (condition_a, condition_b)]
    prevalence = dict(spec.conditions)
    weighed, total = 0.0, 0.0
    for a in sides[0]:
        for b in sides[1]:
            weight = prevalence.get(a, 1.0) * prevalence.get(b, 1.0)
            weighed += weight * ndtr((severity_mean(b, spec) - severity_mean(a, spec)) / 2**0.5)
            total += weight
    return float(weighed / total)
