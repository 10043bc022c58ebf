"""A sweep's file: read, checked before anything runs, and unfolded into cells.

    title: How heavy should the spectral loss be?
    notebook: 60_ablation
    profile: quick
    parameters: {objective: sl-mae}
    grid:
      product: {spectral_weight: [0, 0.003, 0.01, 0.03, 0.1]}
    seeds: [0, 1]

`grid` is one of `product` (every combination), `zip` (lists side by side), `list` (the cells themselves) or `random`
(`count` draws under a seed, each parameter from a list, or evenly or by logarithm from a range). A name that begins
with ``overrides.`` sets a value of the profile.
"""

from __future__ import annotations

import itertools
import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from brainfm_lib.data.strict_yaml import load_yaml
from brainfm_lib.errors import InputError
from brainfm_lib.identity import stable_hash
from brainfm_lib.paths import project_root
from brainfm_lib.report.build import Page, declared_parameters, find_pages, profile_parameters

FOLDER = "notebooks/sweeps"
OVERRIDES = "overrides."
LISTED = 20  # values, or cells, that are named at most
Scalar = bool | int | float | str | None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Range(_Strict):
    """Values between two ends, drawn evenly or evenly by logarithm."""

    low: float
    high: float
    log: bool = False

    def draw(self, rng: np.random.Generator) -> float:
        """One value, rounded to four significant digits, so that it can be typed again."""
        ends = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = rng.uniform(*ends)
        return float(f"{math.exp(value) if self.log else value:.4g}")

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("low must lie below high, and above 0 where log is true")
        return self


class Random(_Strict):
    """`count` cells, each parameter drawn by itself."""

    count: int = Field(ge=1)
    seed: int = 0
    draw: dict[str, list[Scalar] | Range]


class Grid(_Strict):
    """One way of naming cells."""

    product: dict[str, list[Scalar]] | None = None
    together: dict[str, list[Scalar]] | None = Field(default=None, alias="zip")
    points_given: list[dict[str, Scalar]] | None = Field(default=None, alias="list")
    random: Random | None = None

    @model_validator(mode="after")
    def _one(self) -> Grid:
        ways = {"product": self.product, "zip": self.together, "list": self.points_given, "random": self.random}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"write exactly one of product, zip, list and random (there are {len(given)})")
        lists = self.product or self.together or {}
        empty = [name for name, values in lists.items() if not values]
        if empty or (not lists and not self.points_given and self.random is None):
            raise ValueError(f"{empty[0] if empty else given[0]} is empty")
        if self.together and len({len(values) for values in self.together.values()}) > 1:
            raise ValueError("the lists of zip must be equally long")
        return self

    def points(self) -> list[dict[str, Scalar]]:
        """The varied parameters of each cell, in order."""
        if self.product is not None:
            return [
                dict(zip(self.product, values, strict=True)) for values in itertools.product(*self.product.values())
            ]
        if self.together is not None:
            rows = zip(*self.together.values(), strict=True)
            return [dict(zip(self.together, values, strict=True)) for values in rows]
        if self.points_given is not None:
            return [dict(point) for point in self.points_given]
        assert self.random is not None
        rng, drawn = np.random.default_rng(self.random.seed), []
        for _ in range(self.random.count):
            point = {}
            for name, source in self.random.draw.items():
                point[name] = source.draw(rng) if isinstance(source, Range) else source[rng.integers(len(source))]
            drawn.append(point)
        return drawn


class Slurm(_Strict):
    """How cells are asked of a cluster."""

    partition: str | None = None
    account: str | None = None
    gres: str | None = None
    minutes: int = Field(default=60, ge=1)
    cpus: int = Field(default=4, ge=1)
    memory_gb: float | None = Field(default=None, gt=0)
    setup: list[str] = []
    at_once: int = Field(default=16, ge=1)
    requeues: int = Field(default=3, ge=0)


class _File(_Strict):
    title: str = ""
    question: str = ""
    notebook: str = "60_ablation"
    profile: str = "quick"
    parameters: dict[str, Scalar] = {}
    grid: Grid
    seeds: list[int] = Field(default=[0], min_length=1)
    slurm: Slurm = Slurm()


@dataclass(frozen=True)
class Cell:
    """One configuration.

    Attributes:
        id: Hash of its parameters: the name of its folder.
        parameters: What the notebook is given, all of it.
        point: What the sweep varies, the seed included, by flat name.
    """

    id: str
    parameters: Mapping[str, Any]
    point: Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    """A checked sweep.

    Attributes:
        name: Of its file.
        title, question: For its page.
        page: The notebook.
        cells: In order, none twice.
        slurm: For ``--executor slurm``.
        folder: Where cells and results go.
        file: Its own, from the project's root where it lies below it.
    """

    name: str
    title: str
    question: str
    page: Page
    cells: tuple[Cell, ...]
    slurm: Slurm
    folder: Path
    file: str


def load_sweep(path: str | Path, *, profile: str | None = None, max_cells: int = 1000) -> Sweep:
    """Read and check a sweep; nothing runs.

    Args:
        path: A YAML file, or the name of one in ``notebooks/sweeps``.
        profile: In place of the file's.
        max_cells: More cells than this are an error.

    Raises:
        InputError: Says which name, value or file is wrong.
    """
    root = project_root()
    file = _find(Path(path), root)
    try:
        content = _File.model_validate(load_yaml(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as problem:
        raise InputError(f"{file.name} is no valid YAML ({' '.join(str(problem).split())}): mend it.") from problem
    except ValidationError as problem:
        one = min(problem.errors(), key=lambda error: error["type"] != "value_error")  # ours says more than a type's
        where = ".".join(str(part) for part in one["loc"]) or "the file"
        raise InputError(f"{file.name}: {where}: {one['msg'].removeprefix('Value error, ')}.") from problem
    page = _page(content.notebook, root, file.name)
    declared = declared_parameters(page)
    name_of_profile = profile or content.profile
    base = profile_parameters(root, name_of_profile, find_pages(root))[page.name]
    listed = content.grid.points()
    if any("seed" in given for given in (content.parameters, *listed)):
        raise InputError(f"{file.name} sets seed among the parameters: write 'seeds: [0, 1]' in a line of its own.")
    points = [{**point, "seed": seed} for seed in content.seeds for point in listed]
    if len(points) > max_cells:
        raise InputError(f"{file.name} has {len(points):,} cells and {max_cells:,} are allowed: --max-cells N.")
    _check_names([*content.parameters, *(name for point in points for name in point)], declared, file)
    cells: dict[str, Cell] = {}
    for point in points:
        parameters = _parameters(base, content.parameters, point)
        cell = Cell(stable_hash(parameters, 12), parameters, {**content.parameters, **point})
        _check_once(cell, file)
        _check_values(parameters, declared, parameters.get("profile", name_of_profile), point, file)
        cells.setdefault(cell.id, cell)
    name = file.stem if profile is None else f"{file.stem}-{profile}"
    title = (content.title or file.stem) + (f" ({profile})" if profile is not None else "")
    folder = root / "sweeps" / name
    whole = file.resolve()
    named = str(whole.relative_to(root) if whole.is_relative_to(root) else whole)
    return Sweep(name, title, content.question, page, tuple(cells.values()), content.slurm, folder, named)


def choose(cells: tuple[Cell, ...], expression: str | None) -> tuple[Cell, ...]:
    """Cells that meet every condition of an expression such as ``spectral_weight<=0.01, seed=0``.

    A cell of a list that does not set a name has the value that its notebook is given, or none.

    Raises:
        InputError: A condition that cannot be read, a name that no cell sets, or conditions that no cell meets.
    """
    for condition in filter(None, (part.strip() for part in (expression or "").split(","))):
        found = re.fullmatch(r"([\w.]+)\s*(<=|>=|!=|==|=|<|>)\s*(.+)", condition)
        if not found:
            raise InputError(f"--only {condition!r} cannot be read: write name=value, name<value and so on.")
        name, sign, text = found.groups()
        known = dict.fromkeys(name for cell in cells for name in cell.point)
        if name not in known:
            raise InputError(f"--only names {name!r}, which this sweep does not set: its names are {', '.join(known)}.")
        values = [_value(cell, name) for cell in cells]
        other = _given(condition, text, values)
        chosen = tuple(cell for cell, value in zip(cells, values, strict=True) if _holds(value, sign, other))
        if not chosen:
            there = list(dict.fromkeys(json.dumps(value) for value in values))
            more = f" and {len(there) - LISTED:,} more" if len(there) > LISTED else ""
            raise InputError(f"--only {condition!r} holds for no cell: {name} is {', '.join(there[:LISTED])}{more}.")
        cells = chosen
    return cells


def _value(cell: Cell, name: str) -> Any:
    """What a cell has for a name that it, or another one, sets."""
    if name.startswith(OVERRIDES):
        return (cell.parameters.get("overrides") or {}).get(name.removeprefix(OVERRIDES))
    return cell.parameters.get(name)


def _given(condition: str, text: str, values: Sequence[Any]) -> Any:
    """The value that a condition names: a number where those of the cells are, for YAML takes 5e-4 for text."""
    try:
        given = load_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(f"--only {condition!r} cannot be read: {text!r} is no value.") from error
    kinds = {type(value) for value in values} - {type(None)}
    if given is None or not kinds or not kinds <= {int, float}:
        return given
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--only {condition!r} compares numbers with {text!r}: write a number there.") from None


def _holds(one: Any, sign: str, other: Any) -> bool:
    if one is None and sign[0] in "<>":
        return False
    compare: dict[str, Callable[[Any, Any], Any]] = {
        "=": operator.eq,
        "==": operator.eq,
        "!=": operator.ne,
        "<": operator.lt,
        "<=": operator.le,
        ">": operator.gt,
        ">=": operator.ge,
    }
    try:
        return bool(compare[sign](one, other))
    except TypeError:
        raise InputError(f"--only compares {one!r} with {other!r}: they are of different kinds.") from None


def _find(path: Path, root: Path) -> Path:
    tried = [path, root / path, root / FOLDER / path.name, root / FOLDER / f"{path.name}.yaml"]
    for file in tried:
        if file.is_file():
            return file
    known = ", ".join(sorted(file.stem for file in (root / FOLDER).glob("*.yaml"))) or "none"
    raise InputError(f"There is no sweep {path}: name a file, or one of {known}.")


def _page(notebook: str, root: Path, file: str) -> Page:
    for page in find_pages(root):
        if page.name == notebook.removesuffix(".ipynb"):
            return page
    raise InputError(f"{file}: there is no notebook {notebook!r} in {root / 'notebooks'}.")


def _check_names(given: Sequence[str], declared: Mapping[str, Any], file: Path) -> None:
    for name in dict.fromkeys(given):
        if name.startswith(OVERRIDES) and "overrides" in declared:
            continue
        if name not in declared or name in ("result", "overrides", "profile"):
            known = ", ".join(sorted(set(declared) - {"result", "overrides", "profile"}))
            raise InputError(
                f"{file.name}: the notebook has no parameter {name!r}; its names are {known}, or overrides.<setting>."
            )


def _parameters(base: Mapping[str, Any], fixed: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(base)
    overrides = dict(found.get("overrides") or {})
    for name, value in {**fixed, **point}.items():
        if name.startswith(OVERRIDES):
            overrides[name.removeprefix(OVERRIDES)] = value
        else:
            found[name] = value
    if overrides:
        found["overrides"] = overrides
    return found


def _check_once(cell: Cell, file: Path) -> None:
    """No setting under two names: the flat one would win, whatever the other one says."""
    from brainfm_lib.study import FLAT_NAMES  # torch: a worker is handed checked cells and needs none

    for flat, dotted in FLAT_NAMES.items():
        value = cell.parameters.get(flat)
        if f"{OVERRIDES}{dotted}" in cell.point and value is not None:
            raise InputError(
                f"{file.name}: {OVERRIDES}{dotted} does nothing beside {flat}, which is {value}: set {flat}."
            )


def _check_values(
    parameters: Mapping[str, Any], declared: Mapping[str, Any], profile: str, point: Mapping[str, Any], file: Path
) -> None:
    from brainfm_lib.study import FLAT_NAMES

    for name, value in parameters.items():
        default = declared[name]
        kinds: Any = object
        for kind, allowed in ((bool, bool), (str, str), (int, int), (float, int | float)):
            if isinstance(default, kind):
                kinds = allowed
                break
        if not isinstance(value, kinds) or (name in FLAT_NAMES and not isinstance(value, int | float | None)):
            raise InputError(f"{file.name}: {name} is {value!r}, of the wrong kind, in the cell {json.dumps(point)}.")
    flat = {FLAT_NAMES[n]: v for n, v in parameters.items() if n in FLAT_NAMES and v is not None}
    problem = _problem(profile, json.dumps({**parameters.get("overrides", {}), **flat}))
    if problem:
        raise InputError(f"{file.name}, cell {json.dumps(point)}: {problem}")


@lru_cache(maxsize=4096)
def _problem(profile: str, overrides: str) -> str:
    """What is wrong with a profile under overrides (JSON), or ""; cells that share them are looked at once."""
    from brainfm_lib.config import load_profile

    try:
        load_profile(profile, json.loads(overrides))
    except InputError as problem:
        return str(problem)
    return ""
