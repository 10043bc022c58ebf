"""How long spectra of many volumes take.

    python benchmarks/spectra.py > benchmarks/spectra.md

Radial power, coherence, phase errors and seams of 1,000 volumes of 96³ against a prediction each, in chunks as a run
does it; random fields, made while the clock stands.
"""

import argparse
import platform
import time

import torch

from brainfm_lib.analysis.spectrum import coherence, patch_grid_excess, phase_error, radial_power

CHUNK = 50
MEASURES = {
    "radial power": lambda a, b: radial_power(a, 2.0),
    "coherence": lambda a, b: coherence(a, b, 2.0),
    "phase error": lambda a, b: phase_error(a, b, 2.0),
    "seams": lambda a, b: patch_grid_excess(a, 8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=1000)
    count = parser.parse_args().volumes
    spent = dict.fromkeys(MEASURES, 0.0)
    generator = torch.Generator().manual_seed(0)
    radial_power(torch.zeros(1, 96, 96, 96), 2.0)  # shells are worked out once a grid
    for start in range(0, count, CHUNK):
        target = torch.randn(min(CHUNK, count - start), 96, 96, 96, generator=generator)
        prediction = 0.5 * target + torch.randn(target.shape, generator=generator)
        for name, measure in MEASURES.items():
            began = time.perf_counter()
            measure(prediction, target)
            spent[name] += time.perf_counter() - began
    print(f"# Spectra of {count:,} volumes of 96³\n\nMade by `benchmarks/spectra.py`, which says how; ", end="")
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}.\n")
    print("| measure | seconds |\n|---|---:|")
    for name, seconds in spent.items():
        print(f"| {name} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
