"""The reference run keeps to its budget, survives a kill, and leaves what a study finds as shipped."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfm_lib import notes
from brainfm_lib.config import profile_names
from brainfm_lib.errors import InputError
from brainfm_lib.findings import comparison
from brainfm_lib.findings.learning import curve_tasks, learning_table
from brainfm_lib.making import together
from brainfm_lib.making.judging import judge
from brainfm_lib.making.together import make_together
from brainfm_lib.models import VisionTransformer3d
from brainfm_lib.objectives import ARMS
from brainfm_lib.pretrain.checkpoint import snapshot_steps
from brainfm_lib.reference import collect, shipped, sitting, work
from brainfm_lib.reference import plan as planning
from brainfm_lib.reference.collect import busy_share
from brainfm_lib.report import build
from brainfm_lib.study import Study

CONDITIONS = {"NC": 0.5, "AD": 0.5}
MINUTES = 1.7
RATE = st.floats(0.5, 30_000)


@pytest.fixture
def manifest(tmp_path, monkeypatch):
    """One cohort to pretrain on, one that is asked one task, in a project of their own."""
    monkeypatch.setenv("BRAINFM_ROOT", str(tmp_path))
    monkeypatch.setenv("BRAINFM_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("BRAINFM_STORE", str(tmp_path / "store"))
    cohorts = {
        name: {"kind": "phantom", "spec": {"seed": seed, "subjects": 60, "conditions": CONDITIONS}}
        for seed, name in enumerate(("pre", "test"))
    }
    task = {"cohort": "test", "label": "diagnosis", "mapping": {"NC": 0, "AD": 1}, "classes": ["NC", "AD"]}
    file = tmp_path / "data_manifest.yaml"
    file.write_text(yaml.safe_dump({"version": 1, "pretraining": ["pre"], "cohorts": cohorts, "tasks": {"ad": task}}))
    return file


def trained_in(folder):
    """Arm -> when its training of the first seed ended, as far as it has."""
    found = {}
    for file in (folder / "state" / "runs").glob("pretrain-*/provenance.json"):
        said = yaml.safe_load((file.parent / "config.yaml").read_text())["settings"]
        if said["seed"] == 0:
            found[said["objective"]["arm"]] = file.stat().st_mtime
    return found


def command(folder, manifest):
    words = ["--minutes", str(MINUTES), "--device", "cpu", "--profile", "tiny", "--manifest", str(manifest)]
    return [sys.executable, "-m", "brainfm_lib.reference", str(folder), *words]


def test_killed_in_the_middle_it_goes_on_and_its_results_ship(tmp_path, manifest):
    folder = tmp_path / "made"
    with subprocess.Popen(command(folder, manifest), stdout=subprocess.DEVNULL) as first:
        while len(before := trained_in(folder)) < 2:
            assert first.poll() is None, "it ended before it could be killed"
            time.sleep(0.1)
        first.kill()
    plan = (folder / "state" / "plan.json").read_text()
    spent = json.loads((folder / "state" / "spent.json").read_text())["seconds"]
    started = time.perf_counter()
    again = subprocess.run(command(folder, manifest), capture_output=True, text=True, timeout=500)
    assert again.returncode == 0, again.stderr
    assert "goes on with the plan" in again.stdout
    assert before.items() <= trained_in(folder).items(), "what was trained is not trained again"
    assert (folder / "state" / "plan.json").read_text() == plan
    assert spent + time.perf_counter() - started < 60 * MINUTES * 1.6, "two cores are shared with other tests"

    summary = json.loads((folder / "results" / "reference.json").read_text())
    seed_0 = [arm for piece in summary["log"] if piece["what"].endswith(" 0") for arm in piece.get("rates", ())]
    assert set(trained_in(folder)) == set(ARMS) and len(seed_0) == len(set(seed_0))
    assert not list((folder / "results").rglob("*.tmp*"))
    assert summary["seconds"] == pytest.approx(
        json.loads((folder / "state" / "spent.json").read_text())["seconds"], abs=9
    )
    assert all(piece["finished"] for piece in summary["log"][-3:])
    assert max(file.stat().st_size for file in (folder / "results").rglob("*") if file.is_file()) < 8 * 2**20

    shutil.copytree(folder / "results" / "runs", tmp_path / "book" / "reference" / "runs")
    part = planning.load(folder / "state" / "plan.json").parts[0]
    study = Study("tiny", manifest, overrides=part.overrides, progress=False)
    step = snapshot_steps(study.profile.optimiser.steps)[1]
    wanted = ["pretrain:jepa", "probe:mae:ad", "latents:vcr-jepa", "knn:sl-mae:ad", "bands:raw-voxels:ad"]
    wanted += ["confounding:ad", "probe:nuisance:ad"]
    if "no learning curve" not in again.stdout:  # time is left for it unless the machine is busy
        wanted.append(f"probe:mae:ad@step={step}")
    if "no fine-tuning" not in again.stdout:
        wanted.append("finetune:random-init:ad")
    for request in wanted:
        run = study.optional(request)
        assert run is not None and run.shipped, request
    VisionTransformer3d.from_pretrained(study.run("pretrain:jepa").path / "encoder")
    shutil.copy(folder / "results" / "reference.json", tmp_path / "book" / "reference")
    shutil.copy(folder / "results" / "shipped.yaml", tmp_path / "book" / "reference")
    the_report_reads_it(tmp_path, manifest, study)
    read_the_page(tmp_path, manifest, study)


def the_report_reads_it(root, manifest, study):
    """By default; where asked to, or where a manifest pretrains on something else, it trains its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("BRAINFM_PROFILE", raising=False)
        assert build.default_profile(root, manifest) == "shipped"
        other = root / "other.yaml"
        other.write_text(manifest.read_text().replace("seed: 0", "seed: 9"))
        assert build.default_profile(root, other) == "quick"
    ours = Study("shipped", manifest, progress=False)
    assert ours.profile == study.profile and "shipped" in profile_names()
    assert ours.run("pretrain:mae").shipped and "Read, not trained here" in notes.study_note(ours).data
    anew = Study("shipped", manifest, progress=False, retrain=True)
    assert anew.optional("pretrain:mae") is None and "Trained here" in notes.study_note(anew).data
    other = Study("shipped", manifest, seed=1, progress=False)
    assert "Trained here" in notes.study_note(other).data, "another seed does not ship"
    beside = root / "runs" / ours.config("pretrain:mae").id
    shutil.copytree(ours.run("pretrain:mae").path, beside)  # as if made here
    assert "Trained here" in notes.study_note(Study("shipped", manifest, progress=False)).data
    assert shipped.every_arm_ships(manifest), "what was made here takes nothing away from what ships"
    shutil.rmtree(beside)
    runs = {arm: ours.run(f"pretrain:{arm}") for arm in ("mae", "jepa")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "LIVE", "tiny")
        live = comparison.live_runs(ours, runs)
    assert list(live) == ["mae"] and not live["mae"].shipped
    assert live["mae"].id == Study("tiny", manifest, progress=False).identify("pretrain:mae")
    assert "MAE, trained here: 96 volumes" in notes.live_note(live).data
    assert comparison.live_runs(ours, live) == {} and "trained here" in notes.live_note({}).data


def read_the_page(root, manifest, study):
    """What ships has a page, which makes nothing, and is out of date when another run ships."""
    (read,) = shipped.shipped_studies(manifest)
    assert set(read.results()["arm"]) >= {*ARMS, "random-init", "raw-voxels"}
    assert read.profile == study.profile
    notebook = root / "notebooks" / build.REFERENCE_PAGE
    notebook.parent.mkdir(parents=True)
    shutil.copy(pathlib.Path(build.__file__).parents[2] / "notebooks" / build.REFERENCE_PAGE, notebook)
    before = sorted(path.name for path in (root / "runs").glob("*-*"))
    (page,) = build.reference_pages(root)
    given = build.declared_parameters(page) | {"profile": "tiny", "manifest": str(manifest)}
    page.chapters.mkdir()
    build.make(page, given, root)
    assert sorted(path.name for path in (root / "runs").glob("*-*")) == before
    told = page.beside(".ipynb").read_text()
    assert "Read, not made here" in told and "AUROC over pretraining seeds" in told and "phantom" in told.lower()
    identify = build.study_identify(root)
    assert build.out_of_date(page, given, identify) is None
    (root / build.REFERENCE).write_text((root / build.REFERENCE).read_text() + "\n")
    assert build.out_of_date(page, given, identify) == "the run behind reference: changed"
    manifest.write_text(manifest.read_text().replace("seed: 1", "seed: 7"))  # nothing is found, and said
    build.make(page, given, root)
    assert "Nothing was probed" in page.beside(".ipynb").read_text()


def test_what_the_default_report_asks_of_whole_cohorts_ships():
    """Or a reader waits until thousands of phantoms are rendered again."""
    study = Study("shipped", progress=False)
    for request in [*work.requests(study, tuple(ARMS)), *work.looked_into(study), *work.tuned(study, tuple(ARMS))]:
        run = study.optional(request)
        assert run is not None and run.shipped, request


def test_on_two_cores_arms_are_trained_side_by_side(tmp_path, manifest, monkeypatch):
    made_there = []

    def spied(study, chains, **options):
        make_together(study, chains, **options)
        made_there.extend(chain[0] for chain in chains if study.optional(chain[0]) is not None)

    monkeypatch.setattr(work, "make_together", spied)
    monkeypatch.setattr(work, "bound_cores", lambda: 2)
    monkeypatch.setattr(planning, "usable_cores", lambda: 2)
    monkeypatch.setattr(together, "usable_cores", lambda: 2)
    state = tmp_path / "made" / "state"
    state.mkdir(parents=True)
    part = planning.Part("tiny", 1, 12, 16, 30, 96, {"rendering": 1.0, "training": 1.0, "judging": 1.0})
    asked = planning.asked_for(cpu=True, manifest=manifest, profiles=("tiny",))
    rates = {"rendered": 10.0, "judged": 100.0, "probes": 1.0, "mae": 4.0, "sl-mae": 3.0, "jepa": 2.0, "vcr-jepa": 1.0}
    planning.save(planning.Plan(MINUTES, asked, "cpu", False, (part,), {"tiny": rates}), state / "plan.json")
    lines = work.make_reference(tmp_path / "made", MINUTES, cpu=True, manifest=manifest, profiles=("tiny",))
    while "trained; so far" not in next(lines):
        pass
    lines.close()
    assert made_there == [f"pretrain:{arm}" for arm in ("vcr-jepa", "jepa", "sl-mae", "mae")], "not the slowest first"
    summary = json.loads((tmp_path / "made" / "results" / "reference.json").read_text())
    (piece,) = [piece for piece in summary["log"] if piece["what"].startswith("train")]
    assert set(piece["rates"]) == set(ARMS) and piece["finished"]


def test_arms_side_by_side_take_as_long_as_the_busiest_core():
    assert planning.makespan([1.0, 2.0, 3.0], 1) == 6.0
    assert planning.makespan([1.0, 2.0, 3.0], 2) == pytest.approx(3.0 / planning.BESIDE)
    assert planning.at_once_on(torch.device("cpu"), "reference", 16) == 1, "wide encoders fill a machine alone"


def test_a_plan_is_followed_for_nothing_but_what_it_was_made_for(tmp_path, manifest):
    state = tmp_path / "made" / "state"
    state.mkdir(parents=True)
    part = planning.Part("tiny", 1, 12, 16, 30, 96, {"rendering": 1.0, "training": 1.0, "judging": 1.0})
    planning.save(
        planning.Plan(MINUTES, "of another manifest", "cpu", False, (part,), {"tiny": {}}), state / "plan.json"
    )
    with pytest.raises(InputError, match="another manifest, device"):
        list(work.make_reference(tmp_path / "made", MINUTES, cpu=True, manifest=manifest, profiles=("tiny",)))
    asked = planning.asked_for(cpu=True, manifest=manifest, profiles=("tiny",))
    rates = {"tiny": {"rendered": 10.0, "judged": 100.0, "probes": 1.0} | dict.fromkeys(ARMS, 10.0)}
    planning.save(planning.Plan(MINUTES, asked, "cpu", False, (part,), rates), state / "plan.json")
    with pytest.raises(InputError, match="made with more time"):
        list(work.make_reference(tmp_path / "made", MINUTES / 2, cpu=True, manifest=manifest, profiles=("tiny",)))
    longer = work.make_reference(tmp_path / "made", 2 * MINUTES, cpu=True, manifest=manifest, profiles=("tiny",))
    assert "goes on with the plan" in next(longer) and f"{2 * MINUTES:g} minutes" in next(longer)
    longer.close()
    assert planning.load(state / "plan.json").minutes == 2 * MINUTES
    content = yaml.safe_load(manifest.read_text())
    content["pretraining"] = ["pre", "test"]
    manifest.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="pretrains on one cohort"):
        list(work.make_reference(tmp_path / "other", MINUTES, cpu=True, manifest=manifest, profiles=("tiny",)))


def test_runs_of_older_code_do_not_stay_among_the_results(tmp_path, manifest):
    study = Study("tiny", manifest, progress=False)
    run = study.run("pretrain:random-init")
    target = tmp_path / "results" / run.provenance["loose_id"]
    collect._ship(run, target)
    assert json.loads((target / "provenance.json").read_text())["left_out"] == []
    (target / "provenance.json").write_text(json.dumps(run.provenance | {"id": "init-older"}))
    (target / "stale").touch()
    collect._ship(run, target)
    assert json.loads((target / "provenance.json").read_text())["id"] == run.id and not (target / "stale").exists()
    weights = run.path / "encoder" / "model.safetensors"
    with weights.open("ab") as file:
        file.truncate(9 * 2**20)
    collect._ship(run, tmp_path / "results" / "heavy")
    assert not (tmp_path / "results" / "heavy").exists(), "an encoder too large to ship is not shipped without itself"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_helpers_end_with_what_they_help(tmp_path, how):
    code = (
        "import multiprocessing, os, sys, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from brainfm_lib.processes import end_with_parent\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context('spawn'),\n"
        "                               initializer=end_with_parent, initargs=(os.getpid(),))\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    script = tmp_path / "helped.py"
    script.write_text(code)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        helper = int(parent.stdout.readline())
        parent.send_signal(how)
        assert parent.wait(timeout=60) == -how
        parent.stdout.read()  # ends only when no helper holds the pipe any more
    status = pathlib.Path(f"/proc/{helper}/stat")
    assert not status.exists() or status.read_text().split()[2] == "Z", "it still runs"


def test_a_budget_in_which_nothing_fits_is_refused(manifest):
    with pytest.raises(InputError, match="do not suffice"):
        planning.make_plan(0.01, cpu=True, manifest=manifest, profiles=("tiny",), cores=2)


@settings(max_examples=60, deadline=None)
@given(
    seconds=st.floats(30, 4000),
    rendered=RATE,
    judged=RATE,
    trained=RATE,
    probes=st.floats(0.05, 20),
    cores=st.integers(1, 16),
)
def test_what_is_planned_fits_and_more_time_is_never_used_for_less(seconds, rendered, judged, trained, probes, cores):
    rates = {"rendered": rendered, "judged": judged, "probes": probes} | dict.fromkeys(ARMS, trained)
    parts = [planning.fit("quick", budget, rates, None, cores, seeds=3) for budget in (seconds, 2 * seconds)]
    for part, budget in zip(parts, (seconds, 2 * seconds)):
        if part is not None:
            assert sum(part.seconds.values()) <= budget * 1.01
            assert part.volumes == part.steps * 16 and 1 <= part.seeds <= 3
    if parts[0] is not None:
        assert parts[1] is not None and parts[1].seeds * parts[1].volumes >= 0.9 * parts[0].seeds * parts[0].volumes


@settings(max_examples=60, deadline=None)
@given(
    minutes=st.floats(1, 60),
    longer=st.floats(1, 10),
    done=st.floats(0, 1.5),
    rendered=RATE,
    judged=RATE,
    trained=RATE,
    memory=st.sampled_from([1e8, 1e9, 1e12]),
)
def test_a_longer_plan_keeps_its_encoders_and_fits(minutes, longer, done, rendered, judged, trained, memory):
    rates = {"rendered": rendered, "judged": judged, "probes": 2.0, "memory": memory} | dict.fromkeys(ARMS, trained)
    part = planning.fit("quick", minutes * 60 * (1 - planning.RESERVE), rates, None, 2, seeds=1, at_once=2)
    if part is None:
        return
    plan = planning.Plan(minutes, "", "cpu", False, (part,), {"quick": rates})
    spent = done * sum(part.seconds.values())
    made = planning.extended(plan, longer * minutes, spent=spent, manifest=None, cores=2, cpu=True)
    (more,) = made.parts
    assert made.minutes == longer * minutes
    assert (more.profile, more.steps, more.volumes, more.subjects) == (
        part.profile,
        part.steps,
        part.volumes,
        part.subjects,
    )
    assert part.seeds <= more.seeds <= planning.SEEDS and part.judged <= more.judged <= planning.JUDGED_SUBJECTS
    costs = planning.Costs("quick", rates, None, 2, 2)
    scans = [one.subjects * costs.trained_scans + one.judged * costs.asked_scans for one in (part, more)]
    assert scans[1] <= max(costs.room, scans[0])
    if more == part:
        return
    assert more.judged == part.judged or more.judged >= planning.WORTH * part.judged
    before, after = (sum(one.seconds.values()) for one in (part, more))
    again = part.seconds["judging"] if more.judged > part.judged else 0.0  # is done anew
    assert spent + max(before - spent, 0) + after - before + again <= 60 * longer * minutes * (1 - planning.RESERVE) + 1


def test_judging_leaves_time_and_memory_for_training():
    """At rates like those of a large GPU, and of two cores."""
    fast = {"rendered": 300.0, "judged": 800.0, "probes": 2.0, "memory": 11e9} | dict.fromkeys(ARMS, 900.0)
    slow = {"rendered": 25.0, "judged": 1100.0, "probes": 1.7, "memory": 2e10} | dict.fromkeys(ARMS, 200.0)
    for name, seconds, rates, cores in (("reference", 1350.0, fast, 16), ("quick", 3240.0, slow, 2)):
        part = planning.fit(name, seconds, rates, None, cores, seeds=3, at_once=2 if name == "quick" else 1)
        assert part is not None and part.seconds["training"] > 0.5 * seconds and part.judged >= 300
        costs = planning.Costs(name, rates, None, cores, 1)
        assert part.judged * costs.asked_scans <= costs.room / 4 and part.subjects > 1000
        assert part.subjects * costs.trained_scans + part.judged * costs.asked_scans <= costs.room


def test_an_encoder_in_the_middle_of_its_training_is_a_run_like_any_other(manifest):
    study = Study("tiny", manifest, progress=False)
    step = study.profile.optimiser.steps // 2
    half = study.variant("pretrain:jepa", f"step={step}").run("pretrain:jepa")
    whole = study.run("pretrain:jepa")
    encoders = [VisionTransformer3d.from_pretrained(run.path / "encoder").state_dict() for run in (half, whole)]
    assert not all(bool((encoders[0][name] == encoders[1][name]).all()) for name in encoders[0])
    assert study.optional(f"probe:jepa:ad@step={step}") is None
    with pytest.raises(InputError, match="No model was kept after step 5"):
        study.variant("pretrain:jepa", "step=5").run("pretrain:jepa")


def test_a_learning_curve_is_made_when_asked_for_and_shown_where_it_is_there(manifest, tmp_path):
    asked = {"evaluation.finetune_tasks": (), "evaluation.cross_validate_below": 10}
    study = Study("tiny", manifest, objective="mae", overrides=asked, progress=False)
    assert curve_tasks(study)[0] == "ad"
    assert learning_table(study).empty
    lines = list(judge(study, "curve", ["ad"], table=tmp_path / "curve.csv"))
    steps = [*snapshot_steps(study.profile.optimiser.steps), study.profile.optimiser.steps]
    assert len(lines) == len(steps) + 1
    shown, written = learning_table(study), pd.read_csv(tmp_path / "curve.csv").query("metric == 'auroc'")
    assert set(shown["task"]) == {"ad"} and set(shown["arm"][shown["volumes"] == 0]) == {"raw-voxels", "random-init"}
    points = shown[shown["volumes"] > 0]
    assert points["volumes"].tolist() == [step * study.profile.optimiser.batch_size for step in steps]
    assert points["estimate"].tolist() == pytest.approx(written["estimate"].tolist())
    kept = Study("tiny", manifest, objective="mae", overrides={**asked, "evaluation.finetune_tasks": ("ad",)})
    assert learning_table(kept).equals(shown)


def test_a_kill_loses_no_more_of_the_time_spent_than_a_tick(tmp_path, monkeypatch):
    monkeypatch.setattr(sitting, "TICK", 0.05)
    with sitting.Clock(tmp_path / "spent.json", 10.0) as clock, clock.piece("train"):
        time.sleep(0.5)
        noted = json.loads((tmp_path / "spent.json").read_text())["seconds"]
    assert noted > 0.3
    again = sitting.Clock(tmp_path / "spent.json", 10.0)
    assert again.spent >= clock.spent - 0.1 and 590 < again.left < 600
    assert [piece["what"] for piece in again.log] == ["train"]


def test_utilisation_is_averaged_over_each_piece_of_work(tmp_path):
    file = tmp_path / "busy.csv"
    file.write_text("".join(f"{t}, {100 if 10 <= t < 20 else 0}, 300.0, 1000\n" for t in range(30)) + "30, N/A\n")
    log = [{"what": "train", "began": 10.0, "seconds": 10.0}, {"what": "render", "began": 0.0, "seconds": 10.0}]
    assert busy_share(file, log) == {"train": 1.0, "render": 0.0}
    assert busy_share(tmp_path / "none.csv", log) == {}


def test_rates_that_are_measured_are_rates(manifest):
    rates = planning.measure("tiny", cpu=True, manifest=manifest, compiled=False)
    assert set(rates) == {"rendered", "judged", "probes", "memory", *ARMS}
    assert pd.Series(rates).gt(0).all() and np.isfinite(list(rates.values())).all()


def test_nobody_else_works_in_the_folder_meanwhile(tmp_path, manifest):
    state = tmp_path / "state"
    state.mkdir()
    with FileLock(state / ".lock"), pytest.raises(InputError, match="Another process works in"):
        next(iter(work.make_reference(tmp_path, 1.0, cpu=True, manifest=manifest, profiles=("tiny",))))
    with sitting.alone(state):
        pass
