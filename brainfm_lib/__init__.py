"""Masked and predictive self-supervised pretraining on 3D brain MRI: a small library under an executable book."""

import os

# Threads that wait for each other sleep soon. While they spin, which is what GNU OpenMP does by default, two programs on
# one machine take each other's cores: each ran at a tenth of its speed. It is read when torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
