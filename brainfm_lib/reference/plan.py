"""What fits into a budget of minutes: measured on this machine, decided once, kept in a file."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brainfm_lib.config import load_profile
from brainfm_lib.data.manifest import PhantomCohort, load_manifest
from brainfm_lib.device import NARROW, best_device, device_name
from brainfm_lib.errors import InputError
from brainfm_lib.identity import stable_hash, write_atomic
from brainfm_lib.integrity import file_digest
from brainfm_lib.making.together import usable_cores
from brainfm_lib.objectives import ARMS
from brainfm_lib.reference.rates import measure
from brainfm_lib.study import Study

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
LOOKED_INTO = 15.0  # times the reading of an encoder's features, what looking into a task's scans band by band takes
TUNED = 0.5  # of the rate at which MAE is pretrained, whole volumes are fine-tuned on
JUDGING_SHARE = 0.2  # of the budget, at most, for judging the first seed, if there are more than `FEW` subjects
FEW = 60  # subjects of each cohort, that are judged in any case
WORTH = 1.5  # times the subjects, for which all is judged anew
STARTING = 20.0  # seconds in which processes that fit probes start
BESIDE = 0.7  # of its speed, measured alone with all cores, is left to a training with others beside it


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
        return Plan(minutes, asked, device_name(device), compiled, tuple(parts), rates)
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
    costs = Costs(name, rates, manifest, cores, at_once)
    batch = costs.study.profile.optimiser.batch_size
    judged = costs.judged_in(seconds, costs.room / 4)
    making = min(BANK, BANK_SHARE * seconds * rates["rendered"], costs.room - judged * costs.asked_scans)
    subjects = max(int(making) // costs.trained_scans, 16)
    subjects = min(subjects, costs.offered)  # whatever the profile keeps to
    empty = Part(name, 1, 0, subjects, judged, 0)
    for count in range(seeds, 0, -1):
        rest = seconds - sum(costs.expected(dataclasses.replace(empty, seeds=count)).values())
        volumes = int(rest / count / costs.seconds_a_volume)
        if count > 1 and volumes < WANTED.get(name, WANTED["reference"]):
            continue
        steps = volumes // batch
        if steps < 10:
            return None
        part = dataclasses.replace(empty, seeds=count, steps=steps, volumes=steps * batch)
        return dataclasses.replace(part, seconds=costs.expected(part))
    return None


def extended(plan: Plan, minutes: float, *, spent: float, manifest: str | Path | None, cores: int, cpu: bool) -> Plan:
    """A plan for more minutes: the same encoders, more subjects to judge them with, more seeds of the last profile.

    More subjects mean that all is judged anew: there must be `WORTH` times as many, and time for that comes first. What
    does not fit by the rates of the plan stays as it is.

    Args:
        plan: What was followed so far.
        minutes: The new budget.
        spent: Seconds that are gone; what the plan has not done in them is taken to be still to do.
        manifest, cores, cpu: As in `make_plan`.
    """
    *_, part = plan.parts
    at_once = at_once_on(best_device(cpu=cpu), part.profile, cores)
    costs = Costs(part.profile, plan.rates[part.profile], manifest, cores, at_once)
    whole = sum(sum(each.seconds.values()) for each in plan.parts)
    left = minutes * 60 * (1 - RESERVE) - spent - max(whole - spent, 0.0)
    most = costs.judged_in(minutes * 60 * (1 - RESERVE), costs.room - part.subjects * costs.trained_scans)
    for judged in (most, part.judged) if most >= WORTH * part.judged else (part.judged,):
        for seeds in range(max(SEEDS, part.seeds), part.seeds - 1, -1):
            more = dataclasses.replace(part, judged=judged, seeds=seeds)
            more = dataclasses.replace(more, seconds=costs.expected(more))
            new = {what: seconds - part.seconds[what] for what, seconds in more.seconds.items()}
            if judged > part.judged:
                new["judging"] = more.seconds["judging"]
            if sum(new.values()) <= left and more != part:
                return dataclasses.replace(plan, minutes=minutes, parts=(*plan.parts[:-1], more))
    return dataclasses.replace(plan, minutes=minutes)


class Costs:
    """What a profile's work takes at measured rates.

    Args:
        name: The profile.
        rates: From `measure`.
        manifest: As in `Study`.
        cores: That probes may use.
        at_once: Arms that are trained side by side.
    """

    def __init__(
        self, name: str, rates: Mapping[str, float], manifest: str | Path | None, cores: int, at_once: int
    ) -> None:
        self.study, self.rates, self.cores = Study(name, manifest), rates, cores
        self.seconds_a_volume = makespan([1 / rates[arm] for arm in ARMS], at_once)
        (pretraining,) = self.study.pretraining_cohorts
        self.asked = {self.study.cohort_of(task) for task in self.study.tasks}
        self.trained_scans = self._spec(pretraining, "scans_per_subject", 1)  # of a subject
        self.asked_scans = sum(self._spec(cohort, "scans_per_subject", 1) for cohort in self.asked)
        self.offered = self._spec(pretraining, "subjects", BANK)

    def _spec(self, cohort: str, what: str, otherwise: int) -> int:
        """A number that the specification of a cohort of phantoms may give."""
        settings = self.study.manifest.cohorts[cohort]
        return int(settings.spec.get(what, otherwise)) if isinstance(settings, PhantomCohort) else otherwise

    @property
    def room(self) -> float:
        """Scans that there is memory for."""
        geometry = self.study.profile.geometry
        volume = int(np.prod(geometry.grid)) * (1 if geometry.storage == "uint8" else 2)
        return self.rates.get("memory", np.inf) / volume

    def judged_in(self, seconds: float, room: float) -> int:
        """Subjects of each cohort that tasks may be asked of, given seconds for everything and room for their scans."""
        most = max(self.study.profile.subjects.downstream or 0, JUDGED_SUBJECTS)
        most = min(most, max((self._spec(cohort, "subjects", most) for cohort in self.asked), default=most))
        most = int(min(most, BANK_SHARE * seconds * self.rates["rendered"] / max(self.asked_scans, 1)))
        most = int(min(most, room / max(self.asked_scans, 1)))
        one = Part(self.study.profile_name, 1, 0, 0, 0, 0)
        while most > FEW and self.expected(dataclasses.replace(one, judged=most))["judging"] > JUDGING_SHARE * seconds:
            most = int(0.9 * most)
        return max(most, FEW)

    def another_seed(self, part: Part) -> float:
        """Seconds that one more seed takes."""
        more = self.expected(dataclasses.replace(part, seeds=part.seeds + 1))
        return sum(more.values()) - sum(self.expected(part).values())

    def expected(self, part: Part) -> dict[str, float]:
        """Seconds of a part's work, by what they are for."""
        scans = part.judged * self.asked_scans
        fitted = self.study.profile.subjects.downstream or part.judged  # subjects of the probe of noise
        probing = len(self.study.tasks) * PROBES * max(part.judged / fitted, 1) / self.rates["probes"] / self.cores
        judging = len(ARMS) * (scans / self.rates["judged"] + probing)
        of_tasks = sum(self._spec(self.study.cohort_of(task), "scans_per_subject", 1) for task in self.study.tasks)
        looking = LOOKED_INTO * part.judged * of_tasks / self.rates["judged"]
        profile = self.study.profile
        volumes = profile.finetune.epochs * part.judged * len(profile.evaluation.finetune_tasks)
        tuning = (len(ARMS) + 1) * volumes / (TUNED * self.rates["mae"])
        seconds = {
            "rendering": (self.trained_scans * part.subjects + scans) / self.rates["rendered"],
            "training": part.seeds * part.volumes * self.seconds_a_volume,
            "judging": (part.seeds + CONTROLS + SNAPSHOTS) * judging + looking + tuning + STARTING,
        }
        return {what: round(value, 1) for what, value in seconds.items()}


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
