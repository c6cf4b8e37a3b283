"""RowBrowser: frames and files, found, sorted, opened; by attributes, by clicks and headless."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import GRADER
from hypothesis import given
from hypothesis import strategies as st

from rftkit import datasets
from rftkit.errors import InputError
from rftkit.views.rows import cells, row_page
from rftkit.widgets import RowBrowser
from rftkit.widgets.conditions import Condition, parse_conditions
from rftkit.widgets.rowsource import FileSource, FrameSource
from rftkit.widgets.task import Task


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame({
        "prompt": ["May a <b>vendor</b> see the key?", "Is backup needed?", "May a Vendor wait?"],
        "label": ["no", "yes", None],
        "words": [7, 3, 4],
        "score": [0.25, 1.0, None],
        "ok": [True, False, True],
        "tags": [["a", "b"], [], ["c"]],
    })  # fmt: skip


def chat(prompt: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], "answer": answer}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    long = "Please read the whole policy about data export before you answer number"
    rows = [chat(f"{long} {n}", str(n)) for n in range(40)] + [chat("Say hi", "hi")]
    lines = [json.dumps(row) for row in rows]
    lines[3] = '{"messages": []}'
    (tmp_path / "rows.jsonl").write_text("\n\n".join(lines))
    return tmp_path / "rows.jsonl"


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFTKIT_MODE", "live")


def test_what_is_shown_is_a_frame(frame: pd.DataFrame) -> None:
    browser = RowBrowser(frame, page_size=2)
    assert list(browser.data()["words"]) == [7, 3]
    browser.page = 1
    assert list(browser.data()["words"]) == [4]
    browser.set(query="VENDOR", sort="words")
    assert list(browser.found()["words"]) == [4, 7]
    assert browser.page == 0
    browser.descending = True
    assert list(browser.numbers()) == [0, 2]


@pytest.mark.parametrize(
    ("where", "numbers"),
    [
        ("label=NO", [0]),
        ("label!=no", [1]),  # a row without a label has none that differs
        ("prompt~vendor words>4", [0]),
        ('prompt~"see the"', [0]),
        ("score>=0.25", [0, 1]),
        ("words=3", [1]),
        ("ok=yes", [0, 2]),
        ("tags~b", [0]),
        ("", [0, 1, 2]),
    ],
)
def test_conditions(frame: pd.DataFrame, where: str, numbers: list[int]) -> None:
    assert list(RowBrowser(frame, where=where).numbers()) == numbers


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("label", "write key=value"),
        ("nokey=1", "no key 'nokey'; they have prompt, label"),
        ("label>b", "'b' is not a number; for text write label=b"),
    ],
)
def test_conditions_that_make_no_sense_say_so(
    frame: pd.DataFrame, where: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        RowBrowser(frame, where=where).numbers()


words = st.text(st.characters(exclude_characters='"', exclude_categories=["Cc", "Cs"]), min_size=1)


@given(st.lists(st.tuples(words.filter(str.strip), st.sampled_from(["=", "!=", "~", "<="]), words)))
def test_quoted_conditions_read_back(parts: list[tuple[str, str, str]]) -> None:
    text = " ".join(f'"{key}"{op}"{value}"' for key, op, value in parts)
    assert parse_conditions(text) == [Condition(*part) for part in parts]


@given(st.lists(st.tuples(st.text(), st.text(), st.integers())), st.text(min_size=1))
def test_a_search_finds_what_a_scan_finds(rows: list[tuple[str, str, int]], needle: str) -> None:
    source = FrameSource(pd.DataFrame(rows, columns=["a", "b", "n"]))
    want = needle.lower().encode("utf-8", "replace")
    texts = [f"{a}\n{b}\n{n}".lower().encode("utf-8", "replace") for a, b, n in rows]
    found = source.search(needle, Task(print))
    if b"\0" not in want:
        assert list(found) == [at for at, text in enumerate(texts) if want in text]


def test_a_file_keeps_its_bad_lines_in_place(file: Path) -> None:
    browser = RowBrowser(file, page_size=5, row=3)
    assert len(browser.numbers()) == 41
    html = browser.to_html()
    assert "not usable" in html
    assert "rows.jsonl:7 (row 4)" in html
    browser.set(query="number 12", row=None)
    assert list(browser.numbers()) == [12]
    assert browser.data()["answer"].tolist() == ["12"]
    browser.set(query="", where="answer=hi")
    assert list(browser.numbers()) == [40]


def test_a_row_in_full_has_its_grade_and_the_rows_like_it(file: Path) -> None:
    browser = RowBrowser(file, grader={**GRADER, "name": "exact"}, row=12)
    html = browser.to_html()
    assert "reward 1.00" in html
    assert "Similar rows" in html
    assert "% similar" in html
    assert "reference answer: 12  (reward 1.00)" in str(browser)
    browser.close()


@pytest.mark.parametrize("as_file", [True, False])
def test_rows_may_have_keys_that_rftkit_uses_itself(tmp_path: Path, as_file: bool) -> None:
    keys = ("refused", "refusal", "line", "item.line", "number", "row", "raw", "prompt", "usable")
    rows = [chat(f"Question {n}", "yes") | {key: f"{key} {n}" for key in keys} for n in (1, 2)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no json\n" * as_file)
    browser = RowBrowser(path if as_file else pd.DataFrame(rows))
    found = browser.found()
    for key in keys:
        browser.set(query="", where=f'"{key}"="{key} 2"', row=1)
        assert list(browser.numbers()) == [1]
        assert f"{key} 2" in browser.to_html()
        assert "not usable" not in browser.to_html()
        browser.set(query=f"{key} 1", where="", row=None)
        assert list(browser.numbers()) == [0]
        browser.set(query="", sort=key, descending=True)
        assert list(browser.numbers())[:2] == [1, 0]
        name = f"item.{key}" if as_file and key in ("refusal", "line", "item.line") else key
        assert list(found[name])[:2] == [f"{key} 1", f"{key} 2"]
    if as_file:
        browser.set(row=2, sort="", query="")
        assert "not usable" in browser.to_html()
        assert list(found["line"]) == [1, 2, 3]
        assert list(datasets.profile(path)["item.line"])[:2] == ["line 1", "line 2"]


def test_a_row_that_is_not_there(file: Path) -> None:
    with pytest.raises(InputError, match="there is no row 99; there are 0 to 40, shown from 1"):
        RowBrowser(file, row=99).to_html()


def test_findings_are_filters(file: Path) -> None:
    found = datasets.check(file)
    browser = RowBrowser(file, check=found, finding="invalid_row")
    assert list(browser.numbers()) == [3]
    with pytest.raises(InputError, match="no finding 'typo'; there are"):
        RowBrowser(file, check=found, finding="typo").numbers()


def test_clicks_page_sort_and_open(frame: pd.DataFrame, live: None) -> None:
    browser = RowBrowser(frame, page_size=2)
    browser.widget()
    browser._next.click()
    assert browser.page == 1
    assert "3 to 3 of 3 rows" in browser._count.value
    browser._act_sort("words")
    browser._act_sort("words")
    assert (browser.sort, browser.descending, browser.page) == ("words", True, 0)
    assert browser.wait(10)
    assert 'aria-sort="descending"' in browser._view.value
    browser._act_open("2")
    assert browser.wait(10)
    assert "May a Vendor wait?" in browser._full.value
    browser._search.value = "backup"
    assert browser.wait(10)
    assert browser.query == "backup"
    assert "1 of 3 rows" in browser._count.value
    browser._search.value = "nosuchword"
    assert browser.wait(10)
    assert "No row matches" in browser._view.value
    browser._search.value = "backup"
    assert browser.wait(10)
    assert "No row matches" not in browser._view.value
    browser._filter.value = "words>many"
    assert browser.wait(10)
    assert "is not a number" in browser.error
    browser._filter.value = ""
    assert browser.wait(10)
    assert browser.error == ""


def test_the_doctor_runs_from_the_panel(file: Path, live: None) -> None:
    browser = RowBrowser(file)
    browser.widget()
    browser._run_check.click()
    assert browser.wait(60)
    assert browser.error == ""
    assert "invalid_row" in [code for _, code in browser._findings.options]
    assert browser._run_check.layout.display == "none"


def test_everything_is_escaped(frame: pd.DataFrame, live: None) -> None:
    browser = RowBrowser(frame, row=0)
    browser.widget()
    browser.wait(10)
    for html in (browser.to_html(), browser._view.value, browser._full.value):
        assert "<b>vendor" not in html
        assert "&lt;b&gt;vendor" in html


def test_a_static_copy_says_what_it_leaves_out(frame: pd.DataFrame) -> None:
    many = pd.concat([frame] * 400, ignore_index=True)
    html = RowBrowser(many).to_html(max_bytes=50_000)
    assert len(html) < 70_000
    assert "of 1,200 rows are on this page" in html


def test_a_page_shows_where_the_hit_is() -> None:
    """A hit behind the excerpt moves the excerpt; markup in rows stays text."""
    rows = [{"text": f"{'long ' * 60}a <b>needle</b> {'tail ' * 60}"}, {"text": "Needle first"}]
    html = row_page(cells(rows), ["text"], numbers=[0, 1], hit="needle")
    assert "<mark>needle</mark>&lt;/b&gt;" in html
    assert "<mark>Needle</mark> first" in html
    assert html.count("…") == 2
    assert "<mark>" not in row_page(cells(rows), ["text"], numbers=[0, 1])


def test_a_hit_in_another_line_of_the_prompt_or_another_column_is_shown(live: None) -> None:
    """A prompt is listed by the line that tells rows apart, and eight keys are listed."""
    keys = {f"key{n}": "" for n in range(12)}
    rows = [
        {"messages": [{"role": "system", "content": "Be brief."},
                      {"role": "user", "content": f"{firm}\nPlease pay {n} euro."}],
         **keys, "key11": f"place {n}"}
        for n, firm in enumerate(("Blue Fern", "Müller Bau", "Elm & Son"))
    ]  # fmt: skip
    browser = RowBrowser(rows)
    browser.widget()
    for query, marked in (("bau", "Müller <mark>Bau</mark>"), ("place 2", "<mark>place 2</mark>"),
                          ("be BRIEF", "<mark>Be brief</mark>")):  # fmt: skip
        browser.query = query
        assert browser.wait(10)
        assert marked in browser._view.value
    browser.query = ""
    assert "key11" not in browser._view.value
    browser.close()


def test_rows_just_written_are_shown_though_they_were_counted_late(
    live: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first drawing came before the rows were counted, and the counting had ended after it."""
    monkeypatch.chdir(tmp_path)
    Path("tickets.csv").write_text("ticket,category\nIt hurts,a\nIt burns,b\nIt itches,c\n")
    browser = RowBrowser("tickets.csv", row=0)
    browser.widget()
    begin, count = RowBrowser._start_indexing, FileSource.__len__
    counted: list[bool] = []
    monkeypatch.setattr(FileSource, "__len__", lambda each: count(each) if counted else 0)
    monkeypatch.setattr(
        RowBrowser,
        "_start_indexing",
        lambda each: (each._source.wait(), counted.append(True), begin(each)),
    )
    assert browser._maker is not None
    browser._maker.write()
    assert browser.wait(30)
    assert "1 to 3 of 3 rows" in browser._count.value
    assert "It itches" in browser._view.value
    browser.close()
