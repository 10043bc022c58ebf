"""Tables of the report, as a reader sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from brainfm_lib.figures.style import TITLES, title
from brainfm_lib.identity import stable_hash

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

    from brainfm_lib.runs import Run
    from brainfm_lib.study import Study

MEASURES = {
    "n": "samples",
    "variance_share": "share of token variance",
    "rankme_centred": "RankMe, centred",
    "rankme_uncentred": "RankMe, uncentred",
    "participation_ratio": "participation ratio",
    "alpha_req": "α-ReQ",
    "mean_abs_correlation": "mean |correlation|",
}
DECIDED = 0.05  # an adjusted p below it decides a comparison
SCRATCH = {"random-init": "from scratch"}  # what fine-tuning an untrained encoder is called


def show(table: pd.DataFrame, caption: str = "", *, digits: int = 3) -> Styler:
    """The table without its index, numbers rounded, under a caption; the same HTML for the same content."""
    style = table.style.hide(axis="index").format(precision=digits, na_rep="–", thousands=",")
    style = style.set_uuid(stable_hash([caption, list(map(str, table.columns))], 8))
    left = [name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]
    style = style.set_properties(subset=left, **{"text-align": "left"})
    styles = [{"selector": "caption", "props": "caption-side: top; text-align: left; padding-bottom: 0.4em"}]
    styles.append({"selector": "th", "props": "text-align: left"})
    if table.empty:
        caption = "There is nothing to show."
        styles.append({"selector": "caption", "props": "white-space: nowrap"})
        style = style.hide(axis="columns")
    return style.set_caption(caption).set_table_styles(styles)


def task_titles(study: Study) -> dict[str, str]:
    """Task -> its title; simulated ones say so."""
    cohorts = study.manifest.cohorts
    tasks = {name: study.manifest.tasks[name] for name in study.tasks}
    return {
        name: f"{task.title or name}{' (phantom)' if cohorts[task.cohort].kind == 'phantom' else ''}"
        for name, task in tasks.items()
    }


def manifest_table(study: Study) -> pd.DataFrame:
    """What the manifest offers: each cohort, what it is for, how large it is here, or why it is absent."""
    manifest, missing, used = study.manifest, study.manifest.missing(), study.cohorts_in_use
    rows = []
    for name, settings in manifest.cohorts.items():
        tasks = [task for task, s in manifest.tasks.items() if s.cohort == name]
        purpose = (["pretraining"] if name in manifest.pretraining else []) + tasks
        scans = study.cohort(name).scans if name in used else None
        rows.append(
            {
                "cohort": name,
                "kind": settings.kind,
                "used for": ", ".join(purpose) or "nothing",
                "subjects": str(scans["subject_id"].nunique()) if scans is not None else "–",
                "scans": str(len(scans)) if scans is not None else "–",
                "state": f"absent: {missing[name]}" if name in missing else "present",
                "how to get it": settings.access,
            }
        )
    return pd.DataFrame(rows)


def truth_table(study: Study) -> pd.DataFrame:
    """What is known of each simulated task: the ceiling of any method, the rank of its signal and where it lies."""
    rows = []
    for task in study.simulated_tasks:
        truth = study.run(f"truth:{task}").table("truth").iloc[0]
        rows.append(
            {
                "task": task,
                "ideal AUROC": truth["ideal_auroc"],
                "rank": int(truth["rank"]),
                "half of the signal's power below (cycles/mm)": truth["frequency_50"],
                "from 10 to 90 %": f"{truth['frequency_10']:.3f} to {truth['frequency_90']:.3f}",
            }
        )
    columns = ["task", "ideal AUROC", "rank", "half of the signal's power below (cycles/mm)", "from 10 to 90 %"]
    return pd.DataFrame(rows, columns=columns)


def pretraining_table(study: Study) -> pd.DataFrame:
    """Who is kept out of pretraining, and why, for each cohort that encoders are trained on."""
    rows = []
    for name, (train, heldout) in study.pretraining_rows.items():
        subjects = study.cohort(name).scans["subject_id"]
        rows.append(
            {
                "cohort": name,
                "subjects": subjects.nunique(),
                "trained on": subjects.iloc[train].nunique(),
                "held out": subjects.iloc[heldout].nunique(),
                "scans trained on": len(train),
                "scans held out": len(heldout),
                "tasks on the same subjects": ", ".join(
                    t for t in study.tasks if study.manifest.tasks[t].cohort == name
                )
                or "none",
            }
        )
    return pd.DataFrame(rows)


def montage_scans(study: Study, most: int = 5) -> tuple[np.ndarray, list[str]]:
    """One scan a contrast, from different cohorts where possible: volumes (n, D, H, W) in [0, 1], and their titles."""
    found: dict[str, list[str]] = {}
    for name in study.cohorts_in_use:
        for contrast in study.volumes(name).scans["contrast"].unique():
            found.setdefault(contrast, []).append(name)
    volumes, titles = [], []
    for place, (contrast, names) in enumerate(list(found.items())[:most]):
        bank = study.volumes(names[place % len(names)])
        row = int(np.flatnonzero(bank.scans["contrast"] == contrast)[0])
        volumes.append(bank.read([row])[0])
        titles.append(f"{contrast}\n{names[place % len(names)]}")
    return np.stack(volumes), titles


def example_names(study: Study, reconstructions: Mapping[str, Run]) -> list[str]:
    """What the pictured held-out scans are: a running number (never an identifier), contrast, whether simulated."""
    names = []
    for run in list(reconstructions.values())[:1]:
        for number, (_, scan) in enumerate(run.table("errors").iterrows(), start=1):
            kind = study.manifest.cohorts[str(scan["scan_uid"]).split("/")[0]].kind
            names.append(f"held-out scan {number}, {scan['contrast']}{' (phantom)' if kind == 'phantom' else ''}")
    return names


def resolution_table(table: pd.DataFrame) -> pd.DataFrame:
    """`brainfm_lib.comparison.resolution_table` as a reader sees it."""
    return pd.DataFrame(
        {
            "arm": [title(arm) for arm in table["arm"]],
            "coherence above ½ up to (cycles/mm)": table["half"],
            "above the noise floor up to (cycles/mm)": table["floor"],
            "power above the cut-off (share of the target's)": table["power"],
            "mean coherence above the cut-off": table["coherence"],
        }
    )


def cost_table(runs: Mapping[str, Run]) -> pd.DataFrame:
    """What each arm's pretraining cost.

    Args:
        runs: Arm -> its pretraining run.
    """
    rows: list[dict[str, Any]] = []
    for arm, run in runs.items():
        said = run.provenance
        rows.append(
            {
                "arm": title(arm),
                "volumes seen": said.get("volumes_seen"),
                "minutes": round(said.get("train_seconds", np.nan) / 60, 2),
                "volumes per second": said.get("volumes_per_second"),
                "device": f"{said.get('device')}, {said.get('precision')}",
                "run": run.id,
            }
        )
    return pd.DataFrame(rows, columns=["arm", "volumes seen", "minutes", "volumes per second", "device", "run"])


def results_table(results: pd.DataFrame, titles: Mapping[str, str], *, scratch: bool = False) -> pd.DataFrame:
    """Arms down, tasks across; each cell an AUROC, its 95 % interval, and the adjusted p against chance.

    Args:
        results: From `brainfm_lib.comparison.adjusted`, of one protocol.
        titles: Task -> its name, from `task_titles`.
        scratch: Whether the protocol is fine-tuning, where an untrained encoder is trained from scratch.
    """
    arms, tasks = list(dict.fromkeys(results["arm"])), list(dict.fromkeys(results["task"]))
    cells = {
        (
            r["arm"],
            r["task"],
        ): f"{r['estimate']:.2f}<br><small>[{r['low']:.2f}, {r['high']:.2f}]<br>{_p(r['p_holm'])}</small>"
        for _, r in results.iterrows()
    }
    columns = {titles.get(task, task): [cells.get((arm, task), "–") for arm in arms] for task in tasks}
    return pd.DataFrame({"arm": [_name(arm, scratch) for arm in arms], **columns})


def differences_table(differences: pd.DataFrame, titles: Mapping[str, str], *, scratch: bool = False) -> pd.DataFrame:
    """Pairs down, tasks across: difference, 95 % interval, adjusted p and, if undecided, what could have been seen.

    Args:
        differences: From `brainfm_lib.comparison.paired_differences`, of one protocol.
        titles: Task -> its name.
        scratch: As in `results_table`.
    """
    rows: dict[str, dict[str, str]] = {}
    for _, r in differences.sort_values("baseline", key=lambda b: b.map(list(TITLES).index), kind="stable").iterrows():
        pair = f"{title(r['arm'])} − {_name(r['baseline'], scratch)}"
        said = _p(r["p_holm"])
        if pd.notna(r["p_holm"]) and r["p_holm"] >= DECIDED:  # what a null result could have seen
            said += f", sees {r['detectable']:.2f}"
        cell = f"{r['estimate']:+.2f}<br><small>[{r['low']:+.2f}, {r['high']:+.2f}]<br>{said}</small>"
        rows.setdefault(pair, {})[titles.get(r["task"], r["task"])] = cell
    return pd.DataFrame([{"difference": pair, **cells} for pair, cells in rows.items()]).fillna("–")


def efficiency_table(efficiencies: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Arms down, tasks across; each cell a share of the ideal observer's squared detectability, and its interval.

    Args:
        efficiencies: From `brainfm_lib.comparison.efficiency_table`, of one protocol.
        titles: Task -> its name.
    """
    columns: dict[str, dict[str, str]] = {}
    for _, r in efficiencies.iterrows():
        head = f"{titles.get(r['task'], r['task'])}, ideal AUROC {r['ideal_auroc']:.2f}"
        low, middle, high = (_percent(r[name]) for name in ("low", "estimate", "high"))
        cell = f"{middle} %<br><small>[{low}, {high}]</small>"
        columns.setdefault(head, {})[title(r["arm"])] = cell
    return pd.DataFrame(columns).rename_axis("arm").reset_index()


def metrics_table(results: pd.DataFrame, task: str) -> pd.DataFrame:
    """Every metric of one task and protocol, arms down, with 95 % intervals.

    Args:
        results: From `Study.results`, of one protocol.
        task: The task.
    """
    rows: dict[str, dict[str, str]] = {}
    for _, r in results[results["task"] == task].iterrows():
        head = (
            str(r["metric"])
            .replace("_", " ")
            .replace("auroc", "AUROC")
            .replace("auprc", "AUPRC")
            .replace("brier", "Brier")
        )
        cell = f"{r['estimate']:.2f}<br><small>[{r['low']:.2f}, {r['high']:.2f}]</small>"
        rows.setdefault(title(r["arm"]), {})[head] = cell if pd.notna(r["estimate"]) else "–"
    return pd.DataFrame([{"arm": arm, **cells} for arm, cells in rows.items()])


def picked_table(picked: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """What validation subjects would have picked for each task, and how good it is on test subjects.

    Args:
        picked: From `brainfm_lib.comparison.picked`.
        titles: Task -> its name.
    """
    rows = [
        {
            "task": titles.get(r["task"], r["task"]),
            "picked on validation": title(r["arm"]),
            "AUROC, validation": f"{r['validation']:.2f}",
            "AUROC, test": f"{r['estimate']:.2f} [{r['low']:.2f}, {r['high']:.2f}]",
        }
        for _, r in picked.iterrows()
    ]
    return pd.DataFrame(rows)


def matched_table(matched: pd.DataFrame) -> pd.DataFrame:
    """What each arm's pretraining takes, and how many learning rates were tried for it.

    Args:
        matched: From `brainfm_lib.matching.matched_table`.
    """
    rows = [
        {
            "arm": title(r["arm"]),
            "volumes": f"{r['volumes']:,}",
            "tokens seen": f"{r['tokens_seen']:,}",
            "TFLOP": f"{r['flops'] / 1e12:,.2f}",
            "learning rate": f"{r['lr']:g}",
            "rates on file": str(r["trials"]),
        }
        for _, r in matched.iterrows()
    ]
    return pd.DataFrame(rows)


def trial_table(trials: pd.DataFrame) -> pd.DataFrame:
    """Arms down, learning rates across: validation AUROC, the chosen one in bold.

    Args:
        trials: From `brainfm_lib.matching.trial_table`.
    """
    rows: dict[str, dict[str, str]] = {}
    for _, r in trials.iterrows():
        said = f"{r['validation']:.3f}"
        rows.setdefault(title(r["arm"]), {})[f"{r['lr']:g}"] = f"<b>{said}</b>" if r["chosen"] else said
    return pd.DataFrame([{"arm": arm, **cells} for arm, cells in rows.items()]).fillna("–")


def variance_table(spread: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """How far an AUROC moves with the seed, the split and the subjects tested: standard deviations.

    Args:
        spread: From `brainfm_lib.repetition.variance_table`.
        titles: Task -> its name.
    """
    names = {"seed": "sd, seed", "split": "sd, split", "rest": "sd, rest", "subjects": "sd, subjects (part of split)"}
    table = spread.assign(task=spread["task"].map(lambda task: titles.get(task, task)), arm=spread["arm"].map(title))
    return table[["task", "arm", "seeds", "splits", "auroc", *names]].rename(columns={"auroc": "AUROC", **names})


def rank_table(measures: Mapping[str, pd.DataFrame], *, level: str | None = None) -> pd.DataFrame:
    """Rank measures of every encoder at every level, one row each.

    Args:
        measures: Arm -> table with level, n, width, variance_share and the measures.
        level: Show this level alone.
    """
    parts = [table.assign(arm=title(arm)) for arm, table in measures.items()]
    joined = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["arm", "level"])
    joined = joined if level is None else joined[joined["level"] == level]
    return joined[["arm", *(name for name in joined.columns if name != "arm")]].rename(columns=MEASURES)


def runs_table(study: Study) -> pd.DataFrame:
    """The run behind every figure and number, by what was asked for."""
    rows = [{"asked for": request, "run": run.id} for request, run in study.used.items()]
    return pd.DataFrame(rows, columns=["asked for", "run"])


def _name(arm: str, scratch: bool) -> str:
    return SCRATCH.get(arm, title(arm)) if scratch else title(arm)


def _percent(share: float) -> str:
    """Per cent of an efficiency; an AUROC of 1 or 0 has no finite one."""
    return f"{round(100 * share)}" if np.isfinite(share) else "> 100" if share > 0 else "< 0"


def _p(value: float) -> str:
    if pd.isna(value):
        return "p –"
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
