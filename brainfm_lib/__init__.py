"""Masked and predictive self-supervised pretraining on 3D brain MRI: a small library under an executable book."""

__version__ = "0.1.0"
