"""What is learned per minute on this machine: choose the `quick` profile by measurement.

Each variant trains one arm for the same wall time; then the masked error on held-out brain voxels, its share of the
interpolating predictor's error, and the AUROC of the linear probe and of short fine-tuning on one task are printed.

    python benchmarks/quick_profile.py --seconds 120 --arm mae --task ad
"""

import argparse
import tempfile
from pathlib import Path

from brainfm_lib.pretrain import seconds_per_step
from brainfm_lib.study import Study

VARIANTS = {
    "128 wide, 4 blocks, lr 2e-3": {},
    "192 wide, 4 blocks, lr 1e-3": {"encoder.embed_dim": 192, "encoder.heads": 3, "optimiser.lr": 1e-3},
    "192 wide, 4 blocks, lr 3e-3": {"encoder.embed_dim": 192, "encoder.heads": 3, "optimiser.lr": 3e-3},
    "96 wide, 3 blocks, lr 3e-3": {"encoder.embed_dim": 96, "encoder.depth": 3, "optimiser.lr": 3e-3},
    "batch 32": {"optimiser.batch_size": 32},
    "batch 128": {"optimiser.batch_size": 128},
    "patch 4": {"encoder.patch_size": 4},
}


def measure(arm: str, task: str, seconds: float, overrides: dict, profile: str) -> dict[str, float]:
    """Train `arm` for `seconds` under `overrides` and look at what it learned."""
    base = Study(profile, objective=arm, overrides=overrides, progress=False)
    volumes, _ = base.pretraining_volumes(0)
    with tempfile.TemporaryDirectory() as folder:
        step = seconds_per_step(base.profile.pretraining(arm, 0), volumes, Path(folder))
    steps = max(int(seconds / step), 20)
    study = Study(profile, objective=arm, overrides={**overrides, "optimiser.steps": steps}, progress=False)
    trained = study.run(f"pretrain:{arm}")
    errors = study.run(f"reconstruction:{arm}").table("errors")
    row = {
        "steps": steps,
        "volumes/s": trained.provenance["volumes_per_second"],
        "masked error": errors["model"].mean(),
        "of interpolation": errors["model"].mean() / errors["interpolation"].mean(),
    }
    if "latent" in errors:
        row["latent explained"] = 1 - errors["latent"].mean() / errors["latent_position_mean"].mean()
    for kind in ("probe", "finetune"):
        row[kind] = study.run(f"{kind}:{arm}:{task}").table("results")["estimate"].iloc[0]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--arm", default="mae")
    parser.add_argument("--task", default="ad")
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--only", default="", help="variants whose name contains this")
    arguments = parser.parse_args()
    print(f"{arguments.arm}, {arguments.seconds:g} s a variant, profile {arguments.profile}")
    for name, overrides in VARIANTS.items():
        if arguments.only in name:
            row = measure(arguments.arm, arguments.task, arguments.seconds, overrides, arguments.profile)
            print(f"{name:<32}" + "  ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
