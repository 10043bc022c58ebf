"""What dropping air saves, and whether the error on brain voxels stays what it was: skull-stripped phantoms.

    python benchmarks/air.py > benchmarks/air.md

The same MAE for the same steps on the same volumes, with all tokens and with a budget of them; both are judged on
held-out subjects by the squared error on hidden brain voxels. The interval is over subjects, paired. Phantom results.
"""

import argparse
import platform

import numpy as np
import torch

from brainfm_lib.study import Study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.6, 0.5])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    shared = {
        "geometry.grid": [48, 48, 48],
        "geometry.spacing": 3.8,
        "subjects.pretraining": 400,
        "optimiser.steps": arguments.steps,
    }
    print("# Dropping air (phantom results)\n")
    print(
        f"Made by `benchmarks/air.py`: MAE of profile `quick` on 48³ voxels of 3.8 mm, patch 8, {arguments.steps} "
        f"steps of 16; torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads. The error "
        "is the mean squared one on hidden brain voxels of held-out subjects, z-scored units.\n"
    )
    print("| seed | tokens kept | brain dropped | training, s | time saved | error | difference, 95 % interval |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for seed in arguments.seeds:
        whole = None
        for budget in (1.0, *arguments.budgets):
            study = Study("quick", seed=seed, overrides={**shared, "mask.budget": budget}, progress=False)
            run = study.run("pretrain:mae")
            errors = study.run("reconstruction:mae").table("errors").groupby("subject_id")["model"].mean()
            metrics = run.table("metrics")
            dropped = metrics["foreground_dropped"].mean() if "foreground_dropped" in metrics else 0.0
            seconds = run.provenance["train_seconds"]
            saved = difference = ""
            if whole is None:
                whole = errors, seconds
            else:
                saved = f"{1 - seconds / whole[1]:.0%}"
                paired = (errors - whole[0]).to_numpy()
                draws = np.random.default_rng(0).choice(paired, (2000, len(paired))).mean(1)
                low, high = np.quantile(draws, [0.025, 0.975])
                difference = f"{paired.mean():+.4f} [{low:+.4f}, {high:+.4f}]"
            cells = [
                seed,
                f"{budget:.0%}",
                f"{dropped:.2%}",
                f"{seconds:.0f}",
                saved,
                f"{errors.mean():.4f}",
                difference,
            ]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
