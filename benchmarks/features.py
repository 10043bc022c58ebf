"""Frozen features of a ViT-S against MONAI's ViT of equal size: volumes a second, taking turns in one run.

    python benchmarks/features.py > benchmarks/features.md

96³ voxels, patch 8, 384 wide, 12 blocks, 6 heads, on the CPU, the same weights in both, so that outputs can be
compared; each at the batch size of 1, 2 and 4 that suits it best. Ours runs in the precision that `faster_precision`
chooses; where that is not float32, MONAI runs in either. Medians over rounds, and the range of the ratio.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from brainfm_lib.device import autocast, faster_precision
from brainfm_lib.features import extract
from brainfm_lib.models import VisionTransformer3d, import_monai_vit

SIDE, PATCH, WIDTH, DEPTH, HEADS = 96, 8, 384, 12, 6
BATCHES = (1, 2, 4)
VOLUMES = 4


class Bank:
    """Volumes in memory, as `extract` reads them."""

    def __init__(self) -> None:
        self.volumes = np.random.default_rng(0).random((VOLUMES, SIDE, SIDE, SIDE), np.float32)

    def __len__(self) -> int:
        return VOLUMES

    def read(self, rows: range) -> np.ndarray:
        """Rows (B,) -> (B, D, H, W)."""
        return self.volumes[list(rows)]


def make_both() -> tuple[torch.nn.Module, VisionTransformer3d]:
    """MONAI's network with random weights, and ours with the same."""
    from monai.networks.nets import ViT

    torch.manual_seed(0)
    side, patch = (SIDE,) * 3, (PATCH,) * 3
    theirs = ViT(1, side, patch, hidden_size=WIDTH, mlp_dim=4 * WIDTH, num_layers=DEPTH, num_heads=HEADS).eval()
    return theirs, import_monai_vit(theirs.state_dict(), heads=HEADS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    bank = Bank()
    monai, encoder = make_both()

    def ours(size: int) -> np.ndarray:
        return extract(encoder, bank, poolings=["mean"], blocks=[DEPTH], batch_size=size)[f"mean@{DEPTH}"]

    @torch.inference_mode()
    def theirs(size: int) -> np.ndarray:
        parts = []
        for start in range(0, VOLUMES, size):
            x = torch.from_numpy(bank.read(range(start, start + size)))[:, None]
            x = (x - x.mean((1, 2, 3, 4), keepdim=True)) / x.std((1, 2, 3, 4), keepdim=True, correction=0)
            parts.append(monai(x)[0].mean(1).float())
        return torch.cat(parts).numpy()

    def theirs_faster(size: int) -> np.ndarray:
        with autocast(torch.device("cpu")):
            return theirs(size)

    precision = faster_precision(torch.device("cpu"))
    ways: dict[str, Callable[[int], np.ndarray]] = {f"ours, {precision}": ours, "MONAI, fp32": theirs}
    if precision != "fp32":
        ways[f"MONAI, {precision}"] = theirs_faster
    difference = float(np.abs(ours(1) - theirs(1)).max())
    best = {name: min(BATCHES, key=lambda size: timed(way, size)) for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            times[name].append(timed(way, best[name]))
    first, *others = ways
    print("# Frozen features against MONAI\n\nMade by `benchmarks/features.py`, which says how.\n")
    print(f"Features at {SIDE}³, patch {PATCH}, ViT {WIDTH} × {DEPTH}, {torch.get_num_threads()} threads.\n")
    print("| encoder | batch | volumes/s |")
    print("|---|---:|---:|")
    for name in ways:
        print(f"| {name} | {best[name]} | {VOLUMES / statistics.median(times[name]):.2f} |")
    for name in others:
        ratios = [b / a for a, b in zip(times[first], times[name], strict=True)]
        said = f"{statistics.median(ratios):.2f} times as fast as {name}"
        print(f"\nOurs is {said} ({min(ratios):.2f} to {max(ratios):.2f} over {arguments.rounds} rounds).")
    print(f"\nLargest difference of a feature {difference:.1e}.")


def timed(way: Callable[[int], np.ndarray], size: int) -> float:
    """Seconds for all volumes."""
    started = time.perf_counter()
    way(size)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
