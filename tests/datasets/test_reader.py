"""Every reader of JSONL follows the same rules, whatever the file is called and packed in."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rftkit import datasets, graders
from rftkit.errors import InputError
from rftkit.importer.loose import LooseSource
from rftkit.importer.units import LeftOut
from rftkit.rows import read_rows
from rftkit.widgets.labels import read_labels

BREAKS = "one\u2028two\u0085three\u2029four\x1cfive"
GRADER = {
    "type": "string_check",
    "name": "eq",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}
ROW = {"messages": [{"role": "user", "content": BREAKS}], "answer": BREAKS}


def line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def imported(path: Path) -> list[Any]:
    return [each for each in LooseSource([path]).read() if not isinstance(each, LeftOut)]


def left_out(path: Path) -> str:
    return str([each.reason for each in LooseSource([path]).read() if isinstance(each, LeftOut)])


LABEL = {"row": BREAKS, "run": "r", "sample": 0, "value": 1.0, "kind": "verdict", "by": "me"}
JOB = {"object": "fine_tuning.job", "id": "ftjob-1", "model": BREAKS, "training_file": "f"}
READERS: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "read": (datasets.read, ROW),
    "read_samples": (datasets.read_samples, ROW),
    "grade_many": (lambda p: graders.grade_many(GRADER, p, answer="answer"), ROW),
    "labels": (read_labels, LABEL),
    "import": (imported, JOB),
}


@pytest.mark.parametrize("name", READERS)
def test_only_a_line_feed_ends_a_line(name: str, tmp_path: Path) -> None:
    read, value = READERS[name]
    path = tmp_path / "some.jsonl"
    second = value if name != "import" else {**value, "id": "ftjob-2"}
    path.write_bytes(b"\xef\xbb\xbf" + (line(value) + "\r\n" + line(second)).encode())
    assert len(read(path)) == 2


FLAWS = {
    "NaN": ('{"x": NaN, ', "NaN"),
    "Infinity": ('{"x": -Infinity, ', "Infinity"),
    "a repeated key": ('{"x": 1, "x": 2, ', "twice"),
    "a number too large": ('{"x": 1e999, ', "too large"),
    "deep nesting": ('{"x": ' + "[" * 100_000 + "]" * 100_000 + ", ", "nested|recursion"),
    "half a character": ('{"x": "\\ud800", ', "surrogate"),
}


@pytest.mark.parametrize("flaw", FLAWS)
@pytest.mark.parametrize("name", READERS)
def test_what_readers_disagree_on_is_refused_with_its_line(
    name: str, flaw: str, tmp_path: Path
) -> None:
    read, value = READERS[name]
    start, words = FLAWS[flaw]
    path = tmp_path / "some.jsonl"
    path.write_text(line(value) + start + line(value)[1:], encoding="utf-8")
    if name == "import":
        assert any(word in left_out(path) for word in words.split("|"))
        return
    with pytest.raises(InputError, match=words) as caught:
        read(path)
    assert "some.jsonl:2" in str(caught.value)


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_grader_file_is_read_as_strictly(flaw: str, tmp_path: Path) -> None:
    start, words = FLAWS[flaw]
    path = tmp_path / "grader.json"
    path.write_text(start + line(GRADER)[1:])
    with pytest.raises(InputError, match=words):
        datasets.read_json(path)
    path.write_bytes(line(GRADER).encode("utf-16"))
    with pytest.raises(InputError, match="UTF-16"):
        datasets.read_json(path)


TABLE = "prompt,answer\nhello,x\n"
FORMS = {
    "a.CSV": TABLE.encode(),
    "a.Csv.GZ": gzip.compress(TABLE.encode()),
    "a.tsv": TABLE.replace(",", "\t").encode(),
    "a.TSV": TABLE.replace(",", "\t").encode(),
    "a.tsv.gz": gzip.compress(TABLE.replace(",", "\t").encode()),
    "a.csv": b"\xef\xbb\xbf" + TABLE.encode(),
    "semicolons.csv": TABLE.replace(",", ";").encode(),
    "semicolons-with-commas.csv": b'prompt;answer\n"hello, 1,5";x\n',
    "tabs.csv": TABLE.replace(",", "\t").encode(),
    "a.JSONL.GZ": gzip.compress(b'{"prompt": "hello", "answer": "x"}\n'),
    "a.NDJSON": b'{"prompt": "hello", "answer": "x"}\n',
    "array.json": b'[{"prompt": "hello", "answer": "x"}]',
    "array.jsonl": b'\xef\xbb\xbf [\n  {"prompt": "hello",\n   "answer": "x"}\n]\n',
    "array.json.gz": gzip.compress(b'[{"prompt": "hello", "answer": "x"}]'),
    "indented.json": json.dumps({"prompt": "hello", "answer": "x"}, indent=2).encode(),
    "wrapped.json": json.dumps({"data": [{"prompt": "hello", "answer": "x"}]}, indent=1).encode(),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_are_known_by_their_names_in_any_case(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FORMS[name])
    datasets.convert(path, tmp_path / "out.jsonl")
    [row] = datasets.read(tmp_path / "out.jsonl")
    assert row.item["reference_answer"] == "x"


@pytest.mark.parametrize("name", [each for each in FORMS if "array" in each or "indented" in each])
def test_one_message_names_the_command_that_converts(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FORMS[name])
    for read in (datasets.read, datasets.check, datasets.read_samples):
        with pytest.raises(InputError, match="rftkit dataset convert") as caught:
            read(path)
        assert str(caught.value).count("\n") == 0


def test_utf_16_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for text in (line(ROW), line(ROW) * 3):
        path.write_bytes(text.encode("utf-16"))
        with pytest.raises(InputError, match="UTF-16"):
            datasets.check(path)


def test_flat_answers_of_a_table_are_graded(tmp_path: Path) -> None:
    path = tmp_path / "said.CSV"
    path.write_text("question,answer,output_text\nblank?,,\nfilled?,Name,Name\n,Name,\n")
    with graders.compile_grader(GRADER) as grader:
        grades = grader.grade_many(datasets.read_samples(path))
    assert [each.reward for each in grades] == [1.0, 1.0, 0.0]


def test_a_result_file_with_an_extra_cell_is_left_out_alone(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("step,train_reward\n1,0.5\n2,0.6,9\n")
    (tmp_path / "job.json").write_text(json.dumps(JOB))
    found = list(LooseSource([tmp_path]).read())
    assert [each.id for each in found if not isinstance(each, LeftOut)] == ["ftjob-1"]
    assert "record 2 has more cells" in left_out(tmp_path)


BINARY = {
    "a.jsonl": (b"PK\x03\x04\x14\x00", "Excel workbook .*save the sheet as CSV"),
    "a.csv": (b"PK\x03\x04\x14\x00", "Excel workbook .*save the sheet as CSV"),
    "a.xlsx": (b"PK\x03\x04\x14\x00\n\x00", "Excel workbook .*save the sheet as CSV"),
    "old.xls": (b"\xd0\xcf\x11\xe0\xa1", "Excel workbook .*save the sheet as CSV"),
    "b.jsonl": (gzip.compress(b"{}"), "packed with gzip; its name must end in .gz"),
    "c.jsonl": (b"PAR1\x15\x04", "a Parquet file; its name must end in .parquet"),
    "e.csv": ("prompt,answer\nhi,x\n".encode("utf-16"), r"UTF-16\); save the file as UTF-8"),
    "d.pdf": (b"%PDF-1.7\n%", "a PDF"),
}


@pytest.mark.parametrize("name", BINARY)
def test_a_file_of_another_kind_is_one_message_with_advice(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    content, words = BINARY[name]
    path.write_bytes(content)
    for read in (datasets.read, datasets.check):
        with pytest.raises(InputError, match=words) as caught:
            read(path)
        assert str(caught.value).count(name) == 1
    if name != "e.csv":
        with pytest.raises(InputError, match=words):
            list(read_rows(content.split(b"\n"), path=name))


@pytest.mark.parametrize("end", ["", "\r", "\r\r", "\n"])
def test_lines_that_end_with_carriage_returns_alone(end: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(f'{{"messages": [], "a": 1}}\r{{"messages": [], "a": 2}}{end}'.encode())
    with pytest.raises(InputError, match=r"a carriage return alone .* tr '\\r' '\\n' < FILE"):
        datasets.read(path)
