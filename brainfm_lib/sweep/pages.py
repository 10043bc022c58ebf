"""What a sweep's page says and shows; each sentence is chosen by the numbers."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from brainfm_lib.paths import project_root
from brainfm_lib.report.build import about_sweep, sweep_identity
from brainfm_lib.sweep.effects import Outcomes, best_cell, main_effects
from brainfm_lib.words import Words, counted, listed


def question(sweep: str) -> Words:
    """What a sweep asks."""
    said = about_sweep(project_root(), sweep).get("question")
    return Words(f"*{said}*" if said else f"The sweep `{sweep}`.")


def summary(found: Outcomes, names: Sequence[str], sweep: str) -> Words:
    """How many cells, which one validation picks, how far a look at the test subjects would flatter, and what moved."""
    best, tasks = best_cell(found), found.table["task"].nunique()
    row = found.table[found.table["cell"] == best["cell"]].iloc[0]
    setting = ", ".join(f"{_plain(name)} {row[name]}" for name in names)
    said = [*phantom_results(sweep), f"{counted(best['cells'], 'cell')} on {counted(tasks, 'task')}."]
    if best["cells"] < 2 or not names:
        reached = f"{best['test']:.3f} [{best['low']:.3f}, {best['high']:.3f}]"
        return Words("\n\n".join([*said, f"Nothing is compared: the mean AUROC on test subjects is {reached}."]))
    said += [
        f"Validation subjects pick **{setting}** (mean AUROC {best['validation']:.3f}); on test subjects it reaches "
        f"**{best['test']:.3f}** [{best['low']:.3f}, {best['high']:.3f}].",
        f"The choice flatters itself by {best['optimism']:+.3f} on the subjects it was made on. The highest cell on "
        f"test subjects has {best['highest_test']:.3f}: picked there, that is no result.",
    ]
    effects = main_effects(found, names)
    mixed = [_plain(name) for name, rows in effects.groupby("parameter", sort=False) if rows["difference"].isna().all()]
    moved = effects[(effects["difference_low"] > 0) | (effects["difference_high"] < 0)]
    moved = moved[moved["parameter"] != "seed"]
    if mixed:
        said.append(
            f"No cells differ in {listed(mixed)} alone, at all levels: nothing is said of what "
            f"{'it does' if len(mixed) == 1 else 'they do'}."
        )
    if moved.empty and effects["difference"].notna().any():
        said.append("No level of any setting that is compared can be told from its first one on these test subjects.")
    elif len(moved):
        apart = "; ".join(f"{_plain(r['parameter'])} {r['level']}: {_difference(r)}" for _, r in moved.iterrows())
        said.append(f"Told from the first level, unadjusted: {apart}.")
    return Words("\n\n".join(said))


def phantom_results(sweep: str) -> list[str]:
    """Which tasks of a sweep were simulated when it was run, said in a sentence, if any was."""
    simulated: Sequence[str] = about_sweep(project_root(), sweep).get("simulated") or ()
    return [f"**Phantom results**: the scans of {', '.join(simulated)} are simulated."] if simulated else []


def effects_table(effects: pd.DataFrame) -> pd.DataFrame:
    """`effects.main_effects` as a reader sees it."""
    return pd.DataFrame(
        {
            "setting": effects["parameter"].map(_plain),
            "level": effects["level"],
            "cells": effects["cells"],
            "mean AUROC": [f"{r['estimate']:.3f} [{r['low']:.3f}, {r['high']:.3f}]" for _, r in effects.iterrows()],
            "difference from the first": [
                _difference(r) if r["order"] and pd.notna(r["difference"]) else "–" for _, r in effects.iterrows()
            ],
        }
    )


def cells_table(cells: pd.DataFrame, names: Sequence[str], sweep: str) -> pd.DataFrame:
    """`effects.cell_table` as a reader sees it."""
    shown = cells.sort_values("validation", ascending=False)
    columns = {_plain(name): shown[name] for name in names}
    columns |= {"AUROC, validation": shown["validation"], "AUROC, test": shown["auroc"]}
    columns |= {"pretraining (s)": shown["train_seconds"], "notebook in": f"sweeps/{sweep}/cells/" + shown["cell"]}
    return pd.DataFrame(columns)


def identity(sweep: str) -> str:
    """By which its page knows whether it is out of date."""
    return sweep_identity(project_root(), sweep)


def _difference(row: pd.Series) -> str:
    return f"{row['difference']:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"


def _plain(name: str) -> str:
    return name.removeprefix("overrides.").replace("_", " ")
