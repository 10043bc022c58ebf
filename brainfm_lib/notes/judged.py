"""Which encoders tell diseases, which beat what, and what was tested how."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from brainfm_lib import verdict
from brainfm_lib.figures.style import title
from brainfm_lib.verdict import CNN, CONTROL, DECIDED, NUISANCE, RAW_VOXELS, SHUFFLED
from brainfm_lib.words import Words, counted, listed

if TYPE_CHECKING:
    from brainfm_lib.study import Study


def headline(results: pd.DataFrame, differences: pd.DataFrame) -> Words:
    """What beats what and what does not, a paragraph a protocol.

    Args:
        results: From `brainfm_lib.findings.comparison.adjusted`.
        differences: From `brainfm_lib.findings.comparison.paired_differences`.
    """
    table = pd.concat([results, differences], ignore_index=True) if len(differences) else results
    parts = [*verdict.verdicts(table).values(), verdict.rule(table)] if len(table) else ["Nothing was probed."]
    return Words("\n\n".join(parts))


def delong_note(differences: pd.DataFrame) -> Words:
    """Whether DeLong's test says what the bootstrap says."""
    both = differences.dropna(subset=["p", "p_delong"])
    if both.empty:
        return Words(
            "DeLong's test applies to none of these (it needs one test set, and twelve subjects of two classes)."
        )
    other = ((both["p"] < DECIDED) != (both["p_delong"] < DECIDED)).sum()
    apart = (both["p"] - both["p_delong"]).abs().max()
    return Words(
        f"DeLong's test of the same differences (where one test set has twelve subjects of two classes: {len(both)} of "
        f"{len(differences)}) is at most {apart:.3f} away in p and decides {other} of them otherwise (unadjusted, "
        f"{DECIDED})."
    )


def chance_note(results: pd.DataFrame, permutations: int) -> Words:
    """Which rows are above chance after Holm's adjustment, of how many.

    Args:
        results: From `brainfm_lib.findings.comparison.adjusted`.
        permutations: The fewest that a row's p can come from (`evaluation.refits` under cross-validation).
    """
    if results.empty:
        return Words("Nothing was probed.")
    results = results[~results["arm"].isin([NUISANCE, SHUFFLED])]
    sure = results[results["p_holm"] < 0.05]
    found = "; ".join(f"{title(arm)} on {listed(list(rows['task']))}" for arm, rows in sure.groupby("arm", sort=False))
    if not len(sure):
        said = f"None of the {len(results)} rows" if len(results) > 1 else "Not even the one row"
    else:
        said = f"{len(sure)} of {counted(len(results), 'row')}"
    rule = "permutation of subjects' labels, Holm over all rows, 0.05"
    verb = "is" if len(sure) < 2 else "are"
    least, asked, few = 1 / (permutations + 1), 0.05 / max(len(results), 1), ""
    if not len(sure) and asked <= least * 1.001 and (results["p_permutation"] <= least * 1.001).any():
        few = (
            f" The smallest p, {least:.4f}, is the least that {permutations} permutations can give, and "
            f"{counted(len(results), 'row')} ask for {asked:.4f}: more of them (`evaluation.refits`) may decide."
        )
    return Words(f"{said} {verb} above chance ({rule}){': ' + found if len(sure) else ''}.{few}")


def earned_note(differences: pd.DataFrame, protocol: str = "linear") -> Words:
    """On which tasks an arm beats both the untrained encoder and raw voxels, after Holm's adjustment.

    Args:
        differences: From `brainfm_lib.findings.comparison.paired_differences`.
        protocol: Whose rows are looked at.
    """
    rows = differences[(differences["protocol"] == protocol) & differences["baseline"].isin([CONTROL, RAW_VOXELS])]
    won = rows[(rows["estimate"] > 0) & (rows["p_holm"] < DECIDED)].groupby(["arm", "task"], sort=False).size()
    both = won[won == 2].reset_index()
    if rows.empty:
        return Words("Nothing was compared with the controls.")
    if both.empty:
        return Words("No arm beats both the untrained encoder and raw voxels, on any task.")
    said = [f"{title(arm)} on {listed(list(found['task']))}" for arm, found in both.groupby("arm", sort=False)]
    return Words(f"Both the untrained encoder and raw voxels are beaten by {listed(said)}.")


def cnn_note(study: Study) -> Words:
    """For how long the supervised network was trained, and what share of the dearest arm's FLOPs that is."""
    said = []
    for task in study.tasks:
        run = study.used.get(f"finetune:{CNN}:{task}")
        if run is not None:
            epochs, spent = run.provenance["epochs"], study.cnn_share(task, run.provenance["epochs"])
            said.append(f"{task} {counted(epochs, 'epoch')} ({100 * spent:.0f} %)")
    if not said:
        return Words("The supervised network has not been trained here.")
    return Words(
        f"The supervised network was trained for: {', '.join(said)}; in brackets the share of what the dearest arm "
        "spends on pretraining and fine-tuning (100 % but for rounding, unless the profile's `cnn.epochs` caps it)."
    )
