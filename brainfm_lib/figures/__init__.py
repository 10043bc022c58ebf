"""Figures of the report. Each function takes tables or arrays; none computes a run.

What comes back is a matplotlib figure, or one of `interactive` where a slider helps.
"""

from brainfm_lib.figures.brains import (
    cohort_montage,
    component_view,
    masked_scan,
    reconstruction_panel,
    reconstruction_panels,
)
from brainfm_lib.figures.cohorts import cohort_summary, discriminative_spectra, intensity_histogram, split_counts
from brainfm_lib.figures.interactive import cutoff_explorer, slice_explorer
from brainfm_lib.figures.latents import eigenspectra, explained_variance, latent_maps, rank_measures, similarity_matrix
from brainfm_lib.figures.probes import calibration_curves, few_shot_curves, forest_plot, learning_curves, roc_curves
from brainfm_lib.figures.reconstruction import error_intervals, explained_latents
from brainfm_lib.figures.spectra import (
    coherence_progress,
    errors_by_place,
    loss_view,
    phase_errors,
    radial_spectra,
    slice_spectra,
)
from brainfm_lib.figures.structure import (
    component_curves,
    cutoff_curves,
    dial_levels,
    direction_spectra,
    gains_along_dials,
    measured_dials,
)
from brainfm_lib.figures.style import stamp
from brainfm_lib.figures.sweeps import cost_against_quality, interactions, main_effects
from brainfm_lib.figures.training import heldout_curves, loss_curves

__all__ = [
    "calibration_curves",
    "coherence_progress",
    "cohort_montage",
    "cohort_summary",
    "component_curves",
    "component_view",
    "cost_against_quality",
    "cutoff_curves",
    "cutoff_explorer",
    "dial_levels",
    "direction_spectra",
    "discriminative_spectra",
    "eigenspectra",
    "error_intervals",
    "errors_by_place",
    "explained_latents",
    "explained_variance",
    "few_shot_curves",
    "forest_plot",
    "gains_along_dials",
    "heldout_curves",
    "intensity_histogram",
    "interactions",
    "latent_maps",
    "learning_curves",
    "loss_curves",
    "loss_view",
    "main_effects",
    "masked_scan",
    "measured_dials",
    "phase_errors",
    "radial_spectra",
    "rank_measures",
    "reconstruction_panel",
    "reconstruction_panels",
    "roc_curves",
    "similarity_matrix",
    "slice_explorer",
    "slice_spectra",
    "split_counts",
    "stamp",
]
