"""Sentences under the report's figures. Each is chosen by the numbers, so that none can turn false after a re-run."""

from brainfm_lib.notes.analyses import LEVEL, collapse_note, error_note, explained_note, resolution_note
from brainfm_lib.notes.causal import causal_note, causal_units, levels_said, ordering_note, primary_verdicts
from brainfm_lib.notes.judged import chance_note, cnn_note, delong_note, earned_note, headline
from brainfm_lib.notes.study import skipped_note, study_note
from brainfm_lib.notes.training import heldout_note, live_note, matched_note, trials_note

__all__ = [
    "LEVEL",
    "causal_note",
    "causal_units",
    "chance_note",
    "cnn_note",
    "collapse_note",
    "delong_note",
    "earned_note",
    "error_note",
    "explained_note",
    "headline",
    "heldout_note",
    "levels_said",
    "live_note",
    "matched_note",
    "ordering_note",
    "primary_verdicts",
    "resolution_note",
    "skipped_note",
    "study_note",
    "trials_note",
]
