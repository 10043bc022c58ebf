"""Look through a folder that is about to be published for what tells who was scanned, or where it was made.

Two searches. What the manifest's own cohorts are called by (subjects, scans, files, sessions, folders) is sought in
every file and in file names. What identifiers look like (paths of a home folder, DICOM UIDs, e-mail addresses, BIDS
names, this machine's and its user's name) is sought where a page or a run can have put it; the scripts of others that a
book ships hold names and addresses of their own and are left out of that.
"""

from __future__ import annotations

import getpass
import gzip
import html
import io
import json
import re
import socket
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHORTEST = 4  # letters of a name that can be sought: a shorter one stands in any text by chance
WORD = 8  # the same for a name without a digit, which may be a plain word
RUNS = re.compile(r"\d+|[^\W\d_]+")
COMMON = {"anat", "scans", "images", "localhost"}
MOST_BYTES = 200_000_000  # of a packed file, unpacked
SHOWN = 40  # letters of what was found
OTHERS = re.compile(r"(^|/)_static/|\.(woff2?|ttf|eot)$")
LOOKS_LIKE = {
    "a path": re.compile(
        r"(?<![\w./:-])(?:/(?:home|Users|root|mnt|media|scratch|tmp|var|srv)/[\w.-]+|[A-Za-z]:\\Users\\\w+)"
    ),
    "a DICOM UID": re.compile(r"(?<![\w.])[12](?:\.\d+){7,}(?![\w.])"),
    "an e-mail address": re.compile(r"(?<![\w.+-])[\w.+-]+@(?!\d+\.npy\b)[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}(?!\w)"),
    "a BIDS name": re.compile(r"(?<![\w-])(?:sub|ses)-(?=[A-Za-z]*\d)[A-Za-z0-9]{2,}(?![\w-])"),
}


@dataclass(frozen=True)
class Finding:
    """Something that should not be published.

    Attributes:
        file: Relative to the folder.
        kind: What it is: ``a name of the manifest``, ``a path`` …
        text: Its first letters.
    """

    file: str
    kind: str
    text: str


def names_of(manifest: str | Path | None = None) -> tuple[set[str], set[str]]:
    """What the scans of a manifest's cohorts are called by; nothing is read of them.

    Args:
        manifest: Its path; default the project's own.

    Returns:
        Identifiers, file and folder names of real scans, of at least four letters; and those of phantoms, which may
        be published.

    Raises:
        InputError: The manifest cannot be read.
    """
    from brainfm_lib.data.cohort import list_scans
    from brainfm_lib.data.manifest import load_manifest

    read = load_manifest(manifest)
    real: set[str] = set()
    made: set[str] = set()
    for name, settings in read.cohorts.items():
        if name in read.missing():
            continue
        listed = list_scans(read, name)
        scans = listed.scans
        found = made if settings.kind == "phantom" else real
        for column in ("subject_id", "scan_uid", "session"):
            if column in scans:
                found |= {str(value).removeprefix(f"{name}/") for value in scans[column].dropna()}
        if settings.kind != "phantom":
            for path in map(Path, scans["path"]):
                found |= {path.name.split(".")[0], path.parent.name, str(path.parent)}
            real |= {str(uid).removeprefix(f"{name}/") for uid in listed.refused["scan_uid"]}
    return {text for text in real - COMMON if len(text) >= (SHORTEST if re.search(r"\d", text) else WORD)}, made


def look_through(folder: Path, names: Iterable[str] = (), phantoms: Iterable[str] = ()) -> Iterator[Finding]:
    """What in a folder should not be published.

    Args:
        folder: Searched with all folders in it; links are not followed.
        names, phantoms: From `names_of`.

    Raises:
        OSError: A file cannot be read.
    """
    sought, harmless = _Names(names), set(phantoms)
    here = _Names(text for text in (socket.gethostname(), _user()) if len(text) > SHORTEST and text not in COMMON)
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        found = {("a name of the manifest, in a file's name", hit) for hit in sought.in_text(name)}
        if file.is_symlink():
            found.add(("a link", "it may lead anywhere"))
        elif file.is_file():
            ours = not OTHERS.search(name)
            for text in texts_of(file):
                found |= {("a name of the manifest", hit) for hit in sought.in_text(text)}
                if ours:
                    found |= {("the name of this machine or its user", hit) for hit in here.in_text(text)}
                    for kind, pattern in LOOKS_LIKE.items():
                        found |= {(kind, hit) for hit in {hit[0] for hit in pattern.finditer(text)} - harmless}
        yield from (Finding(name, kind, text[:SHOWN]) for kind, text in sorted(found))


def texts_of(file: Path) -> Iterator[str]:
    """What can be read in a file: as it is, and unpacked: tables, packed files, a picture's notes, heads of arrays."""
    suffix = file.suffix.lower()
    if suffix == ".npy":
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        yield " ".join(map(str, array.ravel())) if array.dtype.kind in "USiu" else str(array.dtype)
        return
    if suffix == ".safetensors":
        with file.open("rb") as handle:
            length = min(int.from_bytes(handle.read(8), "little"), MOST_BYTES)
            yield handle.read(length).decode("utf-8", errors="replace")
        return
    raw = file.read_bytes()
    if suffix == ".parquet":
        yield from _of_table(raw)
        return
    yield _but_pixels(raw).decode("utf-8", errors="replace")
    if suffix in (".ipynb", ".json"):
        with suppress(ValueError):  # without the escapes that could hide a name
            yield json.dumps(json.loads(raw), ensure_ascii=False)
    elif suffix in (".html", ".svg", ".xml"):
        yield html.unescape(raw.decode("utf-8", errors="replace"))
    elif suffix == ".gz":
        with gzip.open(io.BytesIO(raw)) as packed:
            yield packed.read(MOST_BYTES).decode("utf-8", errors="replace")
    elif suffix in (".npz", ".zip", ".whl"):
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            for entry in archive.infolist():
                yield entry.filename
                with archive.open(entry) as part:
                    yield part.read(MOST_BYTES).decode("utf-8", errors="replace")
    elif suffix in (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"):
        from PIL import Image

        with Image.open(io.BytesIO(raw)) as picture:
            notes = [*picture.info.items(), *picture.getexif().items()]
            yield "\n".join(f"{key}: {value}" for key, value in notes)


PNG, JPEG, SCAN = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\xff\xda"


def _but_pixels(raw: bytes) -> bytes:
    """A file without the packed pixels of a picture, in which any word may stand by chance; all else as it is."""
    if raw.startswith(JPEG):
        return raw.partition(SCAN)[0]
    if not raw.startswith(PNG):
        return raw
    kept, place = [], len(PNG)
    while place + 8 <= len(raw):
        end = place + 12 + int.from_bytes(raw[place : place + 4])
        if raw[place + 4 : place + 8] != b"IDAT":
            kept.append(raw[place:end])
        place = end
        if kept and kept[-1][4:8] == b"IEND":
            break
    return b"\n".join([*kept, raw[place:]])


class _Names:
    """Many names, sought at once: by a run of letters or digits of theirs in those of a text, then letter by letter.

    Case does not count. A name within a longer run of letters, or of digits, is another name.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.by_run: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
        for name in names:
            plain = _folded(name)
            runs = RUNS.findall(plain)
            if runs:
                ends = [r"\d" if end.isdigit() else r"[^\W\d_]" for end in (plain[0], plain[-1])]
                whole = re.compile(f"(?<!{ends[0]}){re.escape(plain)}(?!{ends[1]})")
                self.by_run.setdefault(max(runs, key=len), []).append((name, whole))

    def in_text(self, text: str) -> Iterator[str]:
        if not self.by_run:
            return
        plain = _folded(text)
        for run in self.by_run.keys() & set(RUNS.findall(plain)):
            yield from (name for name, whole in self.by_run[run] if whole.search(plain))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _of_table(raw: bytes) -> Iterator[str]:
    """Columns, values, what the file says of itself, and the least and greatest values that it notes."""
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(io.BytesIO(raw))
    table, about = file.read(), file.metadata
    yield "\n".join([*table.column_names, str(table.schema.metadata), str(about.created_by)])
    for column in table.column_names:
        values = dict.fromkeys(map(str, table[column].to_pylist()))
        if not pyarrow.types.is_floating(table.schema.field(column).type):
            yield "\n".join(values)
    for group in range(about.num_row_groups):
        for column in range(about.num_columns):
            noted = about.row_group(group).column(column).statistics
            if noted is not None and noted.has_min_max:
                yield f"{noted.min}\n{noted.max}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
