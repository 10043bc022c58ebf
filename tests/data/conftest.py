"""Makers of BIDS folders and manifests."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.data.scans import head, save_scan


@pytest.fixture
def make_bids(tmp_path) -> Callable[..., Path]:
    """`make_bids(n)`: a BIDS folder of n subjects, the first half patients."""

    def make(n: int = 4, name: str = "bids") -> Path:
        root = tmp_path / name
        rows = ["participant_id\tage\tgender\tgroup"]
        for i in range(n):
            save_scan(root / f"sub-{i:02d}/anat/sub-{i:02d}_T1w.nii.gz", head(seed=i))
            rows.append(f"sub-{i:02d}\t{20 + i}\t{'mf'[i % 2]}\t{'patient' if i < n / 2 else 'control'}")
        (root / "participants.tsv").write_text("\n".join(rows) + "\n")
        return root

    return make


@pytest.fixture
def make_manifest(tmp_path) -> Callable:
    """`make_manifest(cohorts={...}, tasks={...})`: written to a file and loaded."""
    from brainfm_lib.data.manifest import load_manifest

    def make(**content):
        path = tmp_path / "manifest.yaml"
        path.write_text(yaml.safe_dump({"version": 1, **content}, sort_keys=False))
        return load_manifest(path)

    return make
