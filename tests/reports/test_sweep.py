"""Sweeps: one page for each setting, an index over all, and going on where one stopped."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from browser import chromium, opened  # noqa: F401 (a fixture)
from nbformat.v4 import new_code_cell, new_notebook

from rftkit import reports
from rftkit.errors import InputError, ReportError
from rftkit.reports import job_sweep, ledger
from rftkit.reports.grid import read_grid

GRID = {"seed": [1, 2], "level": [0.5, 2.0]}
BODY = """
assert not (seed == 2 and level == 2.0), "level too high"
from rftkit import reports
reports.publish({"reward": seed * level, "rows": 60, "test": {"gain": seed / 10}, "list": [1]})
"""


def notebook(folder: Path, body: str = BODY) -> Path:
    cell = new_code_cell("seed: int = 1\nlevel: float = 1.0", metadata={"tags": ["parameters"]})
    path = folder / "small.ipynb"
    nbformat.write(new_notebook(cells=[cell, new_code_cell(body)]), path)
    return path


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    said: list[str] = []
    made = reports.sweep(
        notebook(folder), GRID, folder / "out", processes=2, on_progress=said.append
    )
    return made, said


def test_each_setting_has_a_page_and_a_line_with_its_results(swept):
    made, said = swept
    figures = {run.page[:14]: run.figures for run in made.runs}

    assert len(made.runs) == len(said) == 4
    assert sum(name.endswith(".html") for name in map(str, made.index.parent.iterdir())) == 5
    assert figures["seed-1-level-2"]["reward"] == 2.0
    assert said[-1].startswith("4 of 4")
    html = made.index.read_text()
    assert "3 of 4 runs done, 1 failed." in html
    assert "test.gain" in html
    assert re.search("The same in every run.*>rows<.*>60<", html, re.DOTALL)


def test_a_failure_stays_in_the_index_with_link_and_error(swept):
    made, _ = swept
    (failed,) = made.failed

    assert failed.settings == {"seed": 2, "level": 2.0}
    assert "AssertionError: level too high" in failed.error
    assert "This report is not complete" in (made.index.parent / failed.page).read_text()
    assert f'href="{failed.page}">✗ failed</a>' in made.index.read_text()


def test_the_index_sorts_by_any_parameter_or_result(swept, chromium):  # noqa: F811
    with opened(chromium, swept[0].index) as tab:
        tab.locator("th", has_text="reward").get_by_role("button").click()
        rewards = tab.locator("tbody tr td:nth-child(4)").all_inner_texts()
        assert rewards == ["0.500", "1.000", "2.000", "–"]
        tab.locator("a", has_text="✗ failed").wait_for()


def test_started_again_it_makes_only_what_is_not_done(swept, tmp_path):
    made, _ = swept
    before = {run.page: (made.index.parent / run.page).stat().st_mtime_ns for run in made.runs}
    said: list[str] = []
    again = reports.sweep(
        made.index.parents[1] / "small.ipynb", GRID, made.index.parent, on_progress=said.append
    )
    changed = {page for page, at in before.items() if at != _touched(again, page)}

    assert said[0] == "3 of 4 runs are done already"
    assert changed == {again.failed[0].page}


def test_an_edited_file_that_a_parameter_names_is_read_again(tmp_path):
    data, runs = tmp_path / "data.txt", []
    for content in ("a", "b"):
        data.write_text(content)
        values = ledger.content_of({"where": str(data), "deep": [{"in": str(tmp_path)}]})
        runs += ledger.planned([({"seed": 1}, values)])
    assert runs[0].key != runs[1].key
    assert runs[0].page == runs[1].page
    assert ledger.content_of(["no such file", "x" * 5000, "a\0b", 3, None])[1] == "x" * 5000


def test_an_edited_file_deep_in_a_folder_that_a_parameter_names_is_read_again(tmp_path):
    deep = tmp_path / "data" / "split" / "train.jsonl"
    deep.parent.mkdir(parents=True)
    (tmp_path / "data" / ".git").mkdir()
    deep.write_text("a")
    before = ledger.content_of({"where": str(tmp_path / "data")})
    (tmp_path / "data" / ".git" / "index").write_text("changes by itself")
    assert before == ledger.content_of({"where": str(tmp_path / "data")})
    deep.write_text("b")
    assert before != ledger.content_of({"where": str(tmp_path / "data")})


def test_an_edited_file_in_the_home_folder_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data.txt").write_text("a")
    before = ledger.content_of({"where": "~/data.txt"})
    (tmp_path / "data.txt").write_text("b")
    assert before != ledger.content_of({"where": "~/data.txt"})
    assert ledger.content_of("~nobody-at-all/x") == "~nobody-at-all/x"


def test_an_edited_file_that_a_default_names_is_read_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = notebook(tmp_path, "from rftkit import reports\nreports.publish({})")
    written = nbformat.read(path, 4)
    written.cells[0].source += '\nwhere: str = "data.txt"\nother = f()'
    nbformat.write(written, path)
    told: list[list[str]] = []
    for content in ("a", "a", "b"):
        (tmp_path / "data.txt").write_text(content)
        told.append([])

        def make_all(book, *_, on_progress, **__):
            on_progress(f"{len(book.todo)} to do")
            for run in book.todo:
                book.put(replace(run, status="done"))
                (book.folder / run.page).touch()

        monkeypatch.setattr(sys.modules["rftkit.reports.sweep"], "make_all", make_all)
        reports.sweep(path, {"seed": [1, 2]}, tmp_path / "out", on_progress=told[-1].append)
    assert told == [["2 to do"], ["0 to do"], ["2 to do"]]


def test_settings_with_the_same_start_have_pages_of_their_own():
    planned = ledger.planned(({"text": "x" * 80 + str(at)}, None) for at in range(1000))
    assert len({run.page for run in planned}) == 1000


def _touched(made, page):
    return (made.index.parent / page).stat().st_mtime_ns


def test_a_process_that_dies_costs_its_own_run_only(tmp_path):
    body = "import os, signal\nif seed == 1: os.kill(os.getppid(), signal.SIGKILL)"
    made = reports.sweep(notebook(tmp_path, body), {"seed": [1, 2]}, tmp_path / "out", processes=1)

    assert [(run.status, run.error) for run in made.runs][1] == ("done", None)
    assert "ended with status -9" in made.runs[0].error


def test_wrong_settings_stop_it_before_anything_runs(tmp_path):
    path = notebook(tmp_path)
    for grid, said in (({"sed": [1]}, "no parameter 'sed'"), ({"seed": ["x"]}, "must be int")):
        with pytest.raises(ReportError, match=said):
            reports.sweep(path, grid, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_is_for_one_sweep_at_a_time(tmp_path):
    with ledger.ledger(tmp_path, "x", []), pytest.raises(ReportError, match="another sweep"):
        reports.sweep(notebook(tmp_path), GRID, tmp_path)


def test_a_run_that_was_interrupted_is_made_and_keeps_its_job(tmp_path):
    (run,) = ledger.planned([({"seed": 1}, None)])
    state = {"settings": {}, "key": run.key, "page": run.page, "status": "running", "job_id": "j"}
    (tmp_path / "sweep.json").write_text(json.dumps([state]))
    with ledger.ledger(tmp_path, "x", [run]) as book:
        assert [(each.status, each.job_id) for each in book.todo] == [("waiting", "j")]
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(ReportError, match=r"sweep\.json is not the state of a sweep"):
        ledger.Ledger(tmp_path, "x", [run])


def test_grids_combine_lists_and_repeat_the_rest(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("job: {model: m}\nseed: [1, 2]\nlevel: 0.5\n")
    grid = read_grid(path)

    assert grid.settings == ({"seed": 1, "level": 0.5}, {"seed": 2, "level": 0.5})
    assert grid.job == {"model": "m"}
    assert read_grid([{"a": 1}, {"b": [2]}]).settings == ({"a": 1}, {"b": [2]})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not YAML"),
        ("5", "found int"),
        ("seed: []", "gives 0 runs"),
        ("a: [1]\nb: &x [1,2,3,4,5,6,7,8,9,10]\nc: *x\nd: *x\ne: *x", "gives 10,000 runs"),
    ],
)
def test_grids_that_cannot_be_used_say_so(tmp_path, content, said):
    path = tmp_path / "grid.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=said):
        read_grid(path)


def test_a_job_of_a_grid_is_whole_before_anything_is_created():
    with pytest.raises(InputError, match="lacks train, valid, grader"):
        job_sweep._complete({"model": "m"})
    whole = job_sweep._complete(
        {"model": "m", "dataset": "tiny_copy", "batch_size": 4, "metadata.lora_rank": 8}
    )
    assert whole["hyperparameters"] == {"batch_size": 4}
    assert whole["metadata"] == {"lora_rank": "8"}
    assert whole["grader"]["type"]
