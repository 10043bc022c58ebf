"""Training state on disk: safetensors, JSON and Parquet, under a temporary name until whole. Nothing is pickled."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from brainfm_lib.identity import save_tensors, write_atomic
from brainfm_lib.integrity import damage, digests, set_aside

SNAPSHOTS = "snapshots"
STATE, DIGESTS = "state.json", "digests.json"
KEPT = 2  # checkpoints: where the newest is damaged, the one before it goes on
SMALLEST = 1 / 16  # share of a training after which its model is first kept


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    history: list[dict[str, float]],
    **state: Any,
) -> None:
    """Write ``checkpoint-<step>/`` into `folder` and drop all but the one before it.

    Args:
        folder: Of the run.
        step: Steps done.
        model: Its whole state is kept.
        optimiser: The moments of every parameter are kept, by the parameter's name.
        history: Rows of the metrics so far.
        state: Whatever else must survive, as JSON.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    moments = {
        f"{names[id(parameter)]}|{entry}": torch.as_tensor(value).cpu().contiguous()
        for parameter, entries in optimiser.state.items()
        for entry, value in entries.items()
    }
    target = folder / f"checkpoint-{step:08d}"
    if target.exists():
        return
    with write_atomic(target) as temporary:
        temporary.mkdir()
        save_tensors(host_state(model), temporary / "model.safetensors")
        save_tensors(moments, temporary / "optimiser.safetensors")
        pd.DataFrame(history).to_parquet(temporary / "metrics.parquet")
        (temporary / STATE).write_text(json.dumps({"step": step, **state}))
        (temporary / DIGESTS).write_text(json.dumps(digests(temporary)))
    for old in checkpoints(folder)[:-KEPT]:
        if old != target:
            shutil.rmtree(old.rename(old.with_name(f".{old.name}")))  # a kill in between leaves no half checkpoint


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, oldest first."""
    return sorted(folder.glob("checkpoint-*"))


def load_checkpoint(
    folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[list[dict[str, float]], dict[str, Any]] | None:
    """Put the newest checkpoint of `folder` into `model` and `optimiser`; return its history and state, or None.

    One whose files are not what was written is set aside, and the one before it is taken.
    """
    from safetensors.torch import load_file

    newest = next(filter(_whole, reversed(checkpoints(folder))), None)
    if newest is None:
        return None
    model.load_state_dict(load_file(newest / "model.safetensors"))
    parameters = dict(model.named_parameters())
    for key, value in load_file(newest / "optimiser.safetensors").items():
        name, _, entry = key.rpartition("|")
        parameter = parameters[name]
        on_device = entry != "step" or optimiser.defaults["fused"]
        optimiser.state[parameter][entry] = value.to(parameter.device) if on_device else value
    rows = pd.read_parquet(newest / "metrics.parquet").to_dict("records")
    history = [{str(name): value for name, value in row.items() if pd.notna(value)} for row in rows]
    return history, json.loads((newest / STATE).read_text())


def _whole(checkpoint: Path) -> bool:
    try:
        wrong = damage(checkpoint, json.loads((checkpoint / DIGESTS).read_text()))
    except (FileNotFoundError, ValueError):
        wrong = DIGESTS
    if wrong is not None:
        set_aside(checkpoint, f"{wrong} is not what was written")
    return wrong is None


def snapshot_steps(steps: int) -> list[int]:
    """After which steps a model is kept: halves of halves of the training, down to `SMALLEST` of it."""
    return sorted({round(steps * SMALLEST * 2**k) for k in range(round(-math.log2(SMALLEST)))} - {0, steps})


def keep_snapshot(folder: Path, step: int, model: nn.Module) -> None:
    """Write ``snapshots/<step>.safetensors``: how the model was at that step, for curves of what is learned when."""
    (folder / SNAPSHOTS).mkdir(exist_ok=True)
    with write_atomic(folder / SNAPSHOTS / f"{step:08d}.safetensors") as temporary:
        save_tensors(host_state(model), temporary)


def snapshots(folder: Path) -> dict[int, Path]:
    """Steps and files of the models kept in a run's folder, and of the last one."""
    found = {int(path.stem): path for path in sorted((folder / SNAPSHOTS).glob("*.safetensors"))}
    return found | {int(pd.read_parquet(folder / "metrics.parquet")["step"].iloc[-1]): folder / "model.safetensors"}


def host_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors, contiguous, on the host."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
