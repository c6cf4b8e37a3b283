"""Every reader of JSONL follows the same rules, whatever the file is called and packed in."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rftkit import datasets, graders, prompts, settings
from rftkit.cli import console
from rftkit.errors import InputError, PlatformError
from rftkit.evals.labels import labelled_answers
from rftkit.graders.calibrations import read_calibration
from rftkit.importer.loose import LooseSource
from rftkit.importer.units import LeftOut
from rftkit.jobs import events_from_csv
from rftkit.reports.grid import read_grid
from rftkit.rows import read_rows
from rftkit.server.training.final_checks import read_checks
from rftkit.strictjson import parse_strictly
from rftkit.widgets.labels import read_labels
from rftkit.yamltext import parse_yaml

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
    for read in (datasets.read, datasets.check):
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


ANSWERS = [{"item": {"answer": BREAKS}, "sample": BREAKS}, {"item": {"answer": "x"}, "sample": ""}]
LABELLED = [{**each, "label": True} for each in ANSWERS]
DOCUMENTS: dict[str, Callable[[Any], str]] = {
    "one array": lambda values: json.dumps(values, ensure_ascii=False),
    "an array over lines": lambda values: "\ufeff " + json.dumps(values, indent=2),
    "objects over lines": lambda values: "\n".join(json.dumps(each, indent=1) for each in values),
}


@pytest.mark.parametrize("form", DOCUMENTS)
def test_answers_and_labels_may_be_one_document(form: str, tmp_path: Path) -> None:
    """The command that makes rows of an array would drop their answers and labels."""
    path = tmp_path / "answers.json"
    path.write_text(DOCUMENTS[form](LABELLED), encoding="utf-8")
    assert [sample.output_text for sample, _ in datasets.read_samples(path)] == [BREAKS, ""]
    frame = graders.grade_many(GRADER, path)
    assert frame["reward"].tolist() == [1.0, 0.0]
    _, labels = labelled_answers(path)
    assert len(labels) == 2
    packed = tmp_path / "answers.json.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert len(graders.grade_many(GRADER, packed)) == 2
    path.write_text(DOCUMENTS[form]([{**LABEL, "sample": n} for n in range(3)]), encoding="utf-8")
    assert len(read_labels(path)) == 3
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert len(read_labels(packed)) == 3
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(InputError, match="cannot be read"):
        read_labels(packed)


def test_the_entries_of_a_document_have_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps([LABEL, {**LABEL, "value": "high"}], indent=1))
    with pytest.raises(InputError, match=r"labels\.json:10: not a label"):
        read_labels(path)
    path.write_text('[{"item": {}, "sample": "", "label": 1},\n 5]')
    with pytest.raises(InputError, match=r"labels\.json:2: expected a JSON object, found a number"):
        labelled_answers(path)
    path.write_text('[\n{"item": {}, "item": {}, "sample": "", "label": 1}]')
    with pytest.raises(InputError, match=r"labels\.json:2:14: not usable JSON: the key 'item'"):
        labelled_answers(path)


@pytest.mark.parametrize("name", ["said.csv.gz", "said.CSV.GZ", "said.tsv.gz", "said.jsonl.zst"])
def test_packed_forms_that_a_function_does_not_read_are_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"answer,output_text\nx,x\n"))
    with pytest.raises(InputError, match=r"pandas\.read_(csv|table)|read_samples"):
        graders.grade_many(GRADER, path)


@pytest.mark.parametrize("kind", ["labels", "prompt", "tools"])
def test_a_packed_file_is_named_where_text_is_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"{kind}.json"
    path.write_bytes(gzip.compress(b"{}"))
    read: dict[str, Callable[[Path], Any]] = {
        "labels": read_labels, "prompt": prompts.read_prompt, "tools": datasets.read_tools,
    }  # fmt: skip
    with pytest.raises(InputError, match="packed with gzip"):
        read[kind](path)


@pytest.mark.parametrize("flaw", FLAWS)
@pytest.mark.parametrize("form", ["csv", "frame"])
def test_a_cell_with_json_is_read_as_strictly(flaw: str, form: str, tmp_path: Path) -> None:
    import pandas as pd

    start, words = FLAWS[flaw]
    cell = "[" + start + '"role": "user", "content": "hi"}]'
    frame = pd.DataFrame({"messages": [cell], "answer": ["x"]})
    path = tmp_path / "rows.csv"
    frame.to_csv(path, index=False)
    with pytest.raises(InputError, match=f"`messages`.*({words})"):
        datasets.read(path if form == "csv" else frame)


@pytest.mark.parametrize("form", ["frame", "parquet"])
def test_bytes_of_a_table_are_text_or_refused(form: str, tmp_path: Path) -> None:
    """The encoder would write base64; parquet files of other tools often hold texts as bytes."""
    import pandas as pd

    prompts: list[Any] = ["é?".encode(), b"\xff", [b"a", {"b": b"c"}]]
    source: Any = pd.DataFrame({"prompt": prompts[:2]})
    if form == "parquet":
        source.to_parquet(tmp_path / "rows.parquet", index=False)
        source = tmp_path / "rows.parquet"
    first, second = datasets.open(source)
    assert json.loads(first.raw) == {"prompt": "é?"}
    assert "`prompt` has bytes that are not text (UTF-8)" in str(second.refusal)
    [nested] = datasets.open(pd.DataFrame({"prompt": prompts[2:]}))
    assert json.loads(nested.raw) == {"prompt": ["a", {"b": "c"}]}


def test_a_missing_decimal_of_a_frame_is_not_a_word() -> None:
    import pandas as pd

    [row] = datasets.open(pd.DataFrame({"answer": [Decimal("NaN")]}))
    assert json.loads(row.raw) == {"answer": None}


def test_an_infinite_number_of_a_frame_is_not_null() -> None:
    import pandas as pd

    first, second = datasets.open(pd.DataFrame({"answer": [float("inf"), 1.0]}))
    assert "`answer` has an infinite number" in str(first.refusal)
    assert json.loads(second.raw) == {"answer": 1.0}


def test_text_that_only_looks_like_json_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("messages,answer\n[sic] hello,x\n")
    with pytest.raises(InputError, match="must be a non-empty list, found text"):
        datasets.read(path)


def test_a_quotation_mark_that_is_not_closed_takes_no_rows_silently(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,answer\nfirst,x\n"second,y\nthird,z\nfourth,z\n')
    conversion = datasets.convert(path, tmp_path / "out.jsonl")
    assert (conversion.num_rows, conversion.num_refused) == (1, 1)
    [why] = conversion.refused
    assert why.startswith(f"{path}:3: ")
    assert "is never closed, so that the 2 lines after this one cannot be read" in why
    path.write_text('prompt,"answer\nfirst,x\n')
    with pytest.raises(InputError, match="it is in the line of names"):
        datasets.convert(path, tmp_path / "other.jsonl")


SWALLOWED = {
    "closed-by-another": ('1,"a,x\n2,b,y\n3,c,z\n4,d",y\n', "3 lines below.*look like rows", 1),
    "closed-by-a-cell": ('1,"a,x\n2,b,y\n3,"c",z\n', "2 lines below; .*With it, the 2 lines", 1),
    "not-doubled": ('1,"He said "hi", twice",x\n', "write each quotation mark twice$", 1),
    "a-letter": ('1,"Dear A, hi\nb, c, d\ne, f",x\n', "", 0),
    "a-table": ('1,"a,b,c\n1,2,3\n4,5,6\n7,8,9",x\n', "", 0),
}


@pytest.mark.parametrize("case", SWALLOWED)
def test_a_cell_takes_no_rows_silently(case: str, tmp_path: Path) -> None:
    broken, why, num_refused = SWALLOWED[case]
    path = tmp_path / "rows.csv"
    path.write_text(f"id,prompt,answer\n0,first,x\n{broken}9,last,y\n")
    conversion = datasets.convert(path, tmp_path / "out.jsonl")
    assert conversion.num_refused == num_refused
    assert conversion.num_rows == 3 - num_refused
    if num_refused:
        [refused] = conversion.refused
        assert re.match(f"{re.escape(str(path))}:3: a quotation mark opens a cell.*{why}", refused)


def test_a_quoted_cell_at_the_end_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for end in ("", "\n", "\r\n", "\n\n"):
        path.write_bytes(f'prompt,answer\nfirst,"x\ny"{end}'.encode())
        [row] = [each for each in datasets.open(path) if not each.row]
        assert json.loads(row.raw) == {"prompt": "first", "answer": "x\ny"}


EVENTS = {"results.csv": "step,train_reward\n1,0.5\n2,0.6\n"}
EVENTS["results.tsv"] = EVENTS["RESULTS.TSV"] = EVENTS["results.csv"].replace(",", "\t")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", EVENTS)
def test_result_files_are_known_in_every_form(name: str, packed: bool, tmp_path: Path) -> None:
    content = EVENTS[name].encode()
    path = tmp_path / f"{name}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(content) if packed else content)
    found = imported(path)
    assert [each.kind for each in found] == ["file", "job"]
    assert found[0].content().read() == content
    assert [json.loads(part)["data"]["step"] for part in found[1].parts()] == [1, 2]


@pytest.mark.parametrize(
    "name", ["jobs.jsonl.gz", "jobs.JSONL.GZ", "jobs.ndjson.gz", "job.json.gz"]
)
def test_packed_objects_of_the_api_are_imported(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(line(JOB).encode()))
    assert [each.id for each in imported(path)] == ["ftjob-1"]
    path.write_bytes(gzip.compress(line(JOB).encode())[:-6])
    assert "cannot be unpacked" in left_out(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("step,step\n1,2\n", "two columns have the same name"),
        ("step,reward\ninf,0.5\n", "no column `step`"),
        ("step,reward\n1,high\n", "record 1: `reward` must be a number, found 'high'"),
        ('step,reward\n1,"0.5\n2,0.6\n', "record 1: unexpected end of data"),
    ],
)
def test_a_result_file_that_cannot_be_used_costs_itself_alone(
    text: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "results.csv").write_text(text)
    (tmp_path / "job.json").write_text(json.dumps(JOB))
    assert [each.id for each in imported(tmp_path)] == ["ftjob-1"]
    assert words in left_out(tmp_path)


def test_cells_that_are_no_number_report_nothing() -> None:
    [event] = events_from_csv("step,train_reward,kl\n1,nan,-inf\n")
    assert event["data"] == {"step": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: [1]\nseed: [2]\n", "line 2: the key 'seed' appears twice"),
        ("job: {model: a, seed: 1, model: b}\n", "line 1: the key 'model' appears twice"),
        ("a: &a [1]\n" + "".join(
            f"{new}: &{new} [{','.join([f'*{old}'] * 20)}]\n"
            for old, new in zip("abcdef", "bcdefg", strict=True)), "more values"),
        ("a: {b: " * 60 + "1" + "}" * 60, "more values, or deeper ones|is not YAML"),
    ],
)  # fmt: skip
def test_yaml_is_read_as_strictly(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_grid(path)
    config = tmp_path / "promptfooconfig.yaml"
    config.write_text(text)
    assert any(word in left_out(config) for word in words.split("|"))


def test_the_merge_key_of_yaml_may_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text("job: {model: m}\n", encoding="utf-8-sig")
    assert read_grid(path).job == {"model": "m"}
    text = "base: &b {x: 1, y: 2}\nboth: {<<: *b, y: 3}\n"
    assert parse_yaml(text)["both"] == {"x": 1, "y": 3}


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": NaN}', "[1e999]"])
def test_typed_json_is_read_as_strictly(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be used as JSON"):
        console.parse_values([f"x={text}"])
    assert console.parse_values(["x=NaN", "y={a", "z=[1]"]) == {"x": "NaN", "y": "{a", "z": [1]}
    with pytest.raises(ValueError, match=r"twice|NaN|too large"):
        parse_strictly(text)
    (tmp_path / "checks.json").write_text(text)
    with pytest.raises(PlatformError, match=r"twice|NaN|too large"):
        read_checks(tmp_path)
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(InputError, match=r"twice|NaN|too large"):
        read_calibration((tmp_path / "calibration.json").read_bytes(), "it")


def test_the_file_of_mcp_servers_is_read_as_strictly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mcp.json"
    monkeypatch.setenv("RFTKIT_MCP_SERVERS", str(path))
    path.write_text('{"mcpServers": {"a": {"command": "x"}, "a": {"command": "y"}}}')
    with pytest.raises(InputError, match=r"RFTKIT_MCP_SERVERS.*mcp\.json:1:.*'a' appears twice"):
        settings.mcp_servers()
    path.write_text('{"mcpServers": {"a": {"command": "x"}}}', encoding="utf-8-sig")
    assert settings.mcp_servers() == {"a": {"command": "x"}}
