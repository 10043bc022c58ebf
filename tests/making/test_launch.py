"""Two processes (gloo, CPU) against one with the same global batch."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from brainfm_lib.device import faster_precision
from tests.pretrain.test_pretrain import VARIANTS, assert_equal_gradients, gradients_of_one_step

ROOT = Path(__file__).parents[2]


def in_two_processes(script: str, *arguments: str) -> None:
    """Run a script in two processes that find each other; none may fail."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    shared |= {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}
    workers = [
        subprocess.Popen(
            [sys.executable, *(["-c", script] if "\n" in script else script.split()), *arguments],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(said)


@pytest.fixture(scope="module")
def two_process_gradients(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    script = textwrap.dedent(f"""
        import dataclasses, os, sys; sys.path.insert(0, {str(ROOT)!r})
        from pathlib import Path
        from safetensors.torch import save_file
        from tests.pretrain.test_pretrain import VARIANTS, gradients_of_one_step
        for name, config in VARIANTS.items():
            for parts in (1, 2):
                split = dataclasses.replace(
                    config, optimiser=dataclasses.replace(config.optimiser, accumulate=parts))
                gradients, terms = gradients_of_one_step(split, Path(sys.argv[1]))
                save_file(gradients, Path(sys.argv[1]) / f"{{name}}-{{parts}}-{{os.environ['RANK']}}.safetensors")
    """)
    in_two_processes(script, str(folder))
    return folder


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_find_the_gradient_of_one(variant, parts, two_process_gradients, tmp_path):
    one, _ = gradients_of_one_step(VARIANTS[variant], tmp_path)
    ranks = [load_file(two_process_gradients / f"{variant}-{parts}-{rank}.safetensors") for rank in range(2)]
    for mine in ranks:
        assert_equal_gradients(mine, one)
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])


def test_two_processes_make_the_run_that_one_makes(tmp_path, monkeypatch):
    """As a user with a launcher does: ``-m brainfm_lib.pretrain``; the second time the finished runs are found."""
    results = {}
    for name in ("one", "two"):
        monkeypatch.setenv("BRAINFM_RUNS", str(tmp_path / name))
        arguments = ["tiny", "--objective", "all", "--cpu"]
        if name == "one":
            subprocess.run([sys.executable, "-m", "brainfm_lib.pretrain", *arguments], check=True, capture_output=True)
        else:
            in_two_processes("-m brainfm_lib.pretrain", *arguments)
            in_two_processes("-m brainfm_lib.pretrain", *arguments)
        folders = sorted((tmp_path / name).glob("pretrain-*"))
        assert len(folders) == 4 and not list((tmp_path / name).glob(".partial-*"))
        results[name] = {f.name: pd.read_parquet(f / "metrics.parquet") for f in folders}
    assert results["one"].keys() == results["two"].keys()
    rtol = 2e-2 if faster_precision(torch.device("cpu")) == "fp32" else 6e-2
    for run, alone in results["one"].items():
        pd.testing.assert_frame_equal(
            alone.drop(columns="seconds"), results["two"][run].drop(columns="seconds"), rtol=rtol, atol=1e-4
        )


def test_a_budget_is_for_one_process():
    said = subprocess.run(
        [sys.executable, "-m", "brainfm_lib.cli", "pretrain", "--minutes", "1"],
        env={**os.environ, "WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
    )
    assert said.returncode == 2 and "plans for one process" in said.stderr
