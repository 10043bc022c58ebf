"""The command line: check and prepare data, pretrain, and look after runs."""

import errno
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from brainfm_lib.errors import InputError
from brainfm_lib.pretrain.stopping import Terminated

app = typer.Typer(
    help="Masked and predictive pretraining on 3D brain MRI.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
runs_app = typer.Typer(help="Finished runs: list, show, rm.", no_args_is_help=True)
app.add_typer(runs_app, name="runs")

ManifestOption = Annotated[Path | None, typer.Option("--manifest", help="Data manifest; default the project's.")]
ReportOption = Annotated[Path | None, typer.Option("--report", help="Write an HTML page: tables, and how scans look.")]
INTERRUPTED = 130  # status after Ctrl-C
REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}  # by the system, no mistake of ours
SMALLER = (
    "memory ran out; what was done before is kept. Take a smaller optimiser.batch_size, or more parts of it "
    "(optimiser.accumulate)."
)
LISTED = 20  # named on the terminal for each rule that is broken
ProfileOption = Annotated[
    str, typer.Option(help="tiny, quick, compact, reference, paper, replica, shipped, or a YAML file.")
]
ObjectiveOption = Annotated[str, typer.Option(help="mae, sl-mae, jepa, vcr-jepa, or all of these; or lejepa.")]
SeedOption = Annotated[int, typer.Option(help="Seed of weights, order, masks and augmentation.")]
CpuOption = Annotated[bool, typer.Option(help="Stay on the CPU.")]
CompileOption = Annotated[bool, typer.Option("--compile", help="Compile the transformer blocks: pays on long runs.")]
RecomputeOption = Annotated[
    bool, typer.Option("--recompute", help="Recompute activations in the backward pass: slower, far less memory.")
]


def main() -> None:
    """Entry point of ``brainfm``. Status 2 after input that cannot be used, 130 after Ctrl-C."""
    _run(app)


def _run(command: Callable[[], object]) -> None:
    try:
        command()
    except InputError as error:
        print(f"brainfm: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        where = f": {error.filename}" if error.filename else ""
        print(f"brainfm: {error.strerror}{where}. What was done before is kept.", file=sys.stderr)
        raise SystemExit(1) from None
    except (MemoryError, RuntimeError) as error:  # torch has a class of its own for each allocator
        said = str(error).lower()
        if not (isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said):
            raise
        print(f"brainfm: {SMALLER}", file=sys.stderr)
        raise SystemExit(1) from None
    except Terminated as end:
        print(f"brainfm: {end}.", file=sys.stderr)
        raise
    except SystemExit as end:  # typer makes this of Ctrl-C and says nothing
        if end.code == INTERRUPTED:
            print("brainfm: interrupted; what was done is kept, the same command goes on from there.", file=sys.stderr)
        raise


@app.command()
def check(manifest: ManifestOption = None, report: ReportOption = None) -> None:
    """Say what of the manifest is present, valid and free of leaks; nothing is written but the report."""
    from brainfm_lib.data.prepare import check as check_data
    from brainfm_lib.data_report import write_check_report
    from brainfm_lib.external import check_encoders

    findings = check_data(manifest, also=check_encoders)
    listed: Counter[tuple[str, str]] = Counter()
    for finding in findings:
        listed[finding.where, finding.rule] += 1
        if not finding.rule or listed[finding.where, finding.rule] <= LISTED:
            print(f"{finding.level:<7} {finding.where}: {finding.sentence}")
    for (where, rule), count in listed.items():
        if rule and count > LISTED:
            print(f"error   {where}: {count - LISTED:,} more scans break the rule '{rule}': --report FILE lists all.")
    if report is not None:
        write_check_report(report, findings)
        print(f"report: {report}")
    errors = sum(finding.level == "error" for finding in findings)
    if errors:
        raise InputError(
            f"{errors} finding{'s' if errors > 1 else ''} above must be mended before these data are used."
        )


@app.command()
def prepare(manifest: ManifestOption = None, profile: ProfileOption = "quick", report: ReportOption = None) -> None:
    """Bring every cohort that is present onto the profile's grid, once."""
    from brainfm_lib.config import load_profile
    from brainfm_lib.data.audit import duplicates
    from brainfm_lib.data.manifest import load_manifest
    from brainfm_lib.data.prepare import prepare as prepare_data
    from brainfm_lib.data_report import summary, write_prepare_report

    settings, known = load_profile(profile), load_manifest(manifest)
    caps = {name: settings.subjects.of(name, known) for name in known.available_cohorts()}
    made, refused = [], []
    for name, one in prepare_data(known, settings.geometry, caps=caps):
        if isinstance(one, InputError):
            print(f"{name}: not prepared", flush=True)
            refused.append(str(one))
            continue
        scans, subjects = one.volumes.cohort.beyond
        capped = f"; profile {profile} leaves out {scans:,} scans of {subjects:,} more subjects" if scans else ""
        print(f"{name}: {len(one.volumes)} of {one.named} scans ready ({one.seconds:.1f} s){capped}", flush=True)
        made.append(one)
    print(f"\n{summary(made).to_string(index=False)}" if made else "no cohort is ready")
    pairs = duplicates({one.volumes.cohort.name: one.volumes for one in made})
    for pair in pairs.head(LISTED).itertuples():
        print(f"warning: {pair.first} and {pair.second} are nearly the same scan.")
    if len(pairs) > LISTED:
        print(f"warning: {len(pairs) - LISTED:,} more pairs are nearly the same: --report FILE lists all.")
    if report is not None:
        write_prepare_report(report, made, pairs)
        print(f"report: {report}")
    refused += [reason for one in made for reason in one.volumes.refused["reason"]]
    if refused:
        for reason in refused[1:LISTED]:
            print(f"refused: {reason}")
        more = f" ({len(refused) - 1:,} more were refused; --report FILE lists all)" if len(refused) > 1 else ""
        rest = " All others are ready, and a study goes on without the refused scans." if made else ""
        raise InputError(f"{refused[0]}{more}{rest}")


@app.command()
def pretrain(
    profile: ProfileOption = "quick",
    objective: ObjectiveOption = "all",
    manifest: ManifestOption = None,
    seed: SeedOption = 0,
    minutes: Annotated[float | None, typer.Option(help="Fit steps to this budget, preparation included.")] = None,
    cpu: CpuOption = False,
    compile: CompileOption = False,
    recompute: RecomputeOption = False,
) -> None:
    """Pretrain the arms and leave finished runs; the same command again goes on where it was stopped."""
    from brainfm_lib.making.budget import pretrain_within
    from brainfm_lib.making.launch import n_processes, pretrain_arms
    from brainfm_lib.study import Study

    if minutes is not None:
        if n_processes() > 1 or compile or recompute:
            raise InputError("--minutes plans for one process as it is: leave out the launcher and other options.")
        pretrain_within(minutes, profile, objective, manifest, seed, cpu=cpu)
        return
    study = Study(profile, manifest, seed, objective, cpu=cpu, compile=compile, recompute=recompute)
    if n_processes() == 1:
        print(study.pretraining_said(), flush=True)
    for arm, run in pretrain_arms(study):
        print(f"{arm}: {run}", flush=True)


@app.command()
def probe(
    protocol: Annotated[
        str, typer.Option(help="linear, attentive, knn, fewshot, splits, finetune or curve.")
    ] = "linear",
    profile: Annotated[str | None, typer.Option(help="As elsewhere; default that of the report.")] = None,
    objective: ObjectiveOption = "all",
    manifest: ManifestOption = None,
    seed: SeedOption = 0,
    task: Annotated[list[str] | None, typer.Option(help="A task; repeat for more. Default: all.")] = None,
    table: Annotated[Path | None, typer.Option(help="Write the results as a .csv or .parquet, a row a metric.")] = None,
    cpu: CpuOption = False,
    allow_leak: Annotated[bool, typer.Option("--allow-leak", help="Go on where the audit finds a leak.")] = False,
) -> None:
    """Judge the encoders of a study and their controls on its tasks; encoders that are missing are made first."""
    from brainfm_lib.making.judging import judge, to_be_made
    from brainfm_lib.paths import project_root
    from brainfm_lib.report.build import judged_profile
    from brainfm_lib.study import Study

    profile = profile or judged_profile(project_root(), manifest)
    study = Study(profile, manifest, seed, objective, cpu=cpu, allow_leak=allow_leak)
    if study.stamp:
        print(f"warning: {study.stamp}.", flush=True)
    missing = [arm for arm in study.trained_arms if to_be_made(study, protocol, arm, task)]
    if missing:
        volumes = f"{study.profile.volumes_seen:,} volumes each"
        print(f"profile {profile}, seed {seed}: {', '.join(missing)} will be pretrained, {volumes}", flush=True)
    for line in judge(study, protocol, task, table):
        print(line, flush=True)


@app.command()
def tune(
    profile: ProfileOption = "quick",
    objective: ObjectiveOption = "all",
    manifest: ManifestOption = None,
    seed: SeedOption = 0,
    cpu: CpuOption = False,
) -> None:
    """Pretrain every arm with every rate of the profile's `trial_lrs`, and say which is best on validation subjects."""
    from brainfm_lib.study import Study
    from brainfm_lib.study.trials import tune as try_rates

    for line in try_rates(Study(profile, manifest, seed, objective, cpu=cpu)):
        print(line, flush=True)


@app.command()
def causal(
    profile: ProfileOption = "quick",
    manifest: Annotated[str, typer.Option("--manifest", help="Manifest of the dials.")] = "book/examples/dials.yaml",
    seeds: Annotated[int, typer.Option(help="Pretraining seeds.")] = 3,
    cpu: CpuOption = False,
) -> None:
    """Pretrain on phantoms with all factors under several seeds, probe along both dials, and test the paper's claim."""
    from brainfm_lib.study import Study
    from brainfm_lib.study.causal import run_causal

    for line in run_causal(Study(profile, manifest, cpu=cpu), seeds):
        print(line, flush=True)


@app.command()
def reference(
    folder: Annotated[Path, typer.Argument(help="Where it is made, and gone on with.")],
    minutes: Annotated[float, typer.Option(help="Budget of wall time, over all sittings.")] = 25.0,
    sitting: Annotated[float | None, typer.Option(help="Stop after so many minutes, to go on later.")] = None,
    profile: Annotated[list[str] | None, typer.Option(help="Profiles to choose from, the largest first.")] = None,
    manifest: ManifestOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Plan and make the whole study within a budget; the same command again goes on where it was stopped."""
    from brainfm_lib.device import best_device
    from brainfm_lib.reference.plan import LADDER
    from brainfm_lib.reference.work import make_reference

    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"There is no device {device!r}: choose auto, cpu or cuda.")
    if device == "cuda" and best_device().type != "cuda":
        raise InputError("There is no CUDA device here: choose auto or cpu.")
    chosen = tuple(profile) if profile else LADDER
    for line in make_reference(
        folder, minutes, cpu=device == "cpu", manifest=manifest, profiles=chosen, sitting=sitting
    ):
        print(line, flush=True)


@app.command()
def advise(
    task: Annotated[str, typer.Argument(help="A task of your manifest.")],
    profile: ProfileOption = "quick",
    manifest: ManifestOption = None,
    dials: Annotated[str, typer.Option(help="Manifest that the causal test was made on.")] = "book/examples/dials.yaml",
    cpu: CpuOption = False,
) -> None:
    """Where the signal of a task lies, and which auxiliary objective the measured gains speak for, if any."""
    from brainfm_lib.advise import report
    from brainfm_lib.study import Study

    for line in report(Study(profile, manifest, cpu=cpu), task, Study(profile, dials, cpu=cpu)):
        print(line, flush=True)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep's YAML file, or the name of one in notebooks/sweeps.")],
    workers: Annotated[int, typer.Option("--workers", "-j", help="Cells at a time.")] = 1,
    executor: Annotated[
        str, typer.Option(help="local, slurm, or submitit-local to try a cluster's jobs here.")
    ] = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be made.")] = False,
    only: Annotated[
        str | None, typer.Option(help="Cells that meet conditions: 'spectral_weight<=0.01, seed=0'.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="In place of the file's.")] = None,
    max_cells: Annotated[int, typer.Option(help="More cells than this are an error.")] = 1000,
) -> None:
    """Run one notebook under many configurations; the same command again goes on where it was stopped."""
    from brainfm_lib.sweep.run import dry_run as plan
    from brainfm_lib.sweep.run import run_sweep

    if dry_run:
        for line in plan(file, only=only, profile=profile, max_cells=max_cells):
            print(line)
        return
    failed = run_sweep(file, workers=workers, where=executor, only=only, profile=profile, max_cells=max_cells)
    if failed:
        raise SystemExit(1)


@app.command()
def compare(names: Annotated[list[str], typer.Argument(help="Runs of probes or fine-tuning on one task.")]) -> None:
    """AUROC of finished runs, and each one's paired difference from the first."""
    from brainfm_lib.findings.pairs import compare_runs

    for line in compare_runs(names):
        print(line)


@app.command()
def scrub(
    folder: Annotated[Path, typer.Option("--check", help="What is to be published: a built book, runs, a sweep.")],
    manifest: ManifestOption = None,
) -> None:
    """Look through a folder for names of scans, paths and the like before it is published. Status 1 if any is there."""
    from brainfm_lib.data.manifest import load_manifest
    from brainfm_lib.paths import project_root
    from brainfm_lib.scrub import look_through, names_of

    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: name the one that is to be published.")
    names, phantoms = names_of(manifest)
    names.add(str(project_root()))
    unsought = load_manifest(manifest).missing()
    counts: Counter[str] = Counter()
    for found in look_through(folder, names, phantoms):
        counts[found.kind] += 1
        if counts[found.kind] <= LISTED:
            print(f"{found.file}: {found.kind}: {found.text}")
    for kind, count in counts.items():
        if count > LISTED:
            print(f"{count - LISTED:,} more times: {kind}")
    files = sum(path.is_file() for path in folder.rglob("*"))
    said = f"{files:,} files searched for {len(names):,} names and for what identifiers look like"
    print(f"{said}: {counts.total():,} found")
    if unsought:
        print(f"not sought, because their folders are not named now: the scans of {', '.join(unsought)}")
    if counts:
        raise SystemExit(1)


def pretrain_main() -> None:
    """Entry point of ``python -m brainfm_lib.pretrain PROFILE``, for launchers that start several processes."""

    def command(
        profile: Annotated[
            str, typer.Argument(help="tiny, quick, compact, reference, paper, replica, or a YAML file.")
        ],
        objective: ObjectiveOption = "all",
        manifest: ManifestOption = None,
        seed: SeedOption = 0,
        cpu: CpuOption = False,
        compile: CompileOption = False,
        recompute: RecomputeOption = False,
    ) -> None:
        pretrain(profile, objective, manifest, seed, None, cpu, compile, recompute)

    command.__doc__ = pretrain.__doc__
    _run(lambda: typer.run(command))


@runs_app.command("list")
def list_all() -> None:
    """One line a finished run: identifier, arm, when, how long, device."""
    from brainfm_lib.runs import list_runs

    for run in list_runs():
        p = run.provenance
        arm = run.settings.get("objective", {}).get("arm", "") if run.kind == "pretrain" else ""
        origin = "shipped" if run.shipped else "local"
        print(
            f"{run.id:<28} {arm:<10} {p['finished']}  {p['wall_seconds']:>8.1f} s  {p.get('device', '-'):<5} {origin}"
        )


@runs_app.command()
def show(name: Annotated[str, typer.Argument(help="Identifier, or its beginning.")]) -> None:
    """Configuration, provenance and files of a run."""
    import yaml

    from brainfm_lib.runs import get_run

    run = get_run(name)
    print(yaml.safe_dump({"provenance": run.provenance, "settings": run.settings}, sort_keys=False), end="")
    for file in sorted(path for path in run.path.rglob("*") if path.is_file()):
        print(f"{file.stat().st_size:>12,}  {file.relative_to(run.path)}")


@runs_app.command()
def rm(names: Annotated[list[str], typer.Argument(help="Identifiers, or their beginnings.")]) -> None:
    """Delete runs that were made here."""
    from brainfm_lib.runs import remove_run

    for name in names:
        print(f"removed {remove_run(name)}")


if __name__ == "__main__":
    main()
