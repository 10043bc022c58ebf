"""How much memory a process may count on: less than the machine has where a limit holds it."""

import subprocess
import sys
from pathlib import Path

import pytest

from brainfm_lib import memory

GIB = 2**30


def test_of_a_free_machine_it_is_what_the_kernel_says(monkeypatch):
    told = {line.split(":")[0]: int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()}
    assert 0 < memory.free_memory() <= 1.02 * 1024 * told["MemAvailable"] + GIB / 8
    assert memory.total_memory() == pytest.approx(1024 * told["MemTotal"], rel=1e-3)
    alone = memory.free_memory()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.free_memory() == pytest.approx(alone / 4, rel=0.1)


def test_a_limit_on_addresses_counts():
    code = """
import resource
from brainfm_lib import memory
before = memory.free_memory()
resource.setrlimit(resource.RLIMIT_AS, (2**30, resource.RLIM_INFINITY))
print(before, memory.free_memory(), memory.total_memory())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after, total = map(float, done.stdout.split())
    assert total == GIB and GIB / 2 < after < min(GIB, before)


@pytest.mark.parametrize("version", [1, 2])
def test_limits_of_cgroups_count_up_to_the_root_and_their_cache_gives_way(tmp_path, monkeypatch, version):
    kind, names = ("memory", memory.FILES["memory"]) if version == 1 else ("", memory.FILES[""])
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemAvailable: 8388608 kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text(
        "3:cpu:/other\n4:memory:/job/step\n" * (2 - version) + "0::/job/step\n"
    )
    groups = tmp_path / "groups" / kind
    (groups / "job" / "step").mkdir(parents=True)

    def limit(folder, most, used, cached):
        (folder / names[0]).write_text(f"{most}\n")
        (folder / names[1]).write_text(f"{used}\n")
        own = f"inactive_file {cached}\n" if version == 2 else f"inactive_file 0\ntotal_inactive_file {cached}\n"
        (folder / "memory.stat").write_text(f"anon 5\n{own}")

    assert memory.free_memory() == 8 * GIB
    limit(groups / "job" / "step", "max" if version == 2 else 9223372036854771712, GIB, 0)
    assert memory.free_memory() == 8 * GIB
    limit(groups / "job", 4 * GIB, 3 * GIB, GIB)
    assert memory.free_memory() == 2 * GIB
    limit(groups / "job" / "step", 2 * GIB, GIB, 0)
    assert memory.free_memory() == GIB
    limit(groups / "job" / "step", GIB, 2 * GIB, 0)
    assert memory.free_memory() == 0


def test_a_real_cgroup_counts():
    root = Path("/sys/fs/cgroup/memory")
    group = root / "brainfm-test"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(GIB))
    except OSError:
        pytest.skip("no cgroup of memory can be made here")
    try:
        code = f"""
import os
with open({str(group / "cgroup.procs")!r}, "w") as group:
    group.write(str(os.getpid()))
from brainfm_lib import memory
print(memory.free_memory())
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert GIB / 2 < float(done.stdout) < GIB
    finally:
        group.rmdir()
