"""Who is in a cohort, and on which side of a split."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from brainfm_lib.figures.style import OTHERS, WIDTH, figure_function, legend_below, nothing, panels

MOST = 6  # categories drawn; the rest is summed up
SIDES = ("train", "val", "test")


@figure_function
def cohort_summary(scans: Mapping[str, pd.DataFrame]) -> Figure:
    """Scans by contrast, subjects by site, sex and age: one row of panels a cohort.

    Args:
        scans: Cohort -> its table, one row a scan, with the columns subject_id, contrast, site, sex, age (years).
    """
    if not scans:
        return nothing("No cohort is present.")
    figure, axes = plt.subplots(
        len(scans), 4, figsize=(WIDTH, 0.5 + 1.45 * len(scans)), squeeze=False, layout="constrained", sharex="col"
    )
    for row, (name, table) in zip(axes, scans.items()):
        subjects = table.drop_duplicates("subject_id")
        _bars(row[0], table["contrast"], colour=OTHERS[0])
        _bars(row[1], subjects["site"], colour=OTHERS[1])
        _bars(row[2], subjects["sex"].replace({"F": "female", "M": "male"}), colour=OTHERS[3])
        ages = pd.to_numeric(subjects["age"], errors="coerce").dropna()
        row[3].hist(ages, bins=np.arange(0, 101, 5).tolist(), color=OTHERS[4])
        row[3].set_ylabel("subjects")
        row[3].set_title(f"{len(ages)} of {len(subjects)} ages known" if len(ages) < len(subjects) else "", fontsize=8)
        row[0].set_title(f"{name}: {len(subjects)} subjects, {len(table)} scans", fontsize=9)
    for axis, text in zip(axes[-1], ("scans, by contrast", "subjects, by site", "subjects, by sex", "age (years)")):
        axis.set_xlabel(text)
    return figure


@figure_function
def intensity_histogram(volumes: NDArray[np.floating], titles: Sequence[str]) -> Figure:
    """How the foreground's intensities are distributed, a line a scan.

    Args:
        volumes: (n, D, H, W) in [0, 1], background 0.
        titles: n names.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 2.5), layout="constrained")
    edges = (np.arange(52) * 5 + 0.5) / 255  # each holds five of the levels that 8 bits have above the background
    for number, (volume, name) in enumerate(zip(volumes, titles)):
        density, _ = np.histogram(volume[volume > 0], bins=edges, density=True)
        axis.stairs(density, edges, label=name, color=OTHERS[number % len(OTHERS)])
    axis.set_xlabel("stored intensity of the foreground")
    axis.set_ylabel("density")
    legend_below(figure, [axis], columns=3)
    return figure


@figure_function
def split_counts(tables: Mapping[str, pd.DataFrame], classes: Mapping[str, Sequence[str]]) -> Figure:
    """Subjects of each class on each side of the split, or in each fold: one panel a task.

    Args:
        tables: Task -> table with subject_id, label (int) and either split (train, val, test) or fold.
        classes: Task -> names of its classes.
    """
    if not tables:
        return nothing("No task has its cohort present.")
    figure, axes = panels(len(tables), columns=3, height=2.3)
    for axis, (task, table) in zip(axes, tables.items()):
        column = "split" if "split" in table else "fold"
        units = table.drop_duplicates(["subject_id", "label"])
        sides = [s for s in SIDES if s in set(units[column])] if column == "split" else sorted(units["fold"].unique())
        bottom = np.zeros(len(sides))
        for number, name in enumerate(classes[task]):
            counts = np.array([((units[column] == side) & (units["label"] == number)).sum() for side in sides])
            axis.bar(
                [str(side) for side in sides], counts, bottom=bottom, color=OTHERS[number % len(OTHERS)], label=name
            )
            bottom += counts
        axis.set(title=task, xlabel="side of the split" if column == "split" else "fold of the cross-validation")
        axis.set_ylabel("subjects")
        axis.grid(visible=False, axis="x")
        axis.set_ylim(0, bottom.max() * 1.35)
        axis.legend(loc="upper right", ncols=min(len(classes[task]), 2), fontsize=7, handlelength=1.0)
    return figure


@figure_function
def discriminative_spectra(spectra: Mapping[str, pd.DataFrame], marks: Mapping[str, float]) -> Figure:
    """What the label changes in an image, by spatial frequency: a line a task.

    Args:
        spectra: Task -> table with frequency (cycles/mm) and power ((stored intensity)² mm³).
        marks: Text -> frequency (cycles/mm) at which to draw a vertical line.
    """
    if not spectra:
        return nothing("No task here is simulated.")
    figure, axis = plt.subplots(figsize=(WIDTH, 2.8), layout="constrained")
    for number, (name, table) in enumerate(spectra.items()):
        axis.plot(
            table["frequency"],
            table["power"],
            color=OTHERS[number % len(OTHERS)],
            linestyle=("-", "--")[number // len(OTHERS) % 2],
            label=name,
        )
    axis.set(yscale="log", xlabel="frequency (cycles/mm)", ylabel="power of the difference (mm³)")
    for name, place in marks.items():
        axis.axvline(place, color="#666666", linewidth=0.9, linestyle=":")
        axis.text(place, axis.get_ylim()[1], f" {name}", fontsize=7, color="#444444", va="bottom", ha="center")
    axis.legend(fontsize=7)
    return figure


def _bars(axis: Axes, values: pd.Series, *, colour: str) -> None:
    """Horizontal bars of the commonest values; what is not known is counted as such."""
    known = values.astype("object").where(values.notna() & (values.astype(str) != ""), "unknown").astype(str)
    counts = known.value_counts()
    counts = counts[sorted(counts.index, key=lambda name: (name == "unknown", name))] if len(counts) <= MOST else counts
    if len(counts) > MOST:
        rest = int(counts.iloc[MOST - 1 :].sum())
        counts = pd.concat([counts.iloc[: MOST - 1], pd.Series({f"{len(counts) - MOST + 1} others": rest})])
    axis.barh(list(counts.index), list(counts), color=colour, height=0.7)
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=7, length=0)
    axis.grid(visible=False, axis="y")
    axis.margins(y=0.08)
