"""Processes that help a longer work: they end with it, however it ends."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

LOOKED = 1.0  # seconds between two looks at whether the parent is there


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


@contextmanager
def given_up_on_error(pool: ProcessPoolExecutor) -> Iterator[ProcessPoolExecutor]:
    """As ``with pool``, but what still waits is dropped where the work ends with an error or a signal."""
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
