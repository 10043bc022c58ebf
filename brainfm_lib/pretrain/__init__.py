"""Pretraining: what a run is made of, the loop, and what keeps it exact, fast and resumable."""
