"""A study: one profile on one manifest under one seed. Notebooks, sweeps and the command line ask it for runs by name.

A request is ``kind:arm`` or ``kind:arm:what``, for instance ``pretrain:mae`` or ``probe:sl-mae:ad``. The study turns it
into a configuration, from which the run's identity follows without making anything, and makes the run when asked to.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from brainfm_lib.config import load_profile
from brainfm_lib.data.manifest import load_manifest
from brainfm_lib.errors import InputError
from brainfm_lib.identity import stable_hash, write_atomic
from brainfm_lib.objectives import ARMS, CONTROL, EVERY_ARM, LATER
from brainfm_lib.runs import Run, RunConfig, ensure, find, find_whole
from brainfm_lib.study_evaluation import JUDGED
from brainfm_lib.study_structure import StudyStructure
from brainfm_lib.variants import arm_of, varied

FLAT_NAMES = {
    "spectral_weight": "spectral.weight",
    "spectral_high_pass": "spectral.high_pass",
    "vcr_weight": "vcr.weight",
    "mask_ratio": "mask.ratio",
    "learning_rate": "optimiser.lr",
    "steps": "optimiser.steps",
}
ALONE = ("trials", "causal")  # kinds with commands of their own, which make them anew
PROGRESS = 4  # a curve over training asks this much fewer held-out volumes than a reconstruction does


class Study(StudyStructure):
    """What is compared, and on what.

    Args:
        profile: ``tiny``, ``quick``, ``reference``, ``paper``, ``replica``, ``shipped``, or the path of a YAML file.
        manifest: Path of a data manifest; default the project's own.
        seed: Of pretraining and of the probes.
        objective: One arm, or ``all``.
        overrides: Values of the profile to change, by dotted name.
        flat: The same for the flat names of `FLAT_NAMES`; None changes nothing.
        progress: Whether long work shows a progress bar.
        cpu: Stay on the CPU whatever else there is.
        compile, recompute: How pretraining uses the machine, see `pretrain.Trainer`.
        allow_leak: Judge even where the audit finds a leak; figures and tables then say so.
        retrain: Make runs here also where the same ones came with the project.

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
        compile: bool = False,
        recompute: bool = False,
        allow_leak: bool = False,
        retrain: bool = False,
        **flat: Any,
    ) -> None:
        unknown = sorted(set(flat) - set(FLAT_NAMES))
        if unknown:
            raise InputError(f"There is no parameter {unknown[0]!r}: the flat names are {', '.join(FLAT_NAMES)}.")
        if objective != "all" and objective not in (*EVERY_ARM, CONTROL):
            raise InputError(f"There is no arm {objective!r}: choose all, {', '.join(EVERY_ARM)} or {CONTROL}.")
        given = {FLAT_NAMES[name]: value for name, value in flat.items() if value is not None}
        self.overrides = {**(overrides or {}), **given}
        settings = load_profile(profile, self.overrides)
        super().__init__(load_manifest(manifest), settings, progress=progress, allow_leak=allow_leak)
        self.profile_name, self.seed, self.cpu = profile, int(seed), cpu
        self.compile, self.recompute, self.retrain = compile, recompute, retrain
        made_of = {"profile": profile, "manifest": str(self.manifest.path), "seed": seed, "objective": objective}
        made_of |= {"overrides": self.overrides, "cpu": cpu, "compile": compile, "recompute": recompute}
        made_of |= {"allow_leak": allow_leak, "retrain": retrain}
        self.made_of: dict[str, Any] = made_of
        self.travels = True  # another process can make this very study of these; not most variants
        self.after: int | None = None  # steps after which trained encoders are looked at; None: all
        self.used, self._leaks, self._met, self._labels, self._digests = {}, {}, {}, {}, {}
        self._asked: list[str] = []
        self.arms: tuple[str, ...] = tuple(ARMS) if objective == "all" else (objective,)
        self._configs: dict[str, RunConfig] = {}
        self._variants: dict[tuple[str, str], Study] = {}

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
                made = builder(*words)
            except TypeError as error:
                raise InputError(f"{request!r} is no request: write kind:arm or kind:arm:task.") from error
            self._configs[request] = dataclasses.replace(made, anew=self.retrain and kind not in ALONE)
        return self._configs[request]

    def identify(self, request: str) -> str:
        """Identity of the run of `request`, without making it; that of a shipped run where this one is used.

        ``cohort:<name>`` is answered too: the identity of a cohort's volumes; ``optional:<request>``, "absent" where
        nobody has made that run; and ``study``: what a page shows beside runs and cohorts, that is, which tasks there
        are and how they are evaluated.
        """
        kind, _, rest = request.partition(":")
        if kind == "cohort":
            return self._cohort_id(rest)
        if kind == "optional":
            made = find(self._config_of(rest))
            return made.id if made is not None else "absent"
        if kind == "study":
            manifest, evaluation = self.manifest, dataclasses.asdict(self.profile.evaluation)
            tasks = {name: manifest.tasks[name].model_dump() for name in self.tasks}
            absent = [manifest.missing(), manifest.skipped_tasks()]
            own = {name: [settings.model_dump(), self._digest_of(name)] for name, settings in self.own.items()}
            shown = [tasks, absent, self.pretraining_cohorts, manifest.transductive, evaluation, own]
            return f"study-{stable_hash([*shown, self.profile.trial_lrs])}"
        found = find(config := self._config_of(request))
        return found.id if found is not None else config.id

    def run(self, request: str, **making: Any) -> Run:
        """The finished run of `request`; made now, with all it needs, where it is missing.

        `making` is handed to what makes it. The request may name a change, see `variant`.

        Raises:
            InputError: The request asks what an encoder reaches on a task, and the audit found a leak there.
        """
        plain, _, change = request.partition("@")
        if change:
            self.used[request] = self.variant(plain, change).run(plain, **making)
            return self.used[request]
        config = self.config(request)
        found = find_whole(config)
        kind, *words = request.split(":")
        if kind in JUDGED:
            self.refuse_leaks([words[1]], [words[0]])
        if found is None:
            # this asks for the runs it starts from, in their own time
            make = getattr(self, f"_{kind}_make")(*words, **making)
            found = ensure(config, make)
        self.used[request] = found
        return found

    def optional(self, request: str) -> Run | None:
        """The run of `request` if it is there; a page that asked is out of date once it is, or no longer is.

        ``<request>@seed=1``, ``<request>@lr=0.001`` or ``<request>@weight=0`` asks for the run as another seed, another
        learning rate or another weight of its arm's auxiliary objective would make it, ``<request>@step=250`` for one
        of the encoder in the middle of its training, see `variant`.
        """
        found = find_whole(self._config_of(request))
        self._asked.append(request)
        if found is not None:
            self.used[request] = found
        return found

    def made_by_this_code(self, request: str, run: Run) -> bool:
        """Whether `run` is what this code would make of `request`; one that ships, or its inputs, may be older."""
        return run.id == self._config_of(request).id

    def _config_of(self, request: str) -> RunConfig:
        plain, _, change = request.partition("@")
        return (self.variant(plain, change) if change else self).config(plain)

    def variant(self, request: str, change: str) -> "Study":
        """This study under another seed, or with another setting of the request's arm.

        Args:
            request: Whose arm it is.
            change: ``seed=1``; ``lr=0.001``; ``weight=0``, of the auxiliary objective, at the learning rate of the arm
                without one; ``paired=1``, a seed at that rate; ``step=250``, encoders after so many steps; or
                ``profile=quick``, by another profile, none of its values changed.

        Raises:
            InputError: `change` is none of these.
        """
        key = arm_of(request, change), change
        if key not in self._variants:
            self._variants[key] = varied(self, request, change)
        return self._variants[key]

    # --- kinds of run: a configuration, and how it is made -----------------------------------------------------------

    @cached_property
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
        if arm in self.own:
            return self._import_config(arm)
        if arm == CONTROL:
            settings: dict[str, Any] = {"encoder": dataclasses.asdict(self.profile.encoder), "seed": self.seed}
            return RunConfig("init", settings, code=("brainfm_lib.pretrain",))
        if self.after is not None:
            whole = {"training": self._trained_config(arm)}
            return RunConfig("snapshot", {"step": self.after}, inputs=whole, code=("brainfm_lib.snapshot",))
        return self._trained_config(arm)

    def _trained_config(self, arm: str) -> RunConfig:
        config = self.profile.pretraining(arm, self.seed)
        settings = dataclasses.asdict(config)
        for part in (part for part in LATER if settings["objective"][part] is None):
            del settings["objective"][part]
        if config.objective.vcr is None or config.objective.vcr.gathered:
            del settings["optimiser"]["accumulate"]  # a batch's parts, like processes, then decide memory alone
        code = ("brainfm_lib.pretrain", *self._pretraining_code())
        return RunConfig("pretrain", settings, self._pretraining_data, code=code)

    def _pretrain_make(self, arm: str, **making: Any) -> Callable[[Path], Any]:
        from brainfm_lib.pretrain import initial_model

        if arm in self.own:
            return self._import_make(arm)
        if arm == CONTROL:
            config = self.profile.pretraining("mae", self.seed)
            return lambda folder: initial_model(config).encoder.save_pretrained(folder / "encoder")
        if self.after is not None:
            from brainfm_lib.snapshot import make_snapshot

            trained = ensure(dataclasses.replace(self._trained_config(arm), anew=self.retrain), self._trained_make(arm))
            return make_snapshot(self.profile.pretraining(arm, self.seed), trained.path, self.after)
        return self._trained_make(arm, **making)

    def _trained_make(self, arm: str, **making: Any) -> Callable[[Path], Any]:
        from brainfm_lib.pretrain import make_pretrain

        return make_pretrain(
            self.profile.pretraining(arm, self.seed),
            lambda: (self.pretraining_volumes(0)[0], self.pretraining_volumes(1)[0]),
            cpu=self.cpu,
            compile=self.compile,
            recompute=self.recompute,
            about=self._about(arm),
            scans=self._trained_digests(),
            **{"progress": self.progress, **making},
        )

    def _trained_digests(self) -> list[str]:
        return [
            digest
            for name, (rows, _) in self.pretraining_rows.items()
            for digest in self.cohort(name).scans["digest"].iloc[rows]
        ]

    def _about(self, arm: str) -> dict[str, str]:
        """What the model card says of run and data; no subject, no path."""
        scans = [
            f"{name} ({len(rows[0]):,} scans{', simulated' if self.cohort(name).kind == 'phantom' else ''})"
            for name, rows in self.pretraining_rows.items()
        ]
        return {"Data": "; ".join(scans), "Run": self.config(f"pretrain:{arm}").id}

    def _reconstruction_config(self, arm: str) -> RunConfig:
        evaluation = self.profile.evaluation
        settings = {
            "volumes": evaluation.reconstruction_volumes,
            "readout": evaluation.readout_volumes,
            "examples": evaluation.example_volumes,
        }
        inputs = {"encoder": self.config(f"pretrain:{arm}")}
        return RunConfig(
            "reconstruction", settings, self._pretraining_data, inputs, ("brainfm_lib.analysis.reconstruction",)
        )

    def _reconstruction_data(self, volumes: int) -> Callable[[], Any]:
        from brainfm_lib.analysis.reconstruction import ReconstructionData

        def data() -> ReconstructionData:
            train, _ = self.pretraining_volumes(0, self.profile.evaluation.readout_volumes)
            heldout, scans = self.pretraining_volumes(1, volumes)
            return ReconstructionData(train.read(range(len(train))), heldout.read(range(len(heldout))), scans)

        return data

    def _reconstruction_make(self, arm: str) -> Callable[[Path], Any]:
        from brainfm_lib.analysis.reconstruction import make_reconstruction

        evaluation, run = self.profile.evaluation, self.run(f"pretrain:{arm}")
        return make_reconstruction(
            self.profile.pretraining(arm, self.seed),
            run.path,
            self._reconstruction_data(evaluation.reconstruction_volumes),
            examples=evaluation.example_volumes,
            batch_size=evaluation.batch_size,
            cpu=self.cpu,
        )

    def _progress_config(self, arm: str) -> RunConfig:
        evaluation = self.profile.evaluation
        settings = {"volumes": evaluation.reconstruction_volumes // PROGRESS, "readout": evaluation.readout_volumes}
        inputs = {"encoder": self.config(f"pretrain:{arm}")}
        code = ("brainfm_lib.analysis.reconstruction",)
        return RunConfig("progress", settings, self._pretraining_data, inputs, code)

    def _progress_make(self, arm: str) -> Callable[[Path], Any]:
        from brainfm_lib.analysis.reconstruction import make_progress

        evaluation, run = self.profile.evaluation, self.run(f"pretrain:{arm}")
        return make_progress(
            self.profile.pretraining(arm, self.seed),
            run.path,
            self._reconstruction_data(evaluation.reconstruction_volumes // PROGRESS),
            batch_size=evaluation.batch_size,
            cpu=self.cpu,
        )

    def _latents_config(self, arm: str) -> RunConfig:
        settings = {"volumes": self.profile.evaluation.latent_volumes}
        inputs = {"encoder": self.config(f"pretrain:{arm}")}
        return RunConfig("latents", settings, self._pretraining_data, inputs, ("brainfm_lib.analysis.latents",))

    def _latents_make(self, arm: str) -> Callable[[Path], Any]:
        from brainfm_lib.analysis.latents import make_latents

        evaluation, run = self.profile.evaluation, self.run(f"pretrain:{arm}")
        return make_latents(
            run.path / "encoder",
            lambda: self.pretraining_volumes(1, evaluation.latent_volumes),
            batch_size=evaluation.batch_size,
            cpu=self.cpu,
        )

    def _causal_config(self, seeds: str) -> RunConfig:
        from brainfm_lib.causal import inputs_of

        return RunConfig(
            "causal", {"seeds": int(seeds)}, inputs=inputs_of(self, int(seeds)), code=("brainfm_lib.causal",)
        )

    def _causal_make(self, seeds: str) -> Callable[[Path], Any]:
        from brainfm_lib.causal import make_causal

        return make_causal(self, int(seeds))

    def _trials_config(self) -> RunConfig:
        from brainfm_lib.matching import trials_config

        return trials_config(self)

    def _trials_make(self) -> Callable[[Path], Any]:
        from brainfm_lib.matching import make_trials

        return make_trials(self)

    # --- results ------------------------------------------------------------------------------------------------------

    def write_result(self, path: str | Path = "result.json", **extra: Any) -> None:
        """Note which runs were used: ``{"runs": {request: run id}, ...}``."""
        content = {"profile": self.profile_name, "seed": self.seed, "arms": list(self.arms), **extra}
        content["runs"] = {request: run.id for request, run in self.used.items()} | self._data_used
        content["runs"] |= {name: self.identify(name) for name in ("study", *(f"optional:{r}" for r in self._asked))}
        with write_atomic(path) as temporary:
            temporary.write_text(json.dumps(content, indent=2))
