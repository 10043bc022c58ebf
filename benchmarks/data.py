"""Preparing, reading and augmenting volumes, side by side with MONAI, and finding duplicates.

    python benchmarks/data.py > benchmarks/data.md
    python benchmarks/data.py --scans FOLDER     # real .nii.gz files instead of simulated ones

Prepare: from .nii.gz files to 96³ volumes on disk, by two workers each. MONAI: LoadImage, Orientation, Spacing,
CropForeground, ScaleIntensityRangePercentiles, Resize (as in its tutorials) behind a PersistentDataset, which writes
what it makes, read by a DataLoader with two processes. Ours: `open_volumes`, digests of the files included. Rivals
take turns; the figure is the median of the ratio within a round. Read: batches of prepared 96³ volumes from both
stores, page cache warm. Augment: one batch of 16 volumes of 96³ on this CPU, the same operations with the same
probabilities: ours on the whole batch, MONAI's random transforms volume by volume.
"""

import argparse
import platform
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from brainfm_lib.data.augment import AugmentConfig, augment, draw_augmentation
from brainfm_lib.data.cohort import describe_cohort
from brainfm_lib.data.fingerprint import near_pairs
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.manifest import load_manifest
from brainfm_lib.data.storage import as_float, as_stored
from brainfm_lib.data.store import Volumes, open_volumes

GRID = Geometry((96, 96, 96), 2.0)
UINT8 = Geometry((96, 96, 96), 2.0, "uint8")


def simulated_scans(folder: Path, count: int) -> list[Path]:
    """Whole noisy heads, 160 x 192 x 192 voxels of 1 x 1.2 x 1.2 mm, int16 .nii.gz, each in its own orientation."""
    from scipy.ndimage import gaussian_filter

    paths = []
    axes = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in (160, 192, 192)], indexing="ij")
    inside = sum((a / 0.75) ** 2 for a in axes) < 1
    for number in range(count):
        rng = np.random.default_rng(number)
        texture = gaussian_filter(rng.standard_normal(inside.shape, dtype=np.float32), 2)
        data = np.where(inside, 600 + 1500 * texture, 0) + np.abs(12 * rng.standard_normal(inside.shape, np.float32))
        image = nib.Nifti1Image(data.astype(np.int16), np.diag([1, 1.2, 1.2, 1]))
        order = rng.permutation(3)
        turn = np.stack([order, rng.choice([-1, 1], 3)], axis=1)
        paths.append(folder / f"{number:03d}.nii.gz")
        image.as_reoriented(turn).to_filename(paths[-1])
    return paths


def ours(paths: list[Path], work: Path, geometry: Geometry = GRID) -> Volumes:
    """Prepare into an empty store."""
    import os

    rows = "\n".join(f"{path},{path.name}" for path in paths)
    (work / "scans.csv").write_text(f"path,subject_id\n{rows}\n")
    (work / "m.yaml").write_text("version: 1\ncohorts:\n  c: {kind: table, table: scans.csv, contrast: T1w}\n")
    os.environ["BRAINFM_STORE"] = str(work / "store")
    cohort = describe_cohort(load_manifest(work / "m.yaml"), "c")
    return open_volumes(cohort, geometry, progress=False, on_error="report")


def monai_dataset(paths: list[Path], cache: Path):
    """The same work as a MONAI pipeline behind a PersistentDataset."""
    from monai.data import PersistentDataset
    from monai.transforms import (
        Compose,
        CropForeground,
        LoadImage,
        Orientation,
        Resize,
        ScaleIntensityRangePercentiles,
        Spacing,
    )

    pipeline = Compose(
        [
            LoadImage(image_only=True, ensure_channel_first=True),
            Orientation(axcodes="RAS", labels=None),
            Spacing(pixdim=(GRID.spacing,) * 3, mode="bilinear"),
            CropForeground(),
            ScaleIntensityRangePercentiles(1, 99, 0, 1, clip=True),
            Resize(GRID.grid),
        ]
    )
    return PersistentDataset([str(path) for path in paths], pipeline, cache_dir=cache)


def same(batch: list) -> list:
    """Leave a batch as it is."""
    return batch


def monai_prepare(paths: list[Path], cache: Path) -> None:
    """Run through the data set once, by two processes."""
    from torch.utils.data import DataLoader

    loader = DataLoader(monai_dataset(paths, cache), batch_size=2, num_workers=2, collate_fn=same)
    for _ in loader:
        pass


def monai_augment(config: AugmentConfig) -> Callable[[torch.Tensor], torch.Tensor]:
    """MONAI's transforms with our probabilities, applied volume by volume."""
    from monai.transforms import (
        Compose,
        OneOf,
        RandAdjustContrast,
        RandAffine,
        RandFlip,
        RandGaussianNoise,
        RandGaussianSmooth,
    )

    angle, scale = float(np.radians(config.max_angle)), config.max_scale
    blur = (0.0, config.max_blur)
    space = OneOf(
        [
            RandAffine(
                prob=1.0, rotate_range=(angle,) * 3, scale_range=(scale,) * 3, mode="bilinear", padding_mode="zeros"
            ),
            RandFlip(prob=1.0, spatial_axis=0),
            lambda volume: volume,
        ],
        weights=[config.affine, config.flip, 1 - config.affine - config.flip],
    )
    value = OneOf(
        [
            RandAdjustContrast(prob=1.0, gamma=(1 - config.max_gamma, 1 + config.max_gamma)),
            RandGaussianNoise(prob=1.0, std=config.noise_std),
            RandGaussianSmooth(prob=1.0, sigma_x=blur, sigma_y=blur, sigma_z=blur),
            lambda volume: volume,
        ],
        weights=[config.gamma, config.noise, config.blur, 1 - config.gamma - config.noise - config.blur],
    )
    both = Compose([space, value])
    return lambda batch: torch.stack([torch.as_tensor(both(volume)) for volume in batch])


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def read_batches(volumes: Volumes, rows: np.ndarray) -> None:
    """Batches of 16, each let go before the next, as in training."""
    for start in range(0, len(rows), 16):
        volumes[rows[start : start + 16]]


def read_singly(dataset, rows: np.ndarray) -> None:
    """One after the other, each let go before the next."""
    for row in rows:
        dataset[int(row)]


def report(name: str, count: int, mine: list[float], theirs: list[float]) -> None:
    """One row: volumes per second and the ratio within a round."""
    ratios = sorted(t / m for m, t in zip(mine, theirs))
    low, middle, high = (float(np.quantile(ratios, q)) for q in (0.25, 0.5, 0.75))
    print(
        f"| {name} | {count / statistics.median(mine):,.1f} | {count / statistics.median(theirs):,.1f} "
        f"| {middle:.2f} ({low:.2f} to {high:.2f}) |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=Path, help="folder of .nii.gz files")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    print("# Data, side by side\n")
    print(
        f"Made by `benchmarks/data.py`, which says how; {platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}; {arguments.rounds} rounds of preparing, more of what is quick.\n"
    )
    print("| what | ours, volumes/s | MONAI, volumes/s | ours ÷ MONAI |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "scans").mkdir()
        paths = (
            sorted(arguments.scans.rglob("*.nii.gz"))[: arguments.count]
            if arguments.scans
            else simulated_scans(work / "scans", arguments.count)
        )
        mine, theirs = [], []
        for _ in range(arguments.rounds + 1):  # the first warms up
            shutil.rmtree(work / "store", ignore_errors=True)
            shutil.rmtree(work / "cache", ignore_errors=True)
            mine.append(seconds(lambda: ours(paths, work)))
            theirs.append(seconds(lambda: monai_prepare(paths, work / "cache")))
        report("prepare to 96³", len(paths), mine[1:], theirs[1:])

        volumes, cached = ours(paths, work), monai_dataset(paths, work / "cache")
        rows = np.random.default_rng(0).integers(0, len(volumes), 64)
        mine, theirs = [], []
        small, of_small = ours(paths, work, UINT8), []
        for _ in range(8 * arguments.rounds + 1):  # each takes a tenth of a second
            mine.append(seconds(lambda: read_batches(volumes, rows)))
            of_small.append(seconds(lambda: read_batches(small, rows)))
            theirs.append(seconds(lambda: read_singly(cached, rows)))
        report("read 96³, float16", 64, mine[1:], theirs[1:])
        report("read 96³, uint8", 64, of_small[1:], theirs[1:])

        config, step = AugmentConfig(), iter(range(10**6))
        batch = torch.from_numpy(volumes.read(rows[:16])).unsqueeze(1)
        rival, given = monai_augment(config), batch.clone()
        mine, theirs = [], []
        for _ in range(4 * arguments.rounds + 1):  # what is drawn differs from round to round
            draws = draw_augmentation(16, torch.Generator().manual_seed(next(step)))
            given.copy_(batch)  # reading makes a batch of its own, which the trainer lets be written over
            mine.append(seconds(lambda: augment(given, draws, config, in_place=True)))  # noqa: B023
            theirs.append(seconds(lambda: rival(batch)))
        report("augment, batch of 16", 16, mine[1:], theirs[1:])
        storage(volumes)
    duplicates()
    headers()


def storage(volumes: Volumes) -> None:
    """What storing costs in precision: the error beside the deviation of the foreground."""
    from brainfm_lib.data.ingest import prepare_volume

    path = volumes.scans["path"].iloc[0]
    exact, _ = prepare_volume(path, GRID, volumes.cohort.source)
    print(
        "\n| stored as | MB a volume | largest error | error, rms ÷ deviation of the foreground |\n|---|---:|---:|---:|"
    )
    inside = exact > 0
    for kind in ("float16", "uint8"):
        stored = as_stored(exact, kind)
        error = np.abs(as_float(stored) - exact)
        share = np.sqrt((error[inside] ** 2).mean()) / exact[inside].std()
        print(f"| {kind} | {stored.nbytes / 1e6:.2f} | {error.max():.1e} | {share:.1e} |")


def duplicates() -> None:
    """Time of the search among fingerprints of unequal variance, as brains have, with planted copies."""
    print("\n| scans | seconds to find all near pairs | pairs |\n|---:|---:|---:|")
    scale = (np.arange(1, 513) ** -0.75).astype(np.float32)
    for count in (1250, 2500, 5000, 60000):
        prints = np.random.default_rng(0).standard_normal((count, 512), dtype=np.float32) * scale
        prints /= np.linalg.norm(prints, axis=1, keepdims=True)
        prints[1::100] = prints[::100]
        print(f"| {count:,} | {seconds(lambda: near_pairs(prints)):.2f} | {len(near_pairs(prints)):,} |")  # noqa: B023


def headers(count: int = 60_000) -> None:
    """Time and memory of `brainfm check` on a table of many scans, their files sparse behind true headers."""
    import subprocess
    import sys

    image = nib.Nifti1Image(np.zeros((1, 1, 1), np.int16), np.diag([1, 1.2, 1.2, 1]))
    image.header.set_data_shape((160, 192, 192))
    image.set_sform(image.affine, code=1)
    image.header["magic"], image.header["vox_offset"] = b"n+1", 352
    header, size = image.header.binaryblock + bytes(4), 352 + 160 * 192 * 192 * 2
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        rows = ["path,subject_id,session,site,age,sex,diagnosis"]
        for i in range(count):
            file = root / f"{i // 1000:03d}" / f"{i}.nii"
            file.parent.mkdir(exist_ok=True)
            with file.open("wb") as handle:
                handle.write(header)
                handle.truncate(size)
            rows.append(
                f"{file.relative_to(root)},P{i // 3},v{i % 3},S{i % 40},{50 + i % 40},F,{'NC' if i % 6 < 3 else 'AD'}"
            )
        (root / "scans.csv").write_text("\n".join(rows) + "\n")
        (root / "m.yaml").write_text(
            "version: 1\npretraining: [c]\ncohorts:\n  c: {kind: table, table: scans.csv, contrast: T1w}\n"
            "tasks:\n  ad: {cohort: c, label: diagnosis, mapping: {NC: 0, AD: 1}, classes: [NC, AD]}\n"
        )
        code = (
            "import sys, time, resource; t = time.perf_counter(); from brainfm_lib.data.prepare import check;"
            "f = check(sys.argv[1], progress=False); assert not [x for x in f if x.level == 'error'], f;"
            "print(time.perf_counter() - t, open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
        )
        done = subprocess.run([sys.executable, "-c", code, root / "m.yaml"], capture_output=True, text=True, check=True)
    taken, peak = done.stdout.split()
    print(f"\n`brainfm check` on {count:,} scans: {float(taken):.1f} s, {int(peak) / 1e3:.0f} MB.")


if __name__ == "__main__":
    main()
