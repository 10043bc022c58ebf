"""Helpers of a longer work, threads and processes: asked in order, and ended with it, however it ends."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any

LOOKED = 1.0  # seconds between two looks at whether the parent is there


def bound_cores() -> int:
    """Cores that this process is bound to."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent(parent: int) -> None:
    """Call first in a helper: it ends when its parent does, also one that was killed.

    Args:
        parent: Process identifier of the parent.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOKED)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def in_order(pool: Executor, make: Callable[[Any], Any], items: Iterable[Any], ahead: int) -> Iterator[Any]:
    """What `pool` makes of items, in their order, at most `ahead` of them before they are asked for."""
    left = iter(items)
    waiting = deque(pool.submit(make, item) for item in islice(left, ahead))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(make, item) for item in islice(left, 1))


@contextmanager
def given_up_on_error(pool: ProcessPoolExecutor) -> Iterator[ProcessPoolExecutor]:
    """As ``with pool``, but what still waits is dropped where the work ends with an error or a signal."""
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
