"""What makes a task's result worth nothing, looked for before any probe runs: sentences that say what to mend."""

from __future__ import annotations

from brainfm_lib.card import KEY
from brainfm_lib.data.audit import confounding, divided_subjects, torn_pairs
from brainfm_lib.data.manifest import EncoderSettings
from brainfm_lib.external import trained_on
from brainfm_lib.study_data import StudyData

SHORTCUT = 0.75  # lower end of the 95 % interval of the AUROC that where or how a scan was made reaches alone
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
    whole_sites = settings.grouped_by == "site"  # then site says nothing of held-out subjects
    scans = study.cohort(settings.cohort).scans.loc[table["row"]].reset_index(drop=True)
    names = [name for name in ACQUISITION if name in scans and not (whole_sites and name == "site")]
    for row in confounding(table, scans[names]).itertuples():
        if row.low > SHORTCUT:
            found.append(f"{row.covariate} alone tells the labels of {task} (AUROC {row.auroc:.2f})")
    return found


def encoder_leaks(study: StudyData, name: str, settings: EncoderSettings, task: str) -> list[str]:
    """Whether an encoder from elsewhere has seen scans that the task evaluates on, where it says what it has seen."""
    seen = trained_on(settings, study.manifest)
    if not seen:
        return []
    table = study.task_table(task)
    held = table if "fold" in table else table[table["split"] != "train"]
    digests = study.cohort(study.manifest.tasks[task].cohort).scans.loc[held["row"], "digest"]
    count = sum(digest[:KEY] in seen for digest in digests)
    if not count:
        return []
    return [f"{name} was pretrained on {_counted(count, 'scan')} that {task} evaluates on"]


def _counted(n: int, word: str) -> str:
    return f"{n:,} {word}{'s' * (n != 1)}"
