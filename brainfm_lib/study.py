"""A study: one profile on one manifest under one seed. Notebooks, sweeps and the command line ask it for runs by name.

A request is ``kind:arm`` or ``kind:arm:what``, for instance ``pretrain:mae`` or ``probe:sl-mae:ad``. The study turns it
into a configuration, from which the run's identity follows without making anything, and makes the run when asked to.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainfm_lib.config import Profile, load_profile
from brainfm_lib.data.cohort import Cohort, describe_cohort
from brainfm_lib.data.manifest import Manifest, load_manifest
from brainfm_lib.data.splits import assign_folds, assign_splits, held_out_subjects, task_table
from brainfm_lib.data.store import Volumes, open_volumes
from brainfm_lib.errors import InputError
from brainfm_lib.identity import stable_hash, write_atomic
from brainfm_lib.objectives import ARMS, CONTROL
from brainfm_lib.runs import Run, RunConfig, ensure, find

RAW_VOXELS = "raw-voxels"
FLAT_NAMES = {
    "spectral_weight": "spectral.weight",
    "spectral_high_pass": "spectral.high_pass",
    "vcr_weight": "vcr.weight",
    "mask_ratio": "mask.ratio",
    "learning_rate": "optimiser.lr",
    "steps": "optimiser.steps",
}
HELDOUT_SHARE = 0.1


class Study:
    """What is compared, and on what.

    Args:
        profile: ``tiny``, ``quick``, ``reference``, ``paper``, or the path of a YAML file.
        manifest: Path of a data manifest; default the project's own.
        seed: Of pretraining and of the probes.
        objective: One arm, or ``all``.
        overrides: Values of the profile to change, by dotted name.
        flat: The same for the flat names of `FLAT_NAMES`; None changes nothing.
        progress: Whether long work shows a progress bar.
        cpu: Stay on the CPU whatever else there is.

    Raises:
        InputError: A name that is not known, or a value of the wrong type.
    """

    def __init__(
        self,
        profile: str = "quick",
        manifest: str | Path | None = None,
        seed: int = 0,
        objective: str = "all",
        overrides: Mapping[str, Any] | None = None,
        *,
        progress: bool = True,
        cpu: bool = False,
        **flat: Any,
    ) -> None:
        unknown = sorted(set(flat) - set(FLAT_NAMES))
        if unknown:
            raise InputError(f"There is no parameter {unknown[0]!r}: the flat names are {', '.join(FLAT_NAMES)}.")
        if objective != "all" and objective not in (*ARMS, CONTROL):
            raise InputError(f"There is no arm {objective!r}: choose all, {', '.join(ARMS)} or {CONTROL}.")
        given = {FLAT_NAMES[name]: value for name, value in flat.items() if value is not None}
        self.profile_name, self.seed, self.progress, self.cpu = profile, int(seed), progress, cpu
        self.profile: Profile = load_profile(profile, {**(overrides or {}), **given})
        self.manifest: Manifest = load_manifest(manifest)
        self.arms: tuple[str, ...] = tuple(ARMS) if objective == "all" else (objective,)
        self.used: dict[str, Run] = {}
        self._cohorts: dict[str, Cohort] = {}
        self._volumes: dict[str, Volumes] = {}
        self._configs: dict[str, RunConfig] = {}
        self._data_used: dict[str, str] = {}

    # --- data ---------------------------------------------------------------------------------------------------------

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
        ``transductive: true``; a tenth of the others is held out as well.
        """
        rows = {}
        for name in self.pretraining_cohorts:
            cohort = self.cohort(name)
            subjects = cohort.scans["subject_id"].astype(str)
            evaluated: set[str] = set()
            if not self.manifest.transductive:
                tables = [self.task_table(t) for t in self.tasks if self.manifest.tasks[t].cohort == name]
                evaluated = held_out_subjects(tables)
            rest = sorted(set(subjects) - evaluated, key=lambda s: stable_hash((name, s, "heldout")))
            count = max(round(HELDOUT_SHARE * len(rest)), 1) if len(rest) > 1 else 0
            train = set(rest[count:])
            heldout = set(rest[:count]) | evaluated
            rows[name] = (np.flatnonzero(subjects.isin(train)), np.flatnonzero(subjects.isin(heldout)))
        return rows

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
                arrays.append(self.volumes(name).bank()[chosen])
                tables.append(self.cohort(name).scans.iloc[chosen])
        if not arrays:
            raise InputError(
                "No scan is left to pretrain on: every subject is a validation or test subject of a task; add a cohort "
                "to `pretraining`, or set `transductive: true` in the manifest and say so in your report."
            )
        return np.concatenate(arrays), pd.concat(tables, ignore_index=True)

    # --- requests -----------------------------------------------------------------------------------------------------

    def config(self, request: str) -> RunConfig:
        """What the run of `request` is made of; cheap, nothing is made.

        Raises:
            InputError: The request names no kind, arm, task or cohort that there is.
        """
        if request not in self._configs:
            kind, *words = request.split(":")
            builder = getattr(self, f"_{kind}_config", None)
            try:
                if builder is None:
                    raise TypeError
                self._configs[request] = builder(*words)
            except TypeError as error:
                raise InputError(f"{request!r} is no request: write kind:arm or kind:arm:task.") from error
        return self._configs[request]

    def identify(self, request: str) -> str:
        """Identity of the run of `request`, without making it; that of a shipped run where this one is used.

        ``cohort:<name>`` is answered too: the identity of a cohort's volumes.
        """
        kind, _, rest = request.partition(":")
        if kind == "cohort":
            return self._cohort_id(rest)
        config = self.config(request)
        found = find(config)
        return found.id if found is not None else config.id

    def run(self, request: str) -> Run:
        """The finished run of `request`; made now, with all it needs, where it is missing."""
        config = self.config(request)
        kind, *words = request.split(":")
        make = getattr(self, f"_{kind}_make")
        self.used[request] = ensure(config, lambda folder: make(*words)(folder))
        return self.used[request]

    # --- kinds of run: a configuration, and how it is made -----------------------------------------------------------

    def _cohort_id(self, name: str) -> str:
        """What a page that shows a cohort depends on: its scans, and the grid they are brought to."""
        return f"cohort-{stable_hash([self.cohort(name).digest, self.profile.geometry])}"

    def _pretraining_data(self) -> dict[str, str]:
        return {
            part: stable_hash(
                [self.cohort(n).select(rows[i]).voxel_digest for n, rows in self.pretraining_rows.items()]
            )
            for i, part in enumerate(("train", "heldout"))
        }

    def _pretraining_code(self) -> tuple[str, ...]:
        return tuple(sorted({module for name in self.pretraining_cohorts for module in self.cohort(name).code}))

    def _pretrain_config(self, arm: str) -> RunConfig:
        if arm == CONTROL:
            settings = {"encoder": dataclasses.asdict(self.profile.encoder), "seed": self.seed}
            return RunConfig("init", settings, code=("brainfm_lib.pretrain",))
        settings = dataclasses.asdict(self.profile.pretraining(arm, self.seed))
        code = ("brainfm_lib.pretrain", *self._pretraining_code())
        return RunConfig("pretrain", settings, self._pretraining_data(), code=code)

    def _pretrain_make(self, arm: str) -> Callable[[Path], Any]:
        from brainfm_lib.pretrain import initial_model, make_pretrain

        if arm == CONTROL:
            config = self.profile.pretraining("mae", self.seed)
            return lambda folder: initial_model(config).encoder.save_pretrained(folder / "encoder")
        return make_pretrain(
            self.profile.pretraining(arm, self.seed),
            lambda: (self.pretraining_volumes(0)[0], self.pretraining_volumes(1)[0]),
            progress=self.progress,
            cpu=self.cpu,
        )

    def _reconstruction_config(self, arm: str) -> RunConfig:
        evaluation = self.profile.evaluation
        settings = {
            "volumes": evaluation.reconstruction_volumes,
            "readout": evaluation.readout_volumes,
            "examples": evaluation.example_volumes,
        }
        inputs = {"encoder": self.config(f"pretrain:{arm}")}
        return RunConfig(
            "reconstruction", settings, self._pretraining_data(), inputs, ("brainfm_lib.analysis.reconstruction",)
        )

    def _reconstruction_make(self, arm: str) -> Callable[[Path], Any]:
        from brainfm_lib.analysis.reconstruction import ReconstructionData, make_reconstruction

        evaluation, run = self.profile.evaluation, self.run(f"pretrain:{arm}")

        def data() -> ReconstructionData:
            train, _ = self.pretraining_volumes(0, evaluation.readout_volumes)
            heldout, scans = self.pretraining_volumes(1, evaluation.reconstruction_volumes)
            return ReconstructionData(train.astype(np.float32), heldout.astype(np.float32), scans)

        return make_reconstruction(
            self.profile.pretraining(arm, self.seed),
            run.path,
            data,
            examples=evaluation.example_volumes,
            batch_size=evaluation.batch_size,
            cpu=self.cpu,
        )

    def _latents_config(self, arm: str) -> RunConfig:
        settings = {"volumes": self.profile.evaluation.latent_volumes}
        inputs = {"encoder": self.config(f"pretrain:{arm}")}
        return RunConfig("latents", settings, self._pretraining_data(), inputs, ("brainfm_lib.analysis.latents",))

    def _latents_make(self, arm: str) -> Callable[[Path], Any]:
        from brainfm_lib.analysis.latents import make_latents

        evaluation, run = self.profile.evaluation, self.run(f"pretrain:{arm}")
        return make_latents(
            run.path / "encoder",
            lambda: _InMemory(self.pretraining_volumes(1, evaluation.latent_volumes)[0]),
            batch_size=evaluation.batch_size,
            cpu=self.cpu,
        )

    def _features_config(self, arm: str, cohort: str) -> RunConfig:
        inputs = {} if arm == RAW_VOXELS else {"encoder": self.config(f"pretrain:{arm}")}
        settings = {"geometry": dataclasses.asdict(self.profile.geometry), "encoder": arm != RAW_VOXELS}
        code = ("brainfm_lib.features", *self.cohort(cohort).code)
        return RunConfig("features", settings, {"scans": self.cohort(cohort).digest}, inputs, code)

    def _features_make(self, arm: str, cohort: str) -> Callable[[Path], Any]:
        from brainfm_lib.features import make_features

        folder = None if arm == RAW_VOXELS else self.run(f"pretrain:{arm}").path / "encoder"
        return make_features(
            folder, lambda: self.volumes(cohort), batch_size=self.profile.evaluation.batch_size, cpu=self.cpu
        )

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

    def _probe_config(self, arm: str, task: str) -> RunConfig:
        cohort = self.manifest.tasks[task].cohort if task in self.tasks else task
        settings = self._task_settings(task)
        return RunConfig(
            "probe",
            settings,
            inputs={"features": self.config(f"features:{arm}:{cohort}")},
            code=("brainfm_lib.probes",),
        )

    def _probe_make(self, arm: str, task: str) -> Callable[[Path], Any]:
        from brainfm_lib.probes import make_probe

        features = self.run(f"features:{arm}:{self.manifest.tasks[task].cohort}")
        settings = self._task_settings(task)
        return make_probe(features.path, self.task_table(task), settings)

    def _finetune_config(self, arm: str, task: str) -> RunConfig:
        cohort = self.cohort(self.manifest.tasks[task].cohort if task in self.tasks else task)
        settings = self._task_settings(task) | {
            "finetune": dataclasses.asdict(self.profile.finetune),
            "geometry": dataclasses.asdict(self.profile.geometry),
        }
        inputs = {"encoder": self.config(f"pretrain:{arm}")}
        code = ("brainfm_lib.finetune", *cohort.code)
        return RunConfig("finetune", settings, {"scans": cohort.digest}, inputs, code)

    def _finetune_make(self, arm: str, task: str) -> Callable[[Path], Any]:
        from brainfm_lib.finetune import make_finetune

        encoder = self.run(f"pretrain:{arm}").path / "encoder"
        cohort = self.manifest.tasks[task].cohort
        return make_finetune(
            encoder,
            lambda: self.volumes(cohort),
            self.task_table(task),
            self.profile.finetune,
            self._task_settings(task),
            cpu=self.cpu,
        )

    # --- results ------------------------------------------------------------------------------------------------------

    def results(self) -> pd.DataFrame:
        """The probe and fine-tuning runs used so far as one tidy table, a row per arm, task, protocol and metric."""
        rows = []
        for request, run in self.used.items():
            kind, *words = request.split(":")
            if kind not in ("probe", "finetune"):
                continue
            arm, task = words
            cohort = self.cohort(self.manifest.tasks[task].cohort)
            table = run.table("results").assign(
                cohort=cohort.digest,
                task=task,
                arm=arm,
                seed=self.seed,
                protocol="linear" if kind == "probe" else "fine-tune",
                run=run.id,
            )
            rows.append(table)
        return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()

    def write_result(self, path: str | Path = "result.json", **extra: Any) -> None:
        """Note which runs were used: ``{"runs": {request: run id}, ...}``."""
        content = {"profile": self.profile_name, "seed": self.seed, "arms": list(self.arms), **extra}
        content["runs"] = {request: run.id for request, run in self.used.items()} | self._data_used
        with write_atomic(path) as temporary:
            temporary.write_text(json.dumps(content, indent=2))


class _InMemory:
    """An array that reads like prepared volumes."""

    def __init__(self, volumes: np.ndarray) -> None:
        self.volumes = volumes

    def __len__(self) -> int:
        return len(self.volumes)

    def read(self, rows: Sequence[int]) -> np.ndarray:
        return self.volumes[np.asarray(rows)].astype(np.float32)
