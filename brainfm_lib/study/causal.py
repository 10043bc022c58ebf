"""The causal test of the paper's claim: gains along two dials that turn one property of the signal and nothing else.

Stated before any encoder was trained for it.

Claim: the spectral loss helps more the finer the signal, and variance-covariance regularisation helps more the more
directions it spans. Intervention: tasks in which an ideal observer reaches the same AUROC at every setting, while the
frequency of the signal (`frequency`), or the rank of the factors' covariance (`dimension`), is set.

Analysis: the gain of an arm over its twin without the auxiliary objective is the difference of their d' under a linear
probe on the same test subjects, divided by the d' of a probe that is given the latents and learns from the same
subjects. Twins share the learning rate of the plain arm. Each pretraining seed gives one slope of the gain over the
dial (from 0 at its first setting to 1 at its last; the dimension on a log scale). Primary are two hypotheses, SL-MAE
along `frequency` and VCR-JEPA along `dimension`, with a t-test over seeds, Holm-adjusted. Test subjects are the same
under every seed, so a bootstrap over them stands beside.

`supported`: the adjusted p is below 0.05, the mean slope is above 0, and so is the whole bootstrap interval.
`refuted`: the same with the slope below 0. `open`: neither; the slope that could have been seen is given.
Crossed controls, expected near 0 if each objective helps for the stated reason: SL-MAE along `dimension`, VCR-JEPA
along `frequency`. Twins whose auxiliary objective has the weight 0 must equal the plain arms to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri
from scipy.stats import t

from brainfm_lib import stats
from brainfm_lib.errors import InputError
from brainfm_lib.probes.results import resampled_auroc
from brainfm_lib.runs import Run, RunConfig
from brainfm_lib.study import dials
from brainfm_lib.study.dials import measured_dials
from brainfm_lib.study.structure import look_into, structure_rows
from brainfm_lib.study.tasks import TaskKinds
from brainfm_lib.verdict import CONTROL, ORACLE, RAW_VOXELS, REGULARISED

MANIFEST = "book/examples/dials.yaml"
SEEDS = 10  # pretraining seeds that are looked for, from 0
FEWEST = 3  # seeds below which no slope is judged
LEVEL, POWER = 0.95, 0.8
LEAST = 0.05  # Φ⁻¹ of an oracle's AUROC, below which there is nothing to divide a gain by
FIXED = (ORACLE, RAW_VOXELS, CONTROL)  # rows that no pretraining seed changes
PAIRED = tuple(arm for pair in REGULARISED.items() for arm in pair)
LOOKED = ("truth", f"bands:{RAW_VOXELS}")
EXTREME = 1e-3  # an AUROC is taken for no closer than this to 0 or 1, where d' has no value


def requests(arms: Sequence[str]) -> list[str]:
    """Probes of these arms at every setting."""
    return [f"probe:{arm}:{setting}" for dial in dials.DIALS.values() for setting in dial.settings for arm in arms]


def run_causal(study: TaskKinds, seeds: int) -> Iterator[str]:
    """Make what the test needs, a line a result: arms under several seeds, controls, twins of weight 0, the verdict.

    Args:
        study: On the manifest of the dials.
        seeds: Pretraining seeds, from 0.

    Raises:
        InputError: A setting of the dials is missing, or the number of seeds is none that is looked for.
    """
    check_study(study)
    if not FEWEST <= seeds <= SEEDS:
        raise InputError(f"{seeds} seeds were asked for: give {FEWEST} to {SEEDS}.")
    yield from _make_inputs(study, seeds)
    run = study.run(f"causal:{seeds}")
    yield run.table("slopes").to_string(index=False)
    yield f"run: {run.id}"


def _make_inputs(study: TaskKinds, seeds: int) -> Iterator[str]:
    for request in requests(FIXED):
        yield f"{request:<36} AUROC {_point(study.run(request)):.3f}"
    for setting, run in look_into(study, dials.all_settings()).items():
        study.run(f"truth:{setting}")
        one = structure_rows({setting: run}).iloc[0]
        yield f"{setting:<16} reliance {one['reliance']:.2f}, dimension {one['dimension']:.1f}"
    for arm in REGULARISED:
        yield f"weight 0: {arm:<10} {'equals its plain arm' if twins_equal(study, arm) else 'DIFFERS'}"
    for seed in range(seeds):
        for request in requests(PAIRED):
            study.variant(request, f"paired={seed}").run(request)
        yield f"seed {seed}: all probes"


def inputs_of(study: TaskKinds, seeds: int) -> dict[str, RunConfig]:
    """What the test is made from, by request."""
    names = [*requests(FIXED), *(f"{kind}:{setting}" for kind in LOOKED for setting in dials.all_settings())]
    found = {name: study.config(name) for name in names}
    for arm, plain in REGULARISED.items():
        found[f"pretrain:{arm}@weight=0"] = study.variant(f"pretrain:{arm}", "weight=0").config(f"pretrain:{arm}")
        found[f"pretrain:{plain}"] = study.config(f"pretrain:{plain}")
    for seed in range(seeds):
        for name in requests(PAIRED):
            found[f"{name}@paired={seed}"] = study.variant(name, f"paired={seed}").config(name)
    return found


def make_causal(study: TaskKinds, seeds: int) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls: tables gains, slopes, levels, measured and twins; small enough to ship."""

    def make(folder: Path) -> dict[str, Any]:
        gains, resampled = gain_table(study, range(seeds))
        tables = {
            "gains": gains,
            "slopes": slope_table(gains, resampled),
            "levels": level_table(study, gains),
            "measured": measured_dials(look_into(study, dials.all_settings()), dials.DIALS),
            "twins": pd.DataFrame([{"arm": arm, "equal": twins_equal(study, arm)} for arm in REGULARISED]),
        }
        for name, table in tables.items():
            table.to_parquet(folder / f"{name}.parquet", index=False)
        return {}

    return make


def finished(study: TaskKinds) -> list[Run]:
    """The finished tests of this study, that with the most seeds first; nothing is made."""
    check_study(study)
    runs = [study.optional(f"causal:{seeds}") for seeds in range(SEEDS, FEWEST - 1, -1)]
    return [run for run in runs if run is not None]


def latest(study: TaskKinds) -> Run | None:
    """The finished test of this study with the most seeds; nothing is made."""
    return next(iter(finished(study)), None)


def table(test: Run | None, name: str) -> pd.DataFrame:
    """A table of a finished test; an empty one where there is none."""
    found = pd.DataFrame() if test is None else test.table(name)
    if name == "slopes" and len(found):  # a test that is older than this code took the distribution for a central one
        found["detectable"] = _detectable(found)
    return found


def measured(study: TaskKinds, test: Run | None) -> pd.DataFrame:
    """What is measured of the settings: of runs on their images where all are there, else as a finished test has it.

    Args:
        study: On the dials; nothing is made.
        test: From `latest`.
    """
    runs = {setting: study.optional(f"bands:{RAW_VOXELS}:{setting}") for setting in dials.all_settings()}
    there = {setting: run for setting, run in runs.items() if run is not None}
    return measured_dials(there, dials.DIALS) if len(there) == len(runs) else table(test, "measured")


def check_study(study: TaskKinds) -> None:
    """Whether a study is on the dials.

    Raises:
        InputError: A setting is missing.
    """
    missing = [setting for setting in dials.all_settings() if setting not in study.tasks]
    if missing:
        raise InputError(f"The manifest has no task {missing[0]!r}: the causal test is made on {MANIFEST}.")


def twins_equal(study: TaskKinds, arm: str) -> bool:
    """Whether an arm whose auxiliary objective has the weight 0 ends with the same weights as the plain one.

    Args:
        study: Whose profile and seed.
        arm: ``sl-mae`` or ``vcr-jepa``.
    """
    twin, plain = f"pretrain:{arm}", f"pretrain:{REGULARISED[arm]}"
    runs = study.variant(twin, "weight=0").run(twin), study.run(plain)
    one, other = ((run.path / "encoder" / "model.safetensors").read_bytes() for run in runs)
    return one == other


def gain_table(
    study: TaskKinds, seeds: Sequence[int], *, draws: int = 500
) -> tuple[pd.DataFrame, dict[tuple[str, str], np.ndarray]]:
    """Gains at every setting under every seed.

    Returns:
        dial, setting, position, value, arm, baseline, seed, auroc, auroc_baseline, auroc_oracle, gain; and for each
        (dial, arm) the slopes averaged over seeds under `draws` resamples of the test subjects.
    """
    rows, resampled = [], {}
    for name, dial in dials.DIALS.items():
        centred = np.asarray(dial.positions) - np.mean(dial.positions)
        weights = centred / np.square(centred).sum()
        for arm, baseline in REGULARISED.items():
            slopes = np.zeros(draws)
            for k, setting in enumerate(dial.settings):
                known = study.run(f"probe:{ORACLE}:{setting}")
                for seed in seeds:
                    names = [f"probe:{one}:{setting}" for one in (arm, baseline)]
                    runs = [study.variant(name, f"paired={seed}").run(name) for name in names]
                    found = [resampled_auroc(run.table("predictions"), draws) for run in (*runs, known)]
                    points, values = [one.estimate for one, _ in found], [several for _, several in found]
                    rows.append(
                        {
                            "dial": name,
                            "setting": setting,
                            "position": dial.positions[k],
                            "value": dial.values[k],
                            "arm": arm,
                            "baseline": baseline,
                            "seed": seed,
                            **dict(zip(("auroc", "auroc_baseline", "auroc_oracle"), points, strict=True)),
                            "gain": float(_gain(*points)),
                        }
                    )
                    slopes += weights[k] * _gain(*values) / len(seeds)
            resampled[name, arm] = slopes
    columns = ["dial", "setting", "position", "value", "arm", "baseline", "seed"]
    return pd.DataFrame(rows, columns=[*columns, "auroc", "auroc_baseline", "auroc_oracle", "gain"]), resampled


def level_table(study: TaskKinds, gains: pd.DataFrame) -> pd.DataFrame:
    """AUROC of every row at every setting.

    Args:
        study: On the dials.
        gains: From `gain_table`; arms are averaged over its seeds.

    Returns:
        dial, position, value, arm, auroc, ideal.
    """
    rows = []
    pairs = (("arm", "auroc"), ("baseline", "auroc_baseline"))
    for name, dial in dials.DIALS.items():
        for setting, position, value in zip(dial.settings, dial.positions, dial.values, strict=True):
            truth = study.run(f"truth:{setting}")
            reached = {arm: _point(study.run(f"probe:{arm}:{setting}")) for arm in FIXED}
            here = gains[gains["setting"] == setting]
            reached |= {str(k): v for by, column in pairs for k, v in here.groupby(by)[column].mean().items()}
            known = {"ideal": truth.table("truth")["ideal_auroc"].iloc[0]}
            place = {"dial": name, "position": position, "value": value}
            rows += [{**place, "arm": arm, "auroc": area, **known} for arm, area in reached.items()]
    return pd.DataFrame(rows, columns=["dial", "position", "value", "arm", "auroc", "ideal"])


def slope_table(gains: pd.DataFrame, resampled: Mapping[tuple[str, str], np.ndarray]) -> pd.DataFrame:
    """The pre-stated analysis.

    Args:
        gains, resampled: From `gain_table`.

    Returns:
        A row per dial and arm: dial, arm, baseline, primary (bool), seeds, estimate, low, high (t-interval over seeds),
        low_subjects, high_subjects (bootstrap over test subjects), p, p_holm (of the two primary ones), detectable (the
        slope that would have been found with probability 0.8), verdict (supported, refuted or open; "" for controls).
    """
    rows = []
    for name, dial in dials.DIALS.items():
        for arm, baseline in REGULARISED.items():
            part = gains[(gains["dial"] == name) & (gains["arm"] == arm)]
            wide = part.pivot(index="position", columns="seed", values="gain")
            each = np.polyfit(wide.index, wide, 1)[0]
            rows.append(
                {
                    "dial": name,
                    "arm": arm,
                    "baseline": baseline,
                    "primary": arm == dial.arm,
                    **slope_test(each),
                    **dict(
                        zip(("low_subjects", "high_subjects"), np.nanquantile(resampled[name, arm], [0.025, 0.975]))
                    ),
                }
            )
    table = pd.DataFrame(rows)
    adjusted = pd.Series(np.nan, table.index)
    adjusted[table["primary"]] = stats.holm(table["p"][table["primary"]])
    table = table.assign(p_holm=adjusted)
    return table.assign(verdict=[judge_slope(row) if row["primary"] else "" for _, row in table.iterrows()])


def slope_test(slopes: np.ndarray) -> dict[str, Any]:
    """t-test of the mean of one slope a seed (S,) against 0: seeds, estimate, low, high, p, detectable."""
    n = len(slopes)
    mean, error = float(np.mean(slopes)), float(np.std(slopes, ddof=1) / np.sqrt(n))
    reach = float(t.isf((1 - LEVEL) / 2, n - 1)) * error
    p = float(2 * t.sf(abs(mean) / error, n - 1)) if error > 0 else float(mean == 0)
    found = {"seeds": n, "estimate": mean, "low": mean - reach, "high": mean + reach, "p": p}
    return {**found, "detectable": float(_detectable(found))}


def _detectable(slopes: Any) -> Any:
    """Slopes that would have been found four times in five, from their intervals: Holm's first step of two of them."""
    return stats.detectable_difference(slopes["low"], slopes["high"], 2, slopes["seeds"] - 1, level=LEVEL, power=POWER)


def judge_slope(row: Any) -> str:
    """``supported``, ``refuted`` or ``open``, as stated at the head of this file."""
    if row["p_holm"] < 1 - LEVEL:
        if row["estimate"] > 0 and row["low_subjects"] > 0:
            return "supported"
        if row["estimate"] < 0 and row["high_subjects"] < 0:
            return "refuted"
    return "open"


def why_open(row: Any) -> str:
    """A clause on a primary slope whose verdict is ``open``: who cannot tell it from 0, seeds or test subjects."""
    if row["p_holm"] < 1 - LEVEL:
        return (
            f"which seeds tell from 0 (adjusted p {row['p_holm']:.3f}) and resampled test subjects do not "
            f"[{row['low_subjects']:+.2f}, {row['high_subjects']:+.2f}]"
        )
    seen = f"; a slope of {row['detectable']:.2f} would have been found four times in five"
    return f"which {row['seeds']} seeds cannot tell from 0{seen if np.isfinite(row['detectable']) else ''}"


def _gain(arm: Any, baseline: Any, oracle: Any) -> Any:
    distance = [ndtri(np.clip(a, EXTREME, 1 - EXTREME)) for a in (arm, baseline, oracle)]  # √2 cancels
    known = np.where(np.abs(distance[2]) > LEAST, distance[2], np.nan)
    return (distance[0] - distance[1]) / known


def _point(run: Run) -> float:
    return float(run.table("results").set_index("metric").loc["auroc", "estimate"])


def _said(run: Run) -> str:
    row = run.table("results").set_index("metric").loc["auroc"]
    return f"AUROC {row['estimate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
