"""A study: one profile on one manifest under one seed. Notebooks, sweeps and the command line ask it for runs by name.

How, `requests` says; what a study knows beyond single encoders and tasks stands here: two kinds of run that are made of
many others.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from brainfm_lib.config import load_profile
from brainfm_lib.data.manifest import load_manifest
from brainfm_lib.errors import InputError
from brainfm_lib.objectives import EVERY_ARM
from brainfm_lib.runs import RunConfig
from brainfm_lib.study.requests import Opening
from brainfm_lib.study.tasks import TaskKinds
from brainfm_lib.study.trials import make_trials, trials_config
from brainfm_lib.verdict import CONTROL

FLAT_NAMES = {
    "spectral_weight": "spectral.weight",
    "spectral_high_pass": "spectral.high_pass",
    "vcr_weight": "vcr.weight",
    "mask_ratio": "mask.ratio",
    "learning_rate": "optimiser.lr",
    "steps": "optimiser.steps",
}


class Study(TaskKinds):
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
        compile, recompute: How pretraining uses the machine, see `pretrain.loop.Trainer`.
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
        opened = load_manifest(manifest)
        made_of = Opening(
            profile=str(profile),
            manifest=str(opened.path),
            seed=int(seed),
            objective=objective,
            overrides=dict(self.overrides),
            cpu=cpu,
            compile=compile,
            recompute=recompute,
            allow_leak=allow_leak,
            retrain=retrain,
        )
        super().__init__(opened, settings, made_of, progress=progress)

    def _opened(self, made_of: Opening) -> Self:
        return type(self)(**vars(made_of), progress=self.progress)

    def _causal_config(self, seeds: str) -> RunConfig:
        from brainfm_lib.study.causal import inputs_of

        inputs = inputs_of(self, int(seeds))
        return RunConfig("causal", {"seeds": int(seeds)}, inputs=inputs, code=("brainfm_lib.study.causal",))

    def _causal_make(self, seeds: str) -> Callable[[Path], Any]:
        from brainfm_lib.study.causal import make_causal

        return make_causal(self, int(seeds))

    def _trials_config(self) -> RunConfig:
        return trials_config(self)

    def _trials_make(self) -> Callable[[Path], Any]:
        return make_trials(self)
