"""All random numbers of a scan: its subject's anatomy and disease, and what the scanner did."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from brainfm_lib.data.phantom import dials, imaging
from brainfm_lib.data.phantom.anatomy import AUTISM_PLACES
from brainfm_lib.data.phantom.cohort import PhantomSpec, draw_ancestor, draw_contrast, draw_subject, generator
from brainfm_lib.data.phantom.conditions import CONDITIONS
from brainfm_lib.data.phantom.deform import random_velocity
from brainfm_lib.data.phantom.lesion import Lesion, draw_lesion, mass_effect
from brainfm_lib.data.phantom.regions import fields, lesion_places

SIZES = {"F": 0.872, "M": 0.912}  # size of the brain relative to the template, which is larger than most people's
NOISE = 0.002  # standard deviation in a voxel of 2 mm, where white matter of a T1w scan is near 0.9
TILT = np.array([6.0, 3.0, 3.0])  # degrees about x, y and z: heads nod; scans are not registered
SHIFT = 2.5  # mm, standard deviation along each axis
POINT_SPREAD = 0.68  # mm, standard deviation in plane


@dataclass(frozen=True)
class Draw:
    """All random numbers of one scan; `severity` signs are already in `velocity`, `thin` and `lesion`."""

    ancestor: str  # file of labels, "" for the average brain
    matrix: np.ndarray  # (3, 3) subject mm -> template mm
    shift: np.ndarray  # (3,) mm
    velocity: np.ndarray  # (3, X, Y, Z) mm
    thin: tuple[float, float]  # units of thinning: everywhere, and on top of that in the temporal lobe
    lesion: Lesion | None
    contrast: str
    jitter: np.ndarray  # (8,)
    bias: np.ndarray  # (K,)
    scanner: (
        np.ndarray
    )  # (3, 4) for each axis: point spread (deviation, mm), voxel measured (mm), ghosts, distance (mm)
    factors: np.ndarray  # (dials.COUNT,) of the family "dial", else zeros
    curve: float  # exponent of the intensity curve
    noise: float  # standard deviation in a voxel of 2 mm
    strip: float  # how tight the skull-strip is
    seeds: tuple[int, int, int, int]  # of texture, of noise (two) and of folds


def _rotation(angles: np.ndarray) -> np.ndarray:
    """(3, 3) rotation about x, then y, then z, radians."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    return np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]]) @ ry @ rx


def draw(spec: PhantomSpec, subject: int, scan: int, *, severity: float | None = None) -> Draw:
    """Draw a scan: its subject's anatomy and disease, then this scan's imaging.

    Args:
        spec: The cohort.
        subject, scan: Their numbers.
        severity: In place of the subject's latent severity; all else stays as it is.
    """
    who, k = draw_subject(spec, subject), spec.nuisance
    if severity is not None:
        who = replace(who, severity=severity)
    family, signs = CONDITIONS[who.condition].family, spec.effect * who.severity
    rng = generator(spec, "anatomy", subject)
    normal = lambda size=None: np.clip(rng.standard_normal(size), -2.5, 2.5)  # noqa: E731
    size = SIZES[who.sex] * (1 + k * 0.018 * normal()) * (1 + k * 0.010 * normal(3))
    matrix = np.diag(1 / size) @ _rotation(k * np.radians(TILT) * normal(3))
    velocity = random_velocity(rng, k)
    ancestor = draw_ancestor(spec, subject)
    known = fields(ancestor)

    # Ageing: ventricles widen from middle age on, cortex thins; healthy people of one age differ widely.
    years = max(0.0, (who.age + scan - 20.0) / 50.0)
    ventricles = 2.4 * years**2 + k * 1.1 * normal()
    hippocampi = 0.35 * years**2 + k * 0.32 * normal()
    thin = [0.30 * years + k * 0.12 * normal(), k * 0.12 * normal()]
    torque = 1.5 + k * normal()
    places = k * 0.35 * normal(len(AUTISM_PLACES))
    lesion, factors = None, np.zeros(dials.COUNT)
    if family == "dementia":
        ventricles, hippocampi = ventricles + 1.1 * signs, hippocampi + 0.60 * signs
        thin = [thin[0] + 0.10 * signs, thin[1] + 0.25 * signs]
    elif family == "autism":
        places = places + 0.45 * signs
        thin[0] -= 0.04 * signs
    elif family == "dial":
        factors = spec.effect * dials.draw_factors(
            CONDITIONS[who.condition].setting, who.severity, generator(spec, "factors", subject)
        )
    else:
        lesion = draw_lesion(rng, lesion_places(ancestor), who.severity, spec.effect)
        velocity = velocity + mass_effect(lesion)
    velocity = velocity + np.float32(ventricles) * known.ventricles + np.float32(hippocampi) * known.hippocampi
    velocity = velocity + np.float32(torque) * known.torque
    velocity = velocity + np.tensordot(places.astype(np.float32), known.autism, axes=1)
    texture_seed, fold_seed = (int(seed) for seed in rng.integers(2**31, size=2))

    machine = generator(spec, "site", who.site)
    strength = k * spec.site_effect
    machine_curve, machine_noise, machine_bias, machine_blur = np.exp(strength * 0.15 * machine.standard_normal(4))
    machine_jitter = strength * 0.03 * machine.standard_normal(8)
    machine_voxel = 1.2 + strength * machine.uniform(-0.3, 0.6)  # mm in plane
    rng = generator(spec, "scan", subject, scan)
    jitter = np.exp(machine_jitter + k * np.array([0.10, 0.05, 0.05, 0.04, 0.08, 0.08, 0.08, 0.08]) * normal(8))
    # Rows: point spread, measured voxel, share in ghosts, their distance. Slices are thick along one axis.
    scanner = np.tile(np.array([POINT_SPREAD * machine_blur, max(machine_voxel, 0.6), 0.0, 0.0]), (3, 1))
    sliced, phase = rng.permutation(3)[:2]
    thicker = 1 + k * rng.exponential(1.5)
    scanner[sliced, 0] = min(scanner[sliced, 0] * thicker, 3.0)
    scanner[sliced, 1] = 0.0  # slices are excited, not encoded: they do not ring
    scanner[phase, 2:] = min(k * rng.exponential(0.015), 0.08), rng.uniform(6.0, 40.0)
    return Draw(
        ancestor,
        matrix,
        k * SHIFT * normal(3),
        velocity,
        (float(thin[0]), float(thin[1])),
        lesion,
        draw_contrast(spec, subject, scan),
        jitter,
        k * 0.14 * machine_bias * normal(imaging.BIAS_TERMS),
        scanner,
        factors,
        float(machine_curve * np.exp(k * 0.08 * normal())),
        float(NOISE * machine_noise * np.exp(0.4 * k * normal())),
        float(np.clip(0.55 + k * 0.08 * normal(), 0.35, 0.75)),
        (texture_seed, int(rng.integers(2**31)), int(rng.integers(2**31)), fold_seed),
    )
