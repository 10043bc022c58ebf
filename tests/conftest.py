"""Shared by all tests: nothing a test makes lands in the project's own folders."""

import os
from pathlib import Path

import pytest

# Two workers of two threads each would wait for each other on two cores, whatever the machine says.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")
for _name in [name for name in os.environ if name.startswith("BRAINFM_") and name != "BRAINFM_SOAK"]:
    del os.environ[_name]  # a user's own store is no place for tests that damage files
REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLE_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory, monkeypatch):
    """Runs and prepared volumes go to a temporary folder unless a test says otherwise."""
    if "BRAINFM_RUNS" not in os.environ:
        monkeypatch.setenv("BRAINFM_RUNS", str(tmp_path_factory.mktemp("runs")))
    if "BRAINFM_STORE" not in os.environ:
        monkeypatch.setenv("BRAINFM_STORE", str(tmp_path_factory.mktemp("store")))
    if "BRAINFM_KEY" not in os.environ:
        monkeypatch.setenv("BRAINFM_KEY", str(tmp_path_factory.mktemp("key") / "key"))
    monkeypatch.delenv("BRAINFM_MANIFEST", raising=False)


@pytest.fixture
def sample_data() -> Path:
    """Folder of openly licensed real scans, where this checkout has it beside it."""
    if not SAMPLE_DATA.is_dir():
        pytest.skip("the sample data folder is not beside this checkout")
    return SAMPLE_DATA
