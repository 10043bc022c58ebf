"""How finished encoders are judged in a study: runs of features, probes and fine-tuning, and their results."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from brainfm_lib.data.phantom import PhantomSpec
from brainfm_lib.data.phantom.cohort import determinants
from brainfm_lib.errors import InputError
from brainfm_lib.finetune import FinetuneConfig
from brainfm_lib.identity import stable_hash
from brainfm_lib.probes.results import with_shuffled_labels
from brainfm_lib.runs import Run, RunConfig
from brainfm_lib.study_data import StudyData
from brainfm_lib.verdict import CNN, CONTROL, KINDS, NUISANCE, RAW_VOXELS, SHUFFLED

CODE = {
    "probe": "brainfm_lib.probes.linear",
    "knn": "brainfm_lib.probes.neighbours",
    "fewshot": "brainfm_lib.probes.fewshot",
}
RESULT_NAMES = ("cohort", "task", "arm", "seed", "protocol", "run")


class StudyEvaluation(StudyData, ABC):
    """Requests that judge: features of an arm and cohort, a task's truth, and what an arm reaches on a task.

    `Study` turns requests into runs; what is made of what stands here.
    """

    seed: int
    cpu: bool
    used: dict[str, Run]

    @abstractmethod
    def config(self, request: str) -> RunConfig:
        """See `Study.config`."""

    @abstractmethod
    def run(self, request: str, **making: Any) -> Run:
        """See `Study.run`."""

    def _features_config(self, arm: str, cohort: str) -> RunConfig:
        settings = {"geometry": dataclasses.asdict(self.profile.geometry), "encoder": arm not in (RAW_VOXELS, NUISANCE)}
        if arm == NUISANCE:
            code = ("brainfm_lib.data.audit", *self.cohort(cohort).code)
            return RunConfig("nuisance", settings, {"scans": self.cohort(cohort).digest}, code=code)
        inputs = {} if arm == RAW_VOXELS else {"encoder": self.config(f"pretrain:{arm}")}
        code = ("brainfm_lib.features", *self.cohort(cohort).code)
        return RunConfig("features", settings, {"scans": self.cohort(cohort).digest}, inputs, code)

    def _features_make(self, arm: str, cohort: str) -> Callable[[Path], Any]:
        from brainfm_lib.data.audit import make_nuisance
        from brainfm_lib.features import make_features

        if arm == NUISANCE:
            return make_nuisance(lambda: self.volumes(cohort))
        folder = None if arm == RAW_VOXELS else self.run(f"pretrain:{arm}").path / "encoder"
        return make_features(
            folder, lambda: self.volumes(cohort), batch_size=self.profile.evaluation.batch_size, cpu=self.cpu
        )

    def _truth_parts(self, task: str) -> tuple[PhantomSpec, list[list[str]]]:
        entry = self.manifest.tasks[task]
        spec = self.cohort(entry.cohort).source
        if not isinstance(spec, PhantomSpec):
            raise InputError(f"Nobody knows the truth of task {task!r}: its scans are real.")
        present = dict(spec.conditions)
        classes: list[list[str]] = [[] for _ in entry.classes]
        for name, label in entry.mapping.items():
            if label is not None and str(name) in present:
                classes[int(label)].append(str(name))
        return spec, classes

    def _truth_config(self, task: str) -> RunConfig:
        spec, classes = self._truth_parts(task)
        settings = {"classes": classes, "geometry": dataclasses.asdict(self.profile.geometry)}
        return RunConfig(
            "truth",
            settings | {"spec": determinants(spec)},
            code=("brainfm_lib.analysis.truth", "brainfm_lib.data.phantom.rendering"),
        )

    def _truth_make(self, task: str) -> Callable[[Path], Any]:
        from brainfm_lib.analysis.truth import make_truth

        return make_truth(*self._truth_parts(task), self.profile.geometry)

    def _task_settings(self, task: str) -> dict[str, Any]:
        table = self.task_table(task)
        division = "split" if "split" in table else "fold"
        return {
            "labels": stable_hash(table[["scan_uid", "subject_id", "label", division]].astype(str).to_numpy().tolist()),
            "division": division,
            "draws": self.profile.evaluation.bootstrap_draws,
            "permutations": self.profile.evaluation.permutations,
            "refits": self.profile.evaluation.refits if division == "fold" else 0,
            "seed": self.seed,
        }

    def _public_table(self, task: str) -> pd.DataFrame:
        return self.public(self.manifest.tasks[task].cohort, self.task_table(task))

    def _on_features(self, kind: str, arm: str, task: str, **settings: Any) -> RunConfig:
        """A run on stored features; the control `SHUFFLED` reads the untrained encoder's."""
        cohort = self.manifest.tasks[task].cohort if task in self.tasks else task
        source = CONTROL if arm == SHUFFLED else arm
        settings = self._task_settings(task) | settings | ({"shuffled": True} if arm == SHUFFLED else {})
        inputs = {"features": self.config(f"features:{source}:{cohort}")}
        return RunConfig(kind, settings, inputs=inputs, code=(CODE[kind],))

    def _read_features(self, arm: str, task: str) -> tuple[Path, pd.DataFrame]:
        """Folder of the features, and the task's scans with the labels that the arm is asked about."""
        source = CONTROL if arm == SHUFFLED else arm
        table = self._public_table(task)
        if arm == SHUFFLED:
            table = with_shuffled_labels(table, self.seed)
        return self.run(f"features:{source}:{self.manifest.tasks[task].cohort}").path, table

    def _probe_config(self, arm: str, task: str) -> RunConfig:
        return self._on_features("probe", arm, task)

    def _probe_make(self, arm: str, task: str) -> Callable[[Path], Any]:
        from brainfm_lib.probes.linear import make_probe

        return make_probe(*self._read_features(arm, task), self._task_settings(task))

    def _knn_config(self, arm: str, task: str) -> RunConfig:
        return self._on_features("knn", arm, task)

    def _knn_make(self, arm: str, task: str) -> Callable[[Path], Any]:
        from brainfm_lib.probes.neighbours import make_knn

        return make_knn(*self._read_features(arm, task), self._task_settings(task))

    def _fewshot_config(self, arm: str, task: str) -> RunConfig:
        return self._on_features("fewshot", arm, task, shots=list(self.profile.evaluation.shots))

    def _fewshot_make(self, arm: str, task: str) -> Callable[[Path], Any]:
        from brainfm_lib.probes.fewshot import make_few_shot

        evaluation = self.profile.evaluation
        return make_few_shot(*self._read_features(arm, task), shots=evaluation.shots, seed=self.seed)

    def _recipe(self, arm: str) -> FinetuneConfig:
        return self.profile.cnn if arm == CNN else self.profile.finetune

    def _finetune_config(self, arm: str, task: str) -> RunConfig:
        cohort = self.cohort(self.manifest.tasks[task].cohort if task in self.tasks else task)
        settings = self._task_settings(task) | {
            "finetune": dataclasses.asdict(self._recipe(arm)),
            "geometry": dataclasses.asdict(self.profile.geometry),
        }
        inputs = {} if arm == CNN else {"encoder": self.config(f"pretrain:{arm}")}
        code = ("brainfm_lib.finetune", *cohort.code)
        return RunConfig("finetune", settings, {"scans": cohort.digest}, inputs, code)

    def _finetune_make(self, arm: str, task: str) -> Callable[[Path], Any]:
        from brainfm_lib.finetune import make_finetune

        encoder = None if arm == CNN else self.run(f"pretrain:{arm}").path / "encoder"
        cohort = self.manifest.tasks[task].cohort
        return make_finetune(
            encoder,
            lambda: self.volumes(cohort),
            self._public_table(task),
            self._recipe(arm),
            self._task_settings(task),
            cpu=self.cpu,
        )

    def results(self) -> pd.DataFrame:
        """The probe and fine-tuning runs used so far as one tidy table, a row per arm, task, protocol and metric."""
        rows = []
        for request, run in self.used.items():
            kind, *words = request.split(":")
            if kind not in KINDS:
                continue
            arm, task = words
            cohort = self.cohort(self.manifest.tasks[task].cohort)
            table = run.table("results").assign(
                cohort=cohort.digest,
                task=task,
                arm=arm,
                seed=self.seed,
                protocol=KINDS[kind],
                run=run.id,
            )
            rows.append(table)
        columns = ["metric", "estimate", "low", "high", "n_subjects", "p_permutation", *RESULT_NAMES]
        return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=columns)
