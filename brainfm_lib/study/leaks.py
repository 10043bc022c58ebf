"""What makes a task's result worth nothing, looked for before any probe runs: sentences that say what to mend."""

from __future__ import annotations

import pandas as pd

from brainfm_lib.card import KEY
from brainfm_lib.data.audit import confounding, divided_subjects, torn_pairs
from brainfm_lib.data.manifest import EncoderSettings
from brainfm_lib.external import trained_on
from brainfm_lib.study.data import StudyData

SHORTCUT = 0.75  # lower end of the 95 % interval of the AUROC that where or how a scan was made reaches alone
PERFECT = 0.95  # an AUROC that few subjects cannot show with certainty, and that is a shortcut all the same
ACQUISITION = ("site", "scanner", "contrast")


def task_leaks(study: StudyData, task: str) -> list[str]:
    """Leaks of a task: subjects or copies of a scan on two sides, and labels told by how a scan was made."""
    table, settings = study.task_table(task), study.manifest.tasks[task]
    division = "split" if "split" in table else "fold"
    found = []
    divided = divided_subjects(table)
    if divided:
        found.append(f"{_counted(len(divided), 'subject')} on two sides of the {division} of {task}")
    torn = torn_pairs(dict(zip(table["scan_uid"], table[division].astype(str))), study.duplicates)
    if len(torn):
        found.append(f"{_counted(len(torn), 'pair')} of nearly the same scan on two sides of the {division} of {task}")
    scans = study.cohort(settings.cohort).scans.loc[table["row"]].reset_index(drop=True)
    told = {settings.label} | ({"site", "scanner"} if settings.grouped_by == "site" else set())
    names = [name for name in ACQUISITION if name in scans and name not in told]  # held-out sites are new to a probe
    for row in confounding(table, scans[names]).itertuples():
        if row.low > SHORTCUT or row.auroc > PERFECT:
            found.append(f"{row.covariate} alone tells the labels of {task} (AUROC {row.auroc:.2f})")
    return found


def encoder_leaks(
    study: StudyData, name: str, settings: EncoderSettings, task: str, *, resplit: bool = False
) -> list[str]:
    """Whether an encoder from elsewhere has seen subjects that the task evaluates on, where it says what it has seen.

    Args:
        study: With the task.
        name, settings: Of the encoder.
        task: Its name.
        resplit: Ask for random splits, which evaluate on any subject of the task.
    """
    seen = trained_on(settings, study.manifest)
    if not seen:
        return []
    table = study.task_table(task)
    held = table if resplit or "fold" in table else table[table["split"] != "train"]
    scans = study.cohort(study.manifest.tasks[task].cohort).scans
    theirs = scans[scans["subject_id"].isin(scans.loc[held["row"], "subject_id"])]  # of any contrast and visit
    count = sum(digest[:KEY] in seen for digest in theirs["digest"])
    return [f"{name} was pretrained on {_counted(count, 'scan')} of subjects that {task} evaluates on"] if count else []


def resplit_leaks(study: StudyData, task: str) -> list[str]:
    """Why a task cannot be split at random: arms have seen its scans, or subjects share a scan."""
    table, settings = study.task_table(task), study.manifest.tasks[task]
    scans = study.cohort(settings.cohort).scans.loc[table["row"]]
    trained = pd.concat([study.cohort(name).scans.iloc[rows] for name, (rows, _) in study.pretraining_rows.items()])
    pairs = study.duplicates
    sides = dict.fromkeys(trained["scan_uid"], "pretraining") | dict.fromkeys(table["scan_uid"], task)
    copies = torn_pairs(sides, pairs)
    within = pairs[pairs["first"].isin(table["scan_uid"]) & pairs["second"].isin(table["scan_uid"])]
    found = []
    if settings.cohort in study.pretraining_cohorts or set(trained["digest"]) & set(scans["digest"]) or len(copies):
        found.append("encoders were pretrained on some of its scans")
    if (~within["same_subject"].astype(bool)).any():
        found.append("two of its subjects share nearly the same scan")
    return found


def _counted(n: int, word: str) -> str:
    return f"{n:,} {word}{'s' * (n != 1)}"
