"""What features, or an encoder, know of a task: protocols of the comparison, all scored on held-out subjects."""

from brainfm_lib.probes.linear import linear_probe, make_probe, refit_p
from brainfm_lib.probes.results import ProbeResult, evaluate

__all__ = ["ProbeResult", "evaluate", "linear_probe", "make_probe", "refit_p"]
