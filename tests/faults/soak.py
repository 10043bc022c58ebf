"""How long the fault tests go on: in short with `make test`, in full with `make soak`."""

import os


def times(short: int, full: int) -> int:
    """`short`, or `full` where ``BRAINFM_SOAK`` is set."""
    return full if os.environ.get("BRAINFM_SOAK") else short
