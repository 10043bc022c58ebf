"""Random streams: generators whose state is a pure function of what they are for."""

import torch

from brainfm_lib.identity import stable_hash


def stream(device: torch.device | str, *key: int | str) -> torch.Generator:
    """Make a generator on `device` whose state is a pure function of `key`."""
    return torch.Generator(device=device).manual_seed(int(stable_hash(key, 15), 16))
