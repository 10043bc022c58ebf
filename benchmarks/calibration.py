"""What is there to be won on the phantom tasks, before any pretrained encoder is probed on them.

    python benchmarks/calibration.py --write benchmarks/calibration.json > book/measured/calibration.txt
    BRAINFM_MANIFEST=book/examples/dials.yaml python benchmarks/calibration.py --subjects 500 > book/measured/dials.txt

For each simulated task of the manifest: the ideal observer; a linear probe of the latents themselves (all that the
subjects of a cohort carry); a supervised CNN (MONAI's ResNet, trained from scratch; after a first look at this table,
in which it had learned little of the grade of tumours, its epochs were raised from 24 to 40 and its scores averaged
over each scan and its mirror image; on the dials, whose signal is fixed to the field of view, scans are neither
mirrored nor shifted); raw voxels (principal components and a logistic classifier, as in the report); an untrained
encoder; and the best of age, sex, brain volume, site and contrast alone. AUROC on the same test subjects after
learning from the same others, with 95 % intervals over subjects; covariates cross-validated. The JSON file says which
cohorts this holds for: their scans, and some of their voxels.
"""

import argparse
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from brainfm_lib.data.audit import confounding, covariates
from brainfm_lib.data.augment import zscore
from brainfm_lib.data.cohort import Cohort
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.phantom import CONDITIONS, PhantomSpec, render
from brainfm_lib.data.phantom.draws import draw
from brainfm_lib.data.phantom.rendering import render_draws, single_threaded
from brainfm_lib.models.baselines import small_resnet
from brainfm_lib.stats import auroc_interval
from brainfm_lib.study import Study
from brainfm_lib.verdict import ORACLE, RAW_VOXELS

SUBJECTS = 3000  # of each cohort at most
EPOCHS, BATCH, RATE, DECAY = 40, 32, 2e-3, 0.05
WITNESSES = 6  # scans of each cohort whose voxels are kept, as means of blocks


def train_cnn(volumes: np.ndarray, table: pd.DataFrame, *, moved: bool, seed: int = 0) -> np.ndarray:
    """(n, classes) probabilities of all scans after training on those not for testing.

    `moved`: scans are mirrored and shifted by a voxel in training, and scores averaged over each scan and its mirror
    image; not so where the signal is fixed to the field of view.
    """
    torch.manual_seed(seed)
    labels, train = table["label"].to_numpy(), np.flatnonzero(table["split"] != "test")
    inputs = zscore(torch.from_numpy(volumes)[:, None].float())
    target = torch.from_numpy(labels).long()
    model = small_resnet(int(labels.max()) + 1)
    model = model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    steps = EPOCHS * math.ceil(len(train) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    rng = np.random.default_rng(seed)
    for _ in range(EPOCHS):
        order = rng.permutation(train)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            x = inputs[rows]
            if moved:
                flip = torch.from_numpy(rng.random(len(rows)) < 0.5)
                x[flip] = x[flip].flip(2)
                x = torch.roll(x, tuple(int(n) for n in rng.integers(-1, 2, 3)), dims=(2, 3, 4))
            x = x.contiguous(memory_format=torch.channels_last_3d)
            loss = F.cross_entropy(model(x), target[rows], label_smoothing=0.05)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        parts = [inputs[i : i + 64] for i in range(0, len(inputs), 64)]
        views = [[x, x.flip(2)] if moved else [x] for x in parts]
        return torch.cat([torch.stack([model(v).softmax(1) for v in these]).mean(0) for these in views]).numpy()


def witness(cohort: Cohort, geometry: Geometry) -> dict[str, Any]:
    """What must not change as long as the table holds.

    Returns:
        Number and hash of the scans with all that was drawn of their subjects; means of 4³ blocks of the first few
        scans; and of 8³ blocks of what severity alone does to the first two subjects, by its largest magnitude.
    """
    spec = cohort.source
    assert isinstance(spec, PhantomSpec)
    kept = cohort.scans[["subject_id", "scan", "contrast", "site", "diagnosis", "age", "sex", "severity"]]
    text = kept.round(6).to_csv(index=False, lineterminator="\n")
    side = geometry.grid[0]
    volumes = F.avg_pool3d(render(spec, cohort.scans.iloc[:WITNESSES], geometry)[:, None], side // 4)
    with single_threaded():
        pairs = [[render_draws([draw(spec, n, 0, severity=s)], geometry) for s in (-1.0, 3.0)] for n in range(2)]
    effect = F.avg_pool3d(torch.cat([high - low for low, high in pairs])[:, None], side // 8)
    return {
        "scans": len(cohort),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "blocks": [[round(float(x), 4) for x in volume.flatten()] for volume in volumes],
        "effect": [[round(float(x), 5) for x in volume.flatten()] for volume in effect],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--tasks", nargs="*")
    parser.add_argument("--subjects", type=int, default=SUBJECTS, help="of each cohort at most")
    arguments = parser.parse_args()
    study = Study("quick", overrides={"subjects.downstream": arguments.subjects}, progress=False)
    geometry = study.profile.geometry
    print("| task | subjects | ideal | latents | CNN | raw voxels | untrained | best covariate alone |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    frozen: dict[str, Any] = {}
    for task in arguments.tasks or study.simulated_tasks:
        entry = study.manifest.tasks[task]
        cohort, table = study.cohort(entry.cohort), study.task_table(task).reset_index(drop=True)
        assert isinstance(cohort.source, PhantomSpec)
        volumes = study.volumes(entry.cohort)
        rows = volumes.scans.reset_index().set_index("scan_uid")["index"].loc[table["scan_uid"]].to_numpy()
        known = study.run(f"probe:{ORACLE}:{task}").table("results").iloc[0]
        dial = CONDITIONS[cohort.source.conditions[0][0]].family == "dial"
        scores = train_cnn(volumes.read(rows), table, moved=not dial)
        test = (table["split"] == "test").to_numpy()
        labels, subjects = table["label"].to_numpy()[test], table["subject_id"].to_numpy()[test]
        cnn = auroc_interval(labels, scores[test][:, 1] if scores.shape[1] == 2 else scores[test], subjects)
        found = [known, vars(cnn)]
        found += [study.run(f"probe:{arm}:{task}").table("results").iloc[0] for arm in (RAW_VOXELS, "random-init")]
        cells = [f"{row['estimate']:.3f} [{row['low']:.2f}, {row['high']:.2f}]" for row in found]
        alone = confounding(table, covariates(volumes, rows)).sort_values("auroc").iloc[-1]
        cells.append(f"{alone['covariate']} {alone['auroc']:.2f} [{alone['low']:.2f}, {alone['high']:.2f}]")
        best = study.run(f"truth:{task}").table("truth")["ideal_auroc"].iloc[0]
        count = table["subject_id"].nunique()
        print(f"| {task} | {count:,} | {best:.3f} | {' | '.join(cells)} |", flush=True)
        frozen[entry.cohort] = witness(cohort, geometry)
    size = f"{geometry.grid[0]}³ voxels of {geometry.spacing:g} mm"
    print(f"\nMade by `benchmarks/calibration.py`, which says how; {size}. In brackets 95 % intervals over subjects.")
    if arguments.write:
        arguments.write.write_text(json.dumps(frozen) + "\n")


if __name__ == "__main__":
    main()
