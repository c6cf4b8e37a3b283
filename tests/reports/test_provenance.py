"""Where a page comes from: sources by hash, full tables beside it."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from rftkit import reports
from rftkit.reports import provenance

BODY = """
from pathlib import Path
from rftkit import reports
reports.made_from(data=Path(data), grader={"type": "python", "a": 1}, seed=7, nothing=None)
reports.table([{"row": n, "words": "x" * 90} for n in range(900)], name="rows", max_bytes=20_000)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("provenance")
    (folder / "train.jsonl").write_text("{}\n\n{}\n")
    cell = new_code_cell("data: str = ''\nseed: int = 3", metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cell, new_code_cell(BODY)]), folder / "n.ipynb")
    page = reports.run(
        folder / "n.ipynb", folder / "page.html", data=str(folder / "train.jsonl"), csv=True
    )
    return page


def test_the_last_section_names_all_it_was_made_from(made):
    html = made.read_text()
    digest = hashlib.sha256(b"{}\n\n{}\n").hexdigest()
    canonical = hashlib.sha256(b'{"a":1,"type":"python"}').hexdigest()

    assert html.count(digest) == 1
    assert canonical in html
    for fact in ("notebook sha256", "commit", "UTC, in", "versions", "JSON, python", ">7<"):
        assert fact in html
    assert '<a href="#Provenance">Provenance</a>' in html


def test_rows_left_out_lie_in_a_csv_that_the_page_names(made):
    html, csv = made.read_text(), made.with_name("page-rows.csv").read_text()

    assert "of 900 rows are on this page; the others are left out" in html
    assert 'href="page-rows.csv"' in html
    assert csv.count("\n") == 901


def test_without_the_request_there_is_no_csv_and_the_page_says_how(tmp_path):
    rows = [{"words": "x" * 90}] * 900
    html = reports.table(rows, name="rows", max_bytes=20_000)

    assert "make the report with --csv to get all rows in a file" in html
    assert reports.csv_beside(rows, "rows") is None


def test_the_commit_says_when_something_is_not_committed(tmp_path):
    def git(*words: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x@y"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    assert provenance._commit(Path("/")) is None
    git("init")
    (tmp_path / "a").write_text("a")
    git("add", "a")
    git("commit", "-m", "a")
    assert len(provenance._commit(tmp_path) or "") == 40
    (tmp_path / "a").write_text("b")
    assert (provenance._commit(tmp_path) or "").endswith(" and uncommitted changes")
