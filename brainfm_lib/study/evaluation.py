"""How finished encoders are judged in a study: runs of features, probes and fine-tuning, and their results."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from brainfm_lib.data.phantom import PhantomSpec
from brainfm_lib.errors import InputError
from brainfm_lib.external import check_unchanged, make_function_features
from brainfm_lib.identity import stable_hash
from brainfm_lib.objectives import ARMS
from brainfm_lib.pretrain.compute import cnn_flops, finetuning_flops, matched_epochs, pretraining_cost
from brainfm_lib.probes.results import fold_rows, with_shuffled_labels
from brainfm_lib.runs import RunConfig
from brainfm_lib.study.encoders import EncoderKinds
from brainfm_lib.study.leaks import encoder_leaks, resplit_leaks, task_leaks
from brainfm_lib.verdict import CNN, CONTROL, KINDS, NUISANCE, ORACLE, RAW_VOXELS, SHUFFLED

CODE = {
    "probe": "brainfm_lib.probes.linear",
    "knn": "brainfm_lib.probes.neighbours",
    "fewshot": "brainfm_lib.probes.fewshot",
    "resplit": "brainfm_lib.probes.resplits",
    "components": "brainfm_lib.analysis.components",
}
JUDGED = (*CODE, "attentive", "finetune", "bands")  # kinds of run that say what an arm reaches on a task
RESULT_NAMES = ("cohort", "task", "arm", "seed", "protocol", "run", "leak")


class EvaluationKinds(EncoderKinds):
    """Requests that judge: features of an arm and cohort, and what an arm reaches on a task."""

    @property
    def finetune_tasks(self) -> tuple[str, ...]:
        """Tasks that the profile fine-tunes on and whose data are present."""
        return tuple(task for task in self.profile.evaluation.finetune_tasks if task in self.tasks)

    def leaks(self, task: str) -> list[str]:
        """What the audit holds against a task, a clause each; empty where nothing leaks."""
        return self._once("leaks", task, lambda: task_leaks(self, task))

    def leaks_of(self, arm: str, task: str) -> str:
        """All that the audit holds against an arm's result on a task, in one line; empty where nothing leaks."""
        return "; ".join(self._found([task], [arm]))

    def _found(self, tasks: Sequence[str], encoders: Sequence[str]) -> list[str]:
        own = {name: self.own[name] for name in encoders if name in self.own}
        of_encoders = [leak for task in tasks for name in own for leak in encoder_leaks(self, name, own[name], task)]
        return [leak for task in tasks for leak in self.leaks(task)] + of_encoders

    @cached_property
    def stamp(self) -> str:
        """What must stand on every figure of this study; empty where nothing leaks."""
        said = []
        if self.manifest.transductive:
            said.append("TRANSDUCTIVE: pretrained on subjects that tasks are tested on")
        if self.allow_leak:
            found = self._found(self.tasks, tuple(self.own))
            said += [f"LEAK: {'; '.join(found)}"] if found else []
        return ". ".join(said)

    def refuse_leaks(self, tasks: Sequence[str] | None = None, encoders: Sequence[str] | None = None) -> None:
        """Go on only where nothing leaks, or where that is allowed.

        Args:
            tasks, encoders: To look at; default: all of the study's tasks, all encoders made elsewhere.

        Raises:
            InputError: Says what leaks.
        """
        if self.allow_leak:
            return
        found = self._found(tasks or self.tasks, tuple(self.own) if encoders is None else encoders)
        if found:
            raise InputError(
                f"The audit found a leak: {'; '.join(found)}. Mend the data or the split; or go on with --allow-leak "
                "(allow_leak=True), and every figure says so."
            )

    def _allow(self, kind: str, words: Sequence[str]) -> None:
        if kind in JUDGED:
            self.refuse_leaks([words[1]], [words[0]])

    def _study_id(self) -> str:
        manifest, evaluation = self.manifest, dataclasses.asdict(self.profile.evaluation)
        tasks = {name: manifest.tasks[name].model_dump() for name in self.tasks}
        absent = [manifest.missing(), manifest.skipped_tasks()]
        own = {name: [settings.model_dump(), self._digest_of(name)] for name, settings in self.own.items()}
        shown = [tasks, absent, self.pretraining_cohorts, manifest.transductive, evaluation, own]
        return f"study-{stable_hash([*shown, self.profile.trial_lrs])}"

    def _features_config(self, arm: str, cohort: str) -> RunConfig:
        settings = {"geometry": dataclasses.asdict(self.profile.geometry), "encoder": arm not in (RAW_VOXELS, NUISANCE)}
        if arm == NUISANCE:
            code = ("brainfm_lib.data.audit", *self.cohort(cohort).code)
            return RunConfig("nuisance", settings, {"scans": self.cohort(cohort).digest}, code=code)
        if arm == ORACLE:
            data = {"scans": self.cohort(cohort).digest}
            return RunConfig("latents-known", {}, data, code=("brainfm_lib.analysis.truth", *self.cohort(cohort).code))
        if self._is_function(arm):
            own = self.own[arm]
            data = {"scans": self.cohort(cohort).digest, "function": self._digest_of(arm)}
            code = ("brainfm_lib.external", *self.cohort(cohort).code)
            return RunConfig("features", settings | {"function": own.function}, data, code=code)
        inputs = {} if arm == RAW_VOXELS else {"encoder": self.config(f"pretrain:{arm}")}
        code = ("brainfm_lib.features", *self.cohort(cohort).code)
        return RunConfig("features", settings, {"scans": self.cohort(cohort).digest}, inputs, code)

    def _features_make(self, arm: str, cohort: str) -> Callable[[Path], Any]:
        from brainfm_lib.data.audit import make_nuisance
        from brainfm_lib.features import make_features

        if arm == ORACLE:
            from brainfm_lib.analysis.truth import make_latents

            spec = self.cohort(cohort).source
            if not isinstance(spec, PhantomSpec):
                raise InputError(f"Nobody knows the latents of cohort {cohort!r}: its scans are real.")
            return make_latents(spec, lambda: self.volumes(cohort).scans["subject_id"].tolist())
        if arm == NUISANCE:
            return make_nuisance(lambda: self.volumes(cohort))
        making: dict[str, Any] = {"batch_size": self.profile.evaluation.batch_size, "cpu": self.cpu}
        if self._is_function(arm):
            path = self.manifest.resolve(self.own[arm].path)
            unchanged = partial(check_unchanged, self.own[arm], self.manifest, self._digest_of(arm))
            return make_function_features(
                path, self.own[arm].function, lambda: self.volumes(cohort), unchanged, **making
            )
        folder = None if arm == RAW_VOXELS else self.run(f"pretrain:{arm}").path / "encoder"
        return make_features(folder, lambda: self.volumes(cohort), **making)

    def _task_settings(self, task: str) -> dict[str, Any]:
        table = self.task_table(task)
        division = "split" if "split" in table else "fold"
        columns = table[["scan_uid", "subject_id", "label", division]]
        return {
            "labels": self._once("labels", task, lambda: stable_hash(columns.astype(str).to_numpy().tolist())),
            "division": division,
            "draws": self.profile.evaluation.bootstrap_draws,
            "permutations": self.profile.evaluation.permutations,
            "refits": self.profile.evaluation.refits if division == "fold" else 0,
            "seed": self.seed,
        }

    def _public_table(self, task: str) -> pd.DataFrame:
        return self.public(self.cohort_of(task), self.task_table(task))

    def _on_features(self, kind: str, arm: str, task: str, **settings: Any) -> RunConfig:
        """A run on stored features; the control `SHUFFLED` reads the untrained encoder's."""
        cohort = self.cohort_of(task)
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
        return self.run(f"features:{source}:{self.cohort_of(task)}").path, table

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

    def _resplit_config(self, arm: str, task: str) -> RunConfig:
        settings = self.manifest.task(task)
        if "fold" in self.task_table(task) or settings.splits is not None or settings.grouped_by == "site":
            raise InputError(f"Task {task!r} is cross-validated, or split officially or by site: it is not split anew.")
        met = list(self._once("leaks of random splits", task, lambda: resplit_leaks(self, task)))
        if arm in self.own:
            met += encoder_leaks(self, arm, self.own[arm], task, resplit=True)
        if met:
            raise InputError(f"Task {task!r} is not split anew: {'; '.join(met)}.")
        return self._on_features("resplit", arm, task)

    def _resplit_make(self, arm: str, task: str) -> Callable[[Path], Any]:
        from brainfm_lib.probes.resplits import make_resplit

        return make_resplit(*self._read_features(arm, task))

    def _attentive_config(self, arm: str, task: str) -> RunConfig:
        cohort = self.cohort(self.cohort_of(task))
        settings = self._task_settings(task) | {
            "attentive": dataclasses.asdict(self.profile.attentive),
            "geometry": dataclasses.asdict(self.profile.geometry),
        }
        inputs = {"encoder": self.config(f"pretrain:{arm}")}
        code = ("brainfm_lib.probes.attentive", *cohort.code)
        return RunConfig("attentive", settings, {"scans": cohort.digest}, inputs, code)

    def _attentive_make(self, arm: str, task: str) -> Callable[[Path], Any]:
        from brainfm_lib.probes.attentive import make_attentive

        cohort = self.cohort_of(task)
        return make_attentive(
            self.run(f"pretrain:{arm}").path / "encoder",
            lambda: self.volumes(cohort),
            self._public_table(task),
            self.profile.attentive,
            self._task_settings(task),
            batch_size=self.profile.evaluation.batch_size,
            cpu=self.cpu,
        )

    def _finetune_config(self, arm: str, task: str) -> RunConfig:
        cohort = self.cohort(self.cohort_of(task))
        recipe = self.profile.cnn if arm == CNN else self.profile.finetune
        settings = self._task_settings(task) | {
            "finetune": dataclasses.asdict(recipe),
            "geometry": dataclasses.asdict(self.profile.geometry),
        }
        if arm == CNN:
            settings["flops"] = self._matched_flops(task)
        inputs = {} if arm == CNN else {"encoder": self.config(f"pretrain:{arm}")}
        code = ("brainfm_lib.finetune", *(["brainfm_lib.pretrain.compute"] if arm == CNN else []), *cohort.code)
        return RunConfig("finetune", settings, {"scans": cohort.digest}, inputs, code)

    def _training_scans(self, task: str) -> int:
        """Scans that a fine-tuning trains on; under cross-validation, those of all folds but two."""
        table = self.task_table(task)
        if "split" in table:
            return int((table["split"] == "train").sum())
        folds = table["fold"].nunique()
        return round(len(table) * max(folds - 2, 1) / folds)

    def _matched_flops(self, task: str) -> float:
        """What the dearest arm spends on pretraining and fine-tuning, whichever arms this study compares."""
        profile = self.profile
        spent = max(pretraining_cost(profile.pretraining(arm, self.seed)).flops for arm in ARMS)
        passes = self._training_scans(task) * profile.finetune.epochs
        return spent + finetuning_flops(profile.encoder, profile.geometry.grid, passes)

    def cnn_share(self, task: str, epochs: int) -> float:
        """FLOPs of the CNN's training over what it is matched to."""
        grid = self.profile.geometry.grid
        return cnn_flops(grid, self._training_scans(task) * epochs) / self._matched_flops(task)

    def _finetune_make(self, arm: str, task: str) -> Callable[[Path], Any]:
        from brainfm_lib.finetune import make_finetune

        encoder, recipe = None, self.profile.finetune
        if arm == CNN:
            scans, flops = self._training_scans(task), self._matched_flops(task)
            epochs = matched_epochs(self.profile.geometry.grid, scans, flops, self.profile.cnn.epochs)
            recipe = dataclasses.replace(self.profile.cnn, epochs=epochs)
        else:
            encoder = self.run(f"pretrain:{arm}").path / "encoder"
        cohort = self.cohort_of(task)
        return make_finetune(
            encoder,
            lambda: self.volumes(cohort),
            self._public_table(task),
            recipe,
            self._task_settings(task),
            cpu=self.cpu,
        )

    def results(self, *, folds: bool = False) -> pd.DataFrame:
        """The runs used so far that judge, as one tidy table: a row per arm, seed, task, protocol, metric and fold.

        Args:
            folds: Whether to add the AUROC within each fold of cross-validated tasks, which has no interval; rows over
                all held-out subjects have the fold "all".
        """
        rows = []
        for request, run in self.used.items():
            kind, *words = request.split(":")
            if kind not in KINDS or "@" in request:
                continue
            arm, task = words
            table = run.table("results").assign(fold="all")
            predictions = run.table("predictions") if folds else pd.DataFrame()
            if "fold" in predictions:
                table = pd.concat([table, fold_rows(predictions)], ignore_index=True)
            table = table.assign(
                cohort=self.cohort(self.cohort_of(task)).digest,
                task=task,
                arm=arm,
                seed=self.seed,
                protocol=KINDS[kind],
                run=run.id,
                leak=self.leaks_of(arm, task),
            )
            rows.append(table)
        columns = ["metric", "estimate", "low", "high", "n_subjects", "p_permutation", "fold", *RESULT_NAMES]
        return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=columns)
