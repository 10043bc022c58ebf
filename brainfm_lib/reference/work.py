"""Making the reference run: banks of phantoms, every arm and seed, features, probes, analyses; resumable anywhere."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from brainfm_lib.data.bank import PhantomBank
from brainfm_lib.device import best_device
from brainfm_lib.errors import InputError
from brainfm_lib.findings.pairs import area
from brainfm_lib.making.together import make_together
from brainfm_lib.pretrain.checkpoint import snapshot_steps
from brainfm_lib.processes import bound_cores, end_with_parent, given_up_on_error
from brainfm_lib.reference import plan as planning
from brainfm_lib.reference.collect import collect
from brainfm_lib.reference.plan import Part, Plan
from brainfm_lib.reference.rates import bank_device
from brainfm_lib.reference.sitting import Clock, alone, sampled, stopped_by_sigterm
from brainfm_lib.runs import Run
from brainfm_lib.study import Study
from brainfm_lib.verdict import CONTROL, CONTROLS, NUISANCE, RAW_VOXELS, SHUFFLED

PLAN, SPENT, BUSY = "plan.json", "spent.json", "busy.csv"


def make_reference(
    folder: Path,
    minutes: float,
    *,
    cpu: bool = False,
    manifest: str | Path | None = None,
    profiles: Sequence[str] = planning.LADDER,
    sitting: float | None = None,
) -> Iterator[str]:
    """Make the reference run, or go on with it: a line a result.

    Args:
        folder: ``state/`` in it holds what is needed to go on, ``results/`` what is worth keeping.
        minutes: The whole budget, over all sittings. With more than it was planned for, encoders stay as they are, and
            what time did not suffice for is made: more seeds, more subjects to judge with, the learning curve.
        cpu: Stay on the CPU whatever else there is.
        manifest: As in `Study`; its cohorts must be phantoms.
        profiles: The ladder of `plan.make_plan`.
        sitting: Minutes after which this process stops, with a checkpoint, so that the next can go on.
    """
    state = folder / "state"
    state.mkdir(parents=True, exist_ok=True)
    os.environ["BRAINFM_RUNS"] = str((state / "runs").resolve())
    os.environ["BRAINFM_STORE"] = str((state / "store").resolve())
    cores = bound_cores()
    asked = planning.asked_for(cpu=cpu, manifest=manifest, profiles=profiles)
    device = best_device(cpu=cpu)
    with (
        alone(state),
        stopped_by_sigterm(sitting),
        sampled(state / BUSY, device),
        Clock(state / SPENT, minutes) as clock,
    ):
        if (state / PLAN).is_file():
            plan = planning.load(state / PLAN)
            if plan.asked != asked or minutes < plan.minutes:
                raise InputError(
                    f"{folder} follows a plan for {plan.minutes:g} minutes on {plan.device}, made with more time, or "
                    "another manifest, device or profile: give what it was made with, or another folder."
                )
            yield f"goes on with the plan of {state / PLAN}, {clock.spent / 60:.1f} minutes spent"
            if minutes > plan.minutes:
                plan = planning.extended(plan, minutes, spent=clock.spent, manifest=manifest, cores=cores, cpu=cpu)
                planning.save(plan, state / PLAN)
        else:
            plan = planning.make_plan(
                minutes, cpu=cpu, manifest=manifest, profiles=tuple(profiles), cores=cores, spent=clock.spent
            )
            planning.save(plan, state / PLAN)
        yield from plan.lines()
        shipped: dict[str, Run] = {}
        for part in plan.parts:
            yield from _make_part(folder, plan, part, clock, shipped, cpu=cpu, manifest=manifest, cores=cores)
            collect(folder, plan, clock, shipped.values())
        collect(folder, plan, clock, shipped.values(), whole=True)
    yield f"{clock.spent / 60:.1f} of {minutes:g} minutes; results: {folder / 'results'}"


def _make_part(
    folder: Path,
    plan: Plan,
    part: Part,
    clock: Clock,
    shipped: dict[str, Run],
    *,
    cpu: bool,
    manifest: str | Path | None,
    cores: int,
) -> Iterator[str]:
    device = best_device(cpu=cpu)
    ready: set[str] = set()  # cohorts whose volumes are there
    at_once = planning.at_once_on(device, part.profile, cores)
    first = Study(
        part.profile,
        manifest,
        overrides=part.overrides,
        progress=False,
        cpu=cpu,
        compile=plan.compiled,
        retrain=True,  # what ships already may not stand in for it
    )

    def study_of(seed: int) -> Study:  # with the cohorts and banks of the first
        return first.variant("", f"seed={seed}") if seed else first

    def render(name: str) -> None:
        cohort = first.cohort(name)
        with clock.piece(f"render {part.profile} {name}", volumes=len(cohort)):
            if at_once > 1:  # in files, for processes of their own to read
                first.volumes(name)
            else:
                first.keep(name, PhantomBank(cohort, first.profile.geometry, bank_device(device)))
        ready.add(name)

    costs = planning.Costs(part.profile, plan.rates[part.profile], manifest, cores, at_once)
    another_seed = costs.another_seed(part)
    (pretraining,) = first.pretraining_cohorts
    for seed in range(part.seeds):
        study = study_of(seed)
        wanted = [arm for arm in study.trained_arms if not made(study, f"pretrain:{arm}")]
        if seed and wanted and clock.left < RATHER * another_seed:
            yield f"{part.profile}: seed {seed} is left out: {clock.left:.0f} s are left"
            break
        if wanted and pretraining not in ready:
            render(pretraining)
        for arms in [wanted] if at_once > 1 and wanted else [[arm] for arm in wanted]:
            with clock.piece(f"train {part.profile} {'+'.join(arms)} {seed}", volumes=part.volumes) as facts:
                longest_first = sorted(arms, key=lambda arm: plan.rates[part.profile][arm])
                make_together(study, [[f"pretrain:{arm}"] for arm in longest_first], anyway=True)
                runs = {arm: study.run(f"pretrain:{arm}") for arm in arms}
                facts["rates"] = {arm: run.provenance["volumes_per_second"] for arm, run in runs.items()}
            free(device)
            for arm in arms:
                yield f"{part.profile}: {arm}, seed {seed}: {facts['rates'][arm]:,.0f} volumes/s"
    shipped |= made_of(first, [f"pretrain:{arm}" for arm in (*first.arms, CONTROL)])  # of one seed
    yield f"{part.profile}: trained; so far in {collect(folder, plan, clock, shipped.values())}"
    names = dict.fromkeys(first.cohort_of(task) for task in first.tasks)
    for name in (*names, pretraining):
        if name not in ready:
            render(name)
    with given_up_on_error(workers(part, manifest, cores)) as pool:
        for seed in range(part.seeds):
            study = study_of(seed)
            arms = [arm for arm in study.trained_arms if made(study, f"pretrain:{arm}")]
            if arms:
                with clock.piece(f"judge {part.profile} {seed}", encoders=len(arms)):
                    yield from judge(study, arms, pool, clock)
                own = [f"{kind}:{arm}" for kind in ANALYSES for arm in (*arms, CONTROL) if not seed]
                own += [] if seed else [*tuned(study, arms), *looked_into(study)]
                shipped |= made_of(study, [*requests(study, arms), *own])


ANALYSES = ("latents", "reconstruction", "progress")
LAST = 0.05  # of the budget, below which no learning curve and no fine-tuning is begun
RATHER = 1.05  # times what a seed is expected to take must be left before it is begun


def free(device: torch.device) -> None:
    """Give back what a finished training held of the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def made(study: Study, request: str) -> bool:
    """Whether a run is there."""
    return study.optional(request) is not None


def made_of(study: Study, wanted: Sequence[str]) -> dict[str, Run]:
    """Identity -> run, of those requests that were made here; what cannot be asked for is left out."""
    found = {}
    for request in wanted:
        if request.startswith(("reconstruction", "progress")) and request.endswith(CONTROL):
            continue
        run = study.optional(request)
        if run is not None and not run.shipped:
            found[run.id] = run
    return found


def requests(study: Study, arms: Sequence[str]) -> list[str]:
    """What is asked of features, by processes of their own."""
    rows = [*arms, *(() if study.seed else (*CONTROLS,))]
    represented = [arm for arm in rows if arm in (*arms, CONTROL)]
    wanted = [f"probe:{arm}:{task}" for task in study.tasks for arm in rows]
    wanted += [f"knn:{arm}:{task}" for task in study.tasks for arm in represented]
    if not study.seed:
        wanted += [f"components:{arm}:{task}" for task in study.tasks for arm in represented]
        steps = snapshot_steps(study.profile.optimiser.steps)
        wanted += [f"probe:{arm}:{task}@step={step}" for arm in arms for step in steps for task in study.tasks]
    return wanted


def judge(study: Study, arms: Sequence[str], pool: ProcessPoolExecutor, clock: Clock) -> Iterator[str]:
    """Features on the device, probes in processes beside it; of the first seed analyses, a curve and tuning as well."""
    cohorts = dict.fromkeys(study.cohort_of(task) for task in study.tasks)
    wanted = requests(study, arms)
    asked: dict[Future[str], str] = {}
    for change, rows in _waves(study, arms):
        if change and clock.left < LAST * clock.budget:
            yield f"{study.profile_name}: no learning curve of {change[1:]}: {clock.left:.0f} s are left"
            break
        for arm in rows:
            for cohort in cohorts:
                study.run(f"features:{arm}:{cohort}{change}")
            ready = [name for name in wanted if _starts_from(name, arm, change)]
            asked |= {pool.submit(_answer, study.seed, name): name for name in ready}
        if not study.seed and not change:
            for arm in (CONTROL, *arms):
                study.run(f"latents:{arm}")
            for arm in arms:
                study.run(f"reconstruction:{arm}")
                study.run(f"progress:{arm}")
    for done in as_completed(asked):
        said = done.result()
        if said:
            yield f"{study.profile_name}: seed {study.seed}: {asked[done]}: {said}"
    if not study.seed:
        for request in looked_into(study):
            study.run(request)
        if clock.left < LAST * clock.budget:
            yield f"{study.profile_name}: no fine-tuning: {clock.left:.0f} s are left"
            return
        wanted = tuned(study, arms)
        make_together(study, [[request] for request in wanted])
        for request in wanted:
            yield f"{study.profile_name}: seed {study.seed}: {request}: {area(study.run(request))}"


def looked_into(study: Study) -> list[str]:
    """Where the labels of tasks lie: what raw voxels say of them, band by band, and what covariates say alone."""
    return [f"{kind}:{task}" for task in study.tasks for kind in (f"bands:{RAW_VOXELS}", "confounding")]


def tuned(study: Study, arms: Sequence[str]) -> list[str]:
    """Encoders that are trained further on a task's labels."""
    return [f"finetune:{arm}:{task}" for task in study.finetune_tasks for arm in (CONTROL, *arms)]


def _waves(study: Study, arms: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    yield "", (*arms, *(() if study.seed else (CONTROL, RAW_VOXELS, NUISANCE)))
    if not study.seed:
        for step in snapshot_steps(study.profile.optimiser.steps):
            yield f"@step={step}", arms


def _starts_from(request: str, arm: str, change: str) -> bool:
    plain, mark, changed = request.partition("@")
    source = CONTROL if plain.split(":")[1] == SHUFFLED else plain.split(":")[1]
    return source == arm and mark + changed == change


_study: Study | None = None  # of a process that fits probes


def workers(part: Part, manifest: str | Path | None, cores: int) -> ProcessPoolExecutor:
    """Processes that fit probes, a core each."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(
        cores, mp_context=context, initializer=_begin, initargs=(os.getpid(), part.profile, manifest, part.overrides)
    )


def _begin(parent: int, profile: str, manifest: Any, overrides: dict[str, Any]) -> None:
    global _study
    end_with_parent(parent)
    torch.set_num_threads(1)
    _study = Study(profile, manifest, overrides=overrides, progress=False, cpu=True, retrain=True)


def _answer(seed: int, request: str) -> str:
    assert _study is not None
    run = _study.variant("", f"seed={seed}").run(request)
    return "" if run.kind != "probe" or "@" in request else area(run)
