"""Profiles: one typed, validated description of an experiment, made of the dataclasses beside models and losses."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from brainfm_lib.data.augment import AugmentConfig
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.manifest import Manifest
from brainfm_lib.data.strict_yaml import load_yaml
from brainfm_lib.errors import InputError
from brainfm_lib.finetune import FinetuneConfig
from brainfm_lib.losses.sigreg import SigregConfig
from brainfm_lib.losses.spectral import SpectralConfig
from brainfm_lib.losses.vcr import VcrConfig
from brainfm_lib.masking import MaskConfig
from brainfm_lib.models import JepaConfig, LejepaConfig, MaeConfig, VisionTransformerConfig
from brainfm_lib.objectives import EVERY_ARM, objective_config
from brainfm_lib.paths import project_root, shipped_dir
from brainfm_lib.pretrain.config import PretrainConfig
from brainfm_lib.pretrain.optimiser import OptimiserConfig
from brainfm_lib.probes.attentive import AttentiveConfig

PROFILES = Path(__file__).parent / "profiles"
SHIPPED = "shipped"  # profile of the encoders that ship: `reference.collect` writes it beside them
LIVE = "quick"  # of a training that shows, where those are read, that training works


@dataclass(frozen=True)
class SubjectCaps:
    """Most subjects to take of a cohort; None takes all that the manifest offers."""

    pretraining: int | None = None
    downstream: int | None = None

    def of(self, cohort: str, manifest: Manifest) -> int | None:
        """The cap of a cohort, by what the manifest uses it for."""
        return self.pretraining if cohort in manifest.pretraining else self.downstream


@dataclass(frozen=True)
class EvaluationConfig:
    """How finished encoders are looked at.

    Attributes:
        reconstruction_volumes: Held-out volumes on which errors and spectra are measured.
        example_volumes: Held-out volumes shown in pictures.
        latent_volumes: Held-out volumes for latent covariance.
        readout_volumes: Training volumes for the linear read-out from latents to voxels.
        bootstrap_draws, permutations: Of intervals and permutation tests.
        cross_validate_below: A task with fewer subjects is cross-validated instead of split once.
        refits: At most so many permutations in which a cross-validated probe is fitted anew, for an honest p:
            399 let the smallest survive Holm's adjustment over nineteen rows, and more rows ask for more.
        shots: Labelled subjects a class in few-shot probes.
        finetune_tasks: Tasks on which short fine-tuning is run as well.
        batch_size: Volumes a forward pass.
    """

    reconstruction_volumes: int = 64
    example_volumes: int = 3
    latent_volumes: int = 256
    readout_volumes: int = 128
    bootstrap_draws: int = 2000
    permutations: int = 2000
    cross_validate_below: int = 150
    refits: int = 399
    shots: tuple[int, ...] = (8, 16, 32, 64)
    finetune_tasks: tuple[str, ...] = ("ad",)
    batch_size: int = 32

    def __post_init__(self) -> None:
        least_one = ("bootstrap_draws", "permutations", "refits", "batch_size")
        if min(*(getattr(self, name) for name in least_one), *self.shots, 1) < 1:
            raise ValueError(f"{', '.join(least_one)} and shots are at least 1")


@dataclass(frozen=True)
class Profile:
    """An experiment: sizes, schedules and weights shared by all arms.

    `finetune` is the recipe for every arm, `cnn` that of the supervised network beside them (its epochs are the most:
    it gets as many as match the arms' FLOPs), `attentive` that of the attentive probe.
    What arms may have of their own: a learning rate (`arm_lr`), for a sweep of it, or a whole optimiser and schedule
    (`arm_optimiser`), which `replica` needs and a fair comparison does not have.
    """

    geometry: Geometry
    subjects: SubjectCaps = field(default_factory=SubjectCaps)
    encoder: VisionTransformerConfig = field(default_factory=VisionTransformerConfig)
    mae: MaeConfig = field(default_factory=MaeConfig)
    jepa: JepaConfig = field(default_factory=JepaConfig)
    spectral: SpectralConfig = field(default_factory=SpectralConfig)
    vcr: VcrConfig = field(default_factory=VcrConfig)
    lejepa: LejepaConfig = field(default_factory=LejepaConfig)
    sigreg: SigregConfig = field(default_factory=SigregConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    attentive: AttentiveConfig = field(default_factory=AttentiveConfig)
    cnn: FinetuneConfig = field(default_factory=lambda: FinetuneConfig(epochs=100, lr=2e-3))
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    arm_lr: Mapping[str, float] = field(default_factory=dict)
    trial_lrs: tuple[float, ...] = (5e-4, 1e-3, 2e-3)
    arm_optimiser: Mapping[str, OptimiserConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [arm for arm in (*self.arm_lr, *self.arm_optimiser) if arm not in EVERY_ARM]
        if unknown:
            raise ValueError(f"there is no arm {unknown[0]!r} for arm_lr or arm_optimiser: {', '.join(EVERY_ARM)}")
        if min(self.arm_lr.values(), default=0.0) < 0 or min(self.trial_lrs, default=0.0) < 0:
            raise ValueError("learning rates are not negative")

    @property
    def volumes_seen(self) -> int:
        """By each encoder in pretraining, where no arm has a schedule of its own."""
        return self.optimiser.steps * self.optimiser.batch_size

    def pretraining(self, arm: str, seed: int) -> PretrainConfig:
        """The pretraining run of `arm`: what the arm does not use is not in it."""
        if arm not in EVERY_ARM:
            raise InputError(f"There is no arm {arm!r}: choose among {', '.join(EVERY_ARM)}.")
        objective = objective_config(
            arm,
            encoder=self.encoder,
            mae=self.mae,
            jepa=self.jepa,
            spectral=self.spectral,
            vcr=self.vcr,
            lejepa=self.lejepa,
            sigreg=self.sigreg,
        )
        optimiser = self.arm_optimiser.get(arm, self.optimiser)
        optimiser = dataclasses.replace(optimiser, lr=self.arm_lr.get(arm, optimiser.lr))
        return PretrainConfig(objective, self.geometry, self.mask, self.augment, optimiser, seed)


def load_profile(name: str, overrides: Mapping[str, Any] | None = None) -> Profile:
    """Read a profile of the library by name (``tiny``, ``quick``, ``reference`` …) or a YAML file of your own.

    Args:
        name: Name of a profile, `SHIPPED`, or path of a YAML file; a relative one that is not found from the working
            directory starts at the project's root.
        overrides: Values to change, by dotted name: ``{"optimiser.steps": 200, "spectral.weight": 0.1}``.

    Raises:
        InputError: No such profile, an unknown name, or a value of the wrong type.
    """
    return build(Profile, profile_values(name, overrides), f"profile {name}")


def profile_values(name: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The same as plain values, as a profile's file holds them.

    Raises:
        InputError: No such profile, no YAML, or an override that reaches into a plain value.
    """
    file = _profile_file(name)
    try:
        values = load_yaml(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file.name} is not YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(values, dict):
        raise InputError(f"{file.name} must hold names and values, such as 'optimiser: {{steps: 1000}}'.")
    for dotted, value in (overrides or {}).items():
        *path, last = str(dotted).split(".")
        place = values
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise InputError(f"The override {dotted!r} reaches into {part!r}, which is a plain value.")
        place[last] = value
    return values


def profile_names() -> list[str]:
    """Profiles of the library, and `SHIPPED` where encoders ship with the project."""
    names = sorted(path.stem for path in PROFILES.glob("*.yaml"))
    with suppress(InputError):
        names += [SHIPPED] if _of_shipped().is_file() else []
    return names


def _profile_file(name: str) -> Path:
    named = Path(name).expanduser()
    places = [named, PROFILES / f"{str(name).removesuffix('.yaml')}.yaml"]
    with suppress(InputError):  # outside of a project there is no root, and nothing ships
        places[1:1] = [project_root() / named] if named.suffix else []
        places += [_of_shipped()] if name == SHIPPED else []
    for file in places:
        if file.is_file():
            return file
    known = ", ".join(profile_names())
    raise InputError(f"There is no profile {name!r}: choose among {known}, or give the path of a YAML file.")


def _of_shipped() -> Path:
    """The file of `SHIPPED`, whether it is there or not."""
    return shipped_dir() / f"{SHIPPED}.yaml"


def build(cls: type, values: Any, where: str) -> Any:
    """Make the dataclass `cls` of plain YAML values; every name and type is checked.

    Raises:
        InputError: Names the place, what stands there and what may stand there.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where} must be a mapping of names to values, not {values!r}.")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = [str(name) for name in values if name not in fields]
    if unknown:
        raise InputError(f"{where} has no {unknown[0]!r}: its names are {', '.join(fields)}.")
    hints = typing.get_type_hints(cls)
    made = {name: _convert(hints[name], value, f"{where}: {name}") for name, value in values.items()}
    try:
        return cls(**made)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}.") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{where} must be a list, not {value!r}.")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise InputError(f"{where} must hold {len(kinds)} values, not {len(value)}.")
        return tuple(_convert(kind, item, where) for kind, item in zip(kinds, value, strict=True))
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias) and hint is not Mapping and origin is None:
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if hint is float and isinstance(value, str):  # YAML reads 5e-4 as text
            with suppress(ValueError):
                value = float(value)
        if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
            raise InputError(f"{where} must be {hint.__name__}, not {value!r}.")
        return _finite(value, where)
    if isinstance(value, Mapping):
        return {str(name): _convert(arguments[1], item, f"{where}.{name}") for name, item in value.items()}
    raise InputError(f"{where} must be a mapping of names to values, not {value!r}.")


def _finite(value: Any, where: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} must be a finite number, not {value!r}.")
    return value
