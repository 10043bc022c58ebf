"""The method page shows the code that runs, without docstrings."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

BOOK = Path(__file__).parents[2] / "book"
SHOWN = re.findall(r"\{source-of\} (\S+)", (BOOK / "method.md").read_text())


@pytest.fixture(scope="module")
def source_of() -> ModuleType:
    spec = importlib.util.spec_from_file_location("source_of", BOOK / "_ext" / "source_of.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", SHOWN)
def test_code_is_the_file_s_without_its_docstring(source_of: ModuleType, name: str) -> None:
    text, file = source_of.code_of(name)
    assert file.is_file() and '"""' not in text and len(text.splitlines()) <= 35
    lines = [line.strip() for line in file.read_text().splitlines()]
    assert all(line.strip() in lines for line in text.splitlines())
    compile(text, name, "exec")


def test_the_page_shows_every_loss(source_of: ModuleType) -> None:
    losses = ("reconstruction_loss", "spectral_loss", "prediction_loss", "variance_loss", "covariance_loss")
    assert {name.rsplit(".", 1)[1] for name in SHOWN} >= set(losses)


def test_what_is_not_there_is_an_error(source_of: ModuleType) -> None:
    with pytest.raises(AttributeError):
        source_of.code_of("brainfm_lib.losses.spectral.no_such_loss")
