"""Requests: runs that are asked for by name, each turned into a configuration, found, or made.

A request is ``kind:arm`` or ``kind:arm:what``, for instance ``pretrain:mae`` or ``probe:sl-mae:ad``. It becomes a
configuration, from which the run's identity follows without making anything; the run is made when it is asked for.
What kinds there are is told by methods ``_<kind>_config`` and ``_<kind>_make`` of the subclasses.
"""

import copy
import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from brainfm_lib.config import Profile
from brainfm_lib.data.manifest import Manifest
from brainfm_lib.errors import InputError
from brainfm_lib.identity import write_atomic
from brainfm_lib.objectives import ARMS
from brainfm_lib.runs import Run, RunConfig, ensure, find, find_whole
from brainfm_lib.study.data import StudyData
from brainfm_lib.verdict import AUXILIARY, REGULARISED

OF_ALL_ARMS = ("seed", "step", "profile")  # changes that do not concern one arm alone
ALONE = ("trials", "causal")  # kinds with commands of their own, which make them anew


def arm_of(request: str, change: str) -> str:
    """The arm that a change concerns; empty where it concerns all."""
    return "" if change.partition("=")[0] in OF_ALL_ARMS else request.split(":")[1]


@dataclass(frozen=True)
class Opening:
    """What a study is opened with, see `Study`: with the same, another process opens the same study."""

    profile: str
    manifest: str
    seed: int
    objective: str
    overrides: Mapping[str, Any]
    cpu: bool
    compile: bool
    recompute: bool
    allow_leak: bool
    retrain: bool


class Requests(StudyData, ABC):
    """What can be asked of a study, whatever kinds of run it knows.

    Args:
        manifest, profile, progress: As in `StudyData`.
        made_of: What the study is opened with.
    """

    def __init__(self, manifest: Manifest, profile: Profile, made_of: Opening, *, progress: bool = True) -> None:
        super().__init__(manifest, profile, progress=progress, allow_leak=made_of.allow_leak)
        self.made_of, self.profile_name, self.seed = made_of, made_of.profile, made_of.seed
        self.arms: tuple[str, ...] = tuple(ARMS) if made_of.objective == "all" else (made_of.objective,)
        self.cpu, self.compile, self.recompute = made_of.cpu, made_of.compile, made_of.recompute
        self.retrain = made_of.retrain
        self.travels = True  # another process can make this very study of `made_of`; not most variants
        self.after: int | None = None  # steps after which trained encoders are looked at; None: all
        self.used: dict[str, Run] = {}
        self._asked: list[str] = []
        self._configs: dict[str, RunConfig] = {}
        self._variants: dict[tuple[str, str], Self] = {}

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
            return self._study_id()
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
        self._allow(kind, words)
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

    def variant(self, request: str, change: str) -> Self:
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
            self._variants[key] = self._varied(request, change)
        return self._variants[key]

    def _varied(self, request: str, change: str) -> Self:
        name, _, value = change.partition("=")
        if name == "profile":
            return self._opened(dataclasses.replace(self.made_of, profile=value, overrides={}))
        arm = arm_of(request, change)
        other = copy.copy(self)  # cohorts, splits and what leaks do not depend on it
        other._configs, other._variants, other.used, other._asked = {}, {}, {}, []
        other.travels = name == "seed" and self.travels
        try:
            if name == "seed":
                other.seed = int(value)
                other.made_of = dataclasses.replace(self.made_of, seed=other.seed)
            elif name == "step":
                other.after = int(value)
            elif name == "lr":
                other.profile = dataclasses.replace(self.profile, arm_lr={**self.profile.arm_lr, arm: float(value)})
            elif name in ("weight", "paired"):
                rate = self.profile.pretraining(REGULARISED.get(arm, arm), self.seed).optimiser.lr
                other.profile = dataclasses.replace(self.profile, arm_lr={**self.profile.arm_lr, arm: rate})
                if name == "weight":
                    part = AUXILIARY[arm]
                    weighted = dataclasses.replace(getattr(self.profile, part), weight=float(value))
                    other.profile = dataclasses.replace(other.profile, **{part: weighted})
                else:
                    other.seed = int(value)
            else:
                raise ValueError
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{change!r} changes nothing of {request}: write seed=1, lr=0.001, weight=0, paired=1, step=250 or "
                "profile=quick."
            ) from error
        return other

    @abstractmethod
    def _opened(self, made_of: Opening) -> Self:
        """A study that is opened with something else."""

    @abstractmethod
    def _study_id(self) -> str:
        """What a page shows beside runs and cohorts."""

    @abstractmethod
    def _allow(self, kind: str, words: Sequence[str]) -> None:
        """Go on only where such a run may be made."""

    def write_result(self, path: str | Path = "result.json", **extra: Any) -> None:
        """Note which runs were used: ``{"runs": {request: run id}, ...}``."""
        content = {"profile": self.profile_name, "seed": self.seed, "arms": list(self.arms), **extra}
        content["runs"] = {request: run.id for request, run in self.used.items()} | self._data_used
        content["runs"] |= {name: self.identify(name) for name in ("study", *(f"optional:{r}" for r in self._asked))}
        with write_atomic(path) as temporary:
            temporary.write_text(json.dumps(content, indent=2))
