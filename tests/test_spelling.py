"""Prose is spelled: pages, notebooks, docstrings. A word of the field that no dictionary has stands in `words.txt`."""

import ast
import json
import re
from functools import lru_cache
from pathlib import Path

import pytest
from spellchecker import SpellChecker

ROOT = Path(__file__).parents[1]
KNOWN = ROOT / "tests" / "words.txt"
NO_PROSE = re.compile(
    r"```.*?```|\$\$.*?\$\$|\$[^$]*\$|``[^`]*``|`[^`]*`|https?://\S+|<[^>]+>|\{[^}]*\}|\(\S+\.(?:md|ipynb)\S*\)",
    re.DOTALL,
)
WORD = re.compile(r"(?<![\w.\-/@])[A-Za-z][a-z]{2,}(?:['’][a-z]+)?(?![\w@/])")


@lru_cache
def dictionary() -> SpellChecker:
    return SpellChecker()


def prose(file: Path) -> str:
    """What of a file is written for people."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    if file.suffix == ".py":
        nodes = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef))
        return "\n\n".join(filter(None, map(ast.get_docstring, nodes)))
    return text


def unknown(text: str) -> set[str]:
    """Words that neither the dictionary nor the list has."""
    words = {word.lower().replace("’", "'").removesuffix("'s") for word in WORD.findall(NO_PROSE.sub(" ", text))}
    return set(dictionary().unknown(words)) - set(KNOWN.read_text(encoding="utf-8").split())


FILES = [
    *(ROOT / "book").glob("*.md"),
    *(ROOT / "notebooks").glob("*.md"),
    *(ROOT / "notebooks").rglob("*.ipynb"),
    *(ROOT / "brainfm_lib").rglob("*.py"),
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
]


def test_prose_is_spelled() -> None:
    found = {str(file.relative_to(ROOT)): words for file in FILES if (words := unknown(prose(file)))}
    assert found == {}, "mend it, or add a word of the field to tests/words.txt"


@pytest.mark.parametrize("text", ["a recieved volume", "the encoder's wieghts", "Seperate `names` of it"])
def test_a_slip_is_found(text: str) -> None:
    assert len(unknown(text)) == 1


def test_the_list_has_no_word_twice_and_none_that_is_not_needed() -> None:
    listed = KNOWN.read_text(encoding="utf-8").split()
    assert listed == sorted(set(listed)) and set(dictionary().unknown(listed)) == set(listed)
    used = {
        word.lower().replace("’", "'").removesuffix("'s")
        for file in FILES
        for word in WORD.findall(NO_PROSE.sub(" ", prose(file)))
    }
    assert set(listed) <= used
