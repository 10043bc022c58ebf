"""Time and memory of an encoder against the number of tokens, with the attention term separated.

    python benchmarks/tokens.py > benchmarks/tokens.md        # also writes benchmarks/tokens.svg

Forward and backward of `BLOCKS` blocks of ViT-S on one volume, all tokens visible; attention alone on tensors of the
same shape, its share of the whole, and what is left: the part that grows in proportion. Median of several rounds;
memory is what tensors occupy at most beyond parameters.
"""

import argparse
import gc
import platform
import statistics
import time
from pathlib import Path

import torch
from step import allocated_bytes, wait
from torch.nn import functional as F

from brainfm_lib.device import autocast, best_device
from brainfm_lib.models.vit import Block

EDGES = (8, 10, 12, 14, 16, 18, 20)  # tokens along an axis: 512 to 8,000
BLOCKS, WIDTH, HEADS = 2, 384, 6


def seconds(run, device: torch.device, rounds: int) -> float:
    times = []
    for _ in range(rounds + 1):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measure(tokens: int, device: torch.device, rounds: int) -> dict[str, float]:
    torch.manual_seed(0)
    blocks = torch.nn.Sequential(*(Block(WIDTH, HEADS) for _ in range(BLOCKS))).to(device)
    x = torch.randn(1, tokens, WIDTH, device=device, requires_grad=True)

    def whole() -> None:
        with autocast(device):
            out = blocks(x)
        out.float().sum().backward()
        blocks.zero_grad(set_to_none=True)
        x.grad = None

    q, k, v = (torch.randn(1, HEADS, tokens, WIDTH // HEADS, device=device, requires_grad=True) for _ in range(3))

    def attention() -> None:
        for _ in range(BLOCKS):
            with autocast(device):
                out = F.scaled_dot_product_attention(q, k, v)
            out.float().sum().backward()

    row = {"whole": seconds(whole, device, rounds), "attention": seconds(attention, device, rounds)}
    row["memory"] = allocated_bytes(whole, device)
    gc.collect()
    return row


def draw(rows: dict[int, dict[str, float]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tokens = list(rows)
    whole, attention = ([1e3 * row[name] for row in rows.values()] for name in ("whole", "attention"))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    rest = [a - b for a, b in zip(whole, attention)]
    for values, name, colour in (
        (whole, "all", "#222222"),
        (attention, "attention", "#d55e00"),
        (rest, "rest", "#0072b2"),
    ):
        left.loglog(tokens, values, "o-", label=name, color=colour)
    left.set(xlabel="tokens", ylabel="forward and backward, ms")
    left.legend(frameon=False)
    right.loglog(tokens, [row["memory"] / 1e6 for row in rows.values()], "o-", color="#222222")
    right.set(xlabel="tokens", ylabel="peak tensor memory, MB")
    for axis in (left, right):
        axis.set_xticks(tokens, [f"{n:,}" for n in tokens], rotation=45, fontsize=8)
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    device = best_device(cpu=arguments.cpu)
    where = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    print("# Time and memory against the number of tokens\n")
    print(f"Made by `benchmarks/tokens.py`; {BLOCKS} blocks, {WIDTH} wide, {HEADS} heads, one volume;")
    print(f"{where}, torch {torch.__version__}.\n")
    print("| tokens | all, ms | attention, ms | share | rest, µs a token | peak tensor memory, MB | kB a token |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    rows = {}
    for edge in EDGES:
        n = edge**3
        row = rows[n] = measure(n, device, arguments.rounds)
        rest, share = row["whole"] - row["attention"], row["attention"] / row["whole"]
        cells = [f"{n:,}", f"{1e3 * row['whole']:,.0f}", f"{1e3 * row['attention']:,.0f}", f"{share:.0%}"]
        cells += [f"{1e6 * rest / n:.0f}", f"{row['memory'] / 1e6:,.0f}", f"{row['memory'] / 1e3 / n:.0f}"]
        print("| " + " | ".join(cells) + " |", flush=True)
    draw(rows, Path(__file__).with_suffix(".svg"))
    print("\n![Time and memory against the number of tokens](tokens.svg)")


if __name__ == "__main__":
    main()
