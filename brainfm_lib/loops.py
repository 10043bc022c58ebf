"""Loops that are compiled for a CPU, where tensor operations would pass over memory many times."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import torch

Number = Any  # within compiled loops, of the type that its operations give it


def kept_on_disk(signature: str, options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile at once, with what is called; the next process reads what came of it, if a folder can be written.

    Whether that is still true numba tells by the content of the file in which the function stands: what it calls, and
    the constants and options that go into it, must stand there too.
    """

    def compile(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(signature, cache=True, **options)(function)
        except (RuntimeError, OSError):
            return numba.njit(signature, **options)(function)

    return compile


def in_threads(work: Callable[[int], object], count: int, threads: int | None = None) -> None:
    """Call ``work(i)`` for every i below `count`, by as many threads as torch computes with; each takes the next."""
    numbers = itertools.count()

    def take(_: int) -> None:
        while (number := next(numbers)) < count:
            work(number)

    threads = max(min(threads or torch.get_num_threads(), count), 1)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(take, range(threads)))
