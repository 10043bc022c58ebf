"""What is known or measured of a task apart from any arm's success: truth, covariates, frequencies, dimension."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from brainfm_lib.data.phantom import PhantomSpec
from brainfm_lib.data.phantom.cohort import determinants
from brainfm_lib.errors import InputError
from brainfm_lib.runs import RunConfig
from brainfm_lib.study.evaluation import EvaluationKinds
from brainfm_lib.verdict import RAW_VOXELS


class TaskKinds(EvaluationKinds):
    """Requests `truth:task`, `confounding:task`, `bands:arm:task` and `components:arm:task`."""

    def _truth_parts(self, task: str) -> tuple[PhantomSpec, list[list[str]]]:
        spec = self.cohort(self.cohort_of(task)).source
        if not isinstance(spec, PhantomSpec):
            raise InputError(f"Nobody knows the truth of task {task!r}: its scans are real.")
        entry, present = self.manifest.tasks[task], dict(spec.conditions)
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

    def _confounding_config(self, task: str) -> RunConfig:
        cohort = self.cohort(self.cohort_of(task))
        settings = {
            "labels": self._task_settings(task)["labels"],
            "geometry": dataclasses.asdict(self.profile.geometry),
        }
        code = ("brainfm_lib.data.audit", *cohort.code)
        return RunConfig("confounding", settings, {"scans": cohort.digest}, code=code)

    def _confounding_make(self, task: str) -> Callable[[Path], Any]:
        from brainfm_lib.data.audit import make_confounding

        return make_confounding(lambda: self.volumes(self.cohort_of(task)), self.task_table(task))

    def _bands_config(self, arm: str, task: str) -> RunConfig:
        cohort = self.cohort(self.cohort_of(task))
        settings = self._task_settings(task) | {"geometry": dataclasses.asdict(self.profile.geometry)}
        inputs = {} if arm == RAW_VOXELS else {"encoder": self.config(f"pretrain:{arm}")}
        code = ("brainfm_lib.analysis.bands", *cohort.code)
        return RunConfig("bands", settings, {"scans": cohort.digest}, inputs, code)

    def _bands_make(self, arm: str, task: str) -> Callable[[Path], Any]:
        from brainfm_lib.analysis.bands import make_bands

        cohort = self.cohort_of(task)
        return make_bands(
            lambda: self.volumes(cohort),
            self._public_table(task),
            self.profile.geometry.spacing,
            self._task_settings(task),
            encoder_folder=None if arm == RAW_VOXELS else self.run(f"pretrain:{arm}").path / "encoder",
            batch_size=self.profile.evaluation.batch_size,
            cpu=self.cpu,
        )

    def _components_config(self, arm: str, task: str) -> RunConfig:
        return self._on_features("components", arm, task)

    def _components_make(self, arm: str, task: str) -> Callable[[Path], Any]:
        from brainfm_lib.analysis.components import make_components

        return make_components(*self._read_features(arm, task), self._task_settings(task))
