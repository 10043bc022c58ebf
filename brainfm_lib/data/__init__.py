"""Cohorts of scans, from the manifest to prepared volumes; names are imported when they are first used."""

import importlib
from typing import Any

_HOME = {
    "AugmentConfig": "augment",
    "Cohort": "cohort",
    "Geometry": "geometry",
    "Manifest": "manifest",
    "Volumes": "store",
    "assign_folds": "splits",
    "assign_splits": "splits",
    "describe_cohort": "cohort",
    "load_manifest": "manifest",
    "open_volumes": "store",
    "task_table": "splits",
    "zscore": "augment",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
