"""Files of JSON lines that only grow, and the pauses between attempts."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rftkit.backoff import backoff_seconds
from rftkit.growing import append_json, json_values

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(values=st.lists(VALUES, max_size=4), cut=st.integers(2, 40))
def test_a_line_that_a_kill_cut_off_costs_no_other_line(values: list[object], cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "new" / "lines.jsonl"
        for value in values:
            append_json(path, value)
        assert list(json_values(path)) == values
        append_json(path, {"what was cut off": "x" * 40})
        path.write_bytes(path.read_bytes()[:-cut])
        append_json(path, "the next")
        assert list(json_values(path)) == [*values, "the next"]


def test_a_missing_file_has_no_values(tmp_path: Path) -> None:
    assert list(json_values(tmp_path / "none.jsonl")) == []


def test_pauses_double_up_to_the_longest() -> None:
    assert [backoff_seconds(attempt, 2.0, 60.0) for attempt in range(7)] == [
        2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0,
    ]  # fmt: skip
    assert backoff_seconds(10**6, 1.0, 3600.0) == 3600.0
    assert all(0.75 <= backoff_seconds(0, 1.0, jitter=0.25) <= 1.25 for _ in range(100))
