"""What is learned per minute on this machine: the `quick` profile is chosen by this table.

Each variant trains one arm for the same wall time, the number of steps following from a measured step. Then, on
held-out subjects: the error on hidden brain voxels over that of the better trivial predictor (position mean with
interpolated residual), for JEPA arms the share of hidden latents explained beyond the position mean, the rank and
share of what is left of the latents when positions are removed, and the AUROC of a linear probe.

    python benchmarks/quick_profile.py --seconds 60 > benchmarks/quick_profile.md
"""

import argparse
import platform
import tempfile
from pathlib import Path

import torch

from brainfm_lib.making.budget import seconds_per_step
from brainfm_lib.study import Study

BASE = {
    "optimiser.batch_size": 32,
    "optimiser.lr": 2e-3,
    "arm_lr": {"jepa": 1e-3},
    "encoder.embed_dim": 128,
    "encoder.depth": 4,
    "encoder.heads": 2,
    "encoder.patch_size": 8,
}
VARIANTS = {
    "batch 32, 128 wide, 4 blocks, patch 8": {},
    "batch 16": {"optimiser.batch_size": 16},
    "batch 64": {"optimiser.batch_size": 64},
    "half the learning rate": {"optimiser.lr": 1e-3, "arm_lr": {"jepa": 5e-4}},
    "twice the learning rate": {"optimiser.lr": 4e-3, "arm_lr": {"jepa": 2e-3}},
    "192 wide": {"encoder.embed_dim": 192, "encoder.heads": 3},
    "96 wide, 3 blocks": {"encoder.embed_dim": 96, "encoder.depth": 3},
    "patch 4": {"encoder.patch_size": 4},
}
COLUMNS = ("steps", "volumes/s", "error ÷ trivial", "latents explained", "RankMe", "share", "AUROC ad")


def measure(arm: str, seconds: float, overrides: dict, profile: str) -> dict[str, float]:
    """Train `arm` for `seconds` under `overrides` and look at what it learned."""
    base = Study(profile, objective=arm, overrides=overrides, progress=False)
    volumes, _ = base.pretraining_volumes(0)
    with tempfile.TemporaryDirectory() as folder:
        step = seconds_per_step(base.profile.pretraining(arm, 0), volumes, Path(folder), steps=12)
    overrides = {**overrides, "optimiser.steps": max(int(seconds / step), 20)}
    study = Study(profile, objective=arm, overrides=overrides, progress=False)
    trained, errors = study.run(f"pretrain:{arm}"), study.run(f"reconstruction:{arm}").table("errors")
    trivial = min(errors[name].mean() for name in ("position_mean", "interpolation"))
    latents = study.run(f"latents:{arm}").table("measures").set_index("level").loc["tokens, position removed"]
    explained = float("nan")
    if "latent" in errors:
        explained = 1 - (errors["latent"] / errors["latent_position_mean"]).mean()
    return {
        "steps": overrides["optimiser.steps"],
        "volumes/s": trained.provenance["volumes_per_second"],
        "error ÷ trivial": errors["model"].mean() / trivial,
        "latents explained": explained,
        "RankMe": latents["rankme_centred"],
        "share": latents["variance_share"],
        "AUROC ad": study.run(f"probe:{arm}:ad").table("results")["estimate"].iloc[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--arms", nargs="+", default=["mae", "jepa"])
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--only", default="", help="variants whose name contains this")
    arguments = parser.parse_args()
    print(f"# What {arguments.seconds:g} s of training teach, variant by variant (phantom results)\n")
    print(
        f"Phantom results, made by `benchmarks/quick_profile.py`; profile `{arguments.profile}`, seed 0, "
        f"torch {torch.__version__}, "
        f"{platform.machine()}, {torch.get_num_threads()} threads. "
        f"One seed: differences of a few per cent mean nothing. Rows are changes to the first one, whose learning rate "
        f"is {BASE['optimiser.lr']:g} for MAE and {BASE['arm_lr']['jepa']:g} for JEPA.\n"
    )
    print("| arm | variant | " + " | ".join(COLUMNS) + " |\n|---|---|" + "---:|" * len(COLUMNS), flush=True)
    for arm in arguments.arms:
        for name, overrides in VARIANTS.items():
            if arguments.only in name:
                row = measure(arm, arguments.seconds, {**BASE, **overrides}, arguments.profile)
                print(f"| {arm} | {name} | " + " | ".join(f"{row[c]:.4g}" for c in COLUMNS) + " |", flush=True)


if __name__ == "__main__":
    main()
