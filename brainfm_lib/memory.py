"""How much memory there is for this process: of the machine, and of what holds it (a limit on addresses, a cgroup)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_AS, getrlimit

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
FILES = {"": ("memory.max", "memory.current"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes")}


def total_memory() -> int:
    """Bytes of the machine, or of addresses that this process may have where they are fewer."""
    machine, addresses = _pages("SC_PHYS_PAGES"), getrlimit(RLIMIT_AS)[0]
    return machine if addresses == RLIM_INFINITY else min(machine, addresses)


def free_memory() -> float:
    """Bytes that this process may count on: what could be had here, shared with its siblings on this machine."""
    siblings = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    available = re.search(r"MemAvailable: +(\d+) kB", _read(PROC / "meminfo"))  # files in the cache give way
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    free = min([1024 * int(available[1]) if available else _pages(pages), *_left_in_cgroups()]) / siblings
    addresses, taken = getrlimit(RLIMIT_AS)[0], re.match(r"\d+", _read(PROC / "self" / "statm"))
    if addresses != RLIM_INFINITY:
        free = min(free, addresses - int(taken[0]) * os.sysconf("SC_PAGE_SIZE") if taken else addresses)
    return max(free, 0.0)


def _left_in_cgroups() -> Iterator[int]:
    """What limits of the cgroups that hold this process leave, from its own up to the root; version 2 and 1."""
    for line in _read(PROC / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        kind = "memory" if "memory" in controllers.split(",") else controllers
        if kind not in FILES:
            continue
        root = CGROUPS / kind
        own = root / path.lstrip("/")
        for folder in [f for f in (own, *own.parents) if f.is_relative_to(root)]:
            limit, used = (_read(folder / name).strip() for name in FILES[kind])
            of_all = "total_" if kind else ""  # as is the use: of the groups within, too
            cached = re.search(rf"^{of_all}inactive_file (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
            if limit.isdigit() and used.isdigit():
                yield int(limit) - int(used) + (int(cached[1]) if cached else 0)


def _pages(name: str) -> int:
    return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
