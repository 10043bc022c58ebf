"""The reference run that ships, read as studies: nothing is made, only what lies in ``book/reference`` is looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from brainfm_lib.config import SHIPPED
from brainfm_lib.data.manifest import load_manifest
from brainfm_lib.errors import InputError
from brainfm_lib.integrity import file_identity
from brainfm_lib.objectives import ARMS
from brainfm_lib.paths import shipped_dir
from brainfm_lib.reference.plan import Part
from brainfm_lib.runs import Run, ships
from brainfm_lib.study import Study
from brainfm_lib.verdict import METRIC
from brainfm_lib.words import Words

SUMMARY = "reference.json"


def shipped_studies(manifest: str | Path | None = None) -> list[Study]:
    """A study for each profile of the run that ships, the largest last; its runs are found as shipped ones.

    Args:
        manifest: As in `Study`; on other cohorts than those that the run was made of nothing will be found.

    Raises:
        InputError: None ships.
    """
    file = shipped_dir() / SUMMARY
    if not file.is_file():
        raise InputError(f"There is no {file}: `brainfm reference` makes what ships, see the page about it.")
    parts = [Part(**part) for part in json.loads(file.read_text(encoding="utf-8"))["plan"]["parts"]]
    studies = [Study(part.profile, manifest, overrides=part.overrides, progress=False) for part in parts]
    for study in studies:
        for request in judged(study):
            study.optional(request)
        study.used = {request: run for request, run in study.used.items() if run.shipped}  # nothing that was made here
    return studies


def every_arm_ships(manifest: str | Path | None = None) -> bool:
    """Whether encoders of all arms ship that were pretrained on what a manifest names.

    Args:
        manifest: As in `Study`.
    """
    known = load_manifest(manifest)
    if any(known.cohorts[name].kind != "phantom" for name in known.available_cohorts() if name in known.pretraining):
        return False
    study = Study(SHIPPED, manifest, allow_leak=True)  # nothing is judged
    return all(ships(study.config(f"pretrain:{arm}")) for arm in ARMS)


def judged(study: Study) -> list[str]:
    """What a study's encoders and controls are asked about its simulated tasks; real scans are left alone."""
    rows = study.compared
    return [f"{kind}:{arm}:{task}" for kind in ("probe", "knn") for task in study.simulated_tasks for arm in rows]


def of_own_arms(results: pd.DataFrame, study: Study) -> pd.DataFrame:
    """`results`, or nothing where no arm of `study` is among them: controls alone are those that ship."""
    return results if set(results["arm"]) & set(study.trained_arms) else results.iloc[:0]


def tables_of(study: Study, kind: str, table: str) -> dict[str, pd.DataFrame]:
    """Arm -> a table of its run of `kind` (``latents``, ``reconstruction``), where that is there."""
    arms = study.encoders if kind == "latents" else study.trained_arms
    runs: dict[str, Run | None] = {arm: study.optional(f"{kind}:{arm}") for arm in arms}
    return {arm: run.table(table) for arm, run in runs.items() if run is not None and run.shipped}


def seeds_table(study: Study, most: int = 10) -> pd.DataFrame:
    """AUROC of linear probes under every seed that is there: task, arm, seed, estimate."""
    rows = []
    for seed in range(most):
        for task in study.simulated_tasks:
            for arm in study.trained_arms:
                run = study.optional(f"probe:{arm}:{task}@seed={seed}")
                if run is not None and run.shipped:
                    row = run.table("results").set_index("metric").loc[METRIC]
                    rows.append({"task": task, "arm": arm, "seed": seed, "estimate": float(row["estimate"])})
    return pd.DataFrame(rows, columns=["task", "arm", "seed", "estimate"])


def seed_spread(seeds: pd.DataFrame) -> pd.DataFrame:
    """Of what `seeds_table` gives: task, arm, number of seeds, mean, smallest and largest AUROC."""
    found = seeds.groupby(["task", "arm"], sort=False)["estimate"].agg(["count", "mean", "min", "max"])
    return found.reset_index().rename(columns={"count": "seeds"})


def reference_note(study: Study, seeds: int, here: Study) -> Words:
    """What the encoders of the reference run are, beside those that are made here."""
    return Words(
        f"**Read, not made here**: encoders of profile `{study.profile_name}`, {seeds} seed{'s' * (seeds != 1)}, each "
        f"of which has seen {study.profile.volumes_seen:,} volumes; those of `{here.profile_name}` made here see "
        f"{here.profile.volumes_seen:,}. Phantom results."
    )


def write_result(here: Study, path: str) -> None:
    """Note what the page rests on: the run that ships, and what it found of this report's own encoders."""
    here.write_result(path)
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    content["runs"]["reference:"] = file_identity("reference", shipped_dir() / SUMMARY)
    Path(path).write_text(json.dumps(content, indent=2), encoding="utf-8")
