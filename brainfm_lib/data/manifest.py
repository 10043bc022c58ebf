"""`data_manifest.yaml`, the one file that says which scans there are and what is asked of them, as typed objects."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from brainfm_lib.data.labels import LabelTable
from brainfm_lib.data.recipes import RECIPES
from brainfm_lib.data.strict_yaml import load_yaml
from brainfm_lib.data.tables import UNKNOWN
from brainfm_lib.errors import InputError
from brainfm_lib.paths import MANIFEST_NAME, project_root

VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")
OTHER = "*"


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _CohortSettings(_Settings):
    """What every cohort has.

    Attributes:
        title: The name that a reader sees.
        licence: Licence or agreement under which the data may be used.
        access: How to get the data.
        contrasts: Contrasts to keep; None keeps all.
        verified: Whether the layout has been tried on the real data set.
    """

    title: str = ""
    licence: str = ""
    access: str = ""
    contrasts: tuple[str, ...] | None = None
    verified: bool | None = None


class PhantomCohort(_CohortSettings):
    """A simulated cohort.

    Attributes:
        spec: Fields of `phantom.PhantomSpec`.
        root: Folder of label maps in FreeSurfer's numbering that its subjects descend from; default: the average brain.
    """

    kind: Literal["phantom"]
    root: str | None = None
    spec: dict[str, Any] = {}


class BidsCohort(_CohortSettings):
    """A BIDS folder.

    Attributes:
        root: The folder.
        suffixes: File suffixes beyond those of `bids.CONTRASTS`, and their contrasts.
        labels: A table of labels beside the folder's own.
        ingest: Overrides of `IngestSettings`.
    """

    kind: Literal["bids"]
    root: str
    suffixes: dict[str, str] = {}
    labels: LabelTable | None = None
    ingest: dict[str, Any] = {}


class FolderCohort(_CohortSettings):
    """Scans in folders under names that say what they are.

    Attributes:
        root: The folder.
        recipe: A known layout: a key of `recipes.RECIPES`. Either this or `pattern`.
        pattern: ``{subject_id}-{session}-{contrast}.nii.gz``: see `folders.compile_pattern`.
        contrast_names: What the pattern's ``{contrast}`` stands for; files with other names are left alone.
        contrast: Contrast of all scans, where the pattern does not say.
        labels: A table of labels.
        ingest: Overrides of `IngestSettings`.
    """

    kind: Literal["folder"]
    root: str
    recipe: str | None = None
    pattern: str | None = None
    contrast_names: dict[str, str] = {}
    contrast: str | None = None
    labels: LabelTable | None = None
    ingest: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_layout(self) -> FolderCohort:
        if (self.recipe is None) == (self.pattern is None):
            raise ValueError("a folder needs either a recipe or a pattern")
        if self.recipe is not None and self.recipe not in RECIPES:
            raise ValueError(f"there is no recipe {self.recipe!r}: choose among {', '.join(RECIPES)}")
        return self


class TableCohort(_CohortSettings):
    """A CSV or TSV table with one row a scan.

    Attributes:
        root: Folder to which the paths in the table are relative; default: the table's own.
        table: The table's path, relative to `root`, or to the manifest where there is no root.
        columns: Standard name (path, subject_id, scan_uid, session, contrast, site, age, sex) to the table's own.
        contrast: Contrast of all scans, where the table has no such column.
        labels: A table of labels beside it.
        ingest: Overrides of `IngestSettings`.
    """

    kind: Literal["table"]
    table: str
    root: str | None = None
    columns: dict[str, str] = {}
    contrast: str | None = None
    labels: LabelTable | None = None
    ingest: dict[str, Any] = {}


CohortSettings = PhantomCohort | BidsCohort | FolderCohort | TableCohort
KINDS: dict[str, type[_CohortSettings]] = {
    "phantom": PhantomCohort,
    "bids": BidsCohort,
    "folder": FolderCohort,
    "table": TableCohort,
}


class SplitFiles(_Settings):
    """Official splits: CSV files with the columns `subject_id, scan_uid`."""

    train: str
    test: str
    val: str | None = None


class TaskSettings(_Settings):
    """One classification task.

    Attributes:
        cohort: The cohort whose scans are classified.
        label: Column of the cohort's scans that holds the raw label.
        mapping: Raw label to class number, or to null to leave such scans out; ``n/a`` is the unknown label, and
            ``"*": null`` leaves out all others.
        classes: Names of classes 0, 1, ...
        title: The name that a reader sees.
        contrasts: Contrasts used; None uses all.
        splits: Official split files, if there are any.
        grouped_by: "site" keeps whole sites on one side of a split: how well does it carry over to another scanner?
    """

    cohort: str
    label: str
    mapping: dict[str, int | None]
    classes: tuple[str, ...]
    title: str = ""
    contrasts: tuple[str, ...] | None = None
    splits: SplitFiles | None = None
    grouped_by: Literal["subject", "site"] = "subject"

    @field_validator("mapping", mode="before")
    @classmethod
    def _text_keys(cls, mapping: Any) -> Any:
        if not isinstance(mapping, dict):
            return mapping
        if any(isinstance(key, bool) for key in mapping):
            raise ValueError("YAML reads a bare yes, no, on or off as true or false: put that label in quotes")
        return {"" if str(key).lower() in UNKNOWN else str(key): value for key, value in mapping.items()}

    @model_validator(mode="after")
    def _classes_match(self) -> TaskSettings:
        numbers = sorted({number for number in self.mapping.values() if number is not None})
        if len(self.classes) < 2 or numbers != list(range(len(self.classes))):
            raise ValueError(
                f"mapping gives the class numbers {numbers}, but classes names {len(self.classes)}: "
                "number two or more classes 0, 1, ... and name each"
            )
        if self.mapping.get(OTHER) is not None:
            raise ValueError(f"'{OTHER}' can only be mapped to null")
        return self


class EncoderSettings(_Settings):
    """An encoder made elsewhere, to be held beside the arms.

    Attributes:
        kind: ``folder`` (what `save_pretrained` writes), ``monai`` (state dict of a MONAI ViT) or ``python``.
        path: The folder; the file of weights; or a Python file, which is executed.
        function: For python: takes volumes (B, 1, D, H, W), float32, z-scored, and returns features (B, F).
        files: For python: what else decides the features, such as weights; a change makes results anew.
        heads: For monai: attention heads, which weights do not tell.
        grid: For monai: patch grid of the positions; default a cube.
    """

    kind: Literal["folder", "monai", "python"]
    path: str
    function: str = "features"
    files: tuple[str, ...] = ()
    heads: int | None = None
    grid: tuple[int, int, int] | None = None

    @model_validator(mode="after")
    def _heads_are_given(self) -> EncoderSettings:
        if self.kind == "monai" and self.heads is None:
            raise ValueError(
                "a MONAI ViT needs heads: its weights do not tell how many, and a wrong number goes unseen"
            )
        return self


class Manifest(_Settings):
    """The manifest.

    Attributes:
        version: Of this file format.
        pretraining: Cohorts that encoders are pretrained on.
        transductive: Permit pretraining on validation and test subjects of tasks (reported wherever it matters).
        cohorts: By name.
        tasks: By name.
        encoders: Made elsewhere, by the name that tables give them.
    """

    version: Literal[1]
    pretraining: tuple[str, ...] = ()
    transductive: bool = False
    cohorts: dict[str, Annotated[CohortSettings, Field(discriminator="kind")]]
    tasks: dict[str, TaskSettings] = {}
    encoders: dict[str, EncoderSettings] = {}
    _path: Path = PrivateAttr(default=Path(MANIFEST_NAME))

    @field_validator("cohorts", "encoders")
    @classmethod
    def _plain_names(cls, named: dict[str, Any]) -> dict[str, Any]:
        for name in named:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(f"the name {name!r} may only hold letters, digits, '-', '_' and '.'")
        return named

    @model_validator(mode="after")
    def _known_cohorts(self) -> Manifest:
        wanted = [("pretraining", name) for name in self.pretraining]
        wanted += [(f"task {task}", settings.cohort) for task, settings in self.tasks.items()]
        for where, name in wanted:
            if name not in self.cohorts:
                raise ValueError(
                    f"{where} names the cohort {name!r}, which is not among {', '.join(self.cohorts) or 'none'}"
                )
        return self

    @property
    def path(self) -> Path:
        """The file it was read from."""
        return self._path

    def cohort(self, name: str) -> CohortSettings:
        """Settings of the cohort `name`; InputError if there is none."""
        return _pick(self.cohorts, name, "cohort", self.path)

    def task(self, name: str) -> TaskSettings:
        """Settings of the task `name`; InputError if there is none."""
        return _pick(self.tasks, name, "task", self.path)

    def missing(self) -> dict[str, str]:
        """Cohorts that are absent because a variable in their paths is not set, with that reason."""
        reasons = {}
        for name, cohort in self.cohorts.items():
            texts = [getattr(cohort, key, None) or "" for key in ("root", "table")]
            unset = [variable for text in texts for variable in _unset(text)]
            if unset:
                reasons[name] = f"{unset[0]} is not set (point it at the cohort's folder)"
        return reasons

    def available_cohorts(self) -> list[str]:
        """Cohorts whose variables are all set."""
        missing = self.missing()
        return [name for name in self.cohorts if name not in missing]

    def available_tasks(self) -> list[str]:
        """Tasks whose cohort is available, in the manifest's order."""
        missing = self.missing()
        return [name for name, task in self.tasks.items() if task.cohort not in missing]

    def available_encoders(self) -> dict[str, EncoderSettings]:
        """Encoders made elsewhere whose variables are all set."""
        texts = {name: " ".join([encoder.path, *encoder.files]) for name, encoder in self.encoders.items()}
        return {name: encoder for name, encoder in self.encoders.items() if not _unset(texts[name])}

    def skipped_tasks(self) -> dict[str, str]:
        """Tasks over absent cohorts, with the reason."""
        missing = self.missing()
        return {
            name: f"cohort {task.cohort}: {missing[task.cohort]}"
            for name, task in self.tasks.items()
            if task.cohort in missing
        }

    def resolve(self, text: str, folder: Path | None = None) -> Path:
        """Expand variables and ``~`` in a path; a relative one starts at `folder`, by default the manifest's.

        Raises:
            InputError: A variable is not set.
        """
        unset = _unset(text)
        if unset:
            raise InputError(
                f"{self.path.name}: {text} needs the variable {unset[0]}: set it to the folder of the data."
            )
        expanded = VARIABLE.sub(lambda match: os.environ[match[1] or match[2]], text)
        return (folder or self.path.parent) / Path(expanded).expanduser()


def load_manifest(path: str | Path | None = None) -> Manifest:
    """Read a manifest; by default the one that ``BRAINFM_MANIFEST`` names, else the project's `data_manifest.yaml`.

    Args:
        path: YAML file; a relative path that is not found from the working directory starts at the project's root.

    Raises:
        InputError: The file is missing, is not YAML, or holds an unknown key or a wrong value.
    """
    path = path if path is not None else os.environ.get("BRAINFM_MANIFEST") or None
    file = Path(path).expanduser() if path is not None else project_root() / MANIFEST_NAME
    if not file.is_absolute() and not file.is_file():
        file = project_root() / file
    try:
        content = load_yaml(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"There is no manifest {file}: check the path or copy the shipped {MANIFEST_NAME}.") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"The manifest {file} cannot be read ({error}): save it as a UTF-8 text file.") from error
    except yaml.YAMLError as error:
        raise InputError(
            f"The manifest {file} is not valid YAML ({' '.join(str(error).split())}): mend that line."
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"The manifest {file} must hold keys and values, such as 'version: 1'.")
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise InputError(f"The manifest {file}: {one_sentence(error, content)}.") from error
    manifest._path = file.resolve()
    return manifest


def one_sentence(error: ValidationError, content: Any = None) -> str:
    """Flatten a validation error: an unknown key or the first problem, its key path and the keys that exist there."""
    problems = error.errors(include_url=False)
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])  # misspelt, hence missing
    place = [str(part) for part in first["loc"] if not (str(part) in KINDS and len(first["loc"]) > 3)]
    key = ".".join(place)
    if first["type"] == "extra_forbidden":
        known = ", ".join(_keys_at(place, content))
        text = f"unknown key '{key}'" + (f": the keys there are {known}" if known else "")
    else:
        message = first["msg"].removeprefix("Value error, ")
        given = first.get("input")
        shown = f" (it is {given!r})" if isinstance(given, str | int | float | bool) else ""
        text = (f"'{key}': " if key else "") + message[:1].lower() + message[1:].rstrip(".") + shown
    more = len(problems) - 1
    return text + (f" (and {more} more problem{'s' if more > 1 else ''})" if more else "")


def _keys_at(place: list[str], content: Any) -> Iterable[str]:
    model: type[BaseModel] | None = None
    if len(place) == 1:
        model = Manifest
    elif place[0] == "tasks":
        model = TaskSettings if len(place) == 3 else SplitFiles
    elif place[0] == "encoders" and len(place) == 3:
        model = EncoderSettings
    elif place[0] == "cohorts" and len(place) == 3 and isinstance(content, dict):
        model = KINDS.get(content["cohorts"][place[1]].get("kind"))
    return model.model_fields if model else ()


def _pick(table: dict[str, Any], name: str, what: str, path: Path) -> Any:
    if name not in table:
        raise InputError(f"{path.name} has no {what} {name!r}: it has {', '.join(table) or 'none'}.")
    return table[name]


def _unset(text: str) -> list[str]:
    return [match[1] or match[2] for match in VARIABLE.finditer(text) if not os.environ.get(match[1] or match[2])]
