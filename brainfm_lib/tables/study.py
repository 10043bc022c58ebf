"""What a study is made of and what its runs cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from brainfm_lib.figures.style import title

if TYPE_CHECKING:
    from brainfm_lib.runs import Run
    from brainfm_lib.study import Study


MEASURES = {
    "n": "samples",
    "variance_share": "share of token variance",
    "rankme_centred": "RankMe, centred",
    "rankme_uncentred": "RankMe, uncentred",
    "participation_ratio": "participation ratio",
    "alpha_req": "α-ReQ",
    "mean_abs_correlation": "mean |correlation|",
}


def manifest_table(study: Study) -> pd.DataFrame:
    """What the manifest offers: each cohort, what it is for, how large it is here, or why it is absent."""
    manifest, missing, used = study.manifest, study.manifest.missing(), study.cohorts_in_use
    rows = []
    for name, settings in manifest.cohorts.items():
        tasks = [task for task, s in manifest.tasks.items() if s.cohort == name]
        purpose = (["pretraining"] if name in manifest.pretraining else []) + tasks
        scans = study.cohort(name).scans if name in used else None
        rows.append(
            {
                "cohort": name,
                "kind": settings.kind,
                "used for": ", ".join(purpose) or "nothing",
                "subjects": str(scans["subject_id"].nunique()) if scans is not None else "–",
                "scans": str(len(scans)) if scans is not None else "–",
                "state": f"absent: {missing[name]}" if name in missing else "present",
                "how to get it": settings.access,
            }
        )
    return pd.DataFrame(rows)


def truth_table(study: Study) -> pd.DataFrame:
    """What is known of each simulated task: the ceiling of any method, the rank of its signal and where it lies."""
    rows = []
    for task in study.simulated_tasks:
        truth = study.run(f"truth:{task}").table("truth").iloc[0]
        rows.append(
            {
                "task": task,
                "ideal AUROC": truth["ideal_auroc"],
                "rank": int(truth["rank"]),
                "half of the signal's power below (cycles/mm)": truth["frequency_50"],
                "from 10 to 90 %": f"{truth['frequency_10']:.3f} to {truth['frequency_90']:.3f}",
            }
        )
    columns = ["task", "ideal AUROC", "rank", "half of the signal's power below (cycles/mm)", "from 10 to 90 %"]
    return pd.DataFrame(rows, columns=columns)


def split_table(study: Study) -> pd.DataFrame:
    """Subjects of each class on each side of a task's split, or over all folds of its cross-validation.

    A subject whose label changes between visits counts once under each.
    """
    rows = []
    for task in study.tasks:
        table = study.task_table(task)
        units = table.drop_duplicates(["subject_id", "label"])
        sides = units["split"] if "split" in units else pd.Series("test", index=units.index)
        row = {"task": task, "evaluation": "one split" if "split" in units else f"{units['fold'].nunique()} folds"}
        for side, name in (("train", "trained on"), ("val", "chosen on"), ("test", "tested on")):
            labels = units["label"][sides == side]
            counts = [f"{(labels == k).sum()}" for k in range(len(study.manifest.tasks[task].classes))]
            row[name] = f"{len(labels):,} ({' + '.join(counts)})" if len(labels) else "–"
        rows.append(row)
    return pd.DataFrame(rows)


def pretraining_table(study: Study) -> pd.DataFrame:
    """Who is kept out of pretraining, and why, for each cohort that encoders are trained on."""
    rows = []
    for name, (train, heldout) in study.pretraining_rows.items():
        subjects = study.cohort(name).scans["subject_id"]
        rows.append(
            {
                "cohort": name,
                "subjects": subjects.nunique(),
                "trained on": subjects.iloc[train].nunique(),
                "held out": subjects.iloc[heldout].nunique(),
                "scans trained on": len(train),
                "scans held out": len(heldout),
                "tasks on the same subjects": ", ".join(
                    t for t in study.tasks if study.manifest.tasks[t].cohort == name
                )
                or "none",
            }
        )
    return pd.DataFrame(rows)


def montage_scans(study: Study, most: int = 5) -> tuple[np.ndarray, list[str]]:
    """One scan a contrast, from different cohorts where possible: volumes (n, D, H, W) in [0, 1], and their titles."""
    found: dict[str, list[str]] = {}
    for name in study.cohorts_in_use:
        for contrast in study.cohort(name).scans["contrast"].unique():
            found.setdefault(contrast, []).append(name)
    volumes, titles = [], []
    for place, (contrast, names) in enumerate(list(found.items())[:most]):
        name = names[place % len(names)]
        row = int(np.flatnonzero(study.cohort(name).scans["contrast"] == contrast)[0])
        volumes.append(study.some_volumes(name, [row]).read([0])[0])
        titles.append(f"{contrast}\n{name}")
    return np.stack(volumes), titles


def example_names(study: Study, reconstructions: Mapping[str, Run]) -> list[str]:
    """What the pictured held-out scans are: a running number (never an identifier), contrast, whether simulated."""
    names = []
    for run in list(reconstructions.values())[:1]:
        for number, (_, scan) in enumerate(run.table("errors").iterrows(), start=1):
            kind = study.manifest.cohorts[str(scan["scan_uid"]).split("/")[0]].kind
            names.append(f"held-out scan {number}, {scan['contrast']}{' (phantom)' if kind == 'phantom' else ''}")
    return names


def resolution_table(table: pd.DataFrame) -> pd.DataFrame:
    """`brainfm_lib.findings.comparison.resolution_table` as a reader sees it."""
    return pd.DataFrame(
        {
            "arm": [title(arm) for arm in table["arm"]],
            "coherence above ½ up to (cycles/mm)": table["half"],
            "above the noise floor up to (cycles/mm)": table["floor"],
            "power above the cut-off (share of the target's)": table["power"],
            "mean coherence above the cut-off": table["coherence"],
        }
    )


def cost_table(runs: Mapping[str, Run]) -> pd.DataFrame:
    """What each arm's pretraining cost.

    Args:
        runs: Arm -> its pretraining run.
    """
    rows: list[dict[str, Any]] = []
    for arm, run in runs.items():
        said = run.provenance
        rows.append(
            {
                "arm": title(arm),
                "volumes seen": said.get("volumes_seen"),
                "minutes": round(said.get("train_seconds", np.nan) / 60, 2),
                "volumes per second": said.get("volumes_per_second"),
                "device": f"{said.get('device')}, {said.get('precision')}",
                "run": run.id,
            }
        )
    return pd.DataFrame(rows, columns=["arm", "volumes seen", "minutes", "volumes per second", "device", "run"])


def rank_table(measures: Mapping[str, pd.DataFrame], *, level: str | None = None) -> pd.DataFrame:
    """Rank measures of every encoder at every level, one row each.

    Args:
        measures: Arm -> table with level, n, width, variance_share and the measures.
        level: Show this level alone.
    """
    parts = [table.assign(arm=title(arm)) for arm, table in measures.items()]
    joined = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["arm", "level"])
    joined = joined if level is None else joined[joined["level"] == level]
    return joined[["arm", *(name for name in joined.columns if name != "arm")]].rename(columns=MEASURES)


def runs_table(study: Study) -> pd.DataFrame:
    """The run behind every figure and number, by what was asked for, and which code made it.

    A run that is made here is always made by the code as it is; one that came with the project may be older.
    """
    rows = [
        {"asked for": request, "run": run.id, "code": NOW if study.made_by_this_code(request, run) else _older(run)}
        for request, run in study.used.items()
    ]
    return pd.DataFrame(rows, columns=["asked for", "run", "code"])


NOW = "as it is now"


def _older(run: Run) -> str:
    version, commit = run.provenance["versions"]["brainfm_lib"], str(run.provenance["commit"])[:7]
    return f"another: version {version}, commit {commit}, {run.provenance['finished'][:10]}"
