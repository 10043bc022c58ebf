"""What must not be published is found wherever it hides: file names, tables, pictures' notes, packed files, pages."""

import gzip
import html
import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from brainfm_lib.scrub import look_through
from tests.test_cli import brainfm

NAME = "sub-DoeJane07"


def hide_in_png(file: Path) -> None:
    notes = PngInfo()
    notes.add_text("Description", f"scan of {NAME}")
    Image.new("L", (4, 4)).save(file, pnginfo=notes)


def hide_in_exif(file: Path) -> None:
    picture = Image.new("L", (4, 4))
    exif = picture.getexif()
    exif[270] = NAME
    picture.save(file, exif=exif)


def hide_in_zip(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("inner.txt", NAME)


PLACES = {
    "page.html": lambda f: f.write_text(f"<p>{html.escape(NAME).replace('J', '&#74;')}</p>"),
    "notebook.ipynb": lambda f: f.write_text(json.dumps({"metadata": {"who": NAME}}).replace("J", "\\u004a")),
    "values.parquet": lambda f: pd.DataFrame({"x": [NAME] * 3}).to_parquet(f),
    "column.parquet": lambda f: pd.DataFrame({NAME: [1.0]}).to_parquet(f),
    "index.parquet": lambda f: pd.DataFrame({"x": [1.0]}, index=[NAME]).to_parquet(f),
    "table.csv": lambda f: f.write_text(f"a,b\n1,{NAME}\n"),
    "picture.png": hide_in_png,
    "picture.jpg": hide_in_exif,
    "packed.txt.gz": lambda f: f.write_bytes(gzip.compress(NAME.encode())),
    "packed.zip": hide_in_zip,
    "names.npy": lambda f: np.save(f, np.array([NAME, "x"])),
    f"{NAME}.txt": lambda f: f.write_text("nothing inside"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_name_is_found_wherever_it_hides(tmp_path: Path, place: str) -> None:
    (tmp_path / "innocent.txt").write_text("sub-DoeJane071 is another, and so is xsub-Doe")
    file = tmp_path / "inner" / place
    file.parent.mkdir()
    PLACES[place](file)
    found = [f for f in look_through(tmp_path, [NAME]) if "manifest" in f.kind]
    assert [f.file for f in found] == [f"inner/{place}"] and NAME.startswith(found[0].text)


@pytest.mark.parametrize("values", [["100307", "x", "y"], [1, 100307, 200000], ["1", "1.2.840", "a"]])
def test_numbers_in_a_table_are_read_too(tmp_path: Path, values: list) -> None:
    pd.DataFrame({"who": values}).to_parquet(tmp_path / "a.parquet")
    np.save(tmp_path / "b.npy", np.array([5, 100307]))
    found = {finding.file for finding in look_through(tmp_path, ["100307", "1.2.840"])}
    assert found == {"a.parquet", "b.npy"}


@pytest.mark.parametrize(
    ("text", "hit"), [("oas30001_run2", 1), ("OAS30001run2", 1), ("OAS300012", 0), ("xOAS30001", 0)]
)
def test_case_does_not_count_and_a_longer_name_is_another(tmp_path: Path, text: str, hit: int) -> None:
    (tmp_path / "page.html").write_text(text)
    assert len(list(look_through(tmp_path, ["OAS30001"]))) == hit


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("see /home/jane/scans/t1.nii", "a path"),
        (r"see C:\Users\jane", "a path"),
        ("1.2.840.113619.2.55.3.604688119.868", "a DICOM UID"),
        ("write to jane.doe@clinic.org", "an e-mail address"),
        ("subject sub-0042 was", "a BIDS name"),
    ],
)
def test_what_looks_like_an_identifier_is_found(tmp_path: Path, text: str, kind: str) -> None:
    (tmp_path / "page.html").write_text(text)
    assert [f.kind for f in look_through(tmp_path)] == [kind]
    (tmp_path / "page.html").write_text(
        "version 1.2.3, https://a.org/home/x, sub-project, a@b, sub-XXXX, mean+std@1.npy"
    )
    assert list(look_through(tmp_path)) == []


def test_names_of_phantoms_may_be_published_and_links_not(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("sub-00042")
    assert list(look_through(tmp_path, phantoms={"sub-00042"})) == []
    (tmp_path / "link").symlink_to("/etc/hostname")
    assert [f.kind for f in look_through(tmp_path, phantoms={"sub-00042"})] == ["a link"]


def test_the_command_names_what_it_finds_and_its_status_says_so(tmp_path: Path) -> None:
    (tmp_path / "data_manifest.yaml").write_text("version: 1\npretraining: []\ncohorts: {}\ntasks: {}\n")
    published = tmp_path / "published"
    published.mkdir()
    (published / "page.html").write_text("clean")
    done = brainfm("scrub", "--check", str(published), cwd=tmp_path)
    assert done.returncode == 0 and "1 files searched" in done.stdout and "0 found" in done.stdout
    (published / "page.html").write_text(" ".join(f"/home/jane/{i:02d}" for i in range(30)))
    done = brainfm("scrub", "--check", str(published), cwd=tmp_path)
    assert done.returncode == 1 and "page.html: a path: /home/jane" in done.stdout
    done = brainfm("scrub", "--check", str(tmp_path / "nowhere"), cwd=tmp_path)
    assert done.returncode == 2 and "no folder" in done.stderr


def png(pixels: bytes, note: bytes = b"") -> bytes:
    """A grey picture whose rows are `pixels`, unfiltered and unpacked, so that they stand in the file as they are."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", len(pixels), 3, 8, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress((b"\0" + pixels) * 3, 0))
    return b"\x89PNG\r\n\x1a\n" + head + (chunk(b"tEXt", note) if note else b"") + rows + chunk(b"IEND", b"")


def test_packed_pixels_are_no_words_but_all_else_in_a_picture_is_read(tmp_path: Path) -> None:
    file, said = tmp_path / "picture.png", b" x@nn.org "
    file.write_bytes(png(said))
    assert said in file.read_bytes() and Image.open(file).load() is not None
    assert list(look_through(tmp_path)) == []
    file.write_bytes(png(said) + b"after the end: ann@clinic.org")
    assert [found.text for found in look_through(tmp_path)] == ["ann@clinic.org"]
    file.write_bytes(png(said, b"Comment\0bob@clinic.org"))
    assert [found.text for found in look_through(tmp_path)] == ["bob@clinic.org"]
    file.unlink()
    Image.new("L", (8, 8)).save(tmp_path / "picture.jpg", comment=b"eve@clinic.org")
    assert [found.text for found in look_through(tmp_path)] == ["eve@clinic.org"]
