"""Encoders made elsewhere as rows of the comparison: their features are theirs, and what they cannot do is said."""

import numpy as np
import pytest
import torch
import yaml

from brainfm_lib.card import TRAINED_ON
from brainfm_lib.data.augment import zscore
from brainfm_lib.data.prepare import check
from brainfm_lib.device import faster_precision
from brainfm_lib.errors import InputError
from brainfm_lib.external import check_encoders
from brainfm_lib.findings import comparison
from brainfm_lib.models import VisionTransformer3d, VisionTransformerConfig
from brainfm_lib.study import Study

TASK = {"cohort": "test", "label": "diagnosis", "mapping": {"NC": 0, "AD": 1}, "classes": ["NC", "AD"]}
FUNCTION = """
from __future__ import annotations
from dataclasses import dataclass
import torch
@dataclass
class Settings:
    width: int = 2
def fails(volumes):
    return 1 / 0
def features(volumes):
    assert volumes.ndim == 5 and volumes.dtype == torch.float32
    return torch.stack([volumes.mean((1, 2, 3, 4)), volumes.abs().mean((1, 2, 3, 4))], 1)
def flat(volumes):
    return volumes.mean()
"""


@pytest.fixture
def make_study(tmp_path):
    def make(**encoders):
        spec = {"subjects": 60, "conditions": {"NC": 0.5, "AD": 0.5}}
        cohorts = {name: {"kind": "phantom", "spec": spec | {"seed": i}} for i, name in enumerate(("pre", "test"))}
        content = {"version": 1, "pretraining": ["pre"], "cohorts": cohorts, "tasks": {"ad": TASK}}
        path = tmp_path / "data_manifest.yaml"
        path.write_text(yaml.safe_dump(content | {"encoders": encoders}, sort_keys=False))
        return Study("tiny", path, progress=False, objective="random-init")

    return make


def test_weights_of_monai_are_a_row_and_can_be_trained_further(make_study, tmp_path):
    from monai.networks.nets import ViT
    from safetensors.torch import save_file

    torch.manual_seed(0)
    theirs = ViT(1, (32, 32, 32), (8, 8, 8), hidden_size=48, mlp_dim=192, num_layers=2, num_heads=3)
    save_file(theirs.state_dict(), tmp_path / "vit.safetensors")
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "vit.pt")
    study = make_study(
        safe={"kind": "monai", "path": "vit.safetensors", "heads": 3},
        plain={"kind": "monai", "path": "vit.pt", "heads": 3},
    )
    assert study.compared[-2:] == ("safe", "plain") == study.encoders[-2:]
    found = {name: np.load(study.run(f"features:{name}:test").path / "mean@2.npy") for name in ("safe", "plain")}
    volumes = zscore(torch.from_numpy(study.volumes("test").read(range(8))).unsqueeze(1))
    with torch.no_grad():
        expected = theirs.eval()(volumes)[0].mean(1).numpy()
    exact = faster_precision(torch.device("cpu")) == "fp32"
    for features in found.values():
        np.testing.assert_allclose(features[:8], expected, atol=2e-5 if exact else 2e-2)
    for kind in ("probe", "knn", "finetune"):
        study.run(f"{kind}:safe:ad")
    assert set(study.results()["arm"]) == {"safe"}
    assert study.run("latents:safe").table("measures") is not None


def test_a_function_is_a_row(make_study, tmp_path):
    (tmp_path / "mine.py").write_text(FUNCTION)
    (tmp_path / "weights.bin").write_bytes(b"1")
    study = make_study(mine={"kind": "python", "path": "mine.py", "files": ["weights.bin"]})
    assert "mine" in study.represented and "mine" not in study.encoders
    features = np.load(study.run("features:mine:test").path / "features.npy")
    assert features.shape == (60, 2) and np.abs(features[:, 0]).max() < 1e-4 < features[:, 1].min()  # z-scored
    study.run("probe:mine:ad")
    study.run("probe:random-init:ad")
    differences = comparison.paired_differences(study)
    assert list(differences["arm"]) == ["mine"] and list(differences["baseline"]) == ["random-init"]
    with pytest.raises(InputError, match="is a function"):
        study.run("finetune:mine:ad")
    before = study.identify("features:mine:test")
    (tmp_path / "weights.bin").write_bytes(b"22")
    assert (
        make_study(mine={"kind": "python", "path": "mine.py", "files": ["weights.bin"]}).identify("features:mine:test")
        != before
    )


def test_our_own_layout_is_a_row(make_study, tmp_path):
    encoder = VisionTransformer3d(VisionTransformerConfig(patch_size=16, embed_dim=24, depth=1, heads=2))
    encoder.save_pretrained(tmp_path / "mine")
    study = make_study(mine={"kind": "folder", "path": "mine"})
    assert np.load(study.run("features:mine:test").path / "mean@1.npy").shape == (60, 24)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kind": "folder", "path": "nowhere"}, "cannot be read"),
        ({"kind": "folder", "path": "broken"}, "holds no encoder of ours"),
        ({"kind": "folder", "path": "odd"}, "does not fit the profile's grid"),
        ({"kind": "monai", "heads": 3, "path": "broken.safetensors"}, "broken.safetensors holds no weights"),
        ({"kind": "monai", "heads": 3, "path": "broken.pt"}, "broken.pt holds no weights"),
        ({"kind": "monai", "heads": 3, "path": "empty.pt"}, "empty.pt holds no weights"),
        ({"kind": "monai", "heads": 3, "path": "list.pt"}, "list.pt holds no weights"),
        ({"kind": "monai", "heads": 3, "path": "numbers.pt"}, "numbers.pt holds no weights"),
        ({"kind": "python", "path": "mine.py", "function": "fails"}, "fails failed .ZeroDivisionError"),
        ({"kind": "python", "path": "broken.py"}, "gives no function 'features'"),
        ({"kind": "python", "path": "mine.py", "function": "nothing"}, "gives no function 'nothing'"),
        ({"kind": "python", "path": "mine.py", "function": "flat"}, "must turn volumes"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_sentence(make_study, tmp_path, settings, sentence):
    (tmp_path / "mine.py").write_text(FUNCTION)
    for name in ("broken.safetensors", "broken.pt", "broken.py"):
        (tmp_path / name).write_text("no ( weights")
    (tmp_path / "empty.pt").touch()
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    torch.save({"state_dict": {1: torch.zeros(2)}}, tmp_path / "numbers.pt")
    VisionTransformer3d(VisionTransformerConfig(12, 24, 1, 2)).save_pretrained(tmp_path / "odd")
    VisionTransformer3d(VisionTransformerConfig(8, 24, 1, 2)).save_pretrained(tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_text("no")
    with pytest.raises(InputError, match=sentence):
        make_study(mine=settings).run("features:mine:test")


def test_check_says_which_encoders_can_be_used(make_study, tmp_path):
    encoder = VisionTransformer3d(VisionTransformerConfig(8, 24, 1, 2))
    for name in ("ours", "broken"):
        encoder.save_pretrained(tmp_path / name)
    (tmp_path / "ours" / TRAINED_ON).write_text("a b")
    (tmp_path / "broken" / "model.safetensors").write_text("no")
    (tmp_path / "mine.py").write_text("raise RuntimeError('executed')")
    make_study(
        ours={"kind": "folder", "path": "ours"},
        broken={"kind": "folder", "path": "broken"},
        lost={"kind": "monai", "heads": 3, "path": "lost.pt"},
        mine={"kind": "python", "path": "mine.py"},
        elsewhere={"kind": "folder", "path": "${NOWHERE_TO_BE_FOUND}/x"},
    )
    found = {f.where: f for f in check(tmp_path / "data_manifest.yaml", progress=False, also=check_encoders)}
    levels = {name: found[f"encoder {name}"].level for name in ("ours", "broken", "lost", "mine", "elsewhere")}
    assert levels == {"ours": "ok", "broken": "error", "lost": "error", "mine": "ok", "elsewhere": "note"}
    assert "24 wide, 1 blocks, patch 8" in found["encoder ours"].sentence
    assert "pretrained on are known" in found["encoder ours"].sentence
    assert "no leak can be found" in found["encoder mine"].sentence


def test_names_of_arms_are_taken_and_unknown_keys_are_named(make_study):
    with pytest.raises(InputError, match="'mae' needs a name of its own"):
        make_study(mae={"kind": "folder", "path": "x"}).identify("pretrain:mae")
    with pytest.raises(InputError, match="the keys there are kind, path"):
        make_study(mine={"kind": "folder", "path": "x", "width": 3})
    with pytest.raises(InputError, match="needs heads"):
        make_study(mine={"kind": "monai", "path": "x.pt"})
    absent = make_study(mine={"kind": "folder", "path": "${NOWHERE_TO_BE_FOUND}/x"})
    assert not absent.own


def test_a_file_that_changes_on_the_way_files_no_result(make_study, tmp_path):
    (tmp_path / "mine.py").write_text(FUNCTION)
    mine = {"kind": "python", "path": "mine.py"}
    study = make_study(mine=mine)
    assert study.identify("study") != make_study().identify("study")  # the page shows it
    study.identify("features:mine:test")
    (tmp_path / "mine.py").write_text(FUNCTION + "\nmore = 1\n")
    with pytest.raises(InputError, match="was changed"):
        study.run("features:mine:test")
    assert make_study(mine=mine).run("features:mine:test")
