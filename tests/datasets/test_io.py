"""Reading, uploading and opening datasets; answers that stand in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROW, Served
from hypothesis import given
from hypothesis import strategies as st

from rftkit import datasets
from rftkit.datasets import io
from rftkit.errors import InputError, NotFoundError, RowError
from rftkit.rows import read_rows

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]))
ITEMS = st.dictionaries(TEXT, TEXT | st.integers() | st.none() | st.lists(TEXT), max_size=4)


@given(st.lists(ITEMS, min_size=1, max_size=5))
def test_what_is_written_is_read(items: list[dict[str, Any]]) -> None:
    messages = [{"role": "user", "content": "hi"}]
    rows = [{**item, "messages": messages, "tools": None} for item in items]
    lines = [json.dumps(row, ensure_ascii=False).encode() + b"\r\n\n" for row in rows]
    found = list(read_rows(b"".join(lines).splitlines(keepends=True)))
    assert [row.item for row in found] == rows
    assert [row.line for row in found] == [2 * number + 1 for number in range(len(rows))]


def test_read_names_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROW + b"\n" + b'{"messages": []}\n')
    with pytest.raises(RowError, match=r"rows\.jsonl:3: `messages` must be a non-empty list"):
        datasets.read(path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("rows.jsonl", b"", "holds no rows"),
        ("rows.jsonl", b"{", "rows.jsonl:1: not valid JSON"),
        ("rows.jsonl", b"\xff\n", "rows.jsonl:1: not valid UTF-8"),
        ("rows.csv", ROW, r"takes \.jsonl files only, found '\.csv'"),
    ],
)
def test_a_file_that_cannot_be_used_is_not_sent(
    served: Served, tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        datasets.upload(served.client, write(tmp_path / name, content))
    assert served.client.files.list().data == []


def test_a_missing_file_is_named(served: Served, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.jsonl: there is no such file"):
        datasets.upload(served.client, tmp_path / "nowhere.jsonl")
    with pytest.raises(InputError, match=r"a dataset folder needs train\.jsonl"):
        datasets.read(tmp_path)


def test_a_file_over_the_limit_is_not_sent(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io, "MAX_UPLOAD_BYTES", 10)
    with pytest.raises(InputError, match="split the file"):
        datasets.upload(served.client, write(tmp_path / "rows.jsonl", ROW))


def test_upload_sends_the_bytes_as_they_are(served: Served, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", b"\xef\xbb\xbf" + ROW)
    file = datasets.upload(served.client, path)
    assert (file.filename, file.purpose) == ("rows.jsonl", "fine-tune")
    assert served.client.files.content(file.id).read() == path.read_bytes()


def test_a_part_of_a_folder_is_uploaded_under_the_name_of_its_folder(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("train", "validation"):
        (tmp_path / "tickets").mkdir(exist_ok=True)
        path = write(tmp_path / "tickets" / f"{part}.jsonl", ROW)
        assert datasets.upload(served.client, path).filename == f"tickets-{part}.jsonl"
    monkeypatch.chdir(tmp_path / "tickets")
    assert datasets.upload(served.client, "train.jsonl").filename == "tickets-train.jsonl"
    assert datasets.upload(served.client, "train.jsonl", name="a.jsonl").filename == "a.jsonl"
    monkeypatch.setenv("HOME", str(tmp_path / "tickets"))  # a name of a person
    assert datasets.upload_name("train.jsonl") == "train.jsonl"


@pytest.mark.parametrize("name", ["security_review", "contract_facts", "tiny_copy"])
def test_bundled_datasets_open(name: str) -> None:
    data = datasets.bundled(name)
    assert data.name == name
    assert all(datasets.read(path) for path in (data.train, data.valid, data.test))
    assert (data.response_format is None) == (name == "tiny_copy")


def test_an_unknown_dataset_lists_the_known() -> None:
    with pytest.raises(NotFoundError, match="there are contract_facts, policy_lookup"):
        datasets.bundled("nope")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[1]", "expected one JSON object"),
        (b"{,}", r"g\.json:1:2: not valid JSON"),
        (b"\xff", "UTF-8"),
    ],
)
def test_a_json_file_that_cannot_be_used(tmp_path: Path, content: bytes, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        datasets.read_json(write(tmp_path / "g.json", content))


def test_reference_answers() -> None:
    answer_format = {
        "type": "json_schema",
        "json_schema": {"schema": {"properties": {"b": {}, "a": {}}}},
    }
    assert datasets.reference_answer({"answer": "x"}, None) == "x"
    assert datasets.reference_answer({"reference_answer": {"é": 1}}, None) == '{"é": 1}'
    assert datasets.reference_answer({"a": 1, "b": 2, "c": 3}, answer_format) == '{"b": 2, "a": 1}'
    assert datasets.reference_answer({"a": 1}, answer_format) is None
    assert datasets.reference_answer({"a": 1}, None) is None


def test_samples_from_a_file(tmp_path: Path) -> None:
    lines = [
        {"item": {"answer": "x"}, "sample": "y"},
        {"item": {"answer": "x"}, "sample": {"output_text": "z", "model": "m"}},
        {"messages": [{"role": "user", "content": "?"}], "answer": "x"},
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)).encode())
    pairs = datasets.read_samples(path)
    assert [sample.output_text for sample, _ in pairs] == ["y", "z", "x"]
    assert [item["answer"] for _, item in pairs] == ["x", "x", "x"]


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"\xff",
        b"[]",
        b'{"item": {}, "sample": 3}',
        b'{"item": {}}',
        b'{"messages": [{"role": "user", "content": "?"}]}',
    ],
)
def test_a_line_without_an_answer_is_named(tmp_path: Path, line: bytes) -> None:
    with pytest.raises(RowError, match=r"a\.jsonl:2: "):
        datasets.read_samples(write(tmp_path / "a.jsonl", b"\n" + line))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
