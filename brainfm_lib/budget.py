"""Pretraining within minutes: measure a step of each arm on this machine, plan the steps, keep the plan, train."""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from brainfm_lib.errors import InputError
from brainfm_lib.identity import stable_hash, write_atomic
from brainfm_lib.paths import runs_dir
from brainfm_lib.study import Study

RESERVE = 0.1  # of the budget, for checkpoints, validation and a machine that slows down
SMALLEST = 10  # steps


def pretrain_within(
    minutes: float, profile: str, objective: str, manifest: Path | None, seed: int, *, cpu: bool = False
) -> dict[str, str]:
    """Pretrain the arms of `objective` within `minutes` of wall time, data preparation included.

    The number of steps is one for all arms, so that they see the same volumes; it is planned from a calibration and
    kept in ``runs/plans/``. The same command again follows the same plan: finished arms are found, a broken one
    goes on, and time already spent counts.

    Returns:
        Run identifier of each arm.

    Raises:
        InputError: The budget does not suffice for `SMALLEST` steps.
    """
    if minutes <= 0:
        raise InputError(f"A budget of {minutes:g} minutes is none: give --minutes a number above 0.")
    start = time.perf_counter()
    base = Study(profile, manifest, seed, objective, cpu=cpu)
    key = stable_hash([minutes, objective, {arm: base.config(f"pretrain:{arm}").id for arm in base.arms}])
    file = runs_dir() / "plans" / f"plan-{key}.json"
    plan: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else _make_plan(base, minutes, start)
    if not file.is_file():
        with write_atomic(file) as path:
            path.write_text(json.dumps(plan, indent=2))
    print(
        f"plan: {plan['steps']} steps an arm, "
        + ", ".join(
            f"{arm} {seconds * plan['steps'] / 60:.1f} min" for arm, seconds in plan["seconds_per_step"].items()
        )
        + f"; {plan['spent'] / 60:.1f} min went into data and calibration, {RESERVE:.0%} is kept in reserve",
        flush=True,
    )
    study = Study(profile, manifest, seed, objective, {"optimiser.steps": plan["steps"]}, cpu=cpu)
    finished = {}
    for arm in study.arms:
        finished[arm] = study.run(f"pretrain:{arm}").id
        print(f"{arm}: {finished[arm]} ({(time.perf_counter() - start) / 60:.1f} min)", flush=True)
    return finished


def _make_plan(study: Study, minutes: float, start: float) -> dict[str, Any]:
    from brainfm_lib.pretrain import seconds_per_step

    volumes, _ = study.pretraining_volumes(0)
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for arm in study.arms:
            config = study.profile.pretraining(arm, study.seed)
            seconds[arm] = seconds_per_step(config, volumes, Path(folder), cpu=study.cpu)
    spent = time.perf_counter() - start
    available = 60 * minutes * (1 - RESERVE) - spent
    steps = int(available / sum(seconds.values()))
    if steps < SMALLEST:
        raise InputError(
            f"{minutes:g} minutes leave {max(steps, 0)} steps an arm after {spent / 60:.1f} minutes of preparation: "
            "give more minutes, fewer arms or a smaller profile."
        )
    return {"minutes": minutes, "steps": steps, "seconds_per_step": seconds, "spent": spent}
