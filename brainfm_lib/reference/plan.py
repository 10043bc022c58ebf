"""What fits into a budget of minutes: measured on this machine, decided once, kept in a file."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from brainfm_lib.budget import seconds_per_step
from brainfm_lib.config import load_profile
from brainfm_lib.data.batches import free_memory
from brainfm_lib.data.manifest import PhantomCohort, load_manifest
from brainfm_lib.data.phantom.bank import PhantomBank
from brainfm_lib.device import NARROW, best_device
from brainfm_lib.errors import InputError
from brainfm_lib.identity import stable_hash, write_atomic
from brainfm_lib.integrity import file_digest
from brainfm_lib.objectives import ARMS
from brainfm_lib.probes.linear import linear_probe
from brainfm_lib.study import Study
from brainfm_lib.together import usable_cores

if TYPE_CHECKING:
    from brainfm_lib.pretrain import PretrainConfig

LADDER = ("reference", "compact", "quick", "tiny")  # profiles, the largest first: the first that fits is taken
COMPACT = "compact"  # of the encoders that ship
WANTED = {"reference": 80_000, "compact": 1_000_000, "quick": 1_000_000}  # volumes an arm and seed sees, given time
FEWEST = 10_000  # volumes below which the next smaller profile is taken; the last one takes what there is
BANK = 40_000  # scans to train on, at most
RESERVE = 0.1  # of the budget is not planned with
BANK_SHARE, COMPACT_SHARE = 0.08, 0.4  # of the budget, at most, for making scans and for the encoders that ship
SEEDS = 3
PROBES = 5.0  # times a linear probe of noise, all that is fitted to the features of one encoder on one task
SNAPSHOTS = 4  # of an encoder in training, judged as well
CONTROLS = 3.0  # times the judging of a seed's arms, that of controls (raw voxels take long) and the analyses
JUDGED_SUBJECTS = 3000  # of each cohort that tasks are asked of, at most, unless the profile asks for more
STARTING = 20.0  # seconds in which processes that fit probes start
TIMED_SCANS = {"cpu": 16, "cuda": 512}  # rendered to see how long that takes
MEMORY_SHARE = 0.8  # of the memory that training leaves, at most, for banks
TIMED = 7  # steps, the first two of which do not count
BESIDE = 0.7  # of its speed, measured alone with all cores, is left to a training with others beside it
LONGEST = 6.0  # seconds that timing an arm in whole batches may take, or else two volumes a batch have to do


@dataclass(frozen=True)
class Part:
    """One profile's share of the plan.

    Attributes:
        profile: Its name.
        seeds: How many, from 0.
        steps: Of every arm.
        subjects: Of the pretraining cohort.
        judged: Subjects of each cohort that tasks are asked of.
        volumes: That every arm and seed sees.
        seconds: Expected, by what they are for.
    """

    profile: str
    seeds: int
    steps: int
    subjects: int
    judged: int
    volumes: int
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def overrides(self) -> dict[str, Any]:
        """Of the profile."""
        return {
            "optimiser.steps": self.steps,
            "subjects.pretraining": self.subjects,
            "subjects.downstream": self.judged,
        }


@dataclass(frozen=True)
class Plan:
    """What is made.

    Attributes:
        minutes: The budget.
        asked: Whatever else it was made for, see `asked_for`: a plan is followed for nothing else.
        device: Name of what it was measured on.
        compiled: Whether blocks are compiled.
        parts: In the order in which they are made.
        rates: Profile -> volumes a second: rendered, judged, and trained by each arm; and probes a second and core.
    """

    minutes: float
    asked: str
    device: str
    compiled: bool
    parts: tuple[Part, ...]
    rates: Mapping[str, Mapping[str, float]]

    def lines(self) -> Iterator[str]:
        """What is printed of it."""
        yield f"{self.minutes:g} minutes on {self.device}{', blocks compiled' if self.compiled else ''}"
        for part in self.parts:
            known = self.rates[part.profile]
            rates = ", ".join(f"{name} {rate:,.1f}/s" for name, rate in known.items() if name != "memory")
            yield f"{part.profile}: measured: {rates}"
            yield (
                f"{part.profile}: {part.seeds} seeds of {len(ARMS)} arms, {part.steps:,} steps, {part.volumes:,} "
                f"volumes each, {part.subjects:,} subjects; expected: "
                + ", ".join(f"{name} {seconds:,.0f} s" for name, seconds in part.seconds.items())
            )


def save(plan: Plan, file: Path) -> None:
    """Write a plan as JSON."""
    with write_atomic(file) as path:
        path.write_text(json.dumps(dataclasses.asdict(plan), indent=2))


def load(file: Path) -> Plan:
    """Read what `save` wrote."""
    values = json.loads(file.read_text())
    return Plan(**{**values, "parts": tuple(Part(**part) for part in values["parts"])})


def asked_for(*, cpu: bool, manifest: str | Path | None, profiles: Sequence[str]) -> str:
    """Hash of what a plan is made for, its budget apart.

    Raises:
        InputError: The manifest has a cohort that banks of phantoms cannot stand for.
    """
    known = load_manifest(manifest)
    if len(known.pretraining) != 1:
        raise InputError("A reference run pretrains on one cohort of phantoms: name no other in `pretraining`.")
    tasks = known.available_tasks()
    real = [
        n for n in (*known.pretraining, *(known.tasks[t].cohort for t in tasks)) if known.cohorts[n].kind != "phantom"
    ]
    if real:
        raise InputError(f"A reference run is made on phantoms; cohort {real[0]!r} is real: unset its root for it.")
    return stable_hash([file_digest(known.path), list(profiles), str(best_device(cpu=cpu).type)])


def make_plan(
    minutes: float,
    *,
    cpu: bool,
    manifest: str | Path | None,
    profiles: tuple[str, ...] = LADDER,
    cores: int,
    spent: float = 0.0,
) -> Plan:
    """Measure, and decide on grid, seeds and steps.

    The largest profile of the ladder is taken in which every arm sees `FEWEST` volumes in time; where it is larger than
    `COMPACT`, that is made as well, first. Seeds come before more than `WANTED` volumes.

    Args:
        minutes: The budget, what measuring takes included.
        cpu: Stay on the CPU whatever else there is.
        manifest: As in `Study`.
        profiles: The ladder.
        cores: That probes may use.
        spent: Seconds of the budget that are gone.

    Raises:
        InputError: The budget does not suffice for anything.
    """
    started = time.perf_counter() - spent
    asked, device = asked_for(cpu=cpu, manifest=manifest, profiles=profiles), best_device(cpu=cpu)
    rates: dict[str, dict[str, float]] = {}
    compiled = device.type == "cuda"
    for number, name in enumerate(profiles):
        last = name == profiles[-1]
        hopeless = 0.0 if last else FEWEST / (minutes * 60 / len(ARMS))
        measured = measure(name, cpu=cpu, manifest=manifest, compiled=compiled, at_least=hopeless)
        if measured is None:
            continue
        rates[name] = measured
        left = minutes * 60 * (1 - RESERVE) - (time.perf_counter() - started)
        extra = COMPACT in profiles[number + 1 :]
        at_once = at_once_on(device, name, cores)
        share = 1 - COMPACT_SHARE if extra else 1
        large = fit(name, left * share, rates[name], manifest, cores, seeds=SEEDS, at_once=at_once)
        if large is None or (large.volumes < FEWEST and not last):
            continue
        parts = [large]
        if extra:
            rates[COMPACT] = measure(COMPACT, cpu=cpu, manifest=manifest, compiled=compiled) or {}
            left = minutes * 60 * (1 - RESERVE) - (time.perf_counter() - started)
            beside = at_once_on(device, COMPACT, cores)
            small = fit(COMPACT, left * COMPACT_SHARE, rates[COMPACT], manifest, cores, seeds=1, at_once=beside)
            spent = sum(small.seconds.values()) if small else 0.0
            again = fit(name, left - spent, rates[name], manifest, cores, seeds=SEEDS, at_once=at_once)
            parts = [part for part in (small, again or large) if part]
        what = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {cores} cores"
        return Plan(minutes, asked, what, compiled, tuple(parts), rates)
    raise InputError(f"{minutes:g} minutes do not suffice for the smallest study on this machine: give more.")


def fit(
    name: str,
    seconds: float,
    rates: Mapping[str, float],
    manifest: str | Path | None,
    cores: int,
    *,
    seeds: int,
    at_once: int = 1,
) -> Part | None:
    """The most seeds (up to `seeds`) for which every arm sees the `WANTED` volumes in `seconds`, else one with fewer.

    Time that is left over goes into more volumes; `at_once` arms are trained side by side. None where there is no time
    for anything.
    """
    study = Study(name, manifest)
    batch = study.profile.optimiser.batch_size
    cohorts = {study.cohort_of(task) for task in study.tasks}
    each = {name: _offered(study, name, "scans_per_subject", 1) for name in {*cohorts, *study.pretraining_cohorts}}
    scans = sum(each[cohort] for cohort in cohorts)
    most = max(study.profile.subjects.downstream or 0, JUDGED_SUBJECTS)
    most = min(most, max((_offered(study, cohort, "subjects", most) for cohort in cohorts), default=most))
    judged = int(min(most, max(BANK_SHARE * seconds * rates["rendered"] / max(scans, 1), 60)))
    of_tasks = judged * scans
    (pretraining,) = study.pretraining_cohorts
    volume = int(np.prod(study.profile.geometry.grid)) * (1 if study.profile.geometry.storage == "uint8" else 2)
    making = min(BANK, BANK_SHARE * seconds * rates["rendered"], rates.get("memory", np.inf) / volume - of_tasks)
    subjects = max(int(making) // each[pretraining], 16)
    subjects = min(subjects, _offered(study, pretraining, "subjects", subjects))  # whatever the profile keeps to
    fixed = {"rendering": (each[pretraining] * subjects + of_tasks) / rates["rendered"]}
    more = max(judged / (study.profile.subjects.downstream or judged), 1)  # than the probe of noise was fitted to
    probing = len(study.tasks) * PROBES * more / rates["probes"] / cores
    per_seed = len(ARMS) * (of_tasks / rates["judged"] + probing)
    a_volume = makespan([1 / rates[arm] for arm in ARMS], at_once)
    once = STARTING + (CONTROLS + SNAPSHOTS) * per_seed
    for count in range(seeds, 0, -1):
        volumes = int(((seconds - fixed["rendering"] - once) / count - per_seed) / a_volume)
        if count > 1 and volumes < WANTED.get(name, WANTED["reference"]):
            continue
        steps = volumes // batch
        if steps < 10:
            return None
        expected = fixed | {"training": count * steps * batch * a_volume, "judging": count * per_seed + once}
        rounded = {what: round(seconds, 1) for what, seconds in expected.items()}
        return Part(name, count, steps, subjects, judged, steps * batch, rounded)
    return None


def at_once_on(device: torch.device, name: str, cores: int) -> int:
    """How many arms of a profile are trained side by side: narrow ones on a CPU, see `together`."""
    narrow = load_profile(name).encoder.embed_dim < NARROW
    return min(cores, usable_cores(), len(ARMS)) if device.type == "cpu" and narrow else 1


def makespan(seconds: Sequence[float], at_once: int) -> float:
    """How long works of these seconds take, `at_once` beside each other, whoever is free taking the longest left."""
    busy = [0.0] * at_once
    for work in sorted(seconds, reverse=True):
        busy[busy.index(min(busy))] += work
    return max(busy) / (BESIDE if at_once > 1 else 1)


def measure(
    name: str, *, cpu: bool, manifest: str | Path | None, compiled: bool, at_least: float = 0.0
) -> dict[str, float] | None:
    """What this machine does in a second: volumes rendered, read features of, trained on by each arm; probes fitted.

    None where an arm stays below `at_least` volumes a second: the others are not tried then. Beside the rates it says
    how many bytes of memory banks may take.
    """
    from brainfm_lib.features import extract
    from brainfm_lib.pretrain import initial_model

    device = best_device(cpu=cpu)
    scans = TIMED_SCANS.get(device.type, TIMED_SCANS["cuda"])
    study = Study(name, manifest, progress=False, cpu=cpu, overrides={"subjects.pretraining": scans})
    cohort = study.cohort(study.pretraining_cohorts[0])
    cohort = cohort.select(range(min(scans, len(cohort))))
    for _ in range(2):  # at first processes start, and what all scans share is read
        bank = PhantomBank(cohort, study.profile.geometry, bank_device(device))
    rates = {"rendered": len(bank) / bank.seconds}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for arm in ARMS:
        rates[arm] = _trained(study.profile.pretraining(arm, 0), bank, cpu=cpu, compiled=compiled)
        if rates[arm] < at_least:
            return None
    config = study.profile.pretraining("mae", 0)
    encoder, few = initial_model(config).encoder, bank.select(range(min(scans, 128)))
    for _ in range(2):
        started = time.perf_counter()
        extract(encoder, few, poolings=("mean",), batch_size=study.profile.evaluation.batch_size, device=device)
        rates["judged"] = len(few) / (time.perf_counter() - started)
    free, needed = free_memory(), 0.0
    if device.type == "cuda":
        free, needed = float(torch.cuda.mem_get_info(device)[1]), 1.3 * torch.cuda.max_memory_allocated(device)
    rates["memory"] = max(MEMORY_SHARE * (free - needed), 0.0)
    rates["probes"] = 1 / _probe_seconds(study, config.objective.encoder.embed_dim)
    return {key: float(np.round(rate, 3)) for key, rate in rates.items()}


def _trained(config: PretrainConfig, bank: PhantomBank, *, cpu: bool, compiled: bool) -> float:
    """Volumes a second of an arm: of whole batches, unless two volumes have shown that these take too long."""
    whole = config.optimiser.batch_size
    small = min(2, whole)
    rate = small / _step_seconds(config, bank, small, cpu=cpu, compile=False)
    if TIMED * whole / rate > LONGEST:
        return rate
    return whole / _step_seconds(config, bank, whole, cpu=cpu, compile=compiled)


def _step_seconds(config: PretrainConfig, bank: PhantomBank, size: int, **trainer: bool) -> float:
    sized = dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, batch_size=size))
    with tempfile.TemporaryDirectory() as folder:
        return seconds_per_step(sized, bank, Path(folder), steps=TIMED - 2, **trainer)


def bank_device(device: torch.device) -> torch.device:
    """Where phantoms are rendered and kept for training on a device."""
    return device if device.type == "cuda" else torch.device("cpu")


def _offered(study: Study, cohort: str, what: str, otherwise: int) -> int:
    """A number that the specification of a cohort of phantoms may give."""
    settings = study.manifest.cohorts[cohort]
    return int(settings.spec.get(what, otherwise)) if isinstance(settings, PhantomCohort) else otherwise


def _probe_seconds(study: Study, width: int) -> float:
    """A linear probe on features of noise, of the sizes that an encoder of this width would give."""
    table, rng = study.task_table(study.tasks[0]), np.random.default_rng(0)
    sizes = {"mean": width, "mean+std": 2 * width, "regional": 8 * width}
    features = {
        f"{name}@{block}": rng.standard_normal((len(table), n)) for name, n in sizes.items() for block in (1, 2)
    }
    with threadpool_limits(1):
        started = time.perf_counter()
        linear_probe(features, table)
        return time.perf_counter() - started
