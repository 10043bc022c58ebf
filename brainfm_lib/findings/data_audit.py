"""The audit of a study's data as a reader sees it: counts and AUROCs, no identifier of a person."""

from __future__ import annotations

import numpy as np
import pandas as pd

from brainfm_lib.data.audit import divided_subjects, label_conflicts, torn_pairs
from brainfm_lib.data.quality import RULES
from brainfm_lib.study import Study


def refused_table(study: Study) -> pd.DataFrame:
    """Scans that the manifest names and that cannot be used: how many break which rule, by cohort."""
    rows = []
    for name in study.cohorts_in_use:
        cohort = study.cohort(name)
        refused = cohort.refused if cohort.kind == "phantom" else study.volumes(name).refused
        counts = refused["rule"].value_counts()
        rows += [(name, len(cohort), rule, RULES[rule], count) for rule, count in counts.items()] or [
            (name, len(cohort), "–", "every scan can be used", 0)
        ]
    return pd.DataFrame(rows, columns=["cohort", "scans used", "rule", "what it asks", "scans refused"])


def leak_table(study: Study) -> pd.DataFrame:
    """Who and what stands on two sides: subjects, and scans that are nearly the same under whatever name."""
    pairs = study.duplicates
    evaluated, scans_evaluated, divided, torn, contradicting = set(), set(), 0, 0, 0
    for task in study.tasks:
        table = study.task_table(task)
        division = "split" if "split" in table else "fold"
        held = table if division == "fold" else table[table["split"] != "train"]
        cohort = study.manifest.tasks[task].cohort
        evaluated |= {(cohort, subject) for subject in held["subject_id"].astype(str)}
        scans_evaluated |= set(held["scan_uid"])
        divided += len(divided_subjects(table))
        torn += len(torn_pairs(dict(zip(table["scan_uid"], table[division].astype(str))), pairs))
        contradicting += len(label_conflicts(table, pairs))
    trained, scans_trained = set(), set()
    for name, (rows, _) in study.pretraining_rows.items():
        scans = study.cohort(name).scans.iloc[rows]
        trained |= {(name, subject) for subject in scans["subject_id"].astype(str)}
        scans_trained |= set(scans["scan_uid"])
    side = {**dict.fromkeys(scans_evaluated, "evaluated"), **dict.fromkeys(scans_trained - scans_evaluated, "trained")}
    questions = {
        "subjects on two sides of a task": divided,
        "subjects in pretraining and evaluated by a task": len(trained & evaluated),
        "pairs of nearly the same scan": len(pairs),
        "of these, under two subjects": int((~pairs["same_subject"].astype(bool)).sum()),
        "of these, on two sides of a task": torn,
        "of these, in pretraining and evaluated by a task": len(torn_pairs(side, pairs)),
        "of these, with two labels in a task": contradicting,
    }
    return pd.DataFrame({"what a reviewer would look for": questions.keys(), "found": questions.values()})


def confounding_table(study: Study) -> pd.DataFrame:
    """For each task the AUROC that each covariate reaches alone, with its 95 % interval; sorted from the highest."""
    rows = []
    for task in study.tasks:
        found = study.run(f"confounding:{task}").table("covariates")
        for row in found.sort_values("auroc", ascending=False, kind="stable").itertuples():
            above = "yes" if row.low > 0.5 else "no"
            rows.append((task, row.covariate, row.values, row.auroc, f"{row.low:.3f} to {row.high:.3f}", above))
    names = ["task", "covariate", "different values", "AUROC alone", "95 % interval", "above chance"]
    return pd.DataFrame(rows, columns=names).astype({"different values": int, "AUROC alone": np.float64})
