"""The simulated conditions, and the latent severity that each draws from.

Every subject has one latent severity, Gaussian with unit variance about its condition's mean; the image changes with
it smoothly and without a step between conditions.
"""

from dataclasses import dataclass

from brainfm_lib.data.phantom.dials import FACTORS, POPULATION, SEPARATION


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
