"""A training step (forward, backward, optimiser) side by side with MONAI's masked autoencoder, and what extras cost.

    python benchmarks/step.py > benchmarks/step.md            # what this machine has: CPU, or the GPU
    python benchmarks/step.py --only "96³, patch 16" --rounds 20

Equal width, depth, heads, MLP width, patch, mask ratio, batch and input; all rivals take turns in one process, so that
a noisy machine disturbs all alike; the figure is the median over the rounds of the ratio within a round, with its
quartiles. MONAI is run as shipped (its blocks never use fused attention) and with fused attention switched on;
both with AdamW as `torch.optim.AdamW(model.parameters())` gives it. Peak tensor memory is what tensors occupy at most
during a step, parameters and optimiser state included.

FLOPs are those of matrix products and attention, by the formula of `brainfm_lib/pretrain/compute.py`: backward counts
twice forward, recomputation is not counted.
"""

import argparse
import gc
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from brainfm_lib.data.augment import zscore
from brainfm_lib.device import best_device, faster_precision
from brainfm_lib.losses.spectral import SpectralConfig, compile_spectral_loss
from brainfm_lib.losses.vcr import VcrConfig
from brainfm_lib.masking import MaskConfig, visible_count
from brainfm_lib.models import Jepa, JepaConfig, MaeConfig, VisionTransformerConfig
from brainfm_lib.models.vit import compile_blocks
from brainfm_lib.objectives import ObjectiveConfig, build_model, compute_loss, objective_config
from brainfm_lib.pretrain.compute import step_flops
from brainfm_lib.pretrain.graphed import GraphedLoss
from brainfm_lib.pretrain.optimiser import OptimiserConfig, make_optimiser
from brainfm_lib.tokens import patch_grid, patchify


@dataclass(frozen=True)
class Size:
    """What is trained: sizes of encoder and decoder, edge of the cube, batch."""

    name: str
    edge: int
    batch: int
    encoder: VisionTransformerConfig
    decoder: tuple[int, int, int] = (192, 4, 3)
    ratio: float = 0.75


SMALL = VisionTransformerConfig(patch_size=8, embed_dim=384, depth=12, heads=6)
BASE = VisionTransformerConfig(patch_size=8, embed_dim=768, depth=12, heads=12)
CPU_SIZES = [
    Size("ViT-S, 96³, patch 8", 96, 2, SMALL),
    Size("ViT-S, 96³, patch 16", 96, 2, replace(SMALL, patch_size=16)),
    Size("ViT-S, 96³, patch 16, larger batch", 96, 8, replace(SMALL, patch_size=16)),
]
GPU_SIZES = [  # batches of which MONAI's attention, which is not fused, fits into 80 GB
    Size("ViT-S, 96³, patch 8", 96, 64, SMALL),
    Size("ViT-B, 144³, patch 8", 144, 8, BASE, (384, 8, 6)),
]


def arm_config(arm: str, size: Size) -> ObjectiveConfig:
    """The objective of an arm at a size."""
    dim, depth, heads = size.decoder
    return objective_config(
        arm,
        encoder=size.encoder,
        mae=MaeConfig(dim, depth, heads),
        jepa=JepaConfig(dim, depth, heads),
        spectral=SpectralConfig(ramp_start=0.0, ramp_end=0.0),
        vcr=VcrConfig(),
    )


# --- ours -------------------------------------------------------------------------------------------------------------


def our_step(
    arm: str,
    size: Size,
    device: torch.device,
    precision: str,
    *,
    budget: float = 1.0,
    fast: bool = False,
    graphs: bool = True,
) -> Callable[[Tensor], None]:
    """One step of an arm as the trainer takes it, but for reading volumes and augmentation; input in [0, 1]."""
    config = arm_config(arm, size)
    torch.manual_seed(0)
    model = build_model(config).to(device)
    if fast:
        compile_blocks(model)
        compile_spectral_loss()
    graphed = GraphedLoss(model, config, precision) if graphs and device.type == "cuda" else None
    optimiser, masks = make_optimiser(model, OptimiserConfig()), MaskConfig(size.ratio, budget=budget)
    generator = torch.Generator(device=device).manual_seed(0)
    weight = config.spectral.weight if config.spectral else 0.0

    def run(volumes: Tensor) -> None:
        kept = masks.kept(volumes, size.encoder.patch_size)
        grid = patch_grid(volumes.shape, size.encoder.patch_size)
        mask = masks.draw(len(volumes), grid, generator, device, kept=kept)
        scored = zscore(volumes)
        if graphed is not None:
            graphed(scored, mask, weight, detail=False)
        else:
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                loss, _ = compute_loss(model, config, scored, mask, spectral_weight=weight)
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if isinstance(model, Jepa):
            model.update_target(0.998)

    run.model, run.optimiser = model, optimiser  # type: ignore[attr-defined]
    return run


# --- MONAI ------------------------------------------------------------------------------------------------------------


def monai_step(size: Size, device: torch.device, precision: str, *, fused_attention: bool) -> Callable[[Tensor], None]:
    """One step of MONAI's masked autoencoder on the same input; bf16 by casting the model's mask tokens for it."""
    from monai.networks.blocks import SABlock
    from monai.networks.nets import MaskedAutoEncoderViT

    dim, depth, heads = size.decoder
    torch.manual_seed(0)
    model = MaskedAutoEncoderViT(
        in_channels=1,
        img_size=(size.edge,) * 3,
        patch_size=(size.encoder.patch_size,) * 3,
        hidden_size=size.encoder.embed_dim,
        mlp_dim=round(size.encoder.embed_dim * size.encoder.mlp_ratio),
        num_layers=size.encoder.depth,
        num_heads=size.encoder.heads,
        masking_ratio=size.ratio,
        decoder_hidden_size=dim,
        decoder_mlp_dim=4 * dim,
        decoder_num_layers=depth,
        decoder_num_heads=heads,
    ).to(device)
    if fused_attention:
        for module in model.modules():
            if isinstance(module, SABlock):
                module.use_flash_attention = True
    if precision == "bf16":  # under autocast its mask tokens stay float32 and cannot be written into
        model = model.to(torch.bfloat16)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def run(volumes: Tensor) -> None:
        scored = zscore(volumes)
        predicted, mask = model(scored.to(next(model.parameters()).dtype))
        error = (predicted.float() - patchify(scored, size.encoder.patch_size)).square().mean(-1)
        loss = (error * mask).sum() / mask.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    run.model, run.optimiser = model, optimiser  # type: ignore[attr-defined]
    return run


# --- measuring --------------------------------------------------------------------------------------------------------


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def take_turns(
    steps: dict[str, Callable[[Tensor], None]], volumes: Tensor, rounds: int, warm: int = 2
) -> dict[str, list[float]]:
    """Seconds of every step in every round; all take turns, the order turning round by round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for i in range(rounds + warm):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            wait(volumes.device)
            start = time.perf_counter()
            steps[name](volumes)
            wait(volumes.device)
            if i >= warm:
                times[name].append(time.perf_counter() - start)
    return times


def peak_memory(step: Callable[[Tensor], None], volumes: Tensor) -> int:
    """Most bytes that tensors occupy during a step, those that live before it included."""
    gc.collect()
    return state_bytes(step) + allocated_bytes(lambda: step(volumes), volumes.device)


def allocated_bytes(run: Callable[[], None], device: torch.device) -> int:
    """Most bytes that tensors allocated during `run` occupy together."""
    if device.type == "cuda":
        run()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    level = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    return peak


def state_bytes(step: Callable[[Tensor], None]) -> int:
    """Bytes of parameters and optimiser state, which live between steps."""
    tensors = [*step.model.parameters()]  # type: ignore[attr-defined]
    for entries in step.optimiser.state.values():  # type: ignore[attr-defined]
        tensors += [value for value in entries.values() if isinstance(value, Tensor)]
    return sum(t.nbytes for t in tensors)


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def large_product(device: torch.device, precision: str) -> tuple[Callable[[Tensor], None], float]:
    """A large square matrix product, to take turns with the steps, and its FLOPs."""
    edge = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(edge, edge, device=device, dtype=dtype) for _ in range(2))

    def run(_: Tensor) -> None:
        a @ b

    return run, 2.0 * edge**3


# --- tables -----------------------------------------------------------------------------------------------------------


def heads(size: Size, device: torch.device) -> Tensor:
    """Skull-stripped brains as far as a step sees them: an ellipsoid of texture of usual size in a field of 182 mm."""
    axis = torch.linspace(-91, 91, size.edge)
    d, h, w = torch.meshgrid(axis, axis, axis, indexing="ij")
    inside = (d / 70) ** 2 + (h / 86) ** 2 + (w / 65) ** 2 < 1
    texture = torch.rand(size.batch, 1, *(size.edge,) * 3, generator=torch.Generator().manual_seed(0)).clamp_min(0.01)
    return (texture * inside).to(device)


def ratio_text(slow: list[float], fast: list[float]) -> str:
    each = sorted(a / b for a, b in zip(slow, fast))
    return f"{statistics.median(each):.2f} ({each[len(each) // 4]:.2f} to {each[-1 - len(each) // 4]:.2f})"


def against_monai(size: Size, device: torch.device, precision: str, rounds: int, best: bool) -> None:
    volumes = heads(size, device)
    steps: dict[str, Callable[[Tensor], None]] = {
        "ours, MAE": our_step("mae", size, device, precision),
        "MONAI as shipped": monai_step(size, device, precision, fused_attention=False),
        "MONAI, fused attention": monai_step(size, device, precision, fused_attention=True),
    }
    if best and device.type == "cuda":
        steps["ours, MAE, compiled"] = our_step("mae", size, device, precision, fast=True)
    product, flops = large_product(device, precision)
    times = take_turns({**steps, "product": product}, volumes, rounds)
    print(f"\n## {size.name}, batch {size.batch}, {precision}, {device.type}\n")
    print("| step | median, ms | time ÷ ours | peak tensor memory, MB | memory ÷ ours |\n|---|---:|---:|---:|---:|")
    ours = "ours, MAE"
    if device.type == "cuda":  # what a graph holds is not counted: the same step, launched piece by piece
        steps[ours] = our_step("mae", size, device, precision, graphs=False)
    memory = {name: peak_memory(step, volumes) for name, step in steps.items()}
    for name in steps:
        print(
            f"| {name} | {1e3 * statistics.median(times[name]):,.0f} | {ratio_text(times[name], times[ours])} "
            f"| {memory[name] / 1e6:,.0f} | {memory[name] / memory[ours]:.2f} |",
            flush=True,
        )
    rate = flops / statistics.median(times["product"])
    least = work_of("mae", size) / rate
    rivals = " and ".join(f"{statistics.median(times[name]) / least:.2f}" for name in steps if name.startswith("MONAI"))
    print(
        f"\nA large matrix product between the steps: {rate / 1e12:.3g} TFLOP/s. At that rate the matrix products and "
        f"attention of our step would take {1e3 * least:,.0f} ms; a step of nothing else would be {rivals} times as "
        "fast as MONAI's two."
    )


def work_of(arm: str, size: Size) -> float:
    """FLOPs of a step of an arm, by the formula."""
    tokens = (size.edge // size.encoder.patch_size) ** 3
    return step_flops(arm_config(arm, size), tokens, visible_count(tokens, size.ratio)) * size.batch


def extras(size: Size, device: torch.device, precision: str, rounds: int) -> None:
    """What the auxiliary objectives cost, what dropping air saves, and how much of the machine is used."""
    volumes = heads(size, device)
    fast = device.type == "cuda"  # at its best: compiled
    steps = {arm: our_step(arm, size, device, precision, fast=fast) for arm in ("mae", "sl-mae", "jepa", "vcr-jepa")}
    for arm in ("mae", "jepa") if size.encoder.embed_dim < BASE.embed_dim else ():
        steps[f"{arm}, air dropped"] = our_step(arm, size, device, precision, budget=0.5, fast=fast)
    product, flops = large_product(device, precision)
    times = take_turns({**steps, "product": product}, volumes, rounds)
    ceiling = flops / statistics.median(times["product"])
    print(f"\n## Extras: {size.name}, batch {size.batch}, {precision}, {device.type}\n")
    print(
        f"A large matrix product between the steps: {ceiling / 1e12:.3g} TFLOP/s. "
        f"{'All rows are compiled. ' if fast else ''}Where air is dropped, half of the tokens are.\n"
    )
    print("| arm | median, ms | volumes/s | against | time ÷ that | share of the matrix rate |")
    print("|---|---:|---:|---|---:|---:|")
    for name in steps:
        base = {"sl-mae": "mae", "vcr-jepa": "jepa"}.get(name, name.partition(",")[0])
        share = ""
        if "," not in name:
            share = f"{work_of(name, size) / statistics.median(times[name]) / ceiling:.0%}"
        relative = "" if base == name else ratio_text(times[name], times[base])
        median = statistics.median(times[name])
        rate = f"{size.batch / median:,.0f}" if size.batch / median > 99 else f"{size.batch / median:.3g}"
        print(f"| {name} | {1e3 * median:,.0f} | {rate} | {base} | {relative} | {share} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="timed rounds; at least 10 for a figure to keep")
    parser.add_argument("--only", default="", help="sizes whose name contains this")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--skip", choices=["monai", "extras"], default="", help="leave one part out")
    arguments = parser.parse_args()
    device = best_device(cpu=arguments.cpu)
    best = faster_precision(device)
    name = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    print("# A training step, side by side\n")
    print(
        f"Made by `benchmarks/step.py`, which says how; {name}, torch {torch.__version__}, {arguments.rounds} rounds."
    )
    sizes = [s for s in (GPU_SIZES if device.type == "cuda" else CPU_SIZES) if arguments.only in s.name]
    for size in sizes:
        if arguments.skip != "monai":
            for precision in dict.fromkeys(["fp32", best]) if size.encoder.embed_dim < BASE.embed_dim else [best]:
                against_monai(size, device, precision, arguments.rounds, best=precision == "bf16")
                free(device)
    for size in sizes:
        if arguments.skip != "extras" and size.encoder.patch_size == 8:
            extras(size, device, best, arguments.rounds)
            free(device)


if __name__ == "__main__":
    main()
