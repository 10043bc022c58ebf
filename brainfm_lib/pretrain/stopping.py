"""Why a training ends before its time: SIGTERM, as schedulers send it, and a loss that is no number."""

from __future__ import annotations

import math
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from brainfm_lib.ranks import sum_over_ranks

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from brainfm_lib.pretrain.optimiser import OptimiserConfig

ASK_EACH = 8  # steps between two times that processes ask each other whether to stop
TERMINATED = 128 + signal.SIGTERM  # a process' status after SIGTERM


class Terminated(SystemExit):
    """Work stopped where it can go on, because SIGTERM came; ends the process with status 143."""

    def __init__(self, said: str) -> None:
        super().__init__(TERMINATED)
        self.said = said
        Sigterm.came = False

    def __str__(self) -> str:
        return self.said


class Sigterm:
    """While it is entered, SIGTERM sets `asked` and does nothing else, and what came before is not forgotten.

    In another thread than the main one, and in a notebook, whose kernel SIGTERM is to end, nothing changes.
    """

    came = False  # in this process, since it last ended something

    def __init__(self) -> None:
        self._before: Any = None

    @property
    def asked(self) -> bool:
        """Whether SIGTERM has come."""
        return Sigterm.came

    def __enter__(self) -> Sigterm:
        interactive = sys.modules.get("IPython")
        if interactive is not None and interactive.get_ipython() is not None:
            return self
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            if kind is None and Sigterm.came and callable(self._before):  # it came in the very last step
                signal.raise_signal(signal.SIGTERM)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        Sigterm.came = True


def all_stop(asked: bool, step: int, world: int, device: torch.device) -> bool:
    """Whether any of `world` processes was asked to stop; they ask each other now and then, so all stop at one."""
    if world == 1 or step % ASK_EACH:
        return asked and world == 1
    import torch

    return bool(sum_over_ranks(torch.tensor([float(asked)], device=device)) > 0)


def diverged(
    arm: str, optimiser: OptimiserConfig, step: int, pending: Sequence[Mapping[str, Tensor]], kept: Sequence[Path]
) -> str:
    """What to say where loss or gradient is not finite.

    Args:
        arm: Whose.
        optimiser: Its learning rate.
        step: Steps done.
        pending: Terms of the last steps, up to `step`.
        kept: Checkpoints, oldest first.
    """
    sound = [all(math.isfinite(float(terms[name])) for name in ("loss", "gradient_norm")) for terms in pending]
    first = step - len(pending) + 1 + (sound.index(False) if False in sound else 0)
    last = f"the state of step {int(kept[-1].name.rpartition('-')[2])} is kept" if kept else "no state was kept yet"
    return (
        f"Loss or gradient of {arm} is not finite at step {first} (learning rate {optimiser.lr_at(first - 1):.2g}; "
        f"{last}). Most likely the rate is too high: lower optimiser.lr to {optimiser.lr / 2:g}, or arm_lr of this arm "
        "alone."
    )
