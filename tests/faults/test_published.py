"""A report over people's scans, built whole: no name of theirs is in it, and no text of theirs becomes code."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml

from brainfm_lib.scrub import look_through, names_of
from tests.book import toy
from tests.book.browser import Browser, find_chromium
from tests.test_privacy import FREE_TEXT, NAME, clinic, told

__all__ = ["clinic"]  # the fixture
SCRIPT = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


def test_a_published_report_names_nobody_and_runs_nobody_s_code(clinic: Path) -> None:
    people = clinic / "scans" / "participants.tsv"
    table = pd.read_csv(people, sep="\t")
    table["site"] = [SCRIPT if i // 2 % 2 else "two & more" for i in range(len(table))]
    table["physician"] = f"Dr {NAME}"
    table.to_csv(people, sep="\t", index=False)
    for file in clinic.glob("scans/*/anat/*.nii.gz"):
        note = f'{{"PatientName": "{NAME}", "AcquisitionDateTime": "2019-03-04", "Comment": "{FREE_TEXT}"}}'
        file.with_name(file.name.replace(".nii.gz", ".json")).write_text(note)
    manifest = yaml.safe_load((clinic / "data_manifest.yaml").read_text())
    manifest["tasks"]["disease"]["title"] = f"A disease {SCRIPT}"
    (clinic / "data_manifest.yaml").write_text(yaml.safe_dump(manifest))
    for name in ("book", "notebooks"):
        ignore = shutil.ignore_patterns("_build", "_assets", "chapters", "reference", "70_causal.ipynb")
        shutil.copytree(toy.ROOT / name, clinic / name, ignore=ignore)
    toc = clinic / "book" / "_toc.yml"
    toc.write_text("".join(line for line in toc.read_text().splitlines(keepends=True) if "70_" not in line))
    for page in (clinic / "book").glob("*.md"):
        page.write_text(page.read_text().replace("chapters/70_causal", "chapters/10_data"))
    overrides = {"optimiser.steps": 2, "evaluation.refits": 19, "evaluation.reconstruction_volumes": 4}
    small = {"profile": "tiny", "objective": "sl-mae", "overrides": overrides}
    (clinic / "notebooks" / "params" / "tiny.yaml").write_text(yaml.safe_dump(small))
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", "book"]
    environment = {**os.environ, "BRAINFM_PROFILE": "tiny"}
    done = subprocess.run(command, cwd=clinic, env=environment, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    html = clinic / "book" / "_build" / "html"
    assert told(html) == []
    names, _ = names_of()
    assert len(names) >= 28
    assert [found for found in look_through(html, names) if "title" not in found.text] == []
    pages = sorted((html / "chapters").glob("*.html"))
    assert len(pages) == 6
    assert any("two &amp; more" in page.read_text() for page in pages)  # sites are named, where many share them
    for page in pages:
        assert "<script>document.title" not in page.read_text(), page.name
    if find_chromium():
        with Browser() as browser:
            for page in pages:
                browser.open(page)
                assert browser.evaluate("document.title") != "taken", page.name
