"""Pretraining within minutes: measure on this machine, plan what fits, keep the plan, train."""

import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brainfm_lib.data.batches import batch_rows
from brainfm_lib.device import fixed_threads
from brainfm_lib.errors import InputError
from brainfm_lib.identity import stable_hash, write_atomic
from brainfm_lib.paths import runs_dir
from brainfm_lib.study import Study

if TYPE_CHECKING:
    from brainfm_lib.pretrain.config import PretrainConfig

RESERVE = 0.1  # of the budget, for checkpoints, validation and a machine that slows down
DATA_SHARE = 0.3  # of the budget, at most, for preparing volumes
PROBE_SUBJECTS = 8  # prepared first, to see how long a subject takes
MORE_SUBJECTS = 64  # prepared at most between two looks at the clock
PROBE_BATCH = 2  # volumes in the steps that are timed first
WORTHWHILE = 100  # steps: a batch grows towards the profile's as long as it leaves so many
SMALLEST = 10  # steps


def pretrain_within(
    minutes: float, profile: str, objective: str, manifest: Path | None, seed: int, *, cpu: bool = False
) -> dict[str, str]:
    """Pretrain the arms of `objective` within `minutes` of wall time, data preparation included.

    Planned are, from what this machine needs for a few volumes and steps: the number of pretraining subjects, where
    preparing all would take too long; the batch size, where the profile's leaves too few steps; and the number of
    steps. All are the same for every arm, so that arms see the same volumes. The plan is kept in ``runs/plans/``: the
    same command again follows it, also on another host with the same device. Finished arms are found, a broken one
    goes on, and time already spent counts.

    Returns:
        Run identifier of each arm.

    Raises:
        InputError: The budget does not suffice for `SMALLEST` steps.
    """
    if not minutes > 0:
        raise InputError(f"A budget of {minutes:g} minutes is none: give --minutes a number above 0.")
    from brainfm_lib.device import best_device, device_name

    start = time.perf_counter()
    base = Study(profile, manifest, seed, objective, cpu=cpu)
    arms = {arm: base.config(f"pretrain:{arm}").id for arm in base.arms}
    key = stable_hash([minutes, device_name(best_device(cpu=cpu)), objective, arms])
    file = runs_dir() / "plans" / f"plan-{key}.json"
    if file.is_file():
        plan: dict[str, Any] = json.loads(file.read_text())
    else:
        plan = _make_plan(base, minutes, start)
        with write_atomic(file) as path:
            path.write_text(json.dumps(plan, indent=2))
    print(_said(plan, base), flush=True)
    study = Study(profile, manifest, seed, objective, plan["overrides"], cpu=cpu)
    print(study.pretraining_said(), flush=True)
    finished = {}
    for arm in study.arms:
        finished[arm] = study.run(f"pretrain:{arm}").id
        print(f"{arm}: {finished[arm]} ({(time.perf_counter() - start) / 60:.1f} min)", flush=True)
    return finished


def _make_plan(base: Study, minutes: float, start: float) -> dict[str, Any]:
    """Prepare the volumes and time the steps; what is planned stands in ``overrides``, by dotted name."""
    subjects = _affordable_subjects(base, 60 * minutes * DATA_SHARE)
    overrides: dict[str, Any] = {} if subjects is None else {"subjects.pretraining": subjects}
    study = _like(base, overrides)
    volumes, _ = study.pretraining_volumes(0)
    full = study.profile.optimiser.batch_size
    batch, seconds = _affordable_batch(study, overrides, volumes, full, start + 60 * minutes * (1 - RESERVE))
    spent = time.perf_counter() - start
    steps = int((60 * minutes * (1 - RESERVE) - spent) / sum(seconds.values()))
    if steps < SMALLEST:
        raise InputError(
            f"{minutes:g} minutes leave {max(steps, 0)} steps an arm after {spent / 60:.1f} minutes of preparation: "
            "give more minutes, fewer arms or a smaller profile."
        )
    if batch != full:
        overrides["optimiser.batch_size"] = batch
    return {
        "minutes": minutes,
        "overrides": {**overrides, "optimiser.steps": steps},
        "seconds_per_step": seconds,
        "spent": spent,
    }


def _affordable_batch(
    study: Study, overrides: dict[str, Any], volumes: Any, full: int, end: float
) -> tuple[int, dict[str, float]]:
    """The largest batch, up to `full`, that leaves `WORTHWHILE` steps until `end`, and seconds a step of each arm.

    Small batches are timed before large ones, so that no machine runs out of memory or time over the measurement.
    """
    batch = min(PROBE_BATCH, full)
    while True:
        seconds = _time_steps(_like(study, {**overrides, "optimiser.batch_size": batch}), volumes)
        steps = (end - time.perf_counter()) / sum(seconds.values())
        larger = [min(factor * batch, full) for factor in (4, 2) if batch < full]
        affordable = [size for size in larger if steps * batch / size >= WORTHWHILE]
        if not affordable:
            return batch, seconds
        batch = affordable[0]


def _affordable_subjects(base: Study, seconds: float) -> int | None:
    """Cap on pretraining subjects a cohort whose volumes are prepared within `seconds`; None where all are.

    They are prepared in growing portions, while the last one says that there is time for the next. Portions are
    bounded, because those that an earlier command has prepared take no time and say nothing of the rest.
    """
    offered = max(base.cohort(name).scans["subject_id"].nunique() for name in base.pretraining_cohorts)
    end, done, count = time.perf_counter() + seconds, 0, min(PROBE_SUBJECTS, offered)
    while True:
        begun = time.perf_counter()
        study = _like(base, {"subjects.pretraining": count})
        for name in study.pretraining_cohorts:
            study.volumes(name)
        now = time.perf_counter()
        each, done = (now - begun) / (count - done), count
        if done == offered:
            return None
        count = min(done + min(done, MORE_SUBJECTS), offered)
        if each * (count - done) > end - now:
            return done + max(int((end - now) / each), 0)


def _like(base: Study, overrides: dict[str, Any]) -> Study:
    return Study(
        base.profile_name,
        base.manifest.path,
        base.seed,
        base.arms[0] if len(base.arms) == 1 else "all",
        overrides,
        progress=base.progress,
        cpu=base.cpu,
    )


def _time_steps(study: Study, volumes: Any) -> dict[str, float]:
    """Seconds of an optimiser step of each arm."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            arm: seconds_per_step(study.profile.pretraining(arm, study.seed), volumes, Path(folder), cpu=study.cpu)
            for arm in study.arms
        }


def seconds_per_step(
    config: "PretrainConfig",
    volumes: Any,
    folder: Path,
    *,
    steps: int = 6,
    enough: float = 15.0,
    cpu: bool = False,
    compile: bool = False,
) -> float:
    """Measure one optimiser step on this machine: the median of `steps` after two that do not count.

    Steps of the middle of the training, where all terms of the loss count. Where they are slow, it is the last one once
    `enough` seconds have gone by.
    """
    from brainfm_lib.pretrain.loop import Trainer

    trainer = Trainer(config, volumes, volumes[:0], folder, cpu=cpu, compile=compile)
    trainer.step = config.optimiser.steps // 2
    rows = batch_rows(len(volumes), config.optimiser.batch_size, config.seed)
    times = []
    with fixed_threads(trainer.device, config.objective.encoder.embed_dim):
        for _ in range(steps + 2):
            start = time.perf_counter()
            float(trainer.train_step(next(rows))["loss"])  # reading the loss waits for the device
            times.append(time.perf_counter() - start)
            if sum(times) > enough and len(times) > 1:
                break
    return float(np.median(times[2:] or times[-1:]))


def _said(plan: dict[str, Any], base: Study) -> str:
    steps = plan["overrides"]["optimiser.steps"]
    smaller = [
        f"{words} {plan['overrides'][name]} instead of {before}"
        for words, name, before in (
            ("batch size", "optimiser.batch_size", base.profile.optimiser.batch_size),
            ("pretraining subjects a cohort", "subjects.pretraining", base.profile.subjects.pretraining or "all"),
        )
        if name in plan["overrides"]
    ]
    arms = ", ".join(f"{arm} {value * steps / 60:.1f} min" for arm, value in plan["seconds_per_step"].items())
    return "; ".join(
        [
            f"plan: {steps} steps an arm, {arms}",
            *smaller,
            f"{plan['spent'] / 60:.1f} min went into data and calibration, {RESERVE:.0%} is kept in reserve",
        ]
    )
