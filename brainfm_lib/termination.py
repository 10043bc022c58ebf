"""Work that SIGTERM ends at any time with a sentence, and with everything on its way put in order."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from brainfm_lib.pretrain.stopping import Terminated


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """End work in the main thread with a sentence when SIGTERM comes, at any time but where `Sigterm` waits for one."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what is put in order is not cut short
        raise Terminated("terminated; the same command goes on from there")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)  # None: not Python's own
