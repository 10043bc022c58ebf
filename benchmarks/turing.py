"""Phantoms beside real scans: pictures to judge by eye, and how far spectra, intensities and sizes are apart.

    python benchmarks/turing.py FOLDER --sheet turing.png > book/measured/turing.txt

FOLDER holds skull-stripped scans in BIDS folders, with the endings of `ENDINGS`. Real scans and phantoms are brought to
the same grid and intensities. No picture of a person is written unless --sheet names a file, and none belongs into the
repository. A shell of frequencies is inside where the phantoms' median lies between the lowest and the highest real
scan; with under `ENOUGH` real scans that says nothing and is left out.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import wasserstein_distance

from brainfm_lib.analysis.spectrum import radial_power
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.ingest import prepare_volume
from brainfm_lib.data.phantom import PhantomSpec, describe, render
from brainfm_lib.data.settings import IngestSettings
from brainfm_lib.errors import RefusedScan

GRID = Geometry((96, 96, 96), 2.0)
ENDINGS = {"T1w": "_T1w.nii.gz", "T2w": "_T2w.nii.gz", "FLAIR": "_FLAIR.nii.gz", "T1c": "_ce-gd_T1w.nii.gz"}
PHANTOMS = 30  # of each contrast
ENOUGH = 10


def real_volumes(folders: list[Path], contrast: str) -> np.ndarray:
    """(N, D, H, W) of every scan of a contrast that can be prepared."""
    made = []
    for path in sorted(path for folder in folders for path in folder.rglob(f"*{ENDINGS[contrast]}")):
        if ("_ce-" in path.name) != (contrast == "T1c"):
            continue
        try:
            made.append(prepare_volume(path, GRID, IngestSettings(brain="already"))[0])
        except RefusedScan:
            continue
    return np.stack(made)


def phantom_volumes(contrast: str) -> np.ndarray:
    """(N, D, H, W) of healthy phantoms of all ages."""
    spec = PhantomSpec(
        seed=77, subjects=PHANTOMS, conditions=(("NC", 0.5), ("control", 0.5)), contrasts=(contrast,), sites=10
    )
    return render(spec, describe(spec), GRID).numpy()


def normalised_power(volumes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies, and (N, bins) log10 of the power over the variance inside the brain."""
    frequencies, power = radial_power(volumes, GRID.spacing)
    scale = np.array([volume[volume > 0].var() for volume in volumes])[:, None]
    return frequencies, np.log10(power / scale)


def rows(real: dict[str, np.ndarray], phantoms: dict[str, np.ndarray]) -> Iterator[dict[str, object]]:
    """How far apart, a row a contrast."""
    for contrast, volumes in real.items():
        others = phantoms[contrast]
        _, theirs = normalised_power(volumes)
        _, ours = normalised_power(others)
        middle = np.median(ours, axis=0)
        inside = (middle >= theirs.min(0)) & (middle <= theirs.max(0))
        litres = [(v > 0).sum((1, 2, 3)) * GRID.spacing**3 / 1e6 for v in (volumes, others)]
        quantiles = [np.quantile(v[v > 0], np.linspace(0, 1, 200)) for v in (volumes, others)]
        within = [np.quantile(v[v > 0], np.linspace(0, 1, 200)) for v in volumes]
        pairs = [wasserstein_distance(a, b) for i, a in enumerate(within) for b in within[:i]]
        yield {
            "contrast": contrast,
            "real": len(volumes),
            "phantoms": len(others),
            "shells inside the real range": f"{inside.mean():.0%}" if len(volumes) >= ENOUGH else "–",
            "largest distance of log10 power": f"{np.abs(middle - np.median(theirs, 0)).max():.2f}",
            "distance of intensities (between real scans)": f"{wasserstein_distance(*quantiles):.3f} "
            f"({np.median(pairs):.3f})",
            "brain, litres (real)": f"{np.median(litres[1]):.2f} ({np.median(litres[0]):.2f})",
        }


def sheet(real: dict[str, np.ndarray], phantoms: dict[str, np.ndarray], path: Path) -> None:
    """Real and phantom volumes side by side in three planes, and below them spectra and intensities."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2 * len(real), 8, figsize=(20, 5.2 * len(real)), layout="constrained")
    for row, contrast in enumerate(real):
        for side, volumes in enumerate((real[contrast], phantoms[contrast])):
            shown = [volumes[i % len(volumes)] for i in range(2)]
            pictures = [np.take(v, GRID.grid[a] // 2 + (3 if a == 2 else 0), a).T for v in shown for a in (2, 1, 0)]
            for axis, picture in zip(axes[2 * row + side], pictures):
                axis.imshow(picture, cmap="gray", origin="lower", vmin=0, vmax=1)
                axis.set_axis_off()
            axes[2 * row + side, 0].set_title(f"{contrast}, {'phantom' if side else 'real'}")
            frequencies, power = normalised_power(volumes)
            for both in (0, 1):
                axis = axes[2 * row + both, 6]
                axis.plot(frequencies, power.T, color="C1" if side else "C0", lw=0.5, alpha=0.5)
                axis.set(xlabel="cycles/mm", ylabel="log10 power / variance")
                axis = axes[2 * row + both, 7]
                axis.hist(volumes[volumes > 0], bins=80, density=True, histtype="step", color="C1" if side else "C0")
                axis.set(xlabel="stored intensity (phantom orange)")
    figure.savefig(path, dpi=70)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--sheet", type=Path)
    arguments = parser.parse_args()
    real = {contrast: real_volumes(arguments.folders, contrast) for contrast in ENDINGS}
    phantoms = {contrast: phantom_volumes(contrast) for contrast in real}
    print(pd.DataFrame(rows(real, phantoms)).to_markdown(index=False))
    print(f"\nMade by `benchmarks/turing.py`, which says how; {GRID.grid[0]}³ voxels of {GRID.spacing:g} mm.")
    if arguments.sheet:
        sheet(real, phantoms, arguments.sheet)


if __name__ == "__main__":
    main()
