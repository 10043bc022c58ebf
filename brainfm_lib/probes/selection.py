"""How every probe on frozen features chooses its settings: on validation subjects, never on those it is scored on."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from brainfm_lib.errors import InputError
from brainfm_lib.probes.results import Array, ProbeResult, check_table, prediction_table, subject_auroc

# (features, labels, rows to train on, candidates) -> (pooling, setting) -> probabilities of the other rows
Fit = Callable[[Mapping[str, Array], Array, Array, tuple[Any, ...]], dict[tuple[str, Any], Array]]


def select_and_score(
    features: Mapping[str, Array],
    table: pd.DataFrame,
    fit: Fit,
    name: str,
    candidates: tuple[Any, ...],
    unchosen: Any,
) -> ProbeResult:
    """Choose the pooling (with the block it is read from) and one setting, fit again, and score what was held out.

    Both maximise the AUROC over validation subjects (ties: likelihood of their labels, rounded; then first pooling and
    first candidate); then the model is fitted again on training and validation subjects. With folds the choice is
    nested: for each outer fold, every other fold in turn is the validation set. Two folds leave nothing to choose on:
    the first pooling and `unchosen` are taken, and validation_auroc is NaN.

    Args:
        features: Pooling -> (n, D), rows as in `table`.
        table: n scans: scan_uid, subject_id, label (0…C-1), and split ("train", "val", "test") or fold (int).
        fit: Fits under all candidates; see `Fit`.
        name: Of the setting, as it is reported.
        candidates: Its values, the preferred first.
        unchosen: Its value where nothing can be chosen.

    Raises:
        InputError: A subject on both sides, a class or split without subjects, features that are not finite.
    """
    table = table.reset_index(drop=True)
    labels, parts = check_table(table)
    for pooling, array in features.items():
        if len(array) != len(table):
            raise InputError(f"Features {pooling} have {len(array)} rows for a table of {len(table)}: align them.")
        if not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0])
            raise InputError(f"Features {pooling} of {table['scan_uid'][row]} are not finite: drop or mend that scan.")
    subjects, split = table["subject_id"].to_numpy(), "split" in table
    tried: dict[frozenset[Any], dict[tuple[str, Any], Array]] = {}

    def validation(held: frozenset[Any]) -> dict[tuple[str, Any], Array]:
        if held not in tried:
            tried[held] = fit(features, labels, ~np.isin(parts, list(held)), candidates)
        return tried[held]

    rows, chosen = [], []
    for part in ["test"] if split else sorted(set(parts)):
        inner = ["val"] if split else [p for p in sorted(set(parts)) if p != part]
        if split or len(inner) > 1:
            value = {}
            for key in [(pooling, setting) for pooling in features for setting in candidates]:
                scored = [(validation(frozenset({part, p}))[key], parts == p) for p in inner]
                area = np.mean([subject_auroc(labels, scores, subjects, rows) for scores, rows in scored])
                value[key] = float(area), float(np.mean([_likelihood(labels, *these) for these in scored]))
            pooling, setting = max(value, key=lambda key: value[key])
            reached = value[pooling, setting][0]
        else:
            pooling, setting, reached = next(iter(features)), unchosen, float("nan")
        held = parts == part
        scores = fit({pooling: features[pooling]}, labels, ~held, (setting,))[pooling, setting]
        rows.append(prediction_table(table[held], scores[held]))
        fold = {} if split else {"fold": part}
        chosen.append({**fold, "pooling": pooling, name: setting, "validation_auroc": reached})
    return ProbeResult(pd.concat(rows).sort_index().reset_index(drop=True), pd.DataFrame(chosen))


def _likelihood(labels: Array, scores: Array, rows: Array) -> float:
    """Mean log probability of the labels among `rows` (n,) bool, rounded so that noise of computing decides nothing."""
    chosen = scores[rows, labels[rows]]
    return round(float(np.log(np.maximum(chosen, 1e-12)).mean()), 6)
