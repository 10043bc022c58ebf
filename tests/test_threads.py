"""Two programs on one machine share it, instead of spinning while they wait."""

import os
import subprocess
import sys

import pytest

TRAIN = """
import os
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
import brainfm_lib, time, torch
layers = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(128, 512), torch.nn.GELU(),
                                                   torch.nn.Linear(512, 128),
                                                   torch.nn.LayerNorm(128)) for _ in range(6)))
x, steps, start = torch.randn(16, 64, 128), 0, time.time()
while time.time() - start < 4:
    layers(x).square().mean().backward()
    steps += 1
print(steps)
"""


def steps(programs: int) -> int:
    """Steps that programs of two threads each take together in the same four seconds."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP", "GOMP"))} | {"OMP_NUM_THREADS": "2"}
    running = [
        subprocess.Popen([sys.executable, "-c", TRAIN], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(programs)
    ]
    return sum(int(one.communicate(timeout=300)[0]) for one in running)


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP")
def test_two_programs_together_are_about_as_fast_as_one():
    assert steps(2) > 0.5 * steps(1), "while each spins for the other, they reach a third of it"
