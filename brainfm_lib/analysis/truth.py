"""What is known of a simulated task: the ideal observer, where in frequency its signal lies, and its rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainfm_lib.analysis.spectrum import radial_power
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.phantom import CONDITIONS, PhantomSpec, dials
from brainfm_lib.data.phantom.ideal import ideal_auroc

SUBJECTS = 24  # whose images are made at both ends of a task


def measure_truth(
    spec: PhantomSpec, classes: Sequence[Sequence[str]], geometry: Geometry, *, subjects: int = SUBJECTS
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The truth of a task.

    The discriminative spectrum is that of the difference which the label makes to an image: the same subjects, scanner
    and noise, once at the mean severity of the first class and once at that of the last.

    Args:
        spec: Of the cohort.
        classes: Conditions of each class, in order of severity.
        geometry: The grid.
        subjects: How many are rendered.

    Returns:
        A row: ideal_auroc (macro one-vs-rest for several classes), rank of the covariance that the latent factors have
            apart from the label, and the frequencies (cycles/mm) below which 10, 50 and 90 % of the signal's power lie.
        frequency (cycles/mm) and power ((stored intensity)² mm³, mean over subjects).
    """
    import torch

    from brainfm_lib.data.phantom.draws import draw
    from brainfm_lib.data.phantom.rendering import render_draws, single_threaded

    prevalence = dict(spec.conditions)

    def severity(names: Sequence[str]) -> float:
        return float(
            np.average([spec.severity_mean(n) for n in names], weights=[prevalence.get(n, 1.0) for n in names])
        )

    ends = [severity(classes[0]), severity(classes[-1])]
    images = []
    with single_threaded(), torch.no_grad():
        for subject in range(subjects):
            images.append([render_draws([draw(spec, subject, 0, severity=s)], geometry)[0] for s in ends])
    difference = torch.stack([high - low for low, high in images])
    frequencies, power = radial_power(difference, geometry.spacing, window=None)
    mean = power.mean(axis=0)
    share = np.cumsum(mean * frequencies**2)  # a shell's modes grow with the square of its radius
    low, middle, high = (float(frequencies[np.searchsorted(share, q * share[-1])]) for q in (0.1, 0.5, 0.9))
    truth = {
        "ideal_auroc": ideal_auroc(classes, spec),
        "rank": _rank(spec, classes),
        "frequency_10": low,
        "frequency_50": middle,
        "frequency_90": high,
    }
    return truth, pd.DataFrame({"frequency": frequencies, "power": mean})


def _rank(spec: PhantomSpec, classes: Sequence[Sequence[str]]) -> int:
    """Rank of the covariance that a task's latents have apart from the label: of the dials' factors, as drawn.

    Other families have one latent severity.
    """
    names = [name for names in classes for name in names]
    if any(CONDITIONS[name].family != "dial" for name in names):
        return 1
    rng, drawn = np.random.default_rng(0), []
    for name in names:
        severities = spec.severity_mean(name) + rng.standard_normal(4 * dials.COUNT)
        factors = np.stack([dials.draw_factors(CONDITIONS[name].setting, s, rng) for s in severities])
        drawn.append(factors - factors.mean(0))
    return int(np.linalg.matrix_rank(np.concatenate(drawn), tol=1e-6))


def latents(spec: PhantomSpec, subjects: Sequence[str]) -> np.ndarray:
    """(n, K) what the labels of subjects are drawn from: all factors that they carry, else the one latent severity."""
    from brainfm_lib.data.phantom.cohort import draw_subject
    from brainfm_lib.data.phantom.draws import draw

    numbers = [int(name.rsplit("-", 1)[-1]) for name in subjects]
    if any(CONDITIONS[name].family != "dial" for name, _ in spec.conditions):
        return np.array([[draw_subject(spec, number).severity] for number in numbers])
    return np.stack([draw(spec, number, 0).factors for number in numbers])


def make_latents(spec: PhantomSpec, subjects: Callable[[], Sequence[str]]) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls: features that know the truth, a row a scan."""

    def make(folder: Path) -> dict[str, Any]:
        np.save(folder / "latents.npy", latents(spec, subjects()), allow_pickle=False)
        return {}

    return make


def make_truth(
    spec: PhantomSpec, classes: Sequence[Sequence[str]], geometry: Geometry
) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls: writes ``truth.parquet`` and ``spectrum.parquet``."""

    def make(folder: Path) -> dict[str, Any]:
        truth, spectrum = measure_truth(spec, classes, geometry)
        pd.DataFrame([truth]).to_parquet(folder / "truth.parquet", index=False)
        spectrum.to_parquet(folder / "spectrum.parquet", index=False)
        return {}

    return make
