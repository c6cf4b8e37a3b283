"""What a file of preference rows teaches: pairs of one answer given twice teach nothing."""

from __future__ import annotations

import json

import pytest

from rftkit.errors import RowError
from rftkit.examples import Preference, preference_of
from rftkit.server.worker.job_files import equal_pairs


def pair(line: int, *answers: str) -> Preference:
    preferred, other = ([{"role": "assistant", "content": answer}] for answer in answers)
    asked = [{"role": "user", "content": "Which?"}]
    item = {"input": {"messages": asked}, "preferred_output": preferred}
    return preference_of({**item, "non_preferred_output": other}, line=line)


def call(line: int, *arguments: str) -> Preference:
    def answer(given: str) -> list[dict[str, object]]:
        function = {"name": "look", "arguments": json.dumps({"at": given})}
        return [{"role": "assistant", "tool_calls": [
            {"id": "c", "type": "function", "function": function}]}]  # fmt: skip

    asked = [{"role": "user", "content": "Which?"}]
    first, second = map(answer, arguments)
    item = {"input": {"messages": asked}, "preferred_output": first}
    return preference_of({**item, "non_preferred_output": second}, line=line)


def test_a_file_that_teaches_nothing_is_refused() -> None:
    with pytest.raises(RowError, match=r"pairs\.jsonl:1: the two answers of every row are the sam"):
        equal_pairs([pair(1, "a", "a"), pair(2, "b", "b")], "pairs.jsonl", "training_file")


def test_some_such_rows_are_counted() -> None:
    rows = [pair(1, "a", "b"), pair(2, "c", "c"), call(3, "x", "y")]

    (note,) = equal_pairs(rows, "pairs.jsonl", "training_file")
    assert "1 of 3 rows" in note
    assert "line 2" in note
    assert equal_pairs(rows[::2], "pairs.jsonl", "training_file") == []
