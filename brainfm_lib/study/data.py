"""The data of a study: cohorts cut to the profile, their volumes, tasks and splits, and who may be pretrained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import pandas as pd

from brainfm_lib.config import Profile
from brainfm_lib.data.audit import divided_subjects, duplicates, too_few
from brainfm_lib.data.cohort import Cohort, describe_cohort
from brainfm_lib.data.manifest import Manifest
from brainfm_lib.data.pseudonyms import pseudonymised
from brainfm_lib.data.splits import assign_folds, assign_splits, held_out_subjects, task_table
from brainfm_lib.data.store import Volumes, VolumeSet, open_volumes
from brainfm_lib.errors import InputError
from brainfm_lib.identity import stable_hash

if TYPE_CHECKING:
    from brainfm_lib.data.bank import PhantomBank

Found = TypeVar("Found")
HELDOUT_SHARE = 0.1
FEW = 100  # scans: so few to pretrain on need a word of explanation


class StudyData:
    """Who and what a study is about.

    Args:
        manifest: Cohorts and tasks.
        profile: Grid, caps on subjects, and how tasks are divided.
        progress: Whether preparing volumes shows a progress bar.
        allow_leak: Go on where the audit finds a leak; whatever comes of it says so.
    """

    def __init__(
        self, manifest: Manifest, profile: Profile, *, progress: bool = True, allow_leak: bool = False
    ) -> None:
        self.manifest, self.profile, self.progress, self.allow_leak = manifest, profile, progress, allow_leak
        self._cohorts: dict[str, Cohort] = {}
        self._volumes: dict[str, Volumes] = {}
        self._tables: dict[str, pd.DataFrame] = {}
        self._data_used: dict[str, str] = {}
        self._found_out: dict[tuple[str, str], Any] = {}

    def _once(self, what: str, name: str, find: Callable[[], Found]) -> Found:
        """What `find` gives, called once for a study and all its variants."""
        if (what, name) not in self._found_out:
            self._found_out[what, name] = find()
        return cast(Found, self._found_out[what, name])

    def cohort(self, name: str) -> Cohort:
        """Who is in a cohort, cut to the profile's number of subjects, without the scans that cannot be used.

        No voxel of a phantom is made for it; real scans are prepared, because a scan may turn out to be unusable.
        """
        if name not in self._cohorts:
            cap = self.profile.subjects.of(name, self.manifest)
            described = describe_cohort(self.manifest, name, max_subjects=cap)
            if described.kind != "phantom":
                self._volumes[name] = self._open(described)
                described = self._volumes[name].cohort
            self._cohorts[name] = described
            self._data_used[f"cohort:{name}"] = self._cohort_id(name)
        return self._cohorts[name]

    def volumes(self, name: str) -> Volumes:
        """Prepared volumes of a cohort, rows as in its table; what is missing is prepared now."""
        cohort = self.cohort(name)
        if name not in self._volumes:
            self._volumes[name] = self._open(cohort)
        return self._volumes[name]

    def keep(self, name: str, bank: PhantomBank) -> None:
        """Take a cohort's volumes from a bank in memory from now on, in place of the store."""
        self.cohort(name)
        self._volumes[name] = bank  # type: ignore[assignment]

    @property
    def in_memory(self) -> bool:
        """Whether a cohort's volumes are a bank in this process' memory, see `keep`."""
        return any(hasattr(volumes, "on_device") for volumes in self._volumes.values())

    def some_volumes(self, name: str, rows: Sequence[int] | np.ndarray) -> Volumes:
        """Volumes of these rows of a cohort's table; of phantoms, which are never refused, no others are made."""
        if name in self._volumes or self.cohort(name).kind != "phantom":
            return self.volumes(name).select(rows)
        return self._open(self.cohort(name).select(rows))

    def _open(self, cohort: Cohort) -> Volumes:
        return open_volumes(cohort, self.profile.geometry, progress=self.progress, on_error="report")

    def public(self, name: str, scans: pd.DataFrame) -> pd.DataFrame:
        """A cohort's scans as they may be written into runs: identifiers of people are pseudonyms."""
        return scans if self.cohort(name).kind == "phantom" else pseudonymised(scans, name)

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

    def cohort_of(self, task: str) -> str:
        """Name of the cohort that a task is asked of.

        Raises:
            InputError: There is no such task, or its data are not present.
        """
        if task not in self.tasks:
            raise InputError(f"There is no task {task!r} with its data present: choose among {', '.join(self.tasks)}.")
        return self.manifest.tasks[task].cohort

    def task_table(self, task: str) -> pd.DataFrame:
        """Scans of a task with label, subject and split (few subjects: fold), the same for every arm.

        Identifiers are those of the data; `public` makes them pseudonyms.
        """
        if task not in self._tables:
            self._tables[task] = self._task_table(task)
        return self._tables[task].copy()

    def _task_table(self, task: str) -> pd.DataFrame:
        cohort = self.cohort(self.cohort_of(task))
        table = task_table(self.manifest, task, cohort, allow_leak=self.allow_leak)
        if "split" in table:
            return table.assign(leaks=True) if self.allow_leak and divided_subjects(table) else table
        by_site = self.manifest.tasks[task].grouped_by == "site"
        if table["subject_id"].nunique() < self.profile.evaluation.cross_validate_below:
            smallest = int(table.groupby("label")["subject_id"].nunique().min())
            if smallest < 2:
                more = " A cap of the profile leaves out some of its subjects." if cohort.beyond[1] else ""
                raise InputError(f"{too_few(self.manifest, task, table)}{more}")
            folds = min(5, max(smallest // 2, 2), max(table["site"].nunique(), 2) if by_site else 5)
            return table.assign(fold=assign_folds(table, seed=0, folds=folds, by_site=by_site))
        return table.assign(split=assign_splits(table, seed=0, by_site=by_site))

    @cached_property
    def pretraining_rows(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """For each pretraining cohort, rows of the scans to train on and of the held-out subjects' scans.

        Validation and test subjects of every task on the cohort are no training subjects unless the manifest says
        ``transductive: true``, nor is a subject with a scan that a task on another cohort evaluates on (the same
        content, or nearly); a tenth of the others is held out as well.
        """
        rows = {}
        evaluated_by_cohort, contents = ({}, set()) if self.manifest.transductive else self._evaluated()
        for name in self.pretraining_cohorts:
            cohort = self.cohort(name)
            subjects = cohort.scans["subject_id"].astype(str)
            evaluated = evaluated_by_cohort.get(name, set()) | set(subjects[cohort.scans["digest"].isin(contents)])
            rest = sorted(set(subjects) - evaluated, key=lambda s: stable_hash((name, s, "heldout")))
            count = max(round(HELDOUT_SHARE * len(rest)), min(2, len(rest) - 1), 0)  # a variance needs two
            train = set(rest[count:])
            heldout = set(rest[:count]) | evaluated
            rows[name] = (np.flatnonzero(subjects.isin(train)), np.flatnonzero(subjects.isin(heldout)))
        return rows

    def pretraining_said(self) -> str:
        """How many subjects and scans of each cohort are trained on; why, where these are few."""
        parts, total, evaluated = [], 0, False
        for name, (train, _) in self.pretraining_rows.items():
            subjects = self.cohort(name).scans["subject_id"]
            total += len(train)
            seen, every = subjects.iloc[train].nunique(), subjects.nunique()
            evaluated |= seen < every - max(round(HELDOUT_SHARE * every), 2)
            parts.append(f"{seen:,} of {every:,} subjects of {name} ({len(train):,} scans)")
        why = f". {total} scans are few: {self._why_few}" if total < FEW and evaluated else ""
        return f"pretraining on {', '.join(parts)}{why}"

    @property
    def _why_few(self) -> str:
        below = self.profile.evaluation.cross_validate_below
        return (
            f"subjects that a task evaluates on are left out, and a task of fewer than {below} subjects is "
            "cross-validated and evaluates on all of them"
        )

    def _evaluated(self) -> tuple[dict[str, set[str]], set[str]]:
        """Subjects that tasks evaluate on, by cohort, and the contents of all their scans."""
        subjects: dict[str, set[str]] = {}
        contents: set[str] = set()
        for name in dict.fromkeys(self.manifest.tasks[task].cohort for task in self.tasks):
            tables = [self.task_table(task) for task in self.tasks if self.manifest.tasks[task].cohort == name]
            subjects[name] = held_out_subjects(tables)
            scans = self.cohort(name).scans
            contents |= set(scans["digest"][scans["subject_id"].astype(str).isin(subjects[name])])
        digest: dict[str, str] = {}
        for name in self._real:
            digest |= dict(zip(self.cohort(name).scans["scan_uid"], self.cohort(name).scans["digest"]))
        pairs = self.duplicates
        for one, other in ((pairs["first"], pairs["second"]), (pairs["second"], pairs["first"])):
            contents |= {digest[b] for a, b in zip(one, other) if digest[a] in contents}
        return subjects, contents

    @property
    def _real(self) -> list[str]:
        """Real cohorts in use."""
        return [name for name in self.cohorts_in_use if self.manifest.cohorts[name].kind != "phantom"]

    @cached_property
    def cohorts_in_use(self) -> tuple[str, ...]:
        """Cohorts that are present and that something is trained on or asked of."""
        wanted = (*self.pretraining_cohorts, *(self.manifest.tasks[task].cohort for task in self.tasks))
        return tuple(dict.fromkeys(wanted))

    @property
    def simulated_tasks(self) -> list[str]:
        """Tasks whose scans are phantoms, so that their truth is known."""
        kinds = {name: self.manifest.cohorts[name].kind for name in self.cohorts_in_use}
        return [task for task in self.tasks if kinds[self.manifest.tasks[task].cohort] == "phantom"]

    @cached_property
    def duplicates(self) -> pd.DataFrame:
        """Pairs of scans of real cohorts that are nearly the same, see `audit.duplicates`; phantoms have none."""
        return duplicates({name: self.volumes(name) for name in self._real})

    def pretraining_volumes(self, part: int, limit: int | None = None) -> tuple[VolumeSet, pd.DataFrame]:
        """Volumes of the training (0) or held-out (1) scans, and their rows; spread over cohorts if limited."""
        total = sum(len(rows[part]) for rows in self.pretraining_rows.values())
        parts, tables = [], []
        for name, rows in self.pretraining_rows.items():
            chosen = rows[part]
            if limit is not None and total > limit:
                count = min(len(chosen), max(round(limit * len(chosen) / total), 1))
                chosen = chosen[np.linspace(0, len(chosen) - 1, count).round().astype(int)] if len(chosen) else chosen
            if len(chosen):
                parts.append(self.some_volumes(name, chosen))
                scans = self.public(name, self.cohort(name).scans.iloc[chosen])
                tables.append(scans.assign(subject_id=f"{name}/" + scans["subject_id"].astype(str), cohort=name))
        if not parts:
            raise InputError(
                f"No scan is left to pretrain on: {self._why_few}. Add a cohort to `pretraining`, or set "
                "`transductive: true` in the manifest and say so in your report."
            )
        return VolumeSet(parts), pd.concat(tables, ignore_index=True)

    def _cohort_id(self, name: str) -> str:
        """What a page that shows a cohort depends on: its scans, and the grid they are brought to."""
        return f"cohort-{stable_hash([self.cohort(name).digest, self.profile.geometry])}"
