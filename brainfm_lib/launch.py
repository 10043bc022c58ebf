"""Pretraining in one process or in several: who makes a run, and how the others learn of it.

Several processes are started by a launcher (``accelerate launch``, ``torchrun``). The first one holds the run's lock,
prepares the volumes, writes checkpoints and results; the others train along. They need the same data, and see the run
store's folder, where a broken run is resumed from.
"""

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as distributed

if TYPE_CHECKING:
    from brainfm_lib.study import Study

PATIENCE = timedelta(hours=24)  # how long the others wait while the first process prepares volumes


def n_processes() -> int:
    """Number of processes that the launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def announce(folder: Path | None) -> None:
    """Tell the other processes where the run is that is trained now; None: it is finished already."""
    if n_processes() > 1:
        distributed.broadcast_object_list([None if folder is None else str(folder)], src=0)


def _heard() -> Path | None:
    message: list[Any] = [None]
    distributed.broadcast_object_list(message, src=0)
    return None if message[0] is None else Path(message[0])


def pretrain_arms(study: "Study") -> Iterator[tuple[str, str]]:
    """Pretrain the arms of a study, one after the other, with all processes; yield arm and run in the first process."""
    if n_processes() == 1:
        for arm in study.arms:
            yield arm, study.run(f"pretrain:{arm}").id
        return
    from accelerate import PartialState

    from brainfm_lib.pretrain import Trainer

    state = PartialState(cpu=study.cpu, timeout=PATIENCE)
    for arm in study.arms:
        if state.is_main_process:
            made = [False]
            run = study.run(f"pretrain:{arm}", started=lambda made=made: made.append(True))
            if not made[-1]:
                announce(None)
            yield arm, run.id
        else:
            folder = _heard()
            if folder is not None:
                config = study.profile.pretraining(arm, study.seed)
                volumes = (study.pretraining_volumes(0)[0], study.pretraining_volumes(1)[0])
                Trainer(config, *volumes, folder, cpu=study.cpu, compile=study.compile, recompute=study.recompute).run()
