"""Pseudonyms for subjects and scans: the same for one key, meaningless without it."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from functools import cache
from pathlib import Path

import pandas as pd

from brainfm_lib.errors import InputError
from brainfm_lib.identity import write_atomic
from brainfm_lib.paths import anchored, runs_dir

LENGTH = 16
KEY_BYTES = 32
IN_USE = ".pseudonyms"  # in the folder of the runs: the fingerprint of the key that they were made with
PATIENCE = 2.0  # seconds that another process may take to write a key that it has just begun


def key_file() -> Path:
    """Where the key lies: ``BRAINFM_KEY``, else ``brainfm/pseudonyms.key`` in the user's own configuration folder.

    Never inside the project: whoever has the key and a list of identifiers can tell whose pseudonym is whose.
    """
    if os.environ.get("BRAINFM_KEY"):
        return anchored(os.environ["BRAINFM_KEY"])
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "brainfm" / "pseudonyms.key"


def pseudonymised(scans: pd.DataFrame, cohort: str) -> pd.DataFrame:
    """A table with pseudonyms for subject_id and scan_uid, and without session and path.

    Args:
        scans: With subject_id and scan_uid.
        cohort: Its name, which stays legible at the beginning of scan_uid.

    Raises:
        InputError: The key cannot be read or made, or the runs made so far hold pseudonyms of another one.
    """
    key = _key(key_file())
    _refuse_another(key)
    table = scans.drop(columns=["path", "session", "digest"], errors="ignore")
    table["subject_id"] = [_pseudonym(key, cohort, "subject", str(value)) for value in scans["subject_id"]]
    table["scan_uid"] = [f"{cohort}/{_pseudonym(key, cohort, 'scan', str(value))}" for value in scans["scan_uid"]]
    return table


def _pseudonym(key: bytes, *parts: str) -> str:
    return hmac.new(key, "\0".join(parts).encode(), hashlib.sha256).hexdigest()[:LENGTH]


def _refuse_another(key: bytes) -> None:
    """Under two keys one scan has two names: what was made under one cannot be held against what the other made."""
    file, mark = runs_dir() / IN_USE, _pseudonym(key, "fingerprint")
    try:
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            with write_atomic(file) as temporary:
                temporary.write_text(mark + "\n")
        known = file.read_text().strip()
    except OSError:  # runs that can only be read
        return
    if known != mark:
        raise InputError(
            f"The runs in {file.parent} hold pseudonyms of another key than {key_file()}: name that key's file in "
            "BRAINFM_KEY, or another folder in BRAINFM_RUNS."
        )


@cache
def _key(path: Path) -> bytes:
    """The key in a file; where there is none it is made, by one process, readable for its owner alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(KEY_BYTES) + "\n")
        except FileExistsError:
            end = time.monotonic() + PATIENCE
            while not path.read_text() and time.monotonic() < end:  # being written this moment
                time.sleep(0.01)
        key = bytes.fromhex(path.read_text().strip())
    except (OSError, ValueError) as error:
        raise InputError(
            f"The key of the pseudonyms {path} can be neither read nor made ({error}): name a file outside the project "
            "in BRAINFM_KEY; an existing one must hold hexadecimal digits."
        ) from error
    if len(key) < 16:
        raise InputError(f"The key of the pseudonyms {path} is too short: give at least 32 hexadecimal digits.")
    return key
