"""What a figure says of itself where it cannot be seen: words in place of the picture, and the numbers behind it."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

KEY = "brainfm"  # under which the words stand in a notebook's output metadata
ONE_BY_ONE = {"subject_id", "scan_uid", "subject", "scan", "participant_id", "session", "digest", "path", "row"}
ONE_BY_ONE |= {"age", "sex", "score", "score_0", "label", "component_1"}  # columns of tables whose rows are scans
MOST_ROWS = 20_000
DIGITS = "%.6g"


def describe(figure: Figure, draw: Callable[..., Figure], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Let a figure tell Jupyter, beside its picture, what it shows and which numbers it was drawn from.

    Args:
        figure: As `draw` made it.
        draw: Its docstring's first sentence says what is drawn.
        args, kwargs: Of that call; tables among them are the numbers, save those with a row a person.
    """
    given = inspect.signature(draw).bind(*args, **kwargs).arguments
    tables = {name: table for name, table in ((n, _as_table(value)) for n, value in given.items()) if table is not None}
    files = {name: _csv(table) for name, table in tables.items()}
    said = {"what": first_sentence(draw.__doc__ or ""), "alt": in_words(figure, draw.__doc__ or ""), "data": files}
    figure.__dict__["_repr_mimebundle_"] = lambda include=None, exclude=None: ({}, {KEY: said})


def first_sentence(text: str) -> str:
    """Of a docstring, on one line."""
    paragraph = " ".join(inspect.cleandoc(text).split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0].replace("`", "")


def in_words(figure: Figure, text: str) -> str:
    """First sentence of `text`, then headings, axes and legend of the figure as drawn."""
    axes = [axis for axis in figure.axes if axis.axison]
    labels = {
        "Panels": [axis.get_title(loc=place) for axis in axes for place in ("left", "center")],
        "Across": [axis.get_xlabel() for axis in axes] + [figure.get_supxlabel()],
        "Up": [axis.get_ylabel() for axis in axes] + [figure.get_supylabel()],
        "Shown": _legend(figure),
    }
    said = [first_sentence(text), figure.get_suptitle()]
    for name, values in labels.items():
        kept = list(dict.fromkeys(" ".join(value.split()) for value in values if value.strip()))
        if kept:
            said.append(f"{name}: {', '.join(kept)}")
    said = [" ".join(part.split()).rstrip(".") for part in said if part.strip()]
    return _plain(". ".join(said)) + "."


def _csv(table: pd.DataFrame) -> str:
    return _flat(table).to_csv(index=False, float_format=DIGITS)


def _flat(table: pd.DataFrame) -> pd.DataFrame:
    """With what an index of names says as a column."""
    return table.reset_index(drop=pd.api.types.is_integer_dtype(table.index) and table.index.name is None)


def _as_table(value: Any) -> pd.DataFrame | None:
    """One table of a table, or of tables by name, however deep; None of anything else, or where rows are people."""
    if isinstance(value, pd.DataFrame):
        told = value.empty or ONE_BY_ONE & {*value.columns, *value.index.names} or len(value) > MOST_ROWS
        return None if told else value
    if isinstance(value, Mapping) and value:
        parts = {str(name): _as_table(one) for name, one in value.items()}
        found = {name: table for name, table in parts.items() if table is not None}
        if len(found) == len(parts):
            taken = {name for table in found.values() for name in table.columns}
            column = next(name for name in ("of", "group", "within", "among") if name not in taken)
            named = [_flat(table).assign(**{column: name}) for name, table in found.items()]
            joined = pd.concat(named, ignore_index=True)
            first = [column, *(name for name in joined.columns if name != column)]
            return None if len(joined) > MOST_ROWS else joined[first]
    return None


def _legend(figure: Figure) -> list[str]:
    own = [axis.get_legend() for axis in figure.axes]
    return [text.get_text() for legend in (*figure.legends, *own) if legend is not None for text in legend.get_texts()]


def _plain(text: str) -> str:
    """Without the marks of TeX."""
    return re.sub(r"\\mathrm|[$\\{}]", "", text).strip()
