"""Figures with controls where a person is at the keyboard; as they stand, in the book and under papermill.

Each function gives one thing to look at. In a live kernel it has sliders and buttons (ipywidgets); elsewhere it is the
figure under the controls' first values, or one with a slider of its own (`figures.interactive`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from IPython.core.getipython import get_ipython

from brainfm_lib import figures
from brainfm_lib.analysis.spectrum import low_pass
from brainfm_lib.config import LIVE, SHIPPED
from brainfm_lib.data.augment import zscore
from brainfm_lib.figures.style import title
from brainfm_lib.findings import comparison
from brainfm_lib.losses.spectral import MODES, spectral_loss
from brainfm_lib.masking import MaskConfig
from brainfm_lib.models import VisionTransformer3d
from brainfm_lib.tokens import patch_grid
from brainfm_lib.words import Words

if TYPE_CHECKING:
    from ipywidgets import Widget

    from brainfm_lib.data.geometry import Geometry
    from brainfm_lib.runs import Run
    from brainfm_lib.study import Study

EXTREMES = 2  # volumes shown at either end of a component
COMPONENTS = 8  # to choose among
MASKS = ("random", "block", "replica")
WORK = """
import json, sys
from brainfm_lib.study import Study
try:
    Study(**json.loads(sys.argv[1])).run(f"pretrain:{sys.argv[2]}")
except KeyboardInterrupt:
    sys.exit(130)
"""


def live() -> bool:
    """Whether a person is at this kernel: a front end says that it can be asked for input, papermill that it cannot."""
    return bool(getattr(getattr(get_ipython(), "kernel", None), "_allow_stdin", False))


def explore(draw: Callable[..., Any], **controls: Any) -> Any:
    """What `draw` returns, with controls for its arguments where somebody can turn them.

    Args:
        draw: Arguments with defaults -> something to display.
        controls: Argument -> what it may be, as ``ipywidgets.interact`` takes it: a list, or (least, most, step).
    """
    if not live():
        return draw()
    from ipywidgets import interactive

    shown = interactive(draw, {"auto_display": True}, **controls)
    for control in shown.children[:-1]:
        control.continuous_update = False
    shown.update()
    return shown


def mask_explorer(study: Study) -> Any:
    """A held-out scan, and of it what an encoder sees: kind and share of hidden tokens, and the draw."""
    volumes, scans = study.pretraining_volumes(1, 1)
    volume, size = volumes.read([0])[0], study.profile.encoder.patch_size
    grid, mask = patch_grid((1, 1, *volume.shape), size), study.profile.mask

    def draw(kind: str = mask.kind, ratio: float = mask.ratio, seed: int = 0) -> Any:
        drawn = MaskConfig(ratio, kind).draw(1, grid, torch.Generator().manual_seed(seed), torch.device("cpu"))
        heading = f"{scans['contrast'].iloc[0]}, {kind} mask"
        return figures.masked_scan(volume, drawn.visible[0].numpy(), size, study.profile.geometry, heading)

    return explore(draw, kind=list(MASKS), ratio=(0.05, 0.95, 0.05), seed=(0, 20, 1))


def scan_explorer(study: Study, reconstructions: Mapping[str, Run], names: Sequence[str]) -> Any:
    """A held-out scan and what each arm makes of it, slice by slice; live also in other planes, and other scans.

    A page never holds a whole scan of a person, from which a face might be made: there a sentence stands instead.

    Args:
        study: Whose scans.
        reconstructions: Arm -> run of `reconstruction`.
        names: What the pictured scans are.
    """
    geometry = study.profile.geometry
    if not reconstructions:
        return figures.slice_explorer({}, geometry)
    if not live() and any(study.manifest.cohorts[name].kind != "phantom" for name in study.pretraining_cohorts):
        return Words("Scans of people are not put into a page whole: open the notebook to see them slice by slice.")
    examples = {arm: run.array("examples") for arm, run in reconstructions.items()}
    count = min(len(array) for array in examples.values())
    if not live():
        first = next(iter(examples.values()))
        shown = {"target": first[0, 0], **{arm: array[0, 2] for arm, array in examples.items()}}
        return figures.slice_explorer(shown, geometry, heading=names[0])
    middle = geometry.grid[2] // 2

    def draw(scan: int = 0, arm: str = next(iter(examples)), plane: str = "axial", slice: int = middle) -> Any:
        return figures.reconstruction_panel({arm: examples[arm][scan]}, geometry, names[scan], plane, slice)

    planes = ["axial", "coronal", "sagittal"]
    most = max(geometry.grid) - 1
    return explore(draw, scan=(0, count - 1, 1), arm=list(examples), plane=planes, slice=(0, most, 1))


def loss_explorer(reconstructions: Mapping[str, Run], geometry: Geometry, *, high_pass: float) -> Any:
    """What the spectral loss sees of an arm's filled-in scan: what is left above the cut-off, and the loss in a mode.

    Args:
        reconstructions: Arm -> run of `reconstruction`.
        geometry: Of the volumes.
        high_pass: ρ at first, see `losses.spectral.SpectralConfig`.
    """
    if not reconstructions:
        return figures.loss_view({}, geometry, 0.0, "")
    examples = {arm: run.array("examples")[0].astype(np.float32) for arm, run in reconstructions.items()}
    largest = float(np.sqrt(3)) / (2 * geometry.spacing)  # cycles/mm, in the corner of the grid

    def draw(high_pass: float = high_pass, mode: str = "logmag", arm: str = next(iter(examples))) -> Any:
        pair = {"target": examples[arm][0], arm: examples[arm][2]}
        above = {name: v - low_pass(v[None], geometry.spacing, high_pass * largest)[0] for name, v in pair.items()}
        filled, target = (torch.from_numpy(pair[name])[None, None] for name in (arm, "target"))
        value = float(spectral_loss(filled, target, high_pass=high_pass, mode=mode))
        return figures.loss_view(above, geometry, value, f"{mode}, ρ = {high_pass:.2f}")

    return explore(draw, high_pass=(0.0, 0.7, 0.05), mode=list(MODES), arm=list(examples))


def latent_explorer(study: Study, arms: Sequence[str]) -> Any:
    """Held-out scans at either end of a principal component of pooled features, and which patches place them there.

    A pooled feature is the mean of tokens, so a component's score is the mean of what each token gives to it.

    Args:
        study: Whose encoders.
        arms: To choose among.
    """
    volumes, scans = study.pretraining_volumes(1, study.profile.evaluation.latent_volumes)
    geometry = study.profile.geometry

    def draw(arm: str = arms[0], component: int = 1) -> Any:
        pooled = study.run(f"latents:{arm}").array("pooled").astype(np.float64)
        mean = pooled.mean(0)
        direction = np.linalg.svd(pooled - mean, full_matrices=False)[2][component - 1]
        scores = (pooled - mean) @ direction
        order = scores.argsort()
        chosen = [*order[:EXTREMES].tolist(), *order[-EXTREMES:].tolist()]
        encoder = VisionTransformer3d.from_pretrained(study.run(f"pretrain:{arm}").path / "encoder").eval()
        read = volumes.read(chosen)
        with torch.inference_mode():
            tokens = encoder(zscore(torch.from_numpy(read).float().unsqueeze(1))).double().numpy()
        names = [f"{scans['contrast'].iloc[row]}, {scores[row]:+.2f}" for row in chosen]
        given, heading = (tokens - mean) @ direction, f"{title(arm)}, component {component}"
        return figures.component_view(read, given, encoder.config.patch_size, names, geometry, heading)

    return explore(draw, arm=list(arms), component=(1, min(COMPONENTS, len(scans)), 1))


def cohort_browser(study: Study) -> Any:
    """Scans of a cohort one by one in three planes; live with what is known of each (never an identifier)."""
    names = list(study.cohorts_in_use)
    counts = {name: len(study.cohort(name).scans) for name in names}

    def draw(cohort: str = names[0], scan: int = 0) -> Any:
        row = min(scan, counts[cohort] - 1)
        known = study.cohort(cohort).scans.iloc[row]
        words = [str(known["contrast"])]
        if live():  # on a page that others read, what is known of one person stays out
            words += [str(known[name]) for name in ("site", "sex") if str(known.get(name, ""))]
            words += [] if np.isnan(known.get("age", np.nan)) else [f"{known['age']:.0f} years"]
        volume = study.some_volumes(cohort, [row]).read([0])
        return figures.cohort_montage(volume, [", ".join(words)], study.profile.geometry)

    return explore(draw, cohort=names, scan=(0, max(counts.values()) - 1, 1))


def run_launcher(study: Study) -> Any:
    """Pretraining of an arm, with a button to stop it; the first one goes on again. Elsewhere: the command to type.

    The work is done by a process of its own, so that the kernel stays free; what is made is found by the notebook's
    cells afterwards. Of encoders that ship there is nothing to train: the profile is `LIVE` then.
    """
    ships = study.profile_name == SHIPPED and comparison.came_along(study)
    profile, overrides = (LIVE, {}) if ships else (study.profile_name, study.overrides)
    if not live():
        words = f"brainfm pretrain --profile {profile} --seed {study.seed} --objective"
        return Words("\n".join(["```shell", *(f"{words} {arm}" for arm in study.arms), "```"]))
    asked = {"profile": profile, "manifest": str(study.manifest.path), "seed": study.seed, "overrides": overrides}
    return Launcher([sys.executable, "-c", WORK, json.dumps({**asked, "retrain": study.retrain})], study.arms).box


class Launcher:
    """A process that is started, watched and stopped by buttons.

    Args:
        command: What to start; the arm is added.
        arms: To choose among.

    Attributes:
        box: What to display.
    """

    def __init__(self, command: Sequence[str], arms: Sequence[str]) -> None:
        import ipywidgets

        self.command = list(command)
        self.process: subprocess.Popen[str] | None = None
        self.arm = ipywidgets.Dropdown(options=list(arms), description="arm")
        self.start = ipywidgets.Button(description="pretrain", icon="play")
        self.stop = ipywidgets.Button(description="stop", icon="stop", disabled=True)
        self.said = ipywidgets.HTML()
        self.start.on_click(lambda _: self.begin())
        self.stop.on_click(lambda _: self.end())
        row = ipywidgets.HBox([self.arm, self.start, self.stop])
        self.box: Widget = ipywidgets.VBox([row, self.said])

    def begin(self) -> None:
        """Start it, unless it runs."""
        if self.process is not None and self.process.poll() is None:
            return
        self.start.disabled, self.stop.disabled = True, False
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [*self.command, self.arm.value],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )
        threading.Thread(target=self._watch, args=(self.process,), daemon=True).start()

    def end(self) -> None:
        """Ask it to stop: it keeps its checkpoint."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)

    def _watch(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in iter(process.stdout.readline, ""):
            if line.strip():
                self.said.value = f"<code>{escape(line.strip()[-160:])}</code>"
        code = process.wait()
        ended = {0: "finished", 130: "stopped; press pretrain to go on"}.get(code, f"ended with status {code}")
        self.said.value += f" {ended}"
        self.start.disabled, self.stop.disabled = False, True
