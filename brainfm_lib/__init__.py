"""Masked and predictive self-supervised pretraining on 3D brain MRI: a small library under an executable book."""

import os

# Threads that wait for each other sleep soon. While they spin, which is what GNU OpenMP does by default, two programs
# on one machine take each other's cores: together they ran at a third of the speed of one. torch reads it on loading.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
