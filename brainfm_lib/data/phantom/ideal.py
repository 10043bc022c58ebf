"""What an ideal observer could reach: a label shows in an image by severity alone, so nobody beats `ideal_auroc`."""

from collections.abc import Sequence

import numpy as np

from brainfm_lib.data.phantom.cohort import PhantomSpec


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
    means = [np.array([spec.severity_mean(name) for name in names]) for names in classes]
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
