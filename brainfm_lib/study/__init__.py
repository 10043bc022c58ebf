"""A study and the runs that it can be asked for."""

from brainfm_lib.study.study import FLAT_NAMES, Study

__all__ = ["FLAT_NAMES", "Study"]
