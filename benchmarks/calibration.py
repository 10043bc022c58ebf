"""What is there to be won on the phantom tasks, before any pretrained encoder is probed on them.

    python benchmarks/calibration.py --write benchmarks/calibration.json > benchmarks/calibration.md

For each of the five tasks: the ideal observer, a supervised CNN (MONAI's ResNet, trained on the training subjects from
scratch, its epoch chosen on validation subjects), raw voxels (principal components and a logistic classifier, as in the
report), an untrained encoder, and covariates alone. AUROC on the test subjects, with a 95 % interval over subjects;
covariates cross-validated. The JSON file names the cohorts this holds for: the digests of their source and of the code
that makes them.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from brainfm_lib.data.audit import confounding, covariates
from brainfm_lib.data.augment import zscore
from brainfm_lib.data.store import HEADER_ONLY
from brainfm_lib.identity import code_digest
from brainfm_lib.models.baselines import small_resnet
from brainfm_lib.stats import aggregate_by_subject, auroc, auroc_interval
from brainfm_lib.study import RAW_VOXELS, Study

TASKS = ("ad", "mci", "tumour_grade", "tumour_grade3", "autism")
SUBJECTS = 3000  # of each cohort at most
EPOCHS, BATCH, RATE, DECAY = 16, 32, 2e-3, 0.05


def subject_auroc(labels: np.ndarray, scores: np.ndarray, subjects: np.ndarray) -> float:
    """AUROC over subjects, macro one-vs-rest for several classes."""
    units = aggregate_by_subject(labels, scores, subjects)
    return float(auroc(units[0], units[1]))


def train_cnn(volumes: np.ndarray, table: pd.DataFrame, seed: int = 0) -> np.ndarray:
    """(n, classes) probabilities of all scans from the epoch that was best on validation subjects."""
    torch.manual_seed(seed)
    labels, split = table["label"].to_numpy(), table["split"].to_numpy()
    subjects = table["subject_id"].to_numpy()
    classes = int(labels.max()) + 1
    inputs = zscore(torch.from_numpy(volumes)[:, None].float())
    target = torch.from_numpy(labels).long()
    model = small_resnet(classes).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    train, val = np.flatnonzero(split == "train"), np.flatnonzero(split == "val")
    steps = EPOCHS * math.ceil(len(train) / BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    rng = np.random.default_rng(seed)

    @torch.no_grad()
    def probabilities(rows: np.ndarray) -> np.ndarray:
        model.eval()
        return torch.cat([model(inputs[rows[i : i + 64]]).softmax(1) for i in range(0, len(rows), 64)]).numpy()

    best, kept = -1.0, None
    for epoch in range(EPOCHS):
        model.train()
        order = rng.permutation(train)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            x = inputs[rows]
            flip = torch.from_numpy(rng.random(len(rows)) < 0.5)
            x[flip] = x[flip].flip(2)
            shift = tuple(int(n) for n in rng.integers(-1, 2, 3))
            x = torch.roll(x, shift, dims=(2, 3, 4))
            loss = F.cross_entropy(
                model(x.contiguous(memory_format=torch.channels_last_3d)), target[rows], label_smoothing=0.05
            )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
        found = probabilities(val)
        value = subject_auroc(labels[val], found[:, 1] if classes == 2 else found, subjects[val])
        if epoch >= EPOCHS // 3 and value > best:
            best, kept = value, probabilities(np.arange(len(table)))
    assert kept is not None
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    arguments = parser.parse_args()
    study = Study("quick", overrides={"subjects.downstream": SUBJECTS}, progress=False)
    print("# What is there to be won on the phantom tasks\n")
    geometry = study.profile.geometry
    print(
        f"Made by `benchmarks/calibration.py`, which says how; {geometry.grid[0]}³ voxels of {geometry.spacing:g} mm. "
        "Phantom results: AUROC on test subjects and 95 % intervals.\n"
    )
    print("| task | subjects | ideal | CNN | raw voxels | untrained | best covariate alone | minutes of CNN |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    frozen: dict[str, list[str]] = {}
    for task in arguments.tasks:
        entry = study.manifest.tasks[task]
        table = study.task_table(task).reset_index(drop=True)
        volumes = study.volumes(entry.cohort)
        rows = volumes.scans.reset_index().set_index("scan_uid")["index"].loc[table["scan_uid"]].to_numpy()
        started = time.perf_counter()
        scores = train_cnn(volumes.read(rows), table)
        minutes = (time.perf_counter() - started) / 60
        test = (table["split"] == "test").to_numpy()
        labels, subjects = table["label"].to_numpy()[test], table["subject_id"].to_numpy()[test]
        cnn = auroc_interval(labels, scores[test][:, 1] if scores.shape[1] == 2 else scores[test], subjects)
        cells = [f"{cnn.estimate:.3f} [{cnn.low:.2f}, {cnn.high:.2f}]"]
        for arm in (RAW_VOXELS, "random-init"):
            found = study.run(f"probe:{arm}:{task}").table("results").iloc[0]
            cells.append(f"{found['estimate']:.3f} [{found['low']:.2f}, {found['high']:.2f}]")
        alone = confounding(table, covariates(volumes, rows)).sort_values("auroc").iloc[-1]
        cells.append(f"{alone['covariate']} {alone['auroc']:.2f} [{alone['low']:.2f}, {alone['high']:.2f}]")
        best = study.run(f"truth:{task}").table("truth")["ideal_auroc"].iloc[0]
        print(
            f"| {task} | {table['subject_id'].nunique()} | {best:.3f} | {' | '.join(cells)} | {minutes:.1f} |",
            flush=True,
        )
        cohort = study.cohort(entry.cohort)
        frozen[entry.cohort] = [cohort.source_key, code_digest(cohort.code, without=HEADER_ONLY)]
    if arguments.write:
        arguments.write.write_text(json.dumps(frozen, indent=1) + "\n")


if __name__ == "__main__":
    main()
