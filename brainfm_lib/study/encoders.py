"""Encoders as runs: trained here, untrained or made elsewhere, and what each shows of itself without any task."""

import dataclasses
from abc import ABC
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from brainfm_lib.data.manifest import EncoderSettings
from brainfm_lib.errors import InputError
from brainfm_lib.external import check_unchanged, make_import, weights_digest
from brainfm_lib.identity import stable_hash
from brainfm_lib.objectives import EVERY_ARM, LATER
from brainfm_lib.runs import RunConfig, ensure
from brainfm_lib.study.requests import Requests
from brainfm_lib.verdict import CNN, CONTROL, CONTROLS, NUISANCE, ORACLE, RAW_VOXELS, SHUFFLED

PROGRESS = 4  # a curve over training asks this much fewer held-out volumes than a reconstruction does


class EncoderKinds(Requests, ABC):
    """Requests `pretrain:arm`, `reconstruction:arm`, `progress:arm` and `latents:arm`, of any encoder that is there."""

    @cached_property
    def own(self) -> dict[str, EncoderSettings]:
        """Encoders made elsewhere that the manifest names and whose files are given, by name."""
        named = self.manifest.available_encoders()
        taken = sorted(set(named) & {*EVERY_ARM, CONTROL, RAW_VOXELS, NUISANCE, SHUFFLED, CNN, ORACLE})
        if taken:
            raise InputError(f"{self.manifest.path.name}: the encoder {taken[0]!r} needs a name of its own.")
        return named

    @property
    def own_weights(self) -> tuple[str, ...]:
        """Those of `own` that are weights, not functions, and so can be trained further."""
        return tuple(name for name in self.own if not self._is_function(name))

    @property
    def trained_arms(self) -> tuple[str, ...]:
        """Arms of the study that are pretrained."""
        return tuple(arm for arm in self.arms if arm != CONTROL)

    @property
    def predicting_arms(self) -> tuple[str, ...]:
        """Those of them that predict what is hidden: patches, or latents that patches can be read off."""
        return tuple(arm for arm in self.trained_arms if EVERY_ARM[arm].family in ("mae", "jepa"))

    @property
    def encoders(self) -> tuple[str, ...]:
        """The untrained encoder, the study's arms and the weights that the manifest adds: what can be trained on."""
        return tuple(dict.fromkeys((CONTROL, *self.arms, *self.own_weights)))

    @property
    def represented(self) -> tuple[str, ...]:
        """As `encoders`, with the functions that the manifest adds: whatever turns volumes into features."""
        return tuple(dict.fromkeys((*self.encoders, *self.own)))

    @property
    def compared(self) -> tuple[str, ...]:
        """Controls, arms and encoders made elsewhere: the rows of a table of linear probes."""
        return tuple(dict.fromkeys((*CONTROLS, *self.represented)))

    def _is_function(self, arm: str) -> bool:
        return arm in self.own and self.own[arm].kind == "python"

    def _configure_import(self, name: str) -> RunConfig:
        if self._is_function(name):
            raise InputError(f"The encoder {name!r} is a function: it gives features and has no weights to train.")
        own = self.own[name]
        settings = {"kind": own.kind, "heads": own.heads, "grid": own.grid} if own.kind == "monai" else {}
        return RunConfig("import", settings, {"weights": self._digest_of(name)}, code=("brainfm_lib.external",))

    def _bring_in(self, name: str) -> Callable[[Path], Any]:
        unchanged = partial(check_unchanged, self.own[name], self.manifest, self._digest_of(name))
        return make_import(self.own[name], self.manifest.resolve(self.own[name].path), unchanged)

    def _digest_of(self, name: str) -> str:
        """Hash of an encoder made elsewhere, as its files were when it was first asked for."""
        return self._once("weights", name, lambda: weights_digest(self.own[name], self.manifest))

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
            return self._configure_import(arm)
        if arm == CONTROL:
            settings: dict[str, Any] = {"encoder": dataclasses.asdict(self.profile.encoder), "seed": self.seed}
            return RunConfig("init", settings, code=("brainfm_lib.pretrain.config",))
        if self.after is not None:
            whole = {"training": self._configure_training(arm)}
            return RunConfig("snapshot", {"step": self.after}, inputs=whole, code=("brainfm_lib.pretrain.snapshot",))
        return self._configure_training(arm)

    def _configure_training(self, arm: str) -> RunConfig:
        config = self.profile.pretraining(arm, self.seed)
        settings = dataclasses.asdict(config)
        for part in (part for part in LATER if settings["objective"][part] is None):
            del settings["objective"][part]
        if config.objective.vcr is None or config.objective.vcr.gathered:
            del settings["optimiser"]["accumulate"]  # a batch's parts, like processes, then decide memory alone
        code = ("brainfm_lib.pretrain.loop", *self._pretraining_code())
        return RunConfig("pretrain", settings, self._pretraining_data, code=code)

    def _pretrain_make(self, arm: str, **making: Any) -> Callable[[Path], Any]:
        if arm in self.own:
            return self._bring_in(arm)
        if arm == CONTROL:
            from brainfm_lib.pretrain.config import initial_model

            config = self.profile.pretraining("mae", self.seed)
            return lambda folder: initial_model(config).encoder.save_pretrained(folder / "encoder")
        if self.after is not None:
            from brainfm_lib.pretrain.snapshot import make_snapshot

            trained = ensure(dataclasses.replace(self._configure_training(arm), anew=self.retrain), self._train(arm))
            return make_snapshot(self.profile.pretraining(arm, self.seed), trained.path, self.after)
        return self._train(arm, **making)

    def _train(self, arm: str, **making: Any) -> Callable[[Path], Any]:
        from brainfm_lib.pretrain.loop import make_pretrain

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
