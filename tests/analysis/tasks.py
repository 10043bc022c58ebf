"""Small labelled sets for tests of task structure."""

import numpy as np
import pandas as pd


def table_of(labels: np.ndarray) -> pd.DataFrame:
    n = len(labels)
    split = np.array(["train", "train", "val", "test", "test"])[np.arange(n) // 2 % 5]
    names = [f"s{i}" for i in range(n)]
    return pd.DataFrame({"scan_uid": names, "subject_id": names, "label": labels, "split": split})


def features_with(directions: int, n: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of 40 directions of falling variance, the first `directions` of which carry equal parts of the label."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    x = rng.standard_normal((n, 40))
    x[:, :directions] += (labels * 2 - 1)[:, None] / np.sqrt(directions)
    rotation = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    return (x * np.geomspace(1e4, 1, 40)) @ rotation, labels
