"""Tables: what is shown, what is kept for the script, what is left out and said to be."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pandas as pd

from rftkit.views import table


def rows(count: int) -> list[dict[str, object]]:
    return [{"number": i, "words": f"row {i} " + "x" * 80} for i in range(count)]


def static_part(html: str) -> str:
    return re.sub(r'<script type="text/html".*?</script>', "", html, flags=re.DOTALL)


def test_the_first_rows_need_no_script():
    html = table(rows(50))

    assert html.count("<tr>") == 51
    assert static_part(html).count("<tr>") == 21
    assert "the first 20 of 50 rows" in html
    assert "are on this page" not in html


def test_a_short_table_says_its_count():
    assert ">1 row<" in table(rows(1))
    assert ">3 files<" in table(rows(3), noun="file")


def test_rows_beyond_the_bytes_are_left_out_and_counted():
    html = table(rows(1500), max_bytes=50_000)
    kept = html.count("<tr>") - 1

    assert len(html.encode()) < 51_500
    assert 100 < kept < 1500
    assert f"{kept} of 1,500 rows are on this page; the others are left out" in html


def test_a_part_of_a_larger_whole_says_so():
    assert "3 of 12,031 rows are on this page" in table(rows(3), total=12_031)


def test_one_enormous_cell_is_cut():
    html = table([{"words": "x" * 200_000}])

    assert len(html) < 105_000
    assert "100,000 more characters are left out" in html


def test_nothing_is_not_zero():
    html = table([{"reward": v} for v in (0.0, None, float("nan"), pd.NA)])

    assert html.count('data-v="">–</td>') == 3
    assert 'data-v="0.0">0.000</td>' in html


def test_columns_can_be_chosen_named_and_come_from_any_kind_of_row():
    @dataclass
    class Point:
        step: int
        reward: float

    frame = pd.DataFrame({"step": [1], "reward": [0.5]})
    tables = [table(kind, {"step": "Step"}) for kind in ([Point(1, 0.5)], frame, [{"step": 1}])]

    assert tables[0] == tables[1] == tables[2]
    assert ">Step</th>" in tables[0]
    assert "0.5" not in tables[0]


def test_no_rows_is_a_table_too():
    assert ">0 rows<" in table([], ["a"])
