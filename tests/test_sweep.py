"""Sweeps on real kernels: planned, skipped, failed, killed, and collected into one table."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from brainfm_lib.errors import InputError
from brainfm_lib.sweep import effects, pages
from brainfm_lib.sweep.plan import Slurm, choose, load_sweep
from brainfm_lib.sweep.run import describe, dry_run, run_sweep

REPOSITORY = Path(__file__).parents[1]
CELL = """
import json, os, pathlib, signal, time
folder = pathlib.Path(os.environ["BRAINFM_ROOT"])
if depth == 13:
    raise ValueError("thirteen is not allowed")
if depth == 9:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(30)
time.sleep(nap)
with (folder / "made.txt").open("a") as file:
    file.write(f"{depth} {seed}\\n")
pathlib.Path(result).write_text(json.dumps({"runs": {}}))
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one notebook that notes that it ran."""
    (tmp_path / "data_manifest.yaml").write_text("version: 1\npretraining: []\ncohorts: {}\ntasks: {}\n")
    (tmp_path / "notebooks" / "params").mkdir(parents=True)
    (tmp_path / "notebooks" / "params" / "tiny.yaml").write_text("profile: tiny\n")
    parameters = nbformat.v4.new_code_cell(
        'profile = "tiny"\ndepth = 1\nrate = 0.5\nname = "a"\nnap = 0.0\nseed = 0\noverrides = {}\nmask_ratio = None\n'
        'result = "result.json"'
    )
    parameters.metadata["tags"] = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(CELL)])
    nbformat.write(notebook, tmp_path / "notebooks" / "10_light.ipynb")
    monkeypatch.setenv("BRAINFM_ROOT", str(tmp_path))
    return tmp_path


def write(project: Path, text: str, name: str = "try") -> Path:
    file = project / f"{name}.yaml"
    file.write_text("notebook: 10_light\nprofile: tiny\n" + text)
    return file


def made(project: Path) -> list[str]:
    file = project / "made.txt"
    return file.read_text().split("\n")[:-1] if file.is_file() else []


@pytest.mark.parametrize(
    ("grid", "points"),
    [
        ("product: {depth: [1, 2], rate: [0.1, 0.2]}", [(1, 0.1), (1, 0.2), (2, 0.1), (2, 0.2)]),
        ("zip: {depth: [1, 2], rate: [0.1, 0.2]}", [(1, 0.1), (2, 0.2)]),
        ("list: [{depth: 4, rate: 0.3}]", [(4, 0.3)]),
    ],
)
def test_grids_unfold(project: Path, grid: str, points: list[tuple[int, float]]) -> None:
    sweep = load_sweep(write(project, f"grid: {{{grid}}}\nseeds: [0, 5]\n"))
    found = [(cell.parameters["depth"], cell.parameters["rate"], cell.parameters["seed"]) for cell in sweep.cells]
    assert found == [(*point, seed) for seed in (0, 5) for point in points]
    assert sweep.folder == project / "sweeps" / "try" and len({cell.id for cell in sweep.cells}) == len(found)


def test_random_draws_repeat_and_stay_in_their_ranges(project: Path) -> None:
    text = "grid: {random: {count: 30, seed: 4, draw: {rate: {low: 0.001, high: 1, log: true}, depth: [1, 2, 3]}}}\n"
    file = write(project, text)
    first, second = load_sweep(file), load_sweep(file)
    rates = np.array([cell.parameters["rate"] for cell in first.cells])
    assert [cell.id for cell in first.cells] == [cell.id for cell in second.cells]
    assert ((rates > 0.001) & (rates < 1)).all() and (rates < 0.03).mean() > 0.25
    assert {cell.parameters["depth"] for cell in first.cells} == {1, 2, 3}


def test_settings_of_the_profile_are_set_by_dotted_name(project: Path) -> None:
    text = "parameters: {overrides.optimiser.steps: 3}\ngrid: {product: {overrides.vcr.variance: [0.5, 1.0]}}\n"
    sweep = load_sweep(write(project, text))
    assert [cell.parameters["overrides"] for cell in sweep.cells] == [
        {"optimiser.steps": 3, "vcr.variance": 0.5},
        {"optimiser.steps": 3, "vcr.variance": 1.0},
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grid: {product: {deepth: [1]}}", "no parameter 'deepth'"),
        ("grid: {product: {depth: [shallow]}}", "of the wrong kind"),
        ("grid: {product: {name: [1]}}", "of the wrong kind"),
        ("grid: {product: {mask_ratio: [often]}}", "of the wrong kind"),
        ("grid: {product: {depth: []}}", "is empty"),
        ("grid: {list: []}", "is empty"),
        ("grid: {}", "exactly one"),
        ("grid: {product: {depth: [1]}, list: [{depth: 1}]}", "exactly one"),
        ("grid: {zip: {depth: [1, 2], rate: [0.1]}}", "equally long"),
        ("grid: {product: {overrides.nonsense.x: [1]}}", "nonsense"),
        ("grid: {product: {mask_ratio: [7.0]}}", "mask"),
        ("grid: {product: {depth: [1]}}\nseeds: []", "seeds"),
        ("grid: {product: {depth: [1]}}\ngird: 2", "gird"),
        ("grid: {product: {depth: [1]}}\nprofile: huge", "huge"),
        ("grid: {product: {depth: [1]}}\nnotebook: 99_none", "99_none"),
        ("grid: {random: {count: 2, draw: {rate: {low: 2, high: 1}}}}", "low must lie below high"),
        ("grid: {product: {depth: !!python/object:os.system [1]}}", "no valid YAML"),
    ],
)
def test_mistakes_are_found_before_anything_runs(project: Path, text: str, said: str) -> None:
    head = {"profile": "profile: tiny\n", "notebook": "notebook: 10_light\n"}
    file = project / "try.yaml"
    file.write_text("".join(line for name, line in head.items() if f"\n{name}:" not in text) + text + "\n")
    with pytest.raises(InputError, match=said):
        load_sweep(file)
    assert not made(project) and not (project / "sweeps").exists()


def test_too_many_cells_and_unknown_sweeps_are_refused(project: Path) -> None:
    file = write(project, "grid: {product: {depth: [1, 2, 3]}}\n")
    with pytest.raises(InputError, match="3 cells and 2 are allowed"):
        load_sweep(file, max_cells=2)
    with pytest.raises(InputError, match="There is no sweep"):
        load_sweep("nowhere")


def test_cells_are_chosen_by_conditions(project: Path) -> None:
    sweep = load_sweep(write(project, "grid: {product: {depth: [1, 2, 3], name: [a, b]}}\nseeds: [0, 1]\n"))
    assert len(choose(sweep.cells, None)) == 12
    chosen = choose(sweep.cells, "depth>=2, name=b, seed!=0")
    assert [(cell.point["depth"], cell.point["name"], cell.point["seed"]) for cell in chosen] == [
        (2, "b", 1),
        (3, "b", 1),
    ]
    for wrong, said in (("depth", "cannot be read"), ("width=1", "does not set"), ("name<2", "different kinds")):
        with pytest.raises(InputError, match=said):
            choose(sweep.cells, wrong)


def test_a_dry_run_of_a_thousand_cells_is_quick_and_makes_nothing(project: Path) -> None:
    depths = list(range(1000))
    file = write(project, f"grid: {{product: {{depth: {depths}}}}}\n")
    list(dry_run(write(project, "grid: {product: {depth: [1]}}\n", "warm")))
    began = time.perf_counter()
    lines = list(dry_run(file))
    assert time.perf_counter() - began < 5
    assert "1000 cells" in lines[0] and "1000 to make" in lines[0] and "980 more" in lines[-1]
    assert not (project / "sweeps").exists()


def test_one_failure_stops_no_other_and_keeps_its_notebook(project: Path, capsys: pytest.CaptureFixture) -> None:
    file = write(project, "grid: {product: {depth: [1, 2, 13, 4, 5, 6, 7, 8]}}\n")
    assert run_sweep(file, workers=2) == 1
    said = capsys.readouterr().out
    seven = [f"{depth} 0" for depth in (1, 2, 4, 5, 6, 7, 8)]
    assert sorted(made(project)) == seven
    assert "failed: depth=13, seed=0" in said and "thirteen is not allowed" in said
    kept = project / said.split("failed: depth=13")[1].splitlines()[1].strip()
    assert "thirteen" in kept.read_text()
    assert run_sweep(file, workers=2) == 1  # only the failed one again
    assert sorted(made(project)) == seven
    assert "7 done before, 1 to make" in capsys.readouterr().out


def test_a_worker_that_is_killed_costs_its_cell_alone(project: Path, capsys: pytest.CaptureFixture) -> None:
    file = write(project, "grid: {product: {depth: [9, 1, 2]}}\n")
    assert run_sweep(file, workers=1) == 1
    assert sorted(made(project)) == ["1 0", "2 0"]
    assert "killed by signal 9 (out of memory, most likely" in capsys.readouterr().out


def start(project: Path, *words: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-c",
        "from brainfm_lib.cli import main; main()",
        "sweep",
        str(project / "try.yaml"),
        *words,
    ]
    environment = {**os.environ, "BRAINFM_ROOT": str(project), "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's children ignore it
    )


def kernels(project: Path) -> list[int]:
    """Processes whose environment names this project."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"BRAINFM_ROOT={project}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes in /proc")
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_sweep_goes_on_and_leaves_nobody_behind(project: Path, sign: signal.Signals) -> None:
    write(project, "parameters: {nap: 0.5}\ngrid: {product: {depth: [1, 2, 3, 4, 5, 6]}}\n")
    process = start(project, "-j", "2")
    deadline = time.monotonic() + 90
    while len(made(project)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, sign)
    out, _ = process.communicate(timeout=60)
    if sign == signal.SIGINT:
        assert process.returncode == 130 and "goes on from there" in out
    while kernels(project) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not kernels(project)
    before = made(project)
    assert 2 <= len(before) < 6
    again = start(project, "-j", "2")
    out, _ = again.communicate(timeout=120)
    assert again.returncode == 0, out
    staged = sorted(project.glob("sweeps/try/cells/*/10_light.state.json"))
    assert len(staged) == 6 and set(made(project)) == {f"{d} 0" for d in range(1, 7)}


FULL = """
mount -t tmpfs -o size=1m tmpfs "$BRAINFM_ROOT/sweeps"
head -c {filler} /dev/zero > "$BRAINFM_ROOT/sweeps/filler"
"$@"; echo "ended with $?"
rm "$BRAINFM_ROOT/sweeps/filler"
"$@"; echo "ended with $?"
cp -r "$BRAINFM_ROOT/sweeps/try" "$BRAINFM_ROOT/kept"
"""
MAY_MOUNT = ["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(MAY_MOUNT, capture_output=True).returncode != 0,
    reason="no small file system can be mounted here",
)
@pytest.mark.parametrize("free", [0, 60_000])
def test_a_full_disk_is_said_and_costs_nothing_that_was_done(project: Path, free: int) -> None:
    write(project, "grid: {product: {depth: [1, 2, 3, 4]}}\n")
    (project / "sweeps").mkdir()
    command = [sys.executable, "-c", "from brainfm_lib.cli import main; main()", "sweep", str(project / "try.yaml")]
    script = FULL.format(filler=2**20 - free if free else 2**21)
    environment = {**os.environ, "BRAINFM_ROOT": str(project), "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script, "sh", *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    first, second = ended.stdout.split("ended with ")[:2]
    assert second.startswith("1") and "No space left on device" in first and "Traceback" not in ended.stdout
    assert ended.stdout.rstrip().endswith("ended with 0"), ended.stdout
    done = made(project)
    assert set(done) == {f"{d} 0" for d in range(1, 5)}
    assert len(list((project / "kept" / "cells").glob("*/10_light.state.json"))) == 4


@pytest.mark.parametrize(
    "file", sorted((REPOSITORY / "notebooks" / "sweeps").glob("*.yaml")), ids=lambda file: file.stem
)
def test_every_ready_sweep_is_sound(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAINFM_ROOT", str(REPOSITORY))
    for profile in (None, "tiny"):
        sweep = load_sweep(file, profile=profile)
        assert len(sweep.cells) > 1 and sweep.title and sweep.question


def test_effects_of_planted_settings() -> None:

    rng = np.random.default_rng(0)
    rows = [
        {"cell": f"{rate}{depth}", "rate": rate, "depth": depth, "task": task, "train_seconds": 1.0}
        for rate in (0.1, 0.01)
        for depth in (2, 10)
        for task in ("a", "b")
    ]
    table = pd.DataFrame(rows)
    table["auroc"] = 0.6 + 0.1 * (table["rate"] == 0.1) + 0.05 * ((table["rate"] == 0.1) & (table["depth"] == 10))
    table["validation"] = table["auroc"] + 0.02
    common = rng.normal(0, 0.03, (1, effects.DRAWS))
    found = effects.Outcomes(
        table, table["auroc"].to_numpy()[:, None] + common + rng.normal(0, 0.001, (8, effects.DRAWS))
    )
    main = effects.main_effects(found, ["rate", "depth"]).set_index(["parameter", "level"])
    assert list(main.loc["rate"].index) == ["0.01", "0.1"] and list(main.loc["depth"].index) == ["2", "10"]
    row = main.loc[("rate", "0.1")]
    assert row["difference"] == pytest.approx(0.125) and 0.12 < row["difference_low"] < row["difference_high"] < 0.13
    assert row["high"] - row["low"] > 0.08  # levels share their subjects: each is uncertain, their difference is not
    pair = effects.interaction(found, "rate", "depth")
    assert pair.loc["0.1", "10"] == pytest.approx(0.75) and pair.loc["0.01", "10"] == pytest.approx(0.6)
    best = effects.best_cell(found)
    assert best["cell"] == "0.110" and best["optimism"] == pytest.approx(0.02) and best["cells"] == 4


def test_two_processes_do_not_make_one_sweep(project: Path) -> None:
    from filelock import FileLock

    file = write(project, "grid: {product: {depth: [1]}}\n")
    (project / "sweeps" / "try").mkdir(parents=True)
    with FileLock(project / "sweeps" / "try" / ".lock"), pytest.raises(InputError, match="Another process"):
        run_sweep(file)


def test_jobs_of_a_cluster_run_here_on_submitits_local_executor(project: Path, capsys: pytest.CaptureFixture) -> None:
    file = write(project, "grid: {product: {depth: [1, 13]}}\n")
    assert run_sweep(file, where="submitit-local") == 1
    assert made(project) == ["1 0"] and "thirteen" in capsys.readouterr().out


def test_the_script_for_slurm_says_what_the_sweep_asks_for(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from submitit.slurm.slurm import SlurmExecutor

    from brainfm_lib.sweep import slurm

    block = "slurm: {partition: gpu, account: lab, gres: 'gpu:1', minutes: 90, cpus: 8, memory_gb: 64, at_once: 3,"
    block += " requeues: 2, setup: [module load cuda]}\n"
    sweep = load_sweep(write(project, f"{block}grid: {{product: {{depth: [1, 2]}}}}\n"))
    monkeypatch.setattr(SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    executor = slurm.executor(sweep)
    script = executor._executor._make_submission_file_text("run me", "name")
    for line in (
        "--partition=gpu",
        "--account=lab",
        "--gres=gpu:1",
        "--time=90",
        "--cpus-per-task=8",
        "--mem=64GB",
        "--signal=USR2@90",
        "module load cuda",
    ):
        assert line in script, script
    assert executor._executor.max_num_timeout == 2 and executor._executor.parameters["array_parallelism"] == 3
    job = slurm.CellJob(sweep, sweep.cells[0], project)
    assert job.checkpoint().function is job
    assert Slurm().minutes == 60


def test_a_cell_is_what_papermill_makes_and_the_table_names_its_runs(tmp_path: Path, monkeypatch) -> None:
    """A real sweep of two cells on a tiny study with one task, and the same cell typed by hand."""
    monkeypatch.setenv("BRAINFM_ROOT", str(REPOSITORY))
    file = tmp_path / "real.yaml"
    small = "overrides.optimiser.steps: 2, overrides.subjects.pretraining: 8, overrides.subjects.downstream: 40"
    grid = "grid: {product: {spectral_weight: [0.0, 0.1]}}"
    file.write_text(f"profile: tiny\nparameters: {{objective: sl-mae, {small}}}\n{grid}\n")
    monkeypatch.setattr("brainfm_lib.sweep.plan.project_root", lambda: REPOSITORY)
    sweep = load_sweep(file)
    from dataclasses import replace

    from brainfm_lib.sweep import collect
    from brainfm_lib.sweep.cells import page_of, run_cell

    sweep = replace(sweep, folder=tmp_path / "sweeps" / "real")
    assert [run_cell(sweep, cell, REPOSITORY) for cell in sweep.cells] == ["", ""]
    table = collect.write_results(sweep, list(sweep.cells))
    assert table.equals(pd.read_parquet(sweep.folder / "results.parquet"))
    assert set(table["spectral_weight"]) == {0.0, 0.1} and table["task"].nunique() == 5
    aurocs = table[table["metric"] == "auroc"]
    assert not aurocs.duplicated(["cell", "arm", "task", "protocol"]).any() and len(aurocs) == 10
    assert (table["volumes_seen"] > 0).all() and table["pretrain"].nunique() == 2
    names = effects.varied(table)
    found = effects.outcomes(table)
    assert names == ["spectral_weight"] and len(found.table) == 10 and found.resampled.shape == (10, effects.DRAWS)
    main = effects.main_effects(found, names)
    assert list(main["level"]) == ["0.0", "0.1"] and main["difference"].iloc[0] == 0
    mean = aurocs[aurocs["spectral_weight"] == 0.1]["estimate"].mean()
    assert main["estimate"].iloc[1] == pytest.approx(mean) and (main["low"] <= main["estimate"]).all()
    assert main["difference_low"].iloc[1] <= main["difference"].iloc[1] <= main["difference_high"].iloc[1]
    best = effects.best_cell(found)
    chosen = found.table[found.table["cell"] == best["cell"]]
    assert best["test"] == pytest.approx(chosen["auroc"].mean()) and best["highest_test"] >= best["test"]
    assert best["validation"] == found.table.groupby("cell")["validation"].mean().max()
    said = pages.summary(found, names, sweep.name).data
    assert "**Phantom results**: the scans of ad" in said
    assert "Validation subjects pick" in said and "that is no result" in said
    assert len(pages.cells_table(effects.cell_table(found, names), names, "real")) == 2
    assert len(pages.effects_table(main)) == 2
    one = effects.outcomes(table[table["spectral_weight"] == 0.1])
    assert effects.main_effects(one, []).empty and "1 cell on 5 tasks" in pages.summary(one, [], sweep.name).data
    cell = sweep.cells[1]
    words = [
        "-f",
        str(REPOSITORY / "notebooks/params/tiny.yaml"),
        "-p",
        "objective",
        "sl-mae",
        "-p",
        "spectral_weight",
        "0.1",
    ]
    overrides = json.dumps(
        {k.removeprefix("overrides."): v for k, v in cell.point.items() if k.startswith("overrides.")}
    )
    words += ["-p", "seed", "0", "-y", f"overrides: {overrides}"]
    notebook = str(REPOSITORY / "notebooks/60_ablation.ipynb")
    command = [sys.executable, "-m", "papermill", notebook, str(tmp_path / "out.ipynb"), *words, "-k", "python3"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    by_hand = json.loads((tmp_path / "result.json").read_text())
    swept = json.loads(page_of(sweep, cell).beside(".result.json").read_text())
    asked = [request for request in swept["runs"] if request.startswith(("pretrain", "probe"))]
    assert len(asked) == 6 and all(by_hand["runs"][request] == swept["runs"][request] for request in asked)
    assert describe(cell).startswith('objective="sl-mae"')


def planted(cells: list[tuple[float, str]], seeds: int = 2) -> effects.Outcomes:
    """Ratio has no effect, and blocks lower the AUROC by 0.1."""
    rng = np.random.default_rng(0)
    rows = [
        {"cell": f"{ratio} {kind} {seed}", "ratio": ratio, "kind": kind, "seed": seed, "arm": "mae", "task": "ad"}
        for ratio, kind in cells
        for seed in range(seeds)
    ]
    table = pd.DataFrame(rows)
    table["auroc"] = 0.7 - 0.1 * (table["kind"] == "block")
    return effects.Outcomes(table, table["auroc"].to_numpy()[:, None] + 0.01 * rng.standard_normal(effects.DRAWS))


def test_effects_are_those_of_cells_that_differ_in_one_setting() -> None:
    names, listed = ["ratio", "kind", "seed"], [(0.5, "random"), (0.75, "random"), (0.9, "random"), (0.75, "block")]
    main = effects.main_effects(planted(listed), names).set_index(["parameter", "level"])
    assert main.loc["ratio", "difference"].abs().max() < 1e-12 and main.loc[("ratio", "0.75"), "cells"] == 2
    assert main.loc[("kind", "block"), "difference"] == pytest.approx(-0.1)
    crossed = effects.main_effects(planted([(r, k) for r in (0.5, 0.75) for k in ("random", "block")]), names)
    assert (crossed["cells"] == 4).all()
    mixed = effects.main_effects(planted([(0.5, "random"), (0.75, "block")]), names).set_index("parameter")
    assert mixed.loc[["ratio", "kind"], "difference"].isna().all() and mixed.loc["seed", "difference"].notna().all()
    assert list(pages.effects_table(mixed.reset_index())["difference from the first"][:4]) == ["–"] * 4


def test_a_page_says_which_settings_never_vary_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "about_sweep", lambda root, sweep: {"simulated": ["ad"]})
    found = planted([(0.5, "random"), (0.75, "block")])
    found.table["validation"], found.table["train_seconds"] = found.table["auroc"], 1.0
    said = pages.summary(found, ["ratio", "kind"], "nowhere").data
    assert "No cells differ in ratio and kind alone" in said and "told from" not in said
    assert said.startswith("**Phantom results**: the scans of ad are simulated.")
