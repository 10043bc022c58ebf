"""Brain extraction: the programs' own word lists, and what becomes of their answer.

The real programs need licences or weights that a test machine does not have; a small program that answers to the same
words stands in for each, so that the calls, the files and the failures are real.
"""

import stat

import nibabel as nib
import numpy as np
import pytest

from brainfm_lib.data.brain import PROGRAMS
from brainfm_lib.data.cohort import describe_cohort
from brainfm_lib.data.geometry import Geometry
from brainfm_lib.data.ingest import prepare_volume
from brainfm_lib.data.settings import IngestSettings
from brainfm_lib.data.store import open_volumes
from brainfm_lib.errors import InputError, RefusedScan
from tests.data.scans import save_scan

GRID = Geometry((24, 28, 26), 8.0)
STAND_IN = """#!{python}
import sys
import nibabel as nib, numpy as np
words = sys.argv[1:]
given, made = (words[words.index("-i") + 1], words[words.index("-o") + 1]) if "-i" in words else words[:2]
image = nib.load(given)
assert bytes(image.header["descrip"]).strip(b"\\0") == b"", "free text reached the program"
data = np.asarray(image.dataobj)
places = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in data.shape], indexing="ij"))
{body}
nib.Nifti1Image(np.where(inside, data, 0), image.affine).to_filename(made)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    def make(brain, body="inside = (places ** 2).sum(0) < 0.2"):
        import sys

        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        file = folder / PROGRAMS[brain][0]
        file.write_text(STAND_IN.format(python=sys.executable, body=body))
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(folder))

    return make


def whole_head(path):
    """A noisy head: skull bright, brain grey, air noisy; with a name in the header's free text."""
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, 48)] * 3, indexing="ij"))
    radius = (places**2).sum(0)
    data = np.where(radius < 0.3, 80, np.where(radius < 0.5, 150, 0)) + np.abs(5 * rng.standard_normal(radius.shape))
    image = nib.Nifti1Image(data.astype(np.float32), np.diag([4.0, 4, 4, 1]))
    image.header["descrip"] = b"DOE^JANE"
    image.to_filename(path)
    return path


@pytest.mark.parametrize("brain", PROGRAMS)
def test_what_the_program_keeps_is_the_foreground(brain, tmp_path, install):
    path = whole_head(tmp_path / "x.nii.gz")
    install(brain)
    volume, info = prepare_volume(path, GRID, IngestSettings(brain=brain))
    whole, _ = prepare_volume(path, GRID, IngestSettings())
    places = np.stack(np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * 8.0 for n in GRID.grid], indexing="ij"))
    radius = np.linalg.norm(places, axis=0)
    expected = 94 * np.sqrt(0.2)  # mm
    assert (volume[radius < expected - 8] > 0).all() and (volume[radius > expected + 8] == 0).all()
    assert (whole > 0).sum() > 2 * (volume > 0).sum() and info["brain"] == brain


def test_a_missing_program_is_one_sentence_before_anything_is_read(tmp_path, make_manifest, monkeypatch):
    monkeypatch.setenv("PATH", "")
    save_scan(tmp_path / "a.nii.gz")
    (tmp_path / "scans.csv").write_text("path,subject_id\na.nii.gz,A\n")
    cohort = {"kind": "table", "table": "scans.csv", "contrast": "T1w", "ingest": {"brain": "synthstrip"}}
    with pytest.raises(InputError, match=r"mri_synthstrip, which is not on the search path: install FreeSurfer"):
        describe_cohort(make_manifest(cohorts={"c": cohort}), "c")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("sys.exit('no licence')", r"failed with status 1 \(no licence\)"),
        ("inside = radius = data < 0", "found no brain"),
    ],
)
def test_a_program_that_fails_refuses_the_scan(body, words, tmp_path, install):
    install("bet", body)
    with pytest.raises(RefusedScan, match=words) as caught:
        prepare_volume(whole_head(tmp_path / "x.nii.gz"), GRID, IngestSettings(brain="bet"))
    assert caught.value.rule == "brain" and str(caught.value).startswith(str(tmp_path / "x.nii.gz"))


def test_already_stripped_is_believed_only_where_it_is_true(tmp_path):
    stripped = save_scan(tmp_path / "s.nii.gz")
    _, info = prepare_volume(stripped, GRID, IngestSettings(brain="already"))
    assert info["brain"] == "already"
    with pytest.raises(RefusedScan, match="not skull-stripped"):
        prepare_volume(whole_head(tmp_path / "w.nii.gz"), GRID, IngestSettings(brain="already"))


def test_the_store_remembers_how_and_keeps_no_free_text(tmp_path, make_manifest, monkeypatch, install):
    monkeypatch.setenv("BRAINFM_STORE", str(tmp_path / "store"))
    whole_head(tmp_path / "a.nii.gz")
    (tmp_path / "scans.csv").write_text("path,subject_id\na.nii.gz,A\n")
    table = {"kind": "table", "table": "scans.csv", "contrast": "T1w"}
    install("synthstrip")
    folders = set()
    for brain in ("none", "synthstrip"):
        manifest = make_manifest(cohorts={"c": {**table, "ingest": {"brain": brain}}})
        volumes = open_volumes(describe_cohort(manifest, "c"), GRID, progress=False)
        assert volumes.info["brain"].tolist() == [brain]
        folders.add(volumes.folder)
    assert len(folders) == 2
    assert not any(b"DOE" in file.read_bytes() for file in (tmp_path / "store").rglob("*") if file.is_file())


def test_a_scan_that_a_failing_program_refused_is_tried_again(tmp_path, make_manifest, monkeypatch, install):
    monkeypatch.setenv("BRAINFM_STORE", str(tmp_path / "store"))
    whole_head(tmp_path / "a.nii.gz")
    (tmp_path / "scans.csv").write_text("path,subject_id\na.nii.gz,A\n")
    table = {"kind": "table", "table": "scans.csv", "contrast": "T1w", "ingest": {"brain": "bet"}}
    install("bet", "sys.exit('no licence')")
    cohort = describe_cohort(make_manifest(cohorts={"c": table}), "c")
    with pytest.raises(InputError, match="no licence"):
        open_volumes(cohort, GRID, progress=False)
    install("bet")
    volumes = open_volumes(cohort, GRID, progress=False)
    assert len(volumes) == 1 and len(volumes.refused) == 0
