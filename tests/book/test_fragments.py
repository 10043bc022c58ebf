"""The headline says what the table says."""

import shutil
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest

from brainfm_lib.config import PROFILES, load_profile
from brainfm_lib.pretrain.compute import pretraining_cost
from brainfm_lib.reference.plan import Part, Plan
from brainfm_lib.reference.told import told
from brainfm_lib.report.fragments import measured, write_causal, write_headline, write_settings
from brainfm_lib.runs import Run


def row(arm: str, task: str, estimate: float, low: float, high: float, **more: object) -> dict:
    base = {"arm": arm, "task": task, "metric": "auroc", "protocol": "linear", "run": f"probe-{arm}-{task}"}
    return {**base, "estimate": estimate, "low": low, "high": high, **more}


def headline(rows: list[dict], tmp_path: Path, phantom: tuple[str, ...] = ("ad", "mci")) -> str:
    write_headline(pd.DataFrame(rows), tmp_path / "_headline.md", phantom_tasks=phantom, profile="quick")
    return (tmp_path / "_headline.md").read_text()


CONTROL = [row("random-init", "ad", 0.55, 0.45, 0.65), row("random-init", "mci", 0.5, 0.4, 0.6)]


def test_intervals_that_do_not_overlap_decide(tmp_path: Path) -> None:
    text = headline([*CONTROL, row("mae", "ad", 0.8, 0.7, 0.9), row("mae", "mci", 0.3, 0.2, 0.39)], tmp_path)
    assert text.startswith(
        "Under a linear probe on frozen features, better than the untrained encoder: **mae** on ad, "
        "worse than the untrained encoder: **mae** on mci.\n"
    )
    assert text.count("A comparison is decided where the two 95 % intervals do not overlap.") == 1


def test_fine_tuning_is_held_against_training_from_scratch(tmp_path: Path) -> None:
    rows = [row(arm, "ad", 0.8, 0.75, 0.9, protocol="fine-tune") for arm in ("mae", "jepa")]
    text = headline([row("random-init", "ad", 0.5, 0.4, 0.6, protocol="fine-tune"), *rows], tmp_path)
    assert text.startswith(
        "Under short fine-tuning, better than training from scratch: **mae** on ad, **jepa** on ad.\n"
    )


def test_overlapping_intervals_are_said_to_decide_nothing(tmp_path: Path) -> None:
    text = headline([*CONTROL, row("mae", "ad", 0.7, 0.6, 0.8), row("mae", "mci", 0.5, 0.4, 0.6)], tmp_path)
    assert "no arm can be told from the untrained encoder (2 comparisons)." in text


def test_paired_differences_go_before_intervals_and_adjusted_p_before_both(tmp_path: Path) -> None:
    rows = [*CONTROL, row("mae", "ad", 0.7, 0.6, 0.8), row("sl-mae", "ad", 0.72, 0.6, 0.8)]
    rows += [row("mae", "ad", 0.15, 0.02, 0.3, baseline="random-init", p_holm=0.2)]
    rows += [row("sl-mae", "ad", 0.17, 0.05, 0.3, baseline="random-init", p_holm=0.01)]
    rows += [row("sl-mae", "ad", 0.02, -0.05, 0.1, baseline="mae")]
    text = headline(rows, tmp_path)
    assert "better than the untrained encoder: **sl-mae** on ad (1 of 2 comparisons undecided)" in text
    assert "; **sl-mae** cannot be told from **mae** (1 comparison)." in text
    assert "below 0.05, or, unadjusted, its 95 % interval excludes zero" in text
    assert "| sl-mae − mae | ad | linear | `probe-sl-mae-ad` |" in text


def test_every_number_names_its_run_and_phantoms_are_labelled(tmp_path: Path) -> None:
    rows = [*CONTROL, row("random-init", "grade", 0.5, 0.4, 0.6, protocol="fine-tune")]
    text = headline(rows, tmp_path, phantom=("ad", "mci"))
    assert all(f"`{r['run']}`" in text for r in rows)
    assert "| arm | grade |" in text and "**Phantom results**" in text
    mixed = headline([*CONTROL, row("mae", "real", 0.6, 0.5, 0.7)], tmp_path)
    assert "| arm | ad (phantom) | mci (phantom) | real |" in mixed
    assert "**Phantom results**: the scans of ad, mci are simulated" in text
    assert "0.55<br><small>0.45–0.65</small>" in text


def test_no_phantom_no_label(tmp_path: Path) -> None:
    assert "hantom" not in headline(CONTROL, tmp_path, phantom=())


def test_where_all_are_phantoms_the_title_says_so_once(tmp_path: Path) -> None:
    text = headline(CONTROL, tmp_path)
    assert "a linear probe on frozen features. Phantom results." in text and "| arm | ad | mci |" in text


def test_two_rows_for_one_thing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two rows for random-init, ad, linear"):
        headline([*CONTROL, CONTROL[0]], tmp_path)


def test_tables_of_costs_are_the_scripts_output_or_said_to_be_missing(tmp_path: Path) -> None:
    (tmp_path / "book").mkdir()
    (tmp_path / "benchmarks").mkdir()
    asked = "".join(f"```{{include}} chapters/_bench_{name}.md\n```\n" for name in ("step", "data"))
    (tmp_path / "book" / "performance.md").write_text(asked)
    (tmp_path / "benchmarks" / "step.md").write_text("# Title\n\nMade.\n\n## A part\n\n![Drawn](curve.svg)\n")
    assert measured(tmp_path) == {
        "step": "Made.\n\n### A part\n\n![Drawn](../benchmarks/curve.svg)\n",
        "data": "`benchmarks/data.py` has not been run for this report.\n",
    }


def test_the_start_page_says_what_the_causal_test_said(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "book" / "reference" / "runs"
    tests = {int(run.table("slopes")["seeds"].iloc[0]): run for run in map(Run, shipped.glob("causal-*"))}
    assert len(tests) >= 2
    test = tests[max(tests)]
    (tmp_path / "book").mkdir()
    shutil.copytree(shipped, tmp_path / "book" / "reference" / "runs")
    (tmp_path / "data_manifest.yaml").write_text("version: 1\n")
    write_causal(tmp_path, {f"causal:{seeds}": run.id for seeds, run in sorted(tests.items())})
    said = (tmp_path / "book" / "chapters" / "_causal.md").read_text()
    slopes = test.table("slopes")
    for _, row in slopes[slopes["primary"]].iterrows():
        assert f"{row['estimate']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]" in said
    assert said.count("**open**") == 2 and "phantom results" in said
    write_causal(tmp_path, {})
    assert "has not been tested" in (tmp_path / "book" / "chapters" / "_causal.md").read_text()


def test_the_page_on_the_reference_run_says_how_it_went_or_how_to_make_it() -> None:
    part = Part("quick", 1, 100, 50, 60, 1600, {"rendering": 10.0, "training": 20.0, "judging": 30.0})
    plan = Plan(5.0, "", "a device", True, (part,), {"quick": {"rendered": 9.0}})
    pieces = [
        ("render quick pre", 11.0, {}),
        ("train quick mae 0", 6.0, {"mae": 200.0}),
        ("train quick sl-mae+jepa 0", 8.0, {"sl-mae": 190.0, "jepa": 200.0}),
        ("judge quick 0", 29.0, {}),
    ]
    log = [
        {"what": what, "seconds": s, "began": 0.0, "finished": True, "volumes": 1600, "rates": rates}
        for what, s, rates in pieces
    ]
    summary = {"plan": asdict(plan), "minutes": plan.minutes, "seconds": 270.0, "log": log}
    text = told(summary | {"busy": {"train quick mae 0": 0.93}})
    assert "in 4.5 of 5 minutes. " in text
    assert "of 6 minutes (planned for 5)." in told(summary | {"minutes": 6.0, "busy": {}})
    assert "| quick | rendering | 10 | 11 |" in text and "| quick | training | 20 | 14 |" in text
    assert "| quick, sl-mae, seed 0 | 1,600 | 190 |" in text
    assert "| quick, mae, seed 0 | 1,600 | 200 |" in text and "| 93% |" in text and "| – |" in text
    cost = pretraining_cost(load_profile("quick", part.overrides).pretraining("jepa", 0))
    assert f"| {cost.flops / 1600 * 200 / 1e12:.3g} | –" in text
    assert "brainfm reference" in told(None) and "No reference run ships" in told(None)


def test_the_profile_of_what_ships_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "project"
    for folder in ("book/chapters", "book/reference", "notebooks/params"):
        (root / folder).mkdir(parents=True)
    (root / "data_manifest.yaml").touch()
    (root / "book" / "your_data.md").touch()
    (root / "notebooks" / "params" / "quick.yaml").touch()
    shutil.copy(PROFILES / "tiny.yaml", root / "book" / "reference" / "shipped.yaml")
    monkeypatch.delenv("BRAINFM_ROOT", raising=False)
    monkeypatch.chdir("/")
    write_settings(root, "quick")
    assert "| `shipped` | the encoders that ship" in (root / "book" / "chapters" / "_profiles.md").read_text()
