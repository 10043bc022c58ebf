"""Augmentation on a CPU: a volume at a time through compiled loops, several threads side by side.

`brainfm_lib.data.augment` says in tensor operations what is done; here it is done in as few passes over memory as it
takes, which is several times faster on a CPU. A volume's result depends on its own arguments alone.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch

from brainfm_lib.data.storage import FLOOR

Volume = npt.NDArray[np.float32]
Number = Any  # within compiled loops, of the type that its operations give it

BITS = 30  # of the fraction of a place
LEAST, MOST, NOTHING = np.float32(1e-3), np.float32(1), np.float32(0)
assert np.float32(FLOOR) == LEAST, "written out, because what is compiled is kept for as long as this file is the same"
MANTISSA, ROOT = np.int32(23), np.float32(0.5**0.5).view(np.int32)  # bits of a float32
LOG2 = np.float32(math.log(2))
A3, A5, A7, A9 = (np.float32(2 / n) for n in (3, 5, 7, 9))
E2, E3, E4, E5, E6 = (np.float32(1 / math.factorial(n)) for n in (2, 3, 4, 5, 6))

OPTIONS: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz", "nnan", "ninf"}}
SIGNATURE = "void(f4[:, :, ::1], f4[:, :, ::1], i8, f4[:, ::1], i8, i8, f4, i8)"
compiled = numba.njit(**OPTIONS)


def kept_on_disk(function: Callable[..., Any]) -> Any:
    """Compile at once, with what is called; the next process reads what came of it, if a folder can be written.

    Whether that is still true numba tells by the content of this file alone: what is called, and the constants and
    options that go into it, must stand here.
    """
    try:
        return numba.njit(SIGNATURE, cache=True, **OPTIONS)(function)
    except (RuntimeError, OSError):
        return numba.njit(SIGNATURE, **OPTIONS)(function)


def change_all(volumes: Volume, threads: int | None = None, **arguments: npt.NDArray[Any]) -> None:
    """Augment volumes (B, D, H, W) in place, by as many threads as torch computes with.

    Args:
        volumes: A batch.
        threads: Another number of them.
        arguments: Of `change`, each with a row a volume.
    """
    own = threading.local()
    ordered = [arguments[name] for name in ("space", "inverse", "turn", "value", "amount", "seed")]

    def work(row: int) -> None:
        if not hasattr(own, "spare"):
            own.spare = np.zeros([n + 3 for n in volumes.shape[1:]], np.float32)
        change(volumes[row], own.spare, *(argument[row] for argument in ordered))

    with ThreadPoolExecutor(threads or torch.get_num_threads()) as pool:
        list(pool.map(work, range(len(volumes))))


@compiled
def kept(value: Number) -> Number:
    """A value of the foreground, in its range."""
    return min(max(value, LEAST), MOST)


@compiled
def flip(volume: Volume) -> None:
    """Mirror along the first axis."""
    depth, height, width = volume.shape
    for d in range(depth // 2):
        there = depth - 1 - d
        for h in range(height):
            for w in range(width):
                volume[d, h, w], volume[there, h, w] = volume[there, h, w], volume[d, h, w]


@compiled
def cycle(volume: Volume, spare: Volume) -> None:
    """The last axis becomes the second, the second the first, the first the last, of a cube."""
    for d in range(len(volume)):
        for h in range(len(volume)):
            for w in range(len(volume)):
                spare[d + 1, h + 1, w + 1] = volume[d, h, w]
    for d in range(len(volume)):
        for h in range(len(volume)):
            for w in range(len(volume)):
                volume[d, h, w] = spare[w + 1, d + 1, h + 1]


@compiled
def curve(values: Volume, exponent: Number) -> None:
    """A gamma curve over the foreground."""
    for i in range(values.size):
        curved = kept(power(max(values[i], LEAST), exponent))
        values[i] = curved if values[i] > 0 else NOTHING


@compiled
def power(x: Number, exponent: Number) -> Number:
    """``x ** exponent`` for x in [0.001, 1], to 1e-6 of it: a library's is exact, and not done several at a time.

    x = 2**n m, m within a factor sqrt(2) of 1; log m = 2 artanh((m - 1) / (m + 1)), whose series, and that of the
    exponential of what is left of an integer, end below float32's resolution.
    """
    bits = np.float32(x).view(np.int32)
    n = (bits - ROOT) >> MANTISSA
    m = np.int32(bits - (n << MANTISSA)).view(np.float32)
    s = (m - MOST) / (m + MOST)
    q = s * s
    log = s * (2 + q * (A3 + q * (A5 + q * (A7 + q * A9))))
    y = exponent * (log / LOG2 + np.float32(n))
    whole = np.rint(y)
    t = (y - whole) * LOG2
    exp = 1 + t * (1 + t * (E2 + t * (E3 + t * (E4 + t * (E5 + t * E6)))))
    return np.int32(np.float32(exp).view(np.int32) + (np.int32(whole) << MANTISSA)).view(np.float32)


@compiled
def scattered(x: Number) -> Number:
    """As `noise._hash`; a product of two is wider than they are."""
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


@compiled
def add_noise(values: Volume, deviation: Number, seed: Number) -> None:
    """Noise as of `noise.white_noise`, over the foreground."""
    own, low = scattered(seed), np.uint32(0xFFFF)
    unit = np.float32(3.0**0.5 / 65536) * deviation
    for i in range(values.size):
        first = scattered(own ^ scattered(np.uint32(i)))
        second = scattered(np.uint32(first + np.uint32(0x3C6EF372)))
        total = (first & low) + (first >> np.uint32(16)) + (second & low) + (second >> np.uint32(16))
        noisy = kept(values[i] + np.float32(np.int32(total) - np.int32(131070)) * unit)
        values[i] = noisy if values[i] > 0 else NOTHING


@compiled
def blur(volume: Volume, spare: Volume, deviation: Number) -> None:
    """Three taps of a Gaussian along each axis, 0 outside, over the foreground."""
    depth, height, width = volume.shape
    side = np.float32(math.exp(-0.5 / deviation**2))
    centre = MOST / (MOST + 2 * side)
    side *= centre
    rows = np.zeros((height + 2, width), np.float32)
    for d in range(depth):
        for h in range(height):
            given, row = volume[d, h], rows[h + 1]
            for w in range(width):
                row[w] = centre * given[w]
            for w in range(1, width):
                row[w] += side * given[w - 1]
                row[w - 1] += side * given[w]
        for h in range(height):
            before, here, behind, made = rows[h], rows[h + 1], rows[h + 2], spare[d + 1, h + 1, 1 : width + 1]
            for w in range(width):
                made[w] = centre * here[w] + side * (before[w] + behind[w])
    for d in range(depth):
        for h in range(height):
            before, here, behind = spare[d, h + 1], spare[d + 1, h + 1], spare[d + 2, h + 1]
            made = volume[d, h]
            for w in range(width):
                blurred = kept(centre * here[w + 1] + side * (before[w + 1] + behind[w + 1]))
                made[w] = blurred if made[w] > 0 else NOTHING


@compiled
def move(volume: Volume, spare: Volume, inverse: Volume) -> None:
    """Trilinear samples at places ``inverse @ (d, h, w)`` from the centre, 0 outside; see `augment._moved`."""
    depth, height, width = volume.shape
    reach = np.zeros((depth + 2, 4), np.float32)  # of each slice's foreground in `spare`, a voxel beyond: h, w
    reach[:, 0], reach[:, 2] = height, width
    for d in range(depth):
        box = reach[d + 1]
        for h in range(height):
            row, most = spare[d + 1, h + 1], NOTHING
            for w in range(width):
                row[w + 1] = volume[d, h, w]
                most = max(most, volume[d, h, w])
            if most > 0:
                left, right = 0, width - 1
                while volume[d, h, left] == 0:
                    left += 1
                while volume[d, h, right] == 0:
                    right -= 1
                box[0], box[1] = min(box[0], h), max(box[1], h + 2)
                box[2], box[3] = min(box[2], left), max(box[3], right + 2)
    middle_d, middle_h, middle_w = (depth - 1) / 2, (height - 1) / 2, (width - 1) / 2
    step_d, step_h, step_w = inverse[0, 2], inverse[1, 2], inverse[2, 2]
    for d in range(depth):
        for h in range(height):
            made, a, b = volume[d, h], d - middle_d, h - middle_h
            at_d = inverse[0, 0] * a + inverse[0, 1] * b - step_d * middle_w + middle_d + 1
            at_h = inverse[1, 0] * a + inverse[1, 1] * b - step_h * middle_w + middle_h + 1
            at_w = inverse[2, 0] * a + inverse[2, 1] * b - step_w * middle_w + middle_w + 1
            low, high = between(0, width, at_d, step_d, 0, depth + 1)
            ends = at_d + step_d * low, at_d + step_d * (high - 1)
            top, bottom, leftmost, rightmost = float(height), 0.0, float(width), 0.0
            for met in range(max(int(min(ends)), 0), min(int(max(ends)) + 2, depth + 2)):
                top, bottom = min(top, reach[met, 0]), max(bottom, reach[met, 1])
                leftmost, rightmost = min(leftmost, reach[met, 2]), max(rightmost, reach[met, 3])
            low, high = between(low, high, at_h, step_h, top, bottom)
            low, high = between(low, high, at_w, step_w, leftmost, rightmost)
            made[:] = 0
            sample(spare, made, low, high, (at_d, at_h, at_w), (step_d, step_h, step_w))


@compiled
def between(
    low: Number, high: Number, start: Number, step: Number, first: Number, last: Number
) -> tuple[Number, Number]:
    """The part of ``range(low, high)`` in which ``first < start + step * w < last``, rounded or not."""
    first += 1e-6
    if first >= last:
        return low, low
    if abs(step) < 1e-12:
        return (low, high) if first < start < last else (low, low)
    one, other = (first - start) / step, (last - start) / step
    if one > other:
        one, other = other, one
    return max(low, math.ceil(one)), min(high, math.floor(other) + 1)


@compiled
def sample(
    given: Volume, made: Volume, low: Number, high: Number, start: tuple[Number, ...], step: tuple[Number, ...]
) -> None:
    """Trilinear samples at ``start + step * w``, for w in ``range(low, high)``; places count in units of 2**-30."""
    values, line, plane = given.ravel(), given.shape[2], given.shape[1] * given.shape[2]
    step_d, step_h, step_w = whole(step[0]), whole(step[1]), whole(step[2])
    at_d, at_h, at_w = whole(start[0]) + low * step_d, whole(start[1]) + low * step_h, whole(start[2]) + low * step_w
    right, below, behind = np.uint64(1), np.uint64(line), np.uint64(plane)
    for w in range(low, high):
        near = np.uint64((at_d >> BITS) * plane + (at_h >> BITS) * line + (at_w >> BITS))
        far, to_d, to_h, to_w = near + behind, part(at_d), part(at_h), part(at_w)
        at_d, at_h, at_w = at_d + step_d, at_h + step_h, at_w + step_w
        a = values[near] + to_w * (values[near + right] - values[near])
        b = values[near + below] + to_w * (values[near + below + right] - values[near + below])
        a += to_h * (b - a)
        b = values[far] + to_w * (values[far + right] - values[far])
        c = values[far + below] + to_w * (values[far + below + right] - values[far + below])
        b += to_h * (c - b)
        a += to_d * (b - a)
        made[w] = kept(a) if a > LEAST / 2 else NOTHING


@compiled
def whole(place: Number) -> Number:
    """A place in units of 2**-30: integers are split into voxel and fraction several times faster than floats are."""
    return np.int64(np.rint(place * 2.0**BITS))


@compiled
def part(place: Number) -> Number:
    """The fraction of a place in units of 2**-30, in [0, 1)."""
    return np.float32(np.int32(place & (2**BITS - 1))) * np.float32(2.0**-BITS)


@kept_on_disk
def change(
    volume: Volume,
    spare: Volume,
    space: Number,
    inverse: Volume,
    turn: Number,
    value: Number,
    amount: Number,
    seed: Number,
) -> None:
    """Augment a volume (D, H, W) in place.

    Args:
        volume: In [0, 1], background 0.
        spare: (D + 3, H + 3, W + 3), zero on its faces and 0 or anything within: one layer before, two behind.
        space: 0 nothing, 1 moved by `inverse`, 2 flipped along D.
        inverse: (3, 3), from output to input places, from the centre, voxels.
        turn: Places by which the axes change cyclically; not 0 only for cubes.
        value: 0 nothing, 1 a gamma curve, 2 noise, 3 blur.
        amount: Exponent of the curve; deviation of the noise; deviation of the blur, voxels.
        seed: Of the noise.
    """
    if space == 1:
        move(volume, spare, inverse)
    elif space == 2:
        flip(volume)
    for _ in range(turn):
        cycle(volume, spare)
    if value == 1:
        curve(volume.ravel(), np.float32(amount))
    elif value == 2:
        add_noise(volume.ravel(), np.float32(amount), np.uint32(seed))
    elif value == 3:
        blur(volume, spare, np.float32(amount))
