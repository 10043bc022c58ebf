"""Sweeps on real kernels: planned, skipped, failed, killed, and collected into one table."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from brainfm_lib.errors import InputError
from brainfm_lib.integrity import digests
from brainfm_lib.report import build
from brainfm_lib.sweep import effects, pages, pool, slurm
from brainfm_lib.sweep.cells import page_of
from brainfm_lib.sweep.plan import Slurm, Sweep, choose, load_sweep
from brainfm_lib.sweep.run import describe, dry_run, run_sweep

REPOSITORY = Path(__file__).parents[1]
CELL = """
import json, os, pathlib, signal, time
folder = pathlib.Path(os.environ["BRAINFM_ROOT"])
if (folder / "broken").exists():
    raise ValueError("broken is broken")
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
    monkeypatch.setenv("BRAINFM_RUNS", str(tmp_path / "runs"))
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
        ("grid: {product: {depth: [1], seed: [1, 2]}}", "write 'seeds:"),
        ("grid: {product: {depth: [1]}}\nparameters: {seed: 3}", "write 'seeds:"),
        ("grid: {product: {overrides.mask.ratio: [0.5]}}\nparameters: {mask_ratio: 0.75}", "set mask_ratio"),
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


def test_conditions_read_numbers_as_the_grid_does_and_never_choose_nothing(project: Path) -> None:
    grid = "grid: {product: {rate: [0.0005, 0.01], mask_ratio: [null, 0.5]}}\n"
    sweep = load_sweep(write(project, f"{grid}seeds: [0, 1]\n"))
    for condition, count in (("rate=5e-4", 4), ("rate!=5e-4", 4), ("seed==0", 4), ("mask_ratio=null", 4)):
        assert len(choose(sweep.cells, condition)) == count
    assert {cell.point["mask_ratio"] for cell in choose(sweep.cells, "mask_ratio<=0.5")} == {0.5}
    for wrong, said in (
        ("rate=small", "write a number"),
        ("rate=0.3", r"holds for no cell: rate is 0.0005, 0.01\."),
        ("seed=0, rate>1", "holds for no cell"),
    ):
        with pytest.raises(InputError, match=said):
            choose(sweep.cells, wrong)


def test_a_condition_may_name_what_only_some_cells_of_a_list_set(project: Path) -> None:
    listed = load_sweep(
        write(project, "grid: {list: [{depth: 4}, {rate: 0.3}, {overrides.vcr.variance: 2.0}]}\n")
    ).cells
    assert [cell.parameters["depth"] for cell in choose(listed, "depth=4")] == [4]
    assert len(choose(listed, "depth=1")) == 2  # which they are given, if not by the sweep
    assert choose(listed, "overrides.vcr.variance>1") == listed[2:]
    assert choose(listed, "overrides.vcr.variance!=2") == listed[:2]
    with pytest.raises(InputError, match=r"its names are depth, seed, rate, overrides.vcr.variance"):
        choose(listed, "width=4")


def test_a_setting_that_no_flat_name_sets_may_be_swept_by_its_dotted_one(project: Path) -> None:
    text = "grid: {product: {overrides.mask.ratio: [0.5, 0.75]}}\n"
    assert len(load_sweep(write(project, text)).cells) == 2
    (project / "notebooks" / "params" / "tiny.yaml").write_text("profile: tiny\nmask_ratio: 0.6\n")
    with pytest.raises(InputError, match=r"does nothing beside mask_ratio, which is 0.6"):
        load_sweep(write(project, text))


def test_a_profile_may_be_ones_own_parameter_file(project: Path) -> None:
    file = write(project, "grid: {product: {rate: [0.1]}}\n")
    (project / "notebooks" / "params" / "mylab.yaml").write_text("profile: tiny\ndepth: 3\n")
    sweep = load_sweep(file, profile="mylab")
    assert sweep.name == "try-mylab" and sweep.cells[0].parameters["depth"] == 3
    with pytest.raises(InputError, match=r"name one of mylab, tiny .* or write a file there .* path of a YAML profile"):
        load_sweep(file, profile="profiles/own.yaml")


def test_two_files_of_one_name_do_not_share_a_folder(project: Path) -> None:
    (project / "other").mkdir()
    first = write(project, "grid: {product: {depth: [13]}}\n")
    assert run_sweep(first) == 1
    second = write(project, "grid: {product: {depth: [2]}}\n", "other/try")
    for run in (run_sweep, lambda file: list(dry_run(file))):
        with pytest.raises(InputError, match=r"sweeps/try is the folder of the sweep in try.yaml: give other/try.yaml"):
            run(second)
    first.unlink()  # where a file has moved, its sweep stays
    assert "0 done, 1 to make" in next(dry_run(second))


def test_pages_of_sweeps_with_dots_in_their_names_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    endings, tables = (
        (".ipynb", ".result.json", ".state.json"),
        ("data/sweep_lr{}.7.0.csv", "data/sweep_lr{}.main.t.csv"),
    )
    for name in ("", ".v2", ".v3"):
        for file in (*(f"sweep_lr{name}{ending}" for ending in endings), *(table.format(name) for table in tables)):
            (tmp_path / file).touch()
    pages_now = [build.Page(tmp_path / "page.ipynb", tmp_path, f"sweep_lr{name}") for name in ("", ".v2")]
    build._forget_others(pages_now, tmp_path)
    assert len(list(tmp_path.glob("**/sweep_lr*"))) == 10 and not list(tmp_path.glob("**/*v3*"))
    build._write_data(pages_now[0], {})
    assert sorted(file.name for file in tmp_path.glob("data/*")) == ["sweep_lr.v2.7.0.csv", "sweep_lr.v2.main.t.csv"]


def plant(project: Path, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """Give each finished cell a probe; return, by depth, how that is identified now."""
    now = {}
    for cell in sweep.cells:
        run = now[cell.point["depth"]] = f"probe-{cell.point['depth']}"
        folder = project / "runs" / run
        folder.mkdir(parents=True)
        row = {"metric": "auroc", "estimate": 0.7, "low": 0.6, "high": 0.8, "n_subjects": 9}
        pd.DataFrame([row]).to_parquet(folder / "results.parquet")
        provenance = {"id": run, "kind": "probe", "finished": "", "files": digests(folder)}
        (folder / "provenance.json").write_text(json.dumps(provenance))
        runs = {"probe:mae:ad": run, "cohort:phantom": "cohort-1"}
        page_of(sweep, cell).beside(".result.json").write_text(json.dumps({"runs": runs}))

    def identify(parameters: dict, request: str) -> str:
        return now[parameters["depth"]] if request.startswith("probe") else "cohort-1"

    monkeypatch.setattr("brainfm_lib.sweep.cells.study_identify", lambda root: identify)
    return now


def depths(project: Path) -> list[int]:
    """Of the cells in the table."""
    return sorted(pd.read_parquet(project / "sweeps" / "try" / "results.parquet").get("depth", []))


def test_a_table_holds_no_cell_that_is_out_of_date(project: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    file = write(project, "grid: {product: {depth: [1, 2]}}\n")
    assert run_sweep(file) == 0
    now = plant(project, load_sweep(file), monkeypatch)
    assert run_sweep(file) == 0 and depths(project) == [1, 2]
    assert "left out" not in capsys.readouterr().out
    now[1] = "probe-of-other-data"
    lines = list(dry_run(file))
    assert "1 done, 1 to make" in lines[0] and lines[1].endswith("(out of date)")
    assert run_sweep(file, only="depth=2") == 0 and depths(project) == [2]
    assert "left out of the table: 1 out of date" in capsys.readouterr().out
    now[2] = "probe-of-other-data"
    (project / "broken").touch()
    assert run_sweep(file) == 2
    said = capsys.readouterr().out
    assert "results.parquet is removed" in said and "left out of the table: 2 failed" in said
    kept = [project / line.strip() for line in said.splitlines() if line.endswith(".ipynb")]
    assert len(kept) == 2 and all("broken is broken" in notebook.read_text() for notebook in kept)
    assert not list((project / "sweeps" / "try").glob("results.*"))


def test_a_cell_without_its_runs_is_not_done(project: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    file = write(project, "grid: {product: {depth: [1, 2, 3]}}\n")
    assert run_sweep(file, workers=2) == 0
    plant(project, load_sweep(file), monkeypatch)
    shutil.rmtree(project / "runs" / "probe-1")
    shipped = project / "book" / "reference" / "runs"
    shipped.mkdir(parents=True)
    (project / "runs" / "probe-3").rename(shipped / "probe-loose")
    assert "2 done, 1 to make" in next(dry_run(file))
    assert run_sweep(file, only="depth>1") == 0 and depths(project) == [2, 3]
    assert "left out of the table: 1 with runs gone or damaged" in capsys.readouterr().out
    with (project / "runs" / "probe-2" / "results.parquet").open("ab") as table:
        table.write(b"!")
    assert run_sweep(file, only="depth=3") == 0 and depths(project) == [3]
    assert "left out of the table: 2 with runs gone or damaged" in capsys.readouterr().out
    assert run_sweep(file, only="depth<3") == 0 and len(made(project)) == 5
    assert "2 to make" in capsys.readouterr().out


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
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_sweep_goes_on_and_leaves_nobody_behind(
    project: Path, sign: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(project, "parameters: {nap: 0.5}\ngrid: {product: {depth: [1, 2, 3, 4, 5, 6]}}\n")
    (project / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(project / "scratch"))
    process = start(project, "-j", "2")
    deadline = time.monotonic() + 90
    while len(made(project)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, sign)
    out, _ = process.communicate(timeout=60)
    if sign != signal.SIGKILL:
        assert process.returncode == 128 + sign and "goes on from there" in out
        assert not list((project / "scratch").glob("brainfm-*"))
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


@pytest.mark.parametrize(("workers", "threads"), [(1, "2"), (2, "1")])
def test_a_worker_alone_has_the_threads_that_its_user_wants(project: Path, monkeypatch, workers, threads) -> None:
    seen = []

    class Worker:
        def __init__(self, *_: object) -> None:
            seen.append(os.environ["OMP_NUM_THREADS"])
            raise KeyboardInterrupt

    monkeypatch.setattr(pool, "_Worker", Worker)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    sweep = load_sweep(write(project, "grid: {product: {depth: [1, 2]}}\n"))
    with pytest.raises(KeyboardInterrupt):
        list(pool.run_cells(sweep, list(sweep.cells), project, workers))
    assert seen == [threads] and os.environ["OMP_NUM_THREADS"] == "2"


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


def test_jobs_here_are_submitted_as_workers_become_free(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = load_sweep(write(project, "grid: {product: {depth: [1, 2, 3, 4, 5]}}\n"))
    running, most = [], []

    class Job:
        def done(self) -> bool:
            running.remove(self)
            return True

        def exception(self) -> None:
            return None

        def result(self) -> str:
            return ""

    class Submitter:
        batch = staticmethod(nullcontext)

        def submit(self, job: slurm.CellJob) -> Job:
            running.append(Job())
            most.append(len(running))
            return running[-1]

    monkeypatch.setattr(slurm, "executor", lambda sweep, cluster: Submitter())
    outcomes = list(slurm.run_jobs(sweep, list(sweep.cells), project, cluster="local", workers=2))
    assert {outcome.cell for outcome in outcomes} == {cell.id for cell in sweep.cells} and max(most) == 2


def test_a_cluster_that_is_not_there_or_takes_no_jobs_is_said(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(project, "slurm: {partition: nowhere}\ngrid: {product: {depth: [1]}}\n")
    with pytest.raises(InputError, match="-j counts cells on this machine"):
        run_sweep(file, where="slurm", workers=2)
    commands = project / "commands"
    commands.mkdir()
    monkeypatch.setenv("PATH", str(commands))
    with pytest.raises(InputError, match="There is no srun here"):
        run_sweep(file, where="slurm")
    for name in ("srun", "sbatch"):
        (commands / name).write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
        (commands / name).chmod(0o755)
    with pytest.raises(InputError, match=r"took no jobs \(sbatch: error: invalid partition\): .* of try.yaml"):
        run_sweep(file, where="slurm")


def test_the_script_for_slurm_says_what_the_sweep_asks_for(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from submitit.slurm.slurm import SlurmExecutor

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
    from brainfm_lib.sweep.cells import run_cell

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
    monkeypatch.setattr(pages, "project_root", lambda: tmp_path)
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


def test_a_table_whose_runs_are_gone_says_what_makes_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAINFM_RUNS", str(tmp_path))
    row = {"metric": "auroc", "protocol": "linear", "run": "probe-0123456789ab", "cell": "c1", "estimate": 0.5}
    with pytest.raises(InputError, match="of cell c1, is gone: `brainfm sweep` makes it again"):
        effects.outcomes(pd.DataFrame([row]))
