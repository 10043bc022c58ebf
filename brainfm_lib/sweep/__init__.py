"""Sweeps: one notebook under many configurations, resumable, in parallel, with one tidy table at the end."""
