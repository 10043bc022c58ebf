"""Pseudonyms for subjects and scans: the same for one key, meaningless without it."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from functools import cache
from pathlib import Path

import pandas as pd

from brainfm_lib.errors import InputError
from brainfm_lib.identity import write_atomic

LENGTH = 16
KEY_BYTES = 32


def key_file() -> Path:
    """Where the key lies: ``BRAINFM_KEY``, else ``brainfm/pseudonyms.key`` in the user's own configuration folder.

    Never inside the project: whoever has the key and a list of identifiers can tell whose pseudonym is whose.
    """
    if os.environ.get("BRAINFM_KEY"):
        return Path(os.environ["BRAINFM_KEY"]).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "brainfm" / "pseudonyms.key"


def pseudonymised(scans: pd.DataFrame, cohort: str) -> pd.DataFrame:
    """A table with pseudonyms for subject_id and scan_uid, and without session and path.

    Args:
        scans: With subject_id and scan_uid.
        cohort: Its name, which stays legible at the beginning of scan_uid.

    Raises:
        InputError: The key cannot be read or made.
    """
    key = _key(key_file())
    table = scans.drop(columns=["path", "session", "digest"], errors="ignore")
    table["subject_id"] = [_pseudonym(key, cohort, "subject", str(value)) for value in scans["subject_id"]]
    table["scan_uid"] = [f"{cohort}/{_pseudonym(key, cohort, 'scan', str(value))}" for value in scans["scan_uid"]]
    return table


def _pseudonym(key: bytes, *parts: str) -> str:
    return hmac.new(key, "\0".join(parts).encode(), hashlib.sha256).hexdigest()[:LENGTH]


@cache
def _key(path: Path) -> bytes:
    """The key in a file; where there is none it is made, readable for its owner alone."""
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with write_atomic(path) as temporary:
                temporary.touch(mode=0o600)
                temporary.write_text(secrets.token_hex(KEY_BYTES) + "\n")
        key = bytes.fromhex(path.read_text().strip())
    except (OSError, ValueError) as error:
        raise InputError(
            f"The key of the pseudonyms {path} can be neither read nor made ({error}): name a file outside the project "
            "in BRAINFM_KEY; an existing one must hold hexadecimal digits."
        ) from error
    if len(key) < 16:
        raise InputError(f"The key of the pseudonyms {path} is too short: give at least 32 hexadecimal digits.")
    return key
