"""The library speaks to no other machine: pretraining, probing and a notebook work where connections are refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.book import toy
from tests.faults.test_kills import REPORT
from tests.test_cli import folders

# put before the standard library's own in every Python that a command starts, kernels included
BLOCK = """\
import socket

def refuse(self, address, *rest):
    if self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost"):
        return original(self, address, *rest)
    open(LOG, "a").write(f"{address}\\n")
    raise OSError(f"blocked: {address}")

original = socket.socket.connect
socket.socket.connect = socket.socket.connect_ex = refuse
lookup = socket.getaddrinfo

def look(host, *rest, **more):
    if host not in (None, "", "127.0.0.1", "::1", "localhost", "0.0.0.0", socket.gethostname()):
        open(LOG, "a").write(f"{host}\\n")
        raise socket.gaierror(f"blocked: {host}")
    return lookup(host, *rest, **more)

socket.getaddrinfo = look
"""


@pytest.fixture
def blocked(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    log = tmp_path / "connections"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(f"LOG = {str(log)!r}\n{BLOCK}")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "BRAINFM_"))}
    environment |= {**folders(tmp_path), "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{toy.ROOT}"}
    return log, environment


def call(environment: dict[str, str], root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )


def test_a_connection_would_be_noticed(blocked: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    log, environment = blocked
    for code in (
        "import socket; socket.create_connection(('10.0.0.1', 80), 1)",
        "import urllib.request as u; u.urlopen('http://a.org')",
    ):
        assert "blocked" in call(environment, tmp_path, "-c", code).stderr
    assert len(log.read_text().splitlines()) == 2


def test_nothing_is_fetched_from_the_network(blocked: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    log, environment = blocked
    (tmp_path / "data_manifest.yaml").write_bytes((toy.ROOT / "data_manifest.yaml").read_bytes())
    sizes = "{'subjects.pretraining': 12, 'subjects.downstream': 40, 'optimiser.steps': 4}"
    code = f"""\
from brainfm_lib.study import Study
study = Study('tiny', overrides={sizes}, progress=False)
for request in ('check', 'probe:mae:ad', 'reconstruction:sl-mae', 'latents:vcr-jepa', 'knn:jepa:ad'):
    if request != 'check':
        print(study.run(request).id)
"""
    done = call(environment, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr[-2000:]
    toy.make_toy(tmp_path / "toy")
    environment["BRAINFM_ROOT"] = str(tmp_path / "toy")
    done = call(environment, tmp_path / "toy", "-c", REPORT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not log.exists(), log.read_text()
