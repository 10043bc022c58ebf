"""Figures of a page: numbered, with a caption, alternative text and the numbers behind them, and nobody's row."""

import io

import nbformat
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from brainfm_lib import figures
from brainfm_lib.figures.about import KEY, describe, first_sentence
from brainfm_lib.figures.style import figure_function, panels
from brainfm_lib.report.plates import plates


def told(figure: Figure) -> dict:
    return figure._repr_mimebundle_()[1][KEY]


def read(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text))


RESULTS = pd.DataFrame(
    [
        {"arm": arm, "task": "ad", "estimate": value, "low": value - 0.1, "high": value + 0.1}
        for arm, value in (("mae", 0.71234567), ("jepa", 0.6))
    ]
)


def test_a_figure_says_what_it_shows_and_hands_out_its_table() -> None:
    said = told(figures.forest_plot(RESULTS, {"ad": "Dementia"}))
    assert said["what"] == "Estimates with their intervals: a panel a task, a row an arm."
    assert said["alt"].startswith(said["what"]) and "Panels: Dementia" in said["alt"] and "AUROC" in said["alt"]
    pd.testing.assert_frame_equal(read(said["data"]["results"]), RESULTS, rtol=1e-5)


def test_tables_by_name_become_one() -> None:
    metrics = {
        arm: pd.DataFrame({"volumes": [8, 16], "reconstruction": [1.0, value], "heldout": [1.0, value]})
        for arm, value in (("mae", 0.5), ("sl-mae", 0.4))
    }
    table = read(told(figures.loss_curves(metrics))["data"]["metrics"])
    assert table["of"].tolist() == ["mae", "mae", "sl-mae", "sl-mae"] and table["reconstruction"].iloc[-1] == 0.4


@figure_function
def curve(people: pd.DataFrame) -> Figure:
    """One curve. And more."""
    figure, (axis,) = panels(1)
    axis.plot(people["x"], people["y"], label="$\\mathrm{d}$ of all")
    axis.plot(people["x"], people["y"], "o", label="each")
    axis.bar(["left", "right"], [3, 4])
    return figure


def test_what_was_drawn_from_a_row_a_person_comes_without_numbers() -> None:
    people = pd.DataFrame({"subject_id": ["sub-1", "sub-2", "sub-3"], "x": [0.0, 1.0, 2.0], "y": [5.0, 6.0, 7.0]})
    plain = people.drop(columns="subject_id")
    telling = [plain.assign(**{name: 1}) for name in ("age", "score", "label")]
    for table in (people, people.set_index("subject_id"), *telling):
        said = told(curve(table))
        assert said["data"] == {} and "sub-" not in str(said)
    assert said["what"] == "One curve." and set(told(curve(plain))["data"]) == {"people"}


def test_arrays_are_no_data_and_an_empty_table_is_none() -> None:
    figure, _ = panels(1)

    def draw(volume: np.ndarray, table: pd.DataFrame) -> Figure:
        """A picture."""
        return figure

    describe(figure, draw, (np.zeros((2, 2, 2)), pd.DataFrame()), {})
    assert told(figure)["data"] == {} and first_sentence("`One` line\nand\n\nnext. More") == "One line and"


def cell(id: str, *said: dict) -> nbformat.NotebookNode:
    outputs = [nbformat.v4.new_output("display_data", {"image/png": "iVBO"}, metadata={KEY: one}) for one in said]
    found = nbformat.v4.new_code_cell(f"draw_{id}()", outputs=outputs)
    found["id"] = id
    return found


def said(what: str, **data: str) -> dict:
    return {"what": what, "alt": f"{what} In words.", "data": data}


def test_the_next_paragraph_in_italics_is_the_caption_and_leaves_its_place() -> None:
    note = nbformat.v4.new_code_cell("note()", outputs=[nbformat.v4.new_output("stream", text="said")])
    words = nbformat.v4.new_markdown_cell("*Left* is\nleft.\n\nAnd this stays.")
    cells, files = plates(
        [cell("one", said("What.", results="a\n1\n")), note, words, cell("two", said("Other."))], "50_x"
    )
    assert [c.cell_type for c in cells] == ["code", "code", "markdown", "code"] and cells[2].source == "And this stays."
    first, last = cells[0].metadata["mystnb"], cells[3].metadata["mystnb"]
    assert first["figure"] == {
        "caption": "*Left* is left. Data: {download}`results <data/50_x.one.results.csv>`.",
        "name": "fig-50-x-one",
    }
    assert first["image"] == {"alt": "What. In words."} and last["figure"]["caption"] == "Other."
    assert files == {"50_x.one.results.csv": "a\n1\n"}
    assert KEY not in str(cells)


def test_a_caption_that_says_where_to_look_is_told_what_there_is() -> None:
    cells, _ = plates([cell("one", said("What.")), nbformat.v4.new_markdown_cell("*Look at it*: well.")], "p")
    assert cells[0].metadata["mystnb"]["figure"]["caption"] == "What. *Look at it*: well." and len(cells) == 1


def test_no_caption_across_a_heading_or_another_picture() -> None:
    heading, words = nbformat.v4.new_markdown_cell("## Next"), nbformat.v4.new_markdown_cell("*Of two* only.")
    cells, _ = plates(
        [cell("one", said("One.")), heading, cell("two", said("Two.")), cell("three", said("3.")), words], "p"
    )
    captions = [c.metadata["mystnb"]["figure"]["caption"] for c in cells if c.cell_type == "code"]
    assert captions == ["One.", "Two.", "*Of two* only."]


def test_several_pictures_of_one_cell_are_several_figures_and_the_code_stands_once() -> None:
    many = cell("many", said("What.", a="x\n1\n"), said("Then.", a="x\n2\n"))
    many.outputs.append(nbformat.v4.new_output("stream", text="said"))
    cells, files = plates([many, nbformat.v4.new_markdown_cell("*These* are.")], "p")
    assert [c.source for c in cells] == ["draw_many()", "", ""] and [len(c.outputs) for c in cells] == [1, 1, 1]
    assert [c.metadata.get("mystnb", {}).get("figure", {}).get("name") for c in cells[:2]] == [
        "fig-p-many",
        "fig-p-many-2",
    ]
    assert set(files) == {"p.many.a.csv", "p.many-2.a.csv"} and files["p.many-2.a.csv"] == "x\n2\n"
    assert "remove-input" in cells[1].metadata["tags"] and cells[2].outputs[0].text == "said"
    assert len({c["id"] for c in cells}) == 3
