"""An encoder as it was in the middle of its training, as a run like any other: for curves of what is learned when."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from brainfm_lib.errors import InputError
from brainfm_lib.pretrain.config import PretrainConfig


class NothingKept(InputError):
    """No model was kept after that step."""


def make_snapshot(config: PretrainConfig, trained: Path, step: int) -> Callable[[Path], dict[str, Any]]:
    """What `runs.ensure` calls: ``encoder/`` as it was after `step` steps.

    Args:
        config: Of the training.
        trained: Folder of its run, or of one that is not finished.
        step: One of those after which a model was kept, see `checkpoint.snapshot_steps`.

    Raises:
        NothingKept: No model was kept then.
    """

    def make(folder: Path) -> dict[str, Any]:
        from safetensors.torch import load_file

        from brainfm_lib.objectives import build_model
        from brainfm_lib.pretrain.checkpoint import SNAPSHOTS

        file = trained / SNAPSHOTS / f"{step:08d}.safetensors"
        if not file.is_file():
            kept = ", ".join(str(int(path.stem)) for path in sorted((trained / SNAPSHOTS).glob("*.safetensors")))
            raise NothingKept(f"No model was kept after step {step}: there are {kept or 'none'}.")
        model = build_model(config.objective)
        model.load_state_dict(load_file(file))
        model.exported.save_pretrained(folder / "encoder")
        return {"device": "cpu"}

    return make
