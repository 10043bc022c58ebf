"""A project with two small notebooks, for tests of the report that should not wait for training."""

import json
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROSE = """# {title}

Energy $E = mc^2$, and

$$\\mathcal{{L}} = \\frac{{1}}{{n}} \\sum_f \\log(1 + |F_f|)^2$$

after {{cite:t}}`bardes2022vicreg`."""
PARAMETERS = 'profile = "quick"\nseed = 0\nspectral_weight = None\noverrides = {}\nresult = "result.json"'
WRITE = 'import json\nfrom pathlib import Path\n\nPath(result).write_text(json.dumps({"runs": runs}));'
MATPLOTLIB = """import matplotlib.pyplot as plt

fig, axis = plt.subplots(figsize=(4, 2))
axis.plot([1, 4, 2])
axis.set_xlabel("x (mm)");"""
PLOTLY = """import plotly.graph_objects as go
from IPython.display import HTML

HTML(go.Figure(go.Scatter(y=[1, 3, 2])).to_html(include_plotlyjs=False, full_html=False))"""
VIEW = """from nilearn.datasets import load_mni152_template
from nilearn.plotting import view_img

view_img(load_mni152_template(resolution=8), bg_img=None, cmap="gray", symmetric_cmap=False)"""


def make_toy(root: Path) -> Path:
    """Write the project: the real book around notebooks 10_data (matplotlib) and 20_pretrain (plotly, nilearn)."""
    shutil.copytree(
        ROOT / "book", root / "book", ignore=shutil.ignore_patterns("_build", "_assets", "chapters", "reference")
    )
    (root / "notebooks" / "params").mkdir(parents=True)
    (root / "notebooks" / "params" / "quick.yaml").write_text("profile: quick\nseed: 1\n")
    (root / "data_manifest.yaml").write_text("version: 1\n")
    write_notebook(root, "10_data", [f"from brainfm_lib import __version__\n{MATPLOTLIB}"], {})
    write_notebook(root, "20_pretrain", [PLOTLY, VIEW], {"pretrain:sl-mae": "pretrain-1"})
    toc = (root / "book" / "_toc.yml").read_text().splitlines(keepends=True)
    chapters = ("30_", "40_", "50_", "60_", "70_")
    (root / "book" / "_toc.yml").write_text("".join(x for x in toc if not any(f"chapters/{c}" in x for c in chapters)))
    for page in (root / "book").glob("*.md"):  # links to chapters that a toy does not have
        page.write_text(re.sub(r"chapters/[3-7]0_\w+", "chapters/10_data", page.read_text()))
    return root


def write_notebook(root: Path, name: str, code: list[str], runs: dict[str, str], prose: str = PROSE) -> None:
    cells = [cell("markdown", prose.format(title=name)), cell("code", PARAMETERS, "parameters")]
    cells += [cell("code", source) for source in [*code, f"runs = {runs!r}\n{WRITE}"]]
    for number, content in enumerate(cells):
        content["id"] = f"cell-{number}"
    kernel = {"name": "some-kernel-that-nobody-has", "display_name": "x", "language": "python"}
    notebook = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    (root / "notebooks" / f"{name}.ipynb").write_text(json.dumps(notebook))


def cell(kind: str, source: str, *tags: str) -> dict:
    content: dict = {"cell_type": kind, "source": source, "metadata": {"tags": list(tags)} if tags else {}}
    return content | ({"outputs": [], "execution_count": None} if kind == "code" else {})
