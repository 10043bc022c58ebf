"""The data of a study: cohorts cut to the profile, their volumes, tasks and splits, and who may be pretrained on."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pandas as pd

from brainfm_lib.config import Profile
from brainfm_lib.data.cohort import Cohort, describe_cohort
from brainfm_lib.data.manifest import Manifest
from brainfm_lib.data.splits import assign_folds, assign_splits, held_out_subjects, task_table
from brainfm_lib.data.store import Volumes, open_volumes
from brainfm_lib.errors import InputError
from brainfm_lib.identity import stable_hash

HELDOUT_SHARE = 0.1


class StudyData:
    """Who and what a study is about.

    Args:
        manifest: Cohorts and tasks.
        profile: Grid, caps on subjects, and how tasks are divided.
        progress: Whether preparing volumes shows a progress bar.
    """

    def __init__(self, manifest: Manifest, profile: Profile, *, progress: bool = True) -> None:
        self.manifest, self.profile, self.progress = manifest, profile, progress
        self._cohorts: dict[str, Cohort] = {}
        self._volumes: dict[str, Volumes] = {}
        self._data_used: dict[str, str] = {}

    def cohort(self, name: str) -> Cohort:
        """Who is in a cohort, cut to the profile's number of subjects. No voxel is read."""
        if name not in self._cohorts:
            caps = self.profile.subjects
            cap = caps.pretraining if name in self.manifest.pretraining else caps.downstream
            self._cohorts[name] = describe_cohort(self.manifest, name, max_subjects=cap)
            self._data_used[f"cohort:{name}"] = self._cohort_id(name)
        return self._cohorts[name]

    def volumes(self, name: str) -> Volumes:
        """Prepared volumes of a cohort, rows as in its table; what is missing is prepared now."""
        if name not in self._volumes:
            self._volumes[name] = open_volumes(self.cohort(name), self.profile.geometry, progress=self.progress)
        return self._volumes[name]

    @cached_property
    def pretraining_cohorts(self) -> tuple[str, ...]:
        """Cohorts to pretrain on that are present."""
        present = self.manifest.available_cohorts()
        names = tuple(name for name in self.manifest.pretraining if name in present)
        if not names:
            raise InputError("No cohort of the manifest's `pretraining` list is present: `brainfm check` says why.")
        return names

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Tasks whose cohort is present."""
        return tuple(self.manifest.available_tasks())

    def task_table(self, task: str) -> pd.DataFrame:
        """Scans of a task with label, subject and split (few subjects: fold), the same for every arm."""
        if task not in self.tasks:
            raise InputError(f"There is no task {task!r} with its data present: choose among {', '.join(self.tasks)}.")
        table = task_table(self.manifest, task, self.cohort(self.manifest.tasks[task].cohort))
        if "split" in table:
            return table
        if table["subject_id"].nunique() < self.profile.evaluation.cross_validate_below:
            smallest = int(table.groupby("label")["subject_id"].nunique().min())
            return table.assign(fold=assign_folds(table, seed=0, folds=min(5, max(smallest // 2, 2))))
        return table.assign(split=assign_splits(table, seed=0))

    @cached_property
    def pretraining_rows(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """For each pretraining cohort, rows of the scans to train on and of the held-out subjects' scans.

        Validation and test subjects of every task on the cohort are no training subjects unless the manifest says
        ``transductive: true``, nor is a subject with a scan that a task on another cohort evaluates on (the same
        content); a tenth of the others is held out as well.
        """
        rows = {}
        evaluated_by_cohort, contents = ({}, set()) if self.manifest.transductive else self._evaluated()
        for name in self.pretraining_cohorts:
            cohort = self.cohort(name)
            subjects = cohort.scans["subject_id"].astype(str)
            evaluated = evaluated_by_cohort.get(name, set()) | set(subjects[cohort.scans["digest"].isin(contents)])
            rest = sorted(set(subjects) - evaluated, key=lambda s: stable_hash((name, s, "heldout")))
            count = max(round(HELDOUT_SHARE * len(rest)), 1) if len(rest) > 1 else 0
            train = set(rest[count:])
            heldout = set(rest[:count]) | evaluated
            rows[name] = (np.flatnonzero(subjects.isin(train)), np.flatnonzero(subjects.isin(heldout)))
        return rows

    def _evaluated(self) -> tuple[dict[str, set[str]], set[str]]:
        """Subjects that tasks evaluate on, by cohort, and the contents of all their scans."""
        subjects: dict[str, set[str]] = {}
        contents: set[str] = set()
        for name in dict.fromkeys(self.manifest.tasks[task].cohort for task in self.tasks):
            tables = [self.task_table(task) for task in self.tasks if self.manifest.tasks[task].cohort == name]
            subjects[name] = held_out_subjects(tables)
            scans = self.cohort(name).scans
            contents |= set(scans["digest"][scans["subject_id"].astype(str).isin(subjects[name])])
        return subjects, contents

    def pretraining_volumes(self, part: int, limit: int | None = None) -> tuple[np.ndarray, pd.DataFrame]:
        """Float16 volumes (n, D, H, W) of the training (0) or held-out (1) scans, and their rows; spread if limited."""
        total = sum(len(rows[part]) for rows in self.pretraining_rows.values())
        arrays, tables = [], []
        for name, rows in self.pretraining_rows.items():
            chosen = rows[part]
            if limit is not None and total > limit:
                count = min(len(chosen), max(round(limit * len(chosen) / total), 1))
                chosen = chosen[np.linspace(0, len(chosen) - 1, count).round().astype(int)] if len(chosen) else chosen
            if len(chosen):
                arrays.append(self.volumes(name).select(chosen).bank())
                scans = self.cohort(name).scans.iloc[chosen]
                tables.append(scans.assign(subject_id=f"{name}/" + scans["subject_id"].astype(str)))
        if not arrays:
            raise InputError(
                "No scan is left to pretrain on: every subject is a validation or test subject of a task; add a cohort "
                "to `pretraining`, or set `transductive: true` in the manifest and say so in your report."
            )
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays), pd.concat(tables, ignore_index=True)

    def _cohort_id(self, name: str) -> str:
        """What a page that shows a cohort depends on: its scans, and the grid they are brought to."""
        return f"cohort-{stable_hash([self.cohort(name).digest, self.profile.geometry])}"


class InMemory:
    """An array that reads like prepared volumes."""

    def __init__(self, volumes: np.ndarray) -> None:
        self.volumes = volumes

    def __len__(self) -> int:
        return len(self.volumes)

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Rows (B,) -> (B, D, H, W) float32."""
        return self.volumes[np.asarray(rows)].astype(np.float32)
