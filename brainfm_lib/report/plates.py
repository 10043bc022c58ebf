"""Figures of an executed notebook as a book prints them: with number, caption, words for who cannot see, and data."""

import re
from typing import Any

import nbformat

from brainfm_lib.figures.about import KEY

CAPTION = re.compile(r"\*[^*\s]")  # a paragraph below a figure that begins in italics


def plates(cells: list[Any], page: str) -> tuple[list[Any], dict[str, str]]:
    """Cells in which every picture that says what it is has a number, a caption, words in its place and its data.

    The next paragraph that begins in italics, no heading and no other picture between, becomes the caption; without
    one the caption is what the drawing function says of itself.

    Args:
        cells: Of an executed notebook; they are changed.
        page: Name of the page, by which files and labels are told apart.

    Returns:
        The cells; and file name -> content, a CSV table each, to lie in ``data`` beside the page.
    """
    done: list[Any] = []
    files: dict[str, str] = {}
    for place, cell in enumerate(cells):
        caption = _take_caption(cells[place + 1 :]) if _pictures(cell) else ""
        for number, part in enumerate(_apart(cell)):
            for output in _pictures(part):
                said = output.metadata.pop(KEY)
                name = f"{page}.{part.get('id', place)}"
                tables = {table: f"{name}.{table}.csv" for table in said["data"]}
                files |= {file: said["data"][table] for table, file in tables.items()}
                links = ", ".join(f"{{download}}`{table} <data/{file}>`" for table, file in tables.items())
                words = said["what"] if number or not caption else caption
                if words.startswith("*Look"):  # what to see alone does not say what there is
                    words = f"{said['what']} {words}"
                figure = {"caption": f"{words} Data: {links}." if links else words, "name": label(name)}
                part.metadata["mystnb"] = {"image": {"alt": said["alt"]}, "figure": figure}
            done.append(part)
    return [cell for cell in done if cell.cell_type != "markdown" or cell.source.strip()], files


def label(name: str) -> str:
    """What a figure is called where a page refers to it, ``fig-<page>-<cell>``."""
    return "fig-" + re.sub(r"[^a-z0-9]+", "-", name.lower())


def _pictures(cell: Any) -> list[Any]:
    return [output for output in cell.get("outputs", []) if KEY in output.get("metadata", {})]


def _take_caption(following: list[Any]) -> str:
    """The caption among the cells that follow; it is taken out of its cell."""
    for cell in following:
        if cell.cell_type == "markdown":
            if not CAPTION.match(cell.source):
                return ""
            first, _, cell.source = cell.source.partition("\n\n")
            return " ".join(first.split())
        if _pictures(cell):
            return ""
    return ""


def _apart(cell: Any) -> list[Any]:
    """The cell; with pictures beside other outputs, a cell each, of which the first alone shows the code."""
    pictures = _pictures(cell)
    if not pictures or len(cell.outputs) == 1:
        return [cell]
    others = [output for output in cell.outputs if output not in pictures]
    cell.outputs = [pictures[0]]
    parts = [cell]
    for number, output in enumerate(pictures[1:], start=2):
        tags = [*cell.metadata.get("tags", []), "remove-input"]
        part = nbformat.v4.new_code_cell("", metadata={"tags": tags}, outputs=[output])
        part["id"] = f"{cell.get('id', 'figure')}-{number}"
        parts.append(part)
    if others:
        words = nbformat.v4.new_code_cell("", metadata={"tags": ["remove-input"]}, outputs=others)
        words["id"] = f"{cell.get('id', 'figure')}-words"
        parts.append(words)
    return parts
