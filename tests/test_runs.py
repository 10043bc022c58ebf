"""The run store: identity, one maker at a time, nothing half-made is ever found."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from brainfm_lib import identity, runs
from brainfm_lib.data.pseudonyms import key_file
from brainfm_lib.errors import InputError
from brainfm_lib.identity import save_tensors
from brainfm_lib.paths import runs_dir, store_dir
from brainfm_lib.runs import RunConfig, ensure, find, get_run, list_runs, remove_run


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    (tmp_path / "data_manifest.yaml").write_text("version: 1\n")
    monkeypatch.setenv("BRAINFM_ROOT", str(tmp_path))
    monkeypatch.setenv("BRAINFM_RUNS", str(tmp_path / "runs"))
    return tmp_path


def config(value=1, **kwargs):
    return RunConfig("toy", {"value": value}, code=("brainfm_lib.tokens",), **kwargs)


def write_value(folder: Path):
    np.save(folder / "value.npy", np.arange(3))
    return {"device": "cpu"}


def test_a_finished_run_is_found_and_not_made_again():
    made = []
    first = ensure(config(), lambda folder: made.append(1) or write_value(folder))
    second = ensure(config(), lambda folder: made.append(2) or write_value(folder))
    assert made == [1] and first.id == second.id
    assert second.array("value").tolist() == [0, 1, 2]
    assert second.settings == {"value": 1} and second.provenance["device"] == "cpu"
    assert {"commit", "versions", "wall_seconds", "process_peak_memory_bytes", "data"} <= set(second.provenance)


def test_identity_follows_settings_data_inputs_and_code_only():
    base = config(data={"scans": "a"}, inputs={"encoder": config(5)})
    assert base.id == config(data={"scans": "a"}, inputs={"encoder": config(5)}).id
    assert base.id != config(2, data={"scans": "a"}, inputs={"encoder": config(5)}).id
    assert base.id != config(data={"scans": "b"}, inputs={"encoder": config(5)}).id
    assert base.id != config(data={"scans": "a"}, inputs={"encoder": config(6)}).id
    other = RunConfig("toy", {"value": 1}, {"scans": "a"}, {"encoder": config(5)}, ("brainfm_lib.masking",))
    assert base.id != other.id and base.loose_id.replace("toy", "") == other.loose_id.replace("toy", "")


def test_identity_is_the_same_in_another_process():
    made = "RunConfig('toy', {'b': 1.0, 'a': [1, 2]}, code=('brainfm_lib.tokens',))"
    script = f"from brainfm_lib.runs import RunConfig; print({made}.id)"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert printed == RunConfig("toy", {"a": (1, 2), "b": 1}, code=("brainfm_lib.tokens",)).id


def test_code_digest_ignores_comments_and_docstrings_but_not_code(tmp_path, monkeypatch):
    package = tmp_path / "brainfm_lib"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "b.py").write_text("x = 1\n")
    source = '"""Doc."""\nfrom brainfm_lib.b import x\n\ndef f():\n    """Doc."""\n    return x\n'
    (package / "a.py").write_text(source)
    monkeypatch.setattr(identity, "PACKAGE_DIR", package)
    first = identity.code_digest(["brainfm_lib.a"])
    (package / "a.py").write_text("# why\n" + source.replace("Doc.", "Other words."))
    assert identity.code_digest(["brainfm_lib.a"]) == first
    (package / "b.py").write_text("x = 22\n")
    assert identity.code_digest(["brainfm_lib.a"]) != first


def test_a_failed_run_is_not_found_and_resumes_in_its_folder(project):
    def fail(folder: Path):
        (folder / "checkpoint").write_text("half")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        ensure(config(), fail)
    assert find(config()) is None and not list_runs()

    def resume(folder: Path):
        assert (folder / "checkpoint").read_text() == "half"
        (folder / "checkpoint").unlink()
        return write_value(folder)

    assert ensure(config(), resume).array("value").sum() == 3
    assert not list((project / "runs").glob(".partial*"))


def _count(root, queue):
    os.environ["BRAINFM_ROOT"] = root

    def make(folder: Path):
        with (Path(root) / "made.txt").open("a") as handle:
            handle.write("x")
        time.sleep(0.5)
        return write_value(folder)

    queue.put(ensure(config(), make).id)


def test_of_two_processes_one_makes_the_run_and_the_other_waits(project):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_count, args=(str(project), queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert queue.get(timeout=60) == queue.get(timeout=60)
    for worker in workers:
        worker.join()
    assert (project / "made.txt").read_text() == "x"


def test_a_killed_process_leaves_no_lock(project):
    script = textwrap.dedent("""
        import time
        from brainfm_lib.runs import RunConfig, ensure
        def make(folder):
            (folder / "started").touch()
            time.sleep(60)
        ensure(RunConfig("toy", {"value": 1}, code=("brainfm_lib.tokens",)), make)
    """)
    worker = subprocess.Popen([sys.executable, "-c", script])
    partial = project / "runs" / f".partial-{config().id}"
    for _ in range(300):
        if (partial / "started").exists():
            break
        time.sleep(0.1)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    start = time.perf_counter()
    assert ensure(config(), write_value).id == config().id
    assert time.perf_counter() - start < 5


def test_a_shipped_run_is_found_whatever_the_code(project):
    run = ensure(config(), write_value)
    shipped = project / "book" / "reference" / "runs"
    shipped.mkdir(parents=True)
    run.path.rename(shipped / config().loose_id)
    other_code = RunConfig("toy", {"value": 1}, code=("brainfm_lib.masking",))
    found = ensure(other_code, lambda folder: pytest.fail("made again"))
    assert found.shipped and found.id == config().id
    with pytest.raises(InputError, match="read-only"):
        remove_run(found.id)


def test_runs_are_listed_found_by_their_beginning_and_removed():
    ensure(config(1), write_value)
    run = ensure(config(2), write_value)
    assert len(list_runs()) == 2
    assert get_run(run.id[:10]).id == run.id
    with pytest.raises(InputError, match="2 runs begin with"):
        get_run("toy-")
    with pytest.raises(InputError, match="no run is called"):
        get_run("nothing")
    remove_run(run.id)
    assert [r.id for r in list_runs()] == [config(1).id]


def test_a_damaged_run_hides_no_other_and_can_be_removed(project):
    kept, broken = ensure(config(1), write_value), ensure(config(2), write_value)
    for content in ('{"id": "toy', "{}"):
        (broken.path / runs.PROVENANCE).write_text(content)
        with pytest.warns(UserWarning, match=f"runs rm {broken.id}"):
            assert [run.id for run in list_runs()] == [kept.id] == [get_run(kept.id[:-1]).id]
    (project / "runs" / f".removed-{broken.id}-1").mkdir()  # what a removal that was killed has left
    assert remove_run(broken.id) == broken.id and not broken.path.exists()
    with pytest.raises(InputError, match="no run is called"):
        remove_run("../runs")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_folder_that_is_only_read_says_how_to_go_on(project):
    ensure(config(1), write_value)
    (project / "runs" / ".locks").chmod(0o500)
    with pytest.raises(InputError, match="set BRAINFM_RUNS"):
        ensure(config(2), write_value)


@pytest.mark.parametrize("place", ["kept", "~/kept"])
def test_a_relative_folder_is_one_and_the_same_from_everywhere(project, tmp_path, monkeypatch, place):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BRAINFM_ROOT", str(project))
    for name, folder in (("BRAINFM_RUNS", runs_dir), ("BRAINFM_STORE", store_dir), ("BRAINFM_KEY", key_file)):
        monkeypatch.setenv(name, place)
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert folder() == (tmp_path / "home" / "kept" if "~" in place else project / "kept")


def test_tensors_that_cannot_be_written_are_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save_tensors({"x": torch.zeros(2)}, tmp_path / "nowhere" / "x.safetensors")


def test_no_identifier_of_a_run_holds_a_path(project):
    run = ensure(config(), write_value)
    assert str(project) not in json.dumps(run.provenance) + (run.path / runs.PROVENANCE).read_text()


def test_scratch_goes_once_the_run_is_whole(project):
    def make(folder: Path):
        for name in ("checkpoint-00000012", ".checkpoint-1.tmp"):
            (folder / name).mkdir()
        return write_value(folder)

    run = ensure(config(), make)
    assert sorted(file.name for file in run.path.iterdir()) == ["config.yaml", "provenance.json", "value.npy"]


def test_a_kill_between_the_last_file_and_the_new_name_costs_nothing(project):
    run = ensure(config(), write_value)
    run.path.rename(project / "runs" / f".partial-{run.id}")  # as a kill just before the rename leaves it
    assert find(config()) is None
    again = ensure(config(), lambda folder: pytest.fail("made again"))
    assert again.id == run.id and again.array("value").tolist() == [0, 1, 2]


def test_code_that_changes_under_a_running_process_files_no_result(project):
    copy = project / "copy" / "brainfm_lib"
    shutil.copytree(Path(identity.__file__).parent, copy)
    script = (
        "import sys; from pathlib import Path; from brainfm_lib.runs import RunConfig; import brainfm_lib.masking\n"
        "config = lambda: RunConfig('toy', {}, code=('brainfm_lib.masking',))\n"
        "print(config().id)\n"
        "file = Path(sys.argv[1]) / 'masking.py'\n"
        "file.write_text(file.read_text() + '\\n# a comment\\n')\n"
        "print(config().id)\n"
        "file.write_text(file.read_text() + '\\nx = 1\\n')\n"
        "config().id\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(copy.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(copy)], cwd=copy.parent, env=environment, capture_output=True, text=True
    )
    first, commented = done.stdout.split()
    assert first == commented and "masking.py was changed after this process" in done.stderr
