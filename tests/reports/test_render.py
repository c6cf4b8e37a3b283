"""From notebook to page: checked parameters, no widgets, nothing outside, never no page."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from rftkit import reports
from rftkit.errors import ReportError
from rftkit.reports import document

PARAMETERS = """count: int = 1  # how many
name: str = 'x'  # what
shares: list[float] = []  # some
plain = 2.5
"""


def notebook(folder: Path, *cells: str, parameters: str | None = PARAMETERS) -> Path:
    made = new_notebook(cells=[new_markdown_cell("# Small & *fine*\n\n## Part one")])
    if parameters is not None:
        made.cells.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    made.cells += [new_code_cell(cell) for cell in cells]
    made.metadata.kernelspec = {"name": "someone-elses", "display_name": "x", "language": "python"}
    path = folder / "small.ipynb"
    nbformat.write(made, path)
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    path = notebook(
        folder,
        "import os, ipywidgets\nipywidgets.IntSlider()",
        "print(os.environ['RFTKIT_MODE'], count, name, shares, plain)",
        "from rftkit import reports, views\nviews.table([{'count': count}])",
        "reports.publish({'mean': 0.5, 'tag': '</script>'})",
    )
    out = folder / "deep" / "page.html"
    values = {"count": 3, "name": Path("a/b"), "shares": [0.5], "plain": 1}
    assert reports.run(path, out, keep_notebook=True, **values) == out
    return out


def test_the_page_shows_outputs_and_no_code(page):
    html = page.read_text()

    assert "static 3 a/b [0.5] 1" in html
    assert "import os" not in html
    assert "<title>Small &amp; *fine*</title>" in html
    assert '<a href="#Part-one">Part one</a>' in html
    assert ">given</span>" in html
    assert len(html) < 43_000


def test_a_widget_leaves_a_line_and_no_state(page):
    executed = nbformat.read(page.with_suffix(".ipynb"), as_version=4)

    assert "A live control was here" in page.read_text()
    assert "widgets" not in executed.metadata
    assert "jupyter.widget" not in page.with_suffix(".ipynb").read_text()


def test_the_figures_for_programs_come_back_from_the_page(page):
    assert reports.read_summary(page) == {"mean": 0.5, "tag": "</script>"}


def test_nothing_else_is_left_behind(page):
    assert sorted(path.name for path in page.parent.iterdir()) == ["page.html", "page.ipynb"]
    assert "RFTKIT_MODE" not in os.environ


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"cuont": 3}, "has no parameter 'cuont'; it takes: count, name, shares, plain"),
        ({"count": "3"}, "parameter 'count' must be int, found str '3'"),
        ({"count": True}, "parameter 'count' must be int, found bool True"),
        ({"name": None}, "parameter 'name' must be str, found NoneType None"),
        ({"shares": 0.5}, "parameter 'shares' must be list[float], found float 0.5"),
        ({"plain": "x"}, "parameter 'plain' must be float, found str 'x'"),
    ],
)
def test_wrong_parameters_stop_it_before_anything_runs(tmp_path, values, said):
    with pytest.raises(ReportError, match=r"small\.ipynb") as caught:
        reports.run(notebook(tmp_path, "1 / 0"), tmp_path / "page.html", **values)

    assert said in str(caught.value)
    assert not (tmp_path / "page.html").exists()


def test_a_notebook_without_the_tag_is_refused(tmp_path):
    with pytest.raises(ReportError, match="no cell tagged 'parameters'"):
        reports.run(notebook(tmp_path, parameters=None), tmp_path / "page.html")


def test_a_name_that_is_no_notebook_lists_those_there_are(tmp_path):
    with pytest.raises(ReportError, match="report_job"):
        reports.run("report_jbo", tmp_path / "page.html")
    (tmp_path / "bad.ipynb").write_text("{")
    with pytest.raises(ReportError, match="cannot be read as a notebook"):
        reports.run(tmp_path / "bad.ipynb", tmp_path / "page.html")


def test_a_place_that_cannot_be_written_is_found_out_first(tmp_path):
    path = notebook(tmp_path, "1 / 0")
    (tmp_path / "file").write_text("")

    with pytest.raises(ReportError, match="give the path of a file"):
        reports.run(path, tmp_path)
    with pytest.raises(ReportError, match="cannot be made"):
        reports.run(path, tmp_path / "file" / "page.html")


def test_a_failing_cell_still_gives_a_page_that_shows_where(tmp_path):
    path = notebook(tmp_path, "print('be' + 'fore')", "1 / count0", "print('af' + 'ter')")

    with pytest.raises(ReportError, match=r"\(1 / count0\) failed with NameError.*page\.html"):
        reports.run(path, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert 'role="alert"' in html
    assert "<pre>before" in html
    assert '<span class="n">count0</span>' in html
    failed = html.partition('href="#cell-id=')[2].partition('"')[0]
    assert f'id="cell-id={failed}"' in html
    assert "<pre>after" not in html


def test_what_a_browser_would_fetch_is_found():
    page = """<a href="https://a/">fine</a><img src="data:,x"><img src="https://b/c.png">
    <link rel="stylesheet" href="style.css"><use href="#here"/><script src="//d/e.js"></script>"""

    assert document.outside(page) == ["https://b/c.png", "style.css", "//d/e.js"]


def test_html_beside_a_widget_is_kept():
    widget = {"application/vnd.jupyter.widget-view+json": {}, "text/html": "<p>kept</p>"}
    cell = new_code_cell("", outputs=[new_output("display_data", widget)])
    made = new_notebook(cells=[cell])
    document.drop_widgets(made)

    assert made.cells[0].outputs[0].data == {"text/html": "<p>kept</p>"}


def test_a_parameter_may_have_the_name_of_an_option(tmp_path):
    names = "csv: str = ''\ntimeout_seconds: int = 0\nprocesses: int = 0\nparameters: int = 0"
    path = notebook(
        tmp_path, "print(csv, timeout_seconds, processes, parameters)", parameters=names
    )
    values = {"csv": "a.csv", "timeout_seconds": 1, "processes": 2, "parameters": 3}
    assert reports.read_values(path, [("csv", "a.csv"), ("parameters", "3")])["parameters"] == 3
    made = reports.sweep(path, {"csv": ["a.csv"]}, tmp_path / "out", processes=1,
                         parameters={k: v for k, v in values.items() if k != "csv"})  # fmt: skip
    assert made.failed == ()
    assert "a.csv 1 2 3" in (made.index.parent / made.runs[0].page).read_text()


def test_names_as_long_as_the_disk_allows_and_longer(tmp_path):
    path = notebook(tmp_path, "print(count)")
    out = tmp_path / ("ü" * 120 + ".html")
    assert reports.run(path, out, csv=True) == out
    with pytest.raises(ReportError, match=r"too long for a file .405 bytes"):
        reports.run(path, tmp_path / ("ü" * 200 + ".html"))


def test_nbconvert_without_its_templates_is_said_before_the_notebook_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    path = notebook(tmp_path, f"open({str(ran)!r}, 'w').close()")
    roots = "nbconvert.exporters.templateexporter.TemplateExporter.get_prefix_root_dirs"
    monkeypatch.setattr(roots, lambda self: [str(tmp_path / "nowhere")])
    with pytest.raises(ReportError, match=r"cannot load its page templates.*--force-reinstall"):
        reports.run(path, tmp_path / "page.html")
    assert not ran.exists()
    assert not (tmp_path / "page.html").exists()
