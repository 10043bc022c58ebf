"""Pretraining in one process or in several: who makes a run, and how the others learn of it.

Several processes are started by a launcher (``accelerate launch``, ``torchrun``). The first one holds the run's lock,
prepares the volumes, writes checkpoints and results; the others train along. They need the same data, and see the run
store's folder, where a broken run is resumed from.
"""

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as distributed

from brainfm_lib.device import fixed_threads
from brainfm_lib.making.together import make_together
from brainfm_lib.pretrain.loop import Trainer
from brainfm_lib.study import Study

PATIENCE = timedelta(hours=24)  # how long the others wait while the first process prepares volumes


def n_processes() -> int:
    """Number of processes that the launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def pretrain_arms(study: Study) -> Iterator[tuple[str, str]]:
    """Pretrain the arms of a study and yield arm and run, in the first process.

    Several processes train one arm after the other; one process trains small ones side by side, see `together`.
    """
    if n_processes() == 1:
        make_together(study, [[f"pretrain:{arm}"] for arm in study.arms])
        for arm in study.arms:
            yield arm, study.run(f"pretrain:{arm}").id
        return
    from accelerate import PartialState

    state = PartialState(cpu=study.cpu, timeout=PATIENCE)
    for arm in study.arms:
        if state.is_main_process:
            yield arm, _lead(study, arm)
        else:
            _follow(study, arm)
    state.destroy_process_group()  # threads that still wait for each other at Python's end would abort it


def _lead(study: Study, arm: str) -> str:
    """Make the run, or find it, and tell the others which it was."""
    announced = []

    def announce(folder: Path | None) -> None:
        announced.append(folder)
        distributed.broadcast_object_list([None if folder is None else str(folder)], src=0)

    run = study.run(f"pretrain:{arm}", started=announce)
    if not announced:
        announce(None)
    return run.id


def _follow(study: Study, arm: str) -> None:
    """Train along, if the first process says that there is something to train, and in which folder."""
    message: list[Any] = [None]
    distributed.broadcast_object_list(message, src=0)
    if message[0] is not None:
        volumes = (study.pretraining_volumes(0)[0], study.pretraining_volumes(1)[0])
        config = study.profile.pretraining(arm, study.seed)
        folder = Path(message[0])
        trainer = Trainer(config, *volumes, folder, cpu=study.cpu, compile=study.compile, recompute=study.recompute)
        with fixed_threads(trainer.device, study.profile.encoder.embed_dim):
            trainer.run()
