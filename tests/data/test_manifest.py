import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfm_lib.data.manifest import load_manifest
from brainfm_lib.data.prepare import check
from brainfm_lib.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
PAPER = {"ADNI", "OASIS-3", "PPMI", "IXI", "MOOD", "BraTS-2024", "NACC", "UCSF-PDGM", "ABIDE"}
TABLE = {"kind": "table", "table": "t.csv", "contrast": "T1w"}
TASK = {"cohort": "a", "label": "x", "mapping": {"n": 0, "y": 1}, "classes": ["n", "y"]}


@pytest.fixture(autouse=True)
def _no_roots(monkeypatch):
    for name in ("ADNI", "OASIS3", "PPMI", "IXI", "MOOD", "BRATS2024", "NACC", "UCSF_PDGM", "ABIDE"):
        monkeypatch.delenv(f"{name}_ROOT", raising=False)


def test_default_manifest_offers_the_phantoms_and_names_the_papers_cohorts_as_absent():
    manifest = load_manifest(REPOSITORY / "data_manifest.yaml")
    assert set(manifest.missing()) == PAPER
    assert manifest.available_tasks() == ["ad", "mci", "tumour_grade", "tumour_grade3", "autism"]
    assert "ADNI_ROOT is not set" in manifest.skipped_tasks()["ad-adni"]
    for name in PAPER:
        assert manifest.cohorts[name].licence and manifest.cohorts[name].access
    seeds = [manifest.cohorts[name].spec["seed"] for name in manifest.available_cohorts()]
    assert len(set(seeds)) == len(seeds), "cohorts of one seed share their subjects"


def test_default_manifest_has_no_errors_and_check_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINFM_STORE", str(tmp_path / "store"))
    findings = check(REPOSITORY / "data_manifest.yaml")
    assert {finding.level for finding in findings} == {"ok", "note"}
    assert not (tmp_path / "store").exists()


def test_setting_a_root_makes_a_cohort_available(monkeypatch):
    monkeypatch.setenv("OASIS3_ROOT", "/nowhere/at/all")
    manifest = load_manifest(REPOSITORY / "data_manifest.yaml")
    assert "OASIS-3" in manifest.available_cohorts()
    errors = [finding for finding in check(manifest.path) if finding.level == "error"]
    assert len(errors) == 1 and "/nowhere/at/all" in errors[0].sentence


def test_paths_start_at_the_manifest_and_variables_expand(make_manifest, tmp_path, monkeypatch):
    manifest = make_manifest(cohorts={"a": {"kind": "bids", "root": "${SOME_ROOT}/x"}})
    with pytest.raises(InputError, match="SOME_ROOT"):
        manifest.resolve("${SOME_ROOT}/x")
    monkeypatch.setenv("SOME_ROOT", "data")
    assert manifest.resolve("$SOME_ROOT/x") == tmp_path / "data/x"
    assert manifest.available_cohorts() == ["a"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("version: 1\ncohorts: {a: [}", r"not valid YAML.*line"),
        ("version: 1\ncohorts: {}\ncohorts: {}", r"'cohorts' is given twice.*line 3"),
        ("just text", r"must hold keys"),
        ("!!python/object/apply:os.system ['true']", r"not valid YAML"),
        ("version: 2\ncohorts: {}", r"'version'"),
        (
            "a: &a [x, x]\n"
            + "\n".join(f"{n}: &{n} [*{p}, *{p}, *{p}, *{p}]" for p, n in zip("abcdefghij", "bcdefghijk")),
            r"unfold",
        ),
        ("version: 1\ncohorts: &c\n  a: *c\n", r"contains itself"),
        ("a: &a {x: 1}\nb: {<<: *a}\n", r"merge key"),
        ("version: 1\ncohorts: [" * 2000, r"valid YAML|cannot be read"),
        ("version: 1\x00\ncohorts: {}", r"not valid YAML"),
        ({"cohorts": {"a": {"kind": "bids", "rot": "x", "root": "y"}}}, r"'cohorts\.a\.rot'.*root"),
        ({"cohorts": {"a": {"kind": "bids", "rot": "x"}}}, r"'cohorts\.a\.rot'.*root.*1 more problem"),
        ({"cohorts": {"a": {"kind": "bids"}}}, r"'cohorts\.a\.root'"),
        ({"cohorts": {"a": {"kind": "nifti"}}}, r"'cohorts\.a'.*bids"),
        ({"cohorts": {"a/b": TABLE}}, r"'a/b'"),
        ({"cohorts": {"a": TABLE}, "pretraining": ["b"]}, r"'b', which is not among a"),
        ({"cohorts": {"a": TABLE}, "tasks": {"t": {**TASK, "cohort": "c"}}}, r"task t names the cohort 'c'"),
        ({"cohorts": {"a": TABLE}, "tasks": {"t": {**TASK, "colour": 1}}}, r"'tasks\.t\.colour'.*mapping"),
        ({"cohorts": {"a": TABLE}, "tasks": {"t": {**TASK, "mapping": {"n": 0, "y": 2}}}}, r"\[0, 2\]"),
        ({"cohorts": {"a": TABLE}, "tasks": {"t": {**TASK, "mapping": {False: 0, True: 1}}}}, r"quotes"),
        ({"cohorts": {"a": TABLE}, "tasks": {"t": {**TASK, "mapping": {"n": 0, "y": "one"}}}}, r"mapping\.y"),
    ],
)
def test_every_bad_manifest_is_one_sentence_that_names_file_and_place(tmp_path, content, words):
    path = tmp_path / "bad.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump({"version": 1, **content}))
    with pytest.raises(InputError) as caught:
        load_manifest(path)
    message = str(caught.value)
    assert "bad.yaml" in message and "\n" not in message
    assert re.search(words, message), message
    assert [finding.level for finding in check(path)] == ["error"]


def test_missing_manifest(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.yaml"):
        load_manifest(tmp_path / "nothing.yaml")


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(cohort=json_like, task=json_like, pretraining=json_like)
def test_no_manifest_content_ends_in_a_traceback(tmp_path_factory, cohort, task, pretraining):
    path = tmp_path_factory.mktemp("fuzz") / "m.yaml"
    content = {"version": 1, "pretraining": pretraining, "cohorts": {"a": cohort}, "tasks": {"t": task}}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(InputError):
        load_manifest(path)
    content = {"version": 1, "cohorts": {"a": {"kind": "phantom", "spec": {"seed": cohort}}}}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert all(finding.level in ("ok", "error") for finding in check(path))
