"""Figures of the report, on small tables of the shape that runs have."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from IPython.display import Markdown
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from brainfm_lib import figures, notes, tables, verdict
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.figures import style
from brainfm_lib.figures.training import TERMS
from brainfm_lib.findings import comparison
from brainfm_lib.masking import random_mask
from brainfm_lib.objectives import ARMS, EVERY_ARM, build_model, compute_loss, main_term
from brainfm_lib.study import Study, causal, dials
from brainfm_lib.verdict import CONTROL
from brainfm_lib.words import Words

SEVERAL, MOVING = {"reconstruction_panels"}, {"cutoff_explorer", "slice_explorer"}
DRAWN = set(figures.__all__) - SEVERAL - MOVING - {"stamp"}

GEOMETRY = Geometry((16, 20, 18), 8.0)
TRAINED = tuple(ARMS)
COMPARED = (*verdict.CONTROLS, verdict.CNN, *ARMS)
RNG = np.random.default_rng(0)
UNITS = {name: dial.unit for name, dial in dials.DIALS.items()}


def metrics(arm: str) -> pd.DataFrame:
    volumes = np.arange(1, 201) * 64.0
    falling = 0.2 + 0.3 * np.exp(-volumes / 3000) + 0.01 * RNG.standard_normal(200)
    table = pd.DataFrame({"volumes": volumes, ("prediction" if "jepa" in arm else "reconstruction"): falling})
    table["heldout"] = np.where(np.arange(200) % 10 == 9, falling + 0.02, np.nan)
    extra = {"sl-mae": ["spectral", "gradient_ratio"], "vcr-jepa": ["variance", "covariance"]}
    return table.assign(**dict.fromkeys(extra.get(arm, []), falling * 2))


def errors(arm: str) -> pd.DataFrame:
    base = 0.3 + 0.05 * RNG.random(24)
    gain = {"mae": 0.05, "sl-mae": 0.04, "jepa": -0.03, "vcr-jepa": 0.0}[arm]
    noise = 0.01 * RNG.standard_normal(24)
    table = pd.DataFrame({"subject_id": [f"s{i // 2}" for i in range(24)], "model": base - gain + noise})
    table = table.assign(position_mean=base + 0.02, interpolation=base)
    return table.assign(latent=base, latent_position_mean=base * 1.5 + noise) if "jepa" in arm else table


def spectra(arm: str) -> pd.DataFrame:
    frequency = np.linspace(0.005, 0.087, 16)
    power, kept = 1e4 * frequency**-2.5, np.exp(-frequency * 40)
    kept = kept * 0.5 if arm == "mae" else kept
    return pd.DataFrame({"frequency": frequency, "power_target": power, "power_prediction": power * kept}).assign(
        coherence_prediction=np.exp(-frequency * 30),
        noise_floor=0.02 + 0.001 / frequency,
        phase_error_prediction=np.minimum(frequency * 20, np.pi / 2),
    )


def progress() -> pd.DataFrame:
    frequency = np.linspace(0.005, 0.087, 16)
    stages = [
        pd.DataFrame({"volumes": n, "frequency": frequency, "coherence": np.exp(-40 * frequency)}) for n in (50, 99)
    ]
    return pd.concat(stages).assign(power_ratio=0.5)


def places() -> pd.DataFrame:
    rows = [("border", str(k), k) for k in range(4)]
    rows += [("brightness", name, k) for k, name in enumerate(("darkest third", "middle third", "brightest third"))]
    table = pd.DataFrame(rows, columns=["split", "place", "order"])
    return table.assign(model=0.2 + 0.05 * table["order"], baseline=0.5, voxels=100)


def interval(estimate: float, reach: float = 0.1) -> dict[str, float]:
    return {"estimate": estimate, "low": estimate - reach, "high": estimate + reach}


def explained() -> pd.DataFrame:
    return pd.DataFrame([{"factor": name, "groups": 4, **interval(0.3)} for name in ("contrast", "site", "sex")])


def latent_map() -> pd.DataFrame:
    x, y = RNG.standard_normal((2, 60))
    table = pd.DataFrame({"component_1": x, "component_2": y, "share_1": 0.4, "share_2": 0.2})
    return table.assign(contrast=RNG.choice(["T1w", "T2w"], 60), site=[f"site-{k % 12}" for k in range(60)])


def cutoffs() -> pd.DataFrame:
    return pd.DataFrame(
        [{"band": b, "cutoff": c, **interval(0.7)} for b in ("low", "high") for c in np.linspace(0.01, 0.08, 6)]
    )


def relied(task: str, reliance: float) -> dict[str, object]:
    return {"task": task, "reliance": reliance, "reliance_low": 0.1, "reliance_high": 0.9}


def direction() -> pd.DataFrame:
    edges = np.linspace(0, 0.087, 13)
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:], "weights": 1 / 12, "pattern": np.linspace(0, 1 / 6, 12)})


def components() -> pd.DataFrame:
    return pd.DataFrame([{"components": 2**k, **interval(0.5 + 0.05 * k)} for k in range(6)])


def gains() -> pd.DataFrame:
    rows = []
    for name, dial in dials.DIALS.items():
        for arm, baseline in verdict.REGULARISED.items():
            for k, setting in enumerate(dial.settings):
                place = {"dial": name, "setting": setting, "position": dial.positions[k], "value": dial.values[k]}
                for seed in range(3):
                    gain = 0.1 * dial.positions[k] * (arm == dial.arm) + 0.02 * RNG.standard_normal()
                    rows.append({**place, "arm": arm, "baseline": baseline, "seed": seed, "gain": gain})
    return pd.DataFrame(rows)


def slopes() -> pd.DataFrame:
    rows = [
        {
            "dial": name,
            "arm": arm,
            "baseline": baseline,
            "primary": arm == dial.arm,
            **causal.slope_test(np.array([0.1, 0.12, 0.07])),
            "low_subjects": 0.01,
            "high_subjects": 0.2,
            "p_holm": 0.03 if arm == dial.arm else np.nan,
            "verdict": "supported" if arm == dial.arm else "",
        }
        for name, dial in dials.DIALS.items()
        for arm, baseline in verdict.REGULARISED.items()
    ]
    return pd.DataFrame(rows)


def measured() -> pd.DataFrame:
    return pd.DataFrame(
        [{"dial": n, "value": v, **interval(1 + v)} for n, dial in dials.DIALS.items() for v in dial.values]
    )


def effects_of() -> pd.DataFrame:
    rows = [
        {"parameter": name, "level": level, "order": k, "cells": 2, **interval(0.6 + 0.02 * k)}
        for name, levels in (("rate", ("0.1", "0.2")), ("overrides.mask.kind", ("random", "block", "replica")))
        for k, level in enumerate(levels)
    ]
    return pd.DataFrame(rows)


def pair() -> pd.DataFrame:
    return pd.DataFrame([[0.6, 0.7], [0.65, np.nan]], index=["0.1", "0.2"], columns=["2", "4"])


def cells() -> pd.DataFrame:
    return pd.DataFrame({"rate": [0.1, 0.2, 0.1], "train_seconds": [10.0, 20.0, np.nan], "auroc": [0.6, 0.7, 0.5]})


def levels(arms: tuple[str, ...]) -> pd.DataFrame:
    rows = [
        {"dial": name, "position": p, "value": v, "arm": arm, "auroc": 0.8, "ideal": 0.92}
        for name, dial in dials.DIALS.items()
        for p, v in zip(dial.positions, dial.values, strict=True)
        for arm in arms
    ]
    return pd.DataFrame(rows)


def truth_spectrum() -> pd.DataFrame:
    frequency = np.linspace(0.005, 0.087, 16)
    return pd.DataFrame({"frequency": frequency, "power": 1e-3 * frequency**-2})


def eigenspectrum(arm: str) -> pd.DataFrame:
    steep = 2.5 if arm == "jepa" else 1.0
    levels = ("pooled", "tokens", "tokens, position removed")
    rank = np.arange(1, 49)
    return pd.concat([pd.DataFrame({"level": v, "rank": rank, "eigenvalue": rank**-steep}) for v in levels])


def measures(arm: str, rank: float = 20.0) -> pd.DataFrame:
    levels = ["pooled", "tokens", "tokens, position removed"]
    table = pd.DataFrame(
        {"level": levels, "n": 256, "width": 48, "rankme_centred": rank, "participation_ratio": 8.0, "alpha_req": 1.0}
    )
    return table.assign(rankme_centred=[rank, rank * 0.6, rank * 0.4], variance_share=[0.1, 1.0, 0.3])


def results(arms: tuple[str, ...] = COMPARED, tasks: tuple[str, ...] = ("ad", "mci", "grade")) -> pd.DataFrame:
    rows = [
        {"arm": a, "task": t, "protocol": "linear", "metric": "auroc", "estimate": 0.5 + 0.05 * i, "run": f"probe-{a}"}
        for i, a in enumerate(arms)
        for t in tasks
    ]
    table = pd.DataFrame(rows, columns=["arm", "task", "protocol", "metric", "estimate", "run"])
    return table.assign(low=table["estimate"] - 0.1, high=table["estimate"] + 0.1, p_permutation=0.004)


def cohort(subjects: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "subject_id": [f"s{i}" for i in range(subjects)],
            "contrast": RNG.choice(["T1w", "T2w", "FLAIR"], subjects),
            "site": RNG.choice([f"site-{i}" for i in range(9)], subjects),
            "sex": RNG.choice(["F", "M", ""], subjects),
            "age": np.where(RNG.random(subjects) < 0.1, np.nan, RNG.normal(60, 15, subjects)),
            "label": RNG.integers(2, size=subjects),
            "split": RNG.choice(["train", "val", "test"], subjects),
            "fold": RNG.integers(5, size=subjects),
        }
    )


def head() -> np.ndarray:
    """A bright ellipsoid that is brighter on the subject's right, in front and on top."""
    axes = [np.linspace(-1, 1, n) for n in GEOMETRY.grid]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return np.where(x**2 + y**2 + z**2 < 0.8, 0.5 + 0.15 * (x + y + z), 0).astype(np.float32)


def examples() -> np.ndarray:
    target = (head() - 0.3) * 4
    visible = np.where(RNG.random(target.shape) < 0.25, target, np.nan)
    filled = np.where(np.isnan(visible), target * 0.8, target)
    return np.stack([target, visible, filled, filled - target])


def predictions(folds: int = 0) -> pd.DataFrame:
    label, subject = np.arange(90) % 2, np.arange(90) // 2 % 30 * 2 + np.arange(90) % 2
    table = pd.DataFrame({"subject_id": subject, "label": label, "score_1": 1 / (1 + np.exp(-RNG.normal(label - 0.5)))})
    return table.assign(fold=table["subject_id"] // 2 % folds) if folds else table


def learning(arms: tuple[str, ...]) -> pd.DataFrame:
    points = [(arm, volumes) for arm in arms for volumes in ((0,) if arm == CONTROL else (100, 1000))]
    rows = [{"task": "ad", "arm": a, "volumes": n, "estimate": 0.6, "low": 0.5, "high": 0.7} for a, n in points]
    return pd.DataFrame(rows, columns=["task", "arm", "volumes", "estimate", "low", "high"])


def shots() -> pd.DataFrame:
    rows = [{"shots": n, "draw": k, "auroc": RNG.uniform(0.4, 0.9)} for n in (8, 16, 32) for k in range(5)]
    return pd.DataFrame(rows)


def all_figures(arms: tuple[str, ...]) -> dict[str, Figure]:
    trained = [arm for arm in arms if arm in ARMS]
    encoders = [arm for arm in arms if arm == CONTROL or arm in ARMS]
    of_errors = {arm: errors(arm) for arm in trained}
    cohorts = {"pretraining": cohort(300), "clinic": cohort(28)}
    return {
        "cohort_montage": figures.cohort_montage(np.stack([head()] * 4), ["T1w", "T2w", "FLAIR", "PDw"], GEOMETRY),
        "masked_scan": figures.masked_scan(np.pad(head(), ((0, 0), (0, 0), (0, 2))), np.array([1, 7, 30]), 4, GEOMETRY),
        "component_view": figures.component_view(
            np.stack([head()[:, :, :16]] * 4), RNG.standard_normal((4, 80)), 4, list("abcd"), GEOMETRY, "MAE"
        ),
        "loss_view": figures.loss_view(
            {"target": head(), "mae": head() * 0.5} if trained else {}, GEOMETRY, 0.25, "logmag, ρ = 0.30"
        ),
        "intensity_histogram": figures.intensity_histogram(np.stack([head()] * 3), ["a", "b", "c"]),
        "cohort_summary": figures.cohort_summary(cohorts),
        "split_counts": figures.split_counts(
            {"ad": cohort(300), "depression": cohort(28).drop(columns="split")},
            {"ad": ["normal", "AD"], "depression": ["control", "depression"]},
        ),
        "discriminative_spectra": figures.discriminative_spectra(
            {"ad": truth_spectrum(), "autism": truth_spectrum()} if trained else {}, {"one patch": 0.022}
        ),
        "loss_curves": figures.loss_curves({arm: metrics(arm) for arm in trained}),
        "heldout_curves": figures.heldout_curves({arm: metrics(arm) for arm in trained}),
        "reconstruction_panel": figures.reconstruction_panel({a: examples() for a in trained}, GEOMETRY, "sub-1, T1w"),
        "error_intervals": figures.error_intervals(comparison.error_table(of_errors, draws=200)),
        "explained_latents": figures.explained_latents(comparison.explained_table(of_errors, draws=200)),
        "radial_spectra": figures.radial_spectra({a: spectra(a) for a in trained}, marks={"one cycle a patch": 0.022}),
        "phase_errors": figures.phase_errors({a: spectra(a) for a in trained}),
        "coherence_progress": figures.coherence_progress({a: progress() for a in trained}),
        "errors_by_place": figures.errors_by_place({a: places() for a in trained}),
        "slice_spectra": figures.slice_spectra({a: RNG.normal(3, 1, (3, 16, 20)) for a in trained}, 8.0),
        "explained_variance": figures.explained_variance({a: explained() for a in encoders}),
        "latent_maps": figures.latent_maps({a: latent_map() for a in encoders}),
        "similarity_matrix": figures.similarity_matrix(
            pd.DataFrame(0.5 + 0.5 * np.eye(len(encoders)), index=encoders, columns=encoders)
        ),
        "cutoff_curves": figures.cutoff_curves(
            {"ad": cutoffs(), "mci": cutoffs()} if arms else {},
            pd.DataFrame([relied("ad", 0.3), relied("mci", np.nan)]),
            {"ad": "AD (phantom)"},
            {"ad": 0.04},
        ),
        "direction_spectra": figures.direction_spectra({"ad": direction(), "mci": direction()} if arms else {}),
        "component_curves": figures.component_curves(
            {t: {a: components() for a in encoders} for t in ("ad", "mci")} if encoders else {}
        ),
        "gains_along_dials": figures.gains_along_dials(gains() if trained else gains()[:0], slopes(), UNITS),
        "dial_levels": figures.dial_levels(levels(encoders), UNITS),
        "measured_dials": figures.measured_dials(measured() if arms else measured()[:0], UNITS),
        "main_effects": figures.main_effects(effects_of() if arms else effects_of()[:0]),
        "interactions": figures.interactions({("rate", "depth"): pair()} if arms else {}),
        "cost_against_quality": figures.cost_against_quality(cells() if arms else cells()[:0], ["rate"]),
        "eigenspectra": figures.eigenspectra({arm: eigenspectrum(arm) for arm in encoders}),
        "rank_measures": figures.rank_measures({arm: measures(arm) for arm in encoders}),
        "roc_curves": figures.roc_curves(
            {"ad": {a: predictions() for a in arms}, "few": {a: predictions(5) for a in arms}}
        ),
        "calibration_curves": figures.calibration_curves({"ad": {arm: predictions() for arm in arms}}),
        "few_shot_curves": figures.few_shot_curves({"ad": {a: shots() for a in arms}} if arms else {}, {"ad": "AD"}),
        "learning_curves": figures.learning_curves(learning(arms), {"ad": "AD"}),
        "forest_plot": figures.forest_plot(results(arms), {"grade": "Tumour grade 2 against 3 and 4 (phantom)"}),
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, Figure]:
    return all_figures(COMPARED)


def test_every_public_figure_is_drawn_here(drawn: dict[str, Figure]) -> None:
    assert set(drawn) == DRAWN


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_axes_name_what_they_show(drawn: dict[str, Figure], name: str, tmp_path: Path) -> None:
    figure = drawn[name]
    figure.savefig(tmp_path / "figure.png")
    for axis in figure.axes:
        if axis.images or not axis.axison:
            continue
        names = {figure.get_supxlabel(), axis.get_xlabel(), axis.get_ylabel()}
        names |= {other.get_xlabel() for other in axis.get_shared_x_axes().get_siblings(axis)}
        assert names - {""}


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("radial_spectra", ["cycles/mm", "z-score² mm³", "−1 to 1"]),
        ("loss_curves", ["volumes seen", "½ z-score²", "mean |Δ latent|", "(ratio)"]),
        ("error_intervals", ["z-score²"]),
        ("eigenspectra", ["share of the variance"]),
        ("cohort_summary", ["age (years)", "subjects"]),
        ("reconstruction_panel", ["z-score"]),
        ("discriminative_spectra", ["cycles/mm", "mm³"]),
        ("roc_curves", ["false positive rate", "true positive rate"]),
        ("calibration_curves", ["predicted probability", "observed share"]),
        ("few_shot_curves", ["labelled subjects a class", "AUROC"]),
        ("learning_curves", ["volumes seen", "AUROC"]),
        ("forest_plot", ["AUROC, 95 % interval over subjects"]),
    ],
)
def test_axes_have_units(drawn: dict[str, Figure], name: str, units: list[str]) -> None:
    texts = [drawn[name].get_supxlabel(), *(t for a in drawn[name].axes for t in (a.get_xlabel(), a.get_ylabel()))]
    assert all(any(unit in text for text in texts) for unit in units)


@pytest.mark.parametrize("arms", [("mae",), ("vcr-jepa",), (CONTROL,), ()])
def test_one_arm_or_none_is_enough(arms: tuple[str, ...], tmp_path: Path) -> None:
    for figure in all_figures(arms).values():
        if isinstance(figure, Words):  # nothing to draw, and no number or caption for that
            assert figure.data.endswith(".")
        else:
            figure.savefig(tmp_path / "figure.png")


@pytest.mark.parametrize("name", ["loss_curves", "heldout_curves", "eigenspectra", "radial_spectra"])
def test_an_arm_has_the_same_colour_everywhere(drawn: dict[str, Figure], name: str) -> None:
    colours = {style.title(arm): style.colour(arm) for arm in COMPARED}
    lines = [line for axis in drawn[name].axes for line in axis.lines if line.get_label() in colours]
    assert lines and all(to_hex(line.get_color()) == colours[line.get_label()].lower() for line in lines)


@pytest.mark.parametrize("arm", EVERY_ARM)
def test_every_term_of_a_loss_has_its_curve(arm: str) -> None:
    config = Study("tiny", progress=False).profile.pretraining(arm, 0).objective
    volumes = torch.randn(2, 1, 32, 32, 32)
    mask = random_mask(1, 64, 0.75).expand(2)
    _, terms = compute_loss(build_model(config), config, volumes, mask, spectral_weight=1.0)
    assert set(terms) <= set(TERMS) and main_term(config) in terms
    table = pd.DataFrame({"volumes": [2.0, 4.0]} | {name: [2.0, 1.0] for name in terms})
    assert {axis.get_ylabel() for axis in figures.loss_curves({arm: table}).axes} >= {TERMS[name] for name in terms}
    note = notes.heldout_note({arm: table.assign(heldout=[2.0, 1.0])}).data
    assert ("JEPA's target" in note) == ("prediction" in terms) and ("collapses: SIGReg" in note) == (arm == "lejepa")


def test_style_knows_every_arm_and_tells_arms_apart() -> None:
    assert {arm: style.TITLES[arm] for arm in EVERY_ARM} == {arm: row.title for arm, row in EVERY_ARM.items()}
    assert (comparison.CONTROL, comparison.RAW_VOXELS) == (CONTROL, "raw-voxels")
    assert set(style.COLOURS) == set(style.MARKERS) == set(style.TITLES) == {*COMPARED, *EVERY_ARM}
    assert len(set(style.COLOURS.values())) == len({*COMPARED, *EVERY_ARM})


def test_slices_are_in_the_neurological_convention(drawn: dict[str, Figure]) -> None:
    axial, coronal, sagittal = (drawn["cohort_montage"].axes[4 * row] for row in range(3))
    for axis, letters in ((axial, "LRPA"), (coronal, "LRIS"), (sagittal, "PAIS")):
        assert "".join(text.get_text() for text in axis.texts)[:4] == letters
        picture, box = np.asarray(axis.images[0].get_array()), axis.images[0].get_extent()
        middle = [n // 2 for n in picture.shape]
        assert axis.images[0].origin == "lower" and box[0] < box[1] and box[2] < box[3]
        assert picture[middle[0], middle[1] + 4] > picture[middle[0], middle[1] - 4]  # right or anterior: brighter
        assert picture[middle[0] + 4, middle[1]] > picture[middle[0] - 4, middle[1]]  # anterior or superior: brighter


def test_each_scan_has_a_panel_in_another_plane() -> None:
    pair = np.stack([examples(), examples()])
    made = figures.reconstruction_panels({"mae": pair, "jepa": pair}, ["one", "two", "three"], GEOMETRY)
    assert [figure.get_suptitle().split(",")[0] for figure in made] == ["one · axial", "two · coronal"]
    assert figures.reconstruction_panels({}, [], GEOMETRY) == []


def test_scale_bar_is_as_long_as_it_says(drawn: dict[str, Figure]) -> None:
    axis = drawn["cohort_montage"].axes[0]
    assert np.ptp(axis.lines[0].get_xdata()) == 50 and axis.texts[-1].get_text() == "50 mm"
    assert np.diff(axis.images[0].get_extent()[:2]) == GEOMETRY.extent[0]


def test_maps_have_a_row_for_each_factor_that_tells_scans_apart(drawn: dict[str, Figure]) -> None:
    encoders = [arm for arm in COMPARED if arm == CONTROL or arm in ARMS]
    labels = [axis.get_ylabel().split("\n")[0] for axis in drawn["latent_maps"].axes]
    assert labels[:: len(encoders)] == ["contrast", "site"]  # there is no diagnosis


def test_levels_of_eight_bits_make_no_steps_in_a_histogram() -> None:
    volume = np.repeat(np.arange(256, dtype=np.float32) / 255, 8).reshape(8, 16, 16)
    density = figures.intensity_histogram(volume[None], ["a"]).axes[0].patches[0].get_data().values
    assert len(density) == 51 and np.allclose(density, 1)


def test_a_map_names_scans_of_which_nothing_is_known() -> None:
    table = latent_map().assign(diagnosis=["", "NC", "AD"] * 20, site=["a", "b", np.nan] * 20)
    axes = figures.latent_maps({"mae": table}).axes
    named = [{text.get_text() for text in axis.get_legend().get_texts()} for axis in axes]
    assert {"unknown", "NC", "AD"} in named and {"unknown", "a", "b"} in named


def pictured_by_slider() -> dict[str, np.ndarray]:
    return {"target": head() * 4 - 1, "mae": head() * 2 - 1, "jepa": np.zeros(GEOMETRY.grid, np.float32)}


@pytest.mark.parametrize(("plane", "letters"), [("axial", "LRPA"), ("coronal", "LRIS"), ("sagittal", "PAIS")])
def test_the_slider_moves_brains_that_stand_the_right_way(plane: str, letters: str) -> None:
    made = figures.cutoff_explorer(pictured_by_slider(), GEOMETRY, heading="scan 1", plane=plane, steps=5).figure
    assert [frame.name for frame in made.frames] == [f"{f:.3f}" for f in np.linspace(0, 1 / 16, 6)[1:]]
    texts = [note.text for note in made.layout.annotations]
    assert [text for text in texts if text in "LRPAIS"] == list(letters) and "50 mm" in texts
    shape = made.layout.shapes[0]
    assert shape.x1 - shape.x0 == 50
    last = made.frames[-1].data[0]
    picture = np.asarray(last.z, dtype=float)
    middle = [n // 2 for n in picture.shape]
    assert last.x[0] < last.x[-1] and last.y[0] < last.y[-1]
    assert picture[middle[0], middle[1] + 4] > picture[middle[0], middle[1] - 4]
    assert picture[middle[0] + 4, middle[1]] > picture[middle[0] - 4, middle[1]]


def test_the_slider_through_slices_stops_at_the_brain_s_ends() -> None:
    made = figures.slice_explorer(pictured_by_slider(), GEOMETRY, heading="scan 1").figure
    inside = np.flatnonzero((head() > 0).any((0, 1)))
    assert len(made.frames) == len(inside) and made.frames[0].name.endswith("mm")
    lowest = np.asarray(made.frames[0].data[0].z)
    np.testing.assert_array_equal(lowest > 0, head()[:, :, inside[0]].T > 0)
    assert isinstance(figures.slice_explorer({}, GEOMETRY), Words)
    fine = figures.slice_explorer({"target": np.ones((4, 4, 90))}, Geometry((4, 4, 90), 2.0)).figure
    assert len(fine.frames) == 32 and (fine.frames[0].name, fine.frames[-1].name) == ("-89 mm", "+89 mm")


def test_a_masked_scan_hides_what_is_not_visible(drawn: dict[str, Figure]) -> None:
    volume = np.ones((8, 8, 8), np.float32)
    figure = figures.masked_scan(volume, np.array([0, 7]), 4, Geometry((8, 8, 8), 4.0), "all ones")
    below = np.ma.masked_invalid(figure.axes[3].images[0].get_array())  # axial, slice 4: tokens (d, h) with w = 1
    assert below.mask.sum() == 64 - 16 and not below.mask[4:, 4:].any()
    assert "2 of 8 tokens seen (25.0%)" in figure.get_suptitle()


def test_the_slider_divides_a_slice_at_the_cut_off() -> None:
    x = np.arange(GEOMETRY.grid[0])
    slow, fast = (np.cos(2 * np.pi * k * x / len(x)) for k in (2, 6))  # 1/64 and 3/64 cycles/mm: cut-offs themselves
    volume = np.broadcast_to((slow + fast)[:, None, None], GEOMETRY.grid)
    made = figures.cutoff_explorer({"target": volume, "mae": volume}, GEOMETRY, steps=4).figure
    for frame, (below, above) in zip(
        made.frames, [(slow, fast), (slow, fast), (slow + fast, None), (slow + fast, None)], strict=True
    ):
        for wave, picture in ((below, frame.data[0]), (below, frame.data[1]), (above, frame.data[2])):
            if wave is not None:
                assert np.corrcoef(np.asarray(picture.z, dtype=float)[3], wave)[0, 1] > 0.99
    lines = [frame.data[-1].x[0] for frame in made.frames]
    np.testing.assert_allclose(lines, np.linspace(0, 1 / 16, 5)[1:])


def test_the_slider_brings_no_script_and_says_what_it_shows_and_is_stamped() -> None:
    figures.stamp("LEAK: <b>one</b> subject")
    try:
        shown = figures.cutoff_explorer(pictured_by_slider(), GEOMETRY, heading="scan 1")._repr_mimebundle_()
    finally:
        figures.stamp("")
    page = shown["text/html"]
    assert "Plotly.newPlot" in page and "<script src" not in page and len(page) < 1_000_000
    assert "LEAK: &lt;b&gt;one" in json.dumps(shown["application/vnd.plotly.v1+json"]) and "MAE" in shown["text/plain"]
    assert isinstance(figures.cutoff_explorer({}, GEOMETRY), Words)


def test_error_table_pairs_scans_and_marks_read_outs() -> None:
    table = comparison.error_table({arm: errors(arm) for arm in ("mae", "jepa")}, draws=500)
    rows = table.set_index(["arm", "baseline"])
    assert rows.loc[("mae", "interpolation"), "high"] < 0 < rows.loc[("jepa", "interpolation"), "low"]
    assert not rows.loc[("mae", ""), "readout"] and rows.loc[("jepa", ""), "readout"]
    text = notes.error_note(table).data
    assert "MAE beats the position mean and the position mean with interpolation;" in text
    assert "JEPA, through a linear read-out, is worse than" in text


def test_resolution_is_counted_from_the_lowest_shell_without_gaps() -> None:
    table = pd.DataFrame({"frequency": [0.01, 0.02, 0.03, 0.04], "coherence_prediction": [0.9, 0.6, 0.4, 0.8]})
    table = table.assign(noise_floor=0.1, power_target=1.0, power_prediction=[1.0, 1.0, 0.5, 0.3])
    row = comparison.resolution_table({"mae": table}, 0.03).iloc[0]
    assert (row["half"], row["floor"], row["power"], round(row["coherence"], 3)) == (0.02, 0.04, 0.4, 0.6)
    assert "MAE 50 mm" in notes.resolution_note(comparison.resolution_table({"mae": table}, 0.03)).data
    flat = table.assign(coherence_prediction=0.0)
    assert "MAE (at no scale)" in notes.resolution_note(comparison.resolution_table({"mae": flat}, 0.03)).data


def test_collapse_is_said_where_it_is() -> None:
    fine = notes.collapse_note({"mae": measures("mae"), "jepa": measures("jepa", 10.0)}).data
    assert fine.startswith("No encoder collapsed. RankMe") and "JEPA 4.0 of 48 (30.0 %)" in fine
    assert notes.collapse_note({"jepa": measures("jepa", 2.5)}).data.startswith("JEPA **collapsed**")
    still = measures("jepa", 10.0).assign(variance_share=0.001)  # many directions, but all of them negligible
    assert notes.collapse_note({"jepa": still}).data.startswith("JEPA **collapsed**")
    assert notes.collapse_note({}).data.startswith("No encoder that is shown here")


def test_adjustment_is_over_the_rows_of_a_protocol() -> None:
    table = comparison.adjusted(results(("mae", "jepa"), ("ad", "mci")))
    assert np.allclose(table["p_holm"], 0.016)
    said = notes.chance_note(table, 399).data
    assert said.startswith("4 of 4 rows are above chance") and "MAE on ad and mci; JEPA on ad and mci" in said
    assert notes.chance_note(table.assign(p_holm=0.2), 399).data.startswith("None of the 4 rows is above chance")
    assert comparison.adjusted(pd.DataFrame()).empty


class FakeRun(SimpleNamespace):
    def table(self, name: str) -> pd.DataFrame:
        return self.predictions


def fake_study(folds: bool) -> SimpleNamespace:
    label = np.arange(80) % 2
    rng, used = np.random.default_rng(1), {}
    for arm, strength in (("random-init", 0.0), ("raw-voxels", 0.5), ("mae", 2.0), ("sl-mae", 2.0)):
        table = pd.DataFrame({"scan_uid": [f"c/{i}" for i in range(80)], "subject_id": range(80), "label": label})
        table["score"] = strength * label + rng.standard_normal(80)
        table = table.assign(fold=np.arange(80) // 2 % 4) if folds else table
        used[f"probe:{arm}:ad"] = FakeRun(
            kind="probe", predictions=table.sample(frac=1, random_state=3), id=f"probe-{arm}"
        )
    evaluation = SimpleNamespace(bootstrap_draws=500)
    return SimpleNamespace(used=used, seed=0, profile=SimpleNamespace(evaluation=evaluation))


CHANCE = pd.DataFrame(
    [
        {"arm": arm, "task": "ad", "protocol": "linear", "metric": "auroc", "estimate": 0.5, "low": 0.4, "high": 0.6}
        for arm in ("random-init", "raw-voxels", "mae", "sl-mae")
    ]
)


@pytest.mark.parametrize("folds", [False, True])
def test_paired_differences_meet_controls_and_plain_forms(folds: bool) -> None:
    table = comparison.paired_differences(fake_study(folds))  # type: ignore[arg-type]
    pairs = set(zip(table["arm"], table["baseline"]))
    assert pairs == {(a, b) for a in ("mae", "sl-mae") for b in ("random-init", "raw-voxels")} | {("sl-mae", "mae")}
    rows = table.set_index(["arm", "baseline"])
    assert rows.loc[("sl-mae", "mae"), "low"] < 0 < rows.loc[("sl-mae", "mae"), "high"]
    assert (table["p_holm"] >= table["p"]).all() and "Holm-adjusted" in verdict.rule(table)
    assert table["p_delong"].isna().all() == folds
    said = verdict.verdicts(pd.concat([CHANCE, table], ignore_index=True))["linear"]
    first = rows.loc[("mae", "random-init")]
    if folds:  # four folds leave three degrees of freedom
        assert first["low"] < 0 < first["estimate"] and "**mae** on ad" not in said.split(";")[0]
    else:
        assert first["low"] > 0 and "better than the untrained encoder: **mae** on ad" in said
    if not folds:
        seen = rows.loc[("sl-mae", "mae"), "detectable"]
        assert f"would have shown a true difference of {seen:.2f} four times in five" in said
        assert (
            notes.earned_note(table).data
            == "Both the untrained encoder and raw voxels are beaten by MAE on ad and SL-MAE on ad."
        )
        half = table.assign(p_holm=table["p_holm"].where(table["baseline"] != "raw-voxels", 0.2))
        assert notes.earned_note(half).data.startswith("No arm beats both")
    blind = pd.concat([CHANCE, table.assign(detectable=1.2, p_holm=1.0)], ignore_index=True)
    assert "could have shown no true difference" in verdict.verdicts(blind)["linear"]
    assert "sees none" in tables.differences_table(blind[blind["baseline"].notna()], {}).to_string()
    assert notes.earned_note(table.iloc[:0]).data.startswith("Nothing was compared")
    shown = tables.differences_table(table, {"ad": "AD (phantom)"})
    assert shown["difference"].iloc[-1] == "SL-MAE − MAE" and "AD (phantom)" in shown.columns
    assert comparison.paired_differences(SimpleNamespace(used={}, seed=0)).empty  # type: ignore[arg-type]


@pytest.mark.parametrize("folds", [2, 3])
def test_small_folds_that_agree_by_chance_decide_nothing(folds: int) -> None:
    """Two subjects a class and fold: AUROCs take few values, so that differences between folds often coincide."""
    sure = []
    for seed in range(120):
        rng, n = np.random.default_rng(seed), 4 * folds
        scans = pd.DataFrame({"scan_uid": range(n), "subject_id": range(n), "label": np.arange(n) % 2})
        scans["fold"] = np.arange(n) // 4
        runs = [FakeRun(kind="probe", predictions=scans.assign(score=rng.standard_normal(n))) for _ in range(2)]
        sure.append(comparison.compare(*runs, draws=200).p < 0.05)  # type: ignore[arg-type]
    assert np.mean(sure) < 0.06


def test_a_metric_without_an_interval_or_a_value_is_a_word_and_not_nan() -> None:
    rows = [
        {"arm": "mae", "task": "ad", "metric": metric, "estimate": estimate, "low": low, "high": low}
        for metric, estimate, low in (
            ("auroc", 0.7, 0.6),
            ("calibration_slope", -4.11, np.nan),
            ("brier", np.nan, np.nan),
        )
    ]
    (shown,) = tables.metrics_table(pd.DataFrame(rows), "ad").to_dict("records")
    assert "[0.60, 0.60]" in shown["AUROC"] and "no interval" in shown["calibration slope"] and shown["Brier"] == "–"


def test_results_table_shows_interval_and_adjusted_p() -> None:
    shown = tables.results_table(comparison.adjusted(results(("mae",), ("ad",))), {"ad": "AD (phantom)"})
    assert shown.loc[0, "AD (phantom)"] == "0.50<br><small>[0.40, 0.60]<br>p = 0.004</small>"


def test_shown_tables_are_the_same_html_each_time() -> None:
    table = results(("mae",), ("ad",))
    assert tables.show(table, "x").to_html() == tables.show(table, "x").to_html()


def test_notes_are_text_for_nothing_too() -> None:
    empty = comparison.error_table({})
    for note in (notes.error_note(empty), notes.explained_note(comparison.explained_table({})), notes.heldout_note({})):
        assert isinstance(note, Markdown) and note.data
    assert isinstance(notes.resolution_note(comparison.resolution_table({}, 0.1)), Markdown)
