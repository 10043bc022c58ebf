"""Whether intervals cover and tests hold their size, over thousands of simulated studies whose truth is known.

    python benchmarks/interval_coverage.py > benchmarks/interval_coverage.md

Each study has subjects with several correlated scans (intraclass correlation 0.5) and Gaussian scores, so that the
AUROC over subjects is known in closed form. Intervals are nominally 95 %; tests are done at 5 % where there is no
difference.
"""

import argparse
import time

import numpy as np
from scipy.stats import norm

from brainfm_lib.stats import (
    auroc_interval,
    cv_auroc_interval,
    delong,
    nadeau_bengio,
    paired_auroc_difference,
    permutation_p,
)

ICC = 0.5
DRAWS = 1000


def study(rng: np.random.Generator, n: int, prevalence: float, scans: int, effect: float) -> tuple[np.ndarray, ...]:
    """Labels, scores and subjects (n * scans,) of one study."""
    subjects = np.repeat(np.arange(n), scans)
    labels = (np.arange(n) < round(prevalence * n)).astype(int)[subjects]
    own = np.sqrt(ICC) * rng.standard_normal(n)[subjects]
    return labels, own + np.sqrt(1 - ICC) * rng.standard_normal(n * scans) + effect * labels, subjects


def reached(hits: np.ndarray) -> str:
    """A share in per cent with its own standard error."""
    share = hits.mean()
    return f"{100 * share:.1f} ± {100 * np.sqrt(share * (1 - share) / len(hits)):.1f} %"


def coverage(n: int, prevalence: float, scans: int, auroc: float, folds: int, studies: int) -> np.ndarray:
    """Whether each interval holds the truth: of one test set, or of an average over folds."""
    effect = norm.ppf(auroc) * np.sqrt(2 * (ICC + (1 - ICC) / scans))
    hits = []
    for seed in range(studies):
        labels, scores, subjects = study(np.random.default_rng([1, seed]), n, prevalence, scans, effect)
        if folds > 1:
            of_subject = np.empty(n, int)
            for c in (0, 1):
                members = np.flatnonzero(labels[::scans] == c)
                of_subject[members] = np.arange(len(members)) % folds
            found = cv_auroc_interval(labels, scores, subjects, of_subject[subjects], draws=DRAWS, seed=seed)
        else:
            found = auroc_interval(labels, scores, subjects, draws=DRAWS, seed=seed)
        hits.append(found.low <= auroc <= found.high)
    return np.array(hits)


def rejections(n: int, prevalence: float, scans: int, test: str, studies: int) -> np.ndarray:
    """Whether each test of two equally good scores, or of one without signal, says p < 0.05."""
    hits = []
    for seed in range(studies):
        rng = np.random.default_rng([2, seed])
        labels, scores, subjects = study(rng, n, prevalence, scans, 0.0 if test == "permutation" else 1.0)
        if test == "permutation":
            p = permutation_p(labels, scores, subjects, draws=DRAWS, seed=seed)
        else:
            noise = 0.7 * rng.standard_normal((2, n))[:, subjects]
            a, b = scores + noise[0], scores + noise[1]
            if test == "DeLong":
                p = delong(labels, a, b, subjects).p
            else:
                p = paired_auroc_difference(labels, a, b, subjects, draws=DRAWS, seed=seed).p
        hits.append(p < 0.05)
    return np.array(hits)


def splits(studies: int) -> np.ndarray:
    """Nadeau and Bengio's test over ten random splits, of two features that are equally good (nearest mean)."""
    hits = []
    for seed in range(studies):
        rng = np.random.default_rng([3, seed])
        n, test_share = 100, 0.3
        labels = np.arange(n) % 2
        x = rng.standard_normal((2, n)) + labels  # two methods, one feature each
        differences = []
        for _ in range(10):
            order = rng.permutation(n)
            test, train = order[: int(test_share * n)], order[int(test_share * n) :]
            right = []
            for feature in x:
                means = [feature[train][labels[train] == c].mean() for c in (0, 1)]
                said = np.abs(feature[test] - means[1]) < np.abs(feature[test] - means[0])
                right.append((said == labels[test]).mean())
            differences.append(right[0] - right[1])
        hits.append(nadeau_bengio(np.array(differences), test_share).p < 0.05)
    return np.array(hits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    studies, started = parser.parse_args().studies, time.perf_counter()
    print(
        f"# Coverage and size over {studies:,} simulated studies\n\n"
        "Made by `benchmarks/interval_coverage.py`, which says how.\n"
    )
    print(
        "| subjects | cases | scans each | AUROC | folds | 95 % intervals that hold it |\n" + "|---:" * 6 + "|",
        flush=True,
    )
    for n, prevalence, scans, area, folds in (
        (40, 0.5, 3, 0.75, 1),
        (100, 0.5, 2, 0.75, 1),
        (100, 0.2, 2, 0.75, 1),
        (300, 0.3, 2, 0.65, 1),
        (60, 0.1, 2, 0.75, 1),
        (12, 0.5, 2, 0.75, 1),
        (60, 0.1, 2, 0.9, 1),
        (40, 0.4, 2, 0.95, 1),
        (300, 0.3, 2, 0.95, 1),
        (28, 0.4, 1, 0.75, 5),
        (100, 0.3, 2, 0.75, 5),
    ):
        found = reached(coverage(n, prevalence, scans, area, folds, studies))
        print(f"| {n} | {prevalence:.0%} | {scans} | {area} | {folds} | {found} |", flush=True)
    print("\n| test | subjects | cases | p < 0.05 where nothing is there |\n|---|---:|---:|---:|", flush=True)
    for test, n, prevalence in (
        ("paired bootstrap", 100, 0.5),
        ("paired bootstrap", 300, 0.3),
        ("paired bootstrap", 60, 0.1),
        ("paired bootstrap", 24, 0.25),
        ("DeLong", 100, 0.5),
        ("DeLong", 300, 0.3),
        ("DeLong", 60, 0.2),
        ("permutation", 60, 0.4),
    ):
        print(
            f"| {test} | {n} | {prevalence:.0%} | {reached(rejections(n, prevalence, 2, test, studies))} |", flush=True
        )
    print(f"| Nadeau and Bengio, 10 splits | 100 | 50% | {reached(splits(studies))} |")
    print(f"\n{(time.perf_counter() - started) / 60:.1f} minutes.")


if __name__ == "__main__":
    main()
