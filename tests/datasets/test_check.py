"""What is found in a dataset before a job."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rftkit import datasets
from rftkit.datasets.parallel import run_tasks
from rftkit.errors import GraderSpecError, InputError, RftkitError

EXACT = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}


def row(prompt: str, **keys: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], **keys}


def write(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join(each if isinstance(each, str) else json.dumps(each) + "\n" for each in rows)
    )
    return path


def codes(check: datasets.Check) -> list[tuple[str, str]]:
    """What was found, without what is said of any small file."""
    return [
        (finding.severity, finding.code)
        for finding in check.findings
        if finding.code not in ("few_rows", "missing_key")
    ]


def only(check: datasets.Check, code: str) -> datasets.Finding:
    [finding] = [each for each in check.findings if each.code == code]
    return finding


def places(finding: datasets.Finding) -> list[str]:
    return [str(each) for each in finding.places]


@pytest.mark.parametrize("name", ["security_review", "contract_facts", "tiny_copy"])
def test_the_bundled_datasets_are_sound(name: str) -> None:
    data = datasets.bundled(name)
    check = datasets.check(
        data.train, data.valid, data.test, grader=data.grader, response_format=data.response_format
    )
    found = [each for each in codes(check) if each[1] != "label_balance"]
    assert found == [("info", "rows")] * 3 + [("info", "references")]
    assert "each earns 1.000" in str(check)
    assert [each.role for each in check.files] == ["train", "valid", "test"]


def test_every_broken_line_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", row("a"), "{\n", row("b"), "[]\n")
    check = datasets.check(path)
    assert not check.ok
    assert codes(check) == [("error", "invalid_row"), ("info", "rows")]
    finding = only(check, "invalid_row")
    assert (finding.count, len(finding.details)) == (2, 2)
    assert check.files[0].num_rows == 4
    assert "t.jsonl:2: " in str(check)
    assert "t.jsonl:4: " in str(check)
    with pytest.raises(InputError, match=r"(?s)t\.jsonl:2: .*t\.jsonl:4: "):
        check.raise_for_errors()


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    assert codes(datasets.check(write(tmp_path / "t.jsonl"))) == [("error", "no_rows")]


def test_a_missing_path_names_rows_and_their_keys(tmp_path: Path) -> None:
    rows = [row("0", answer="x"), *(row(str(number), anser="x") for number in range(1, 8))]
    check = datasets.check(write(tmp_path / "t.jsonl", *rows), grader=EXACT)
    [finding] = [each for each in check.findings if each.severity == "error"]
    assert finding.code == "unresolved_path"
    assert "item.answer" in finding.message
    assert "anser" in finding.message
    assert (finding.count, len(finding.places)) == (7, 7)
    assert "t.jsonl:6 and 2 more]\n" in str(finding)


def test_rows_shared_with_validation(tmp_path: Path) -> None:
    train = write(tmp_path / "t.jsonl", row("a", answer="x"), row("b", answer="y"))
    valid = write(tmp_path / "v.jsonl", row("c", answer="z"), row("b", answer="other"))
    check = datasets.check(train, valid)
    [finding] = [each for each in check.findings if each.code == "shared_rows"]
    assert finding.severity == "warning"
    assert places(finding) == [f"{valid}:2"]
    assert check.ok


def test_reference_answers_below_the_top(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", row("a", answer="x"), row("b", answer="y", reference="no"))
    check = datasets.check(path, grader=EXACT)
    [finding] = [each for each in check.findings if each.code == "references_differ"]
    assert places(finding) == [f"{path}:2"]
    assert "0.000 against 1.000" in finding.message


def test_a_grader_that_breaks_on_the_reference_is_an_error(tmp_path: Path) -> None:
    broken = {
        "type": "python",
        "name": "p",
        "source": "def grade(sample, item):\n    return 1 / 0\n",
    }
    path = write(tmp_path / "t.jsonl", row("a", answer="x"), row("b", answer="y"))
    check = datasets.check(path, grader=broken)
    [finding] = [each for each in check.findings if each.severity == "error"]
    assert finding.code == "reference_not_graded"
    assert "ZeroDivisionError" in finding.message
    assert finding.count == 2


def test_json_paths_without_a_response_format(tmp_path: Path) -> None:
    grader = {**EXACT, "input": "{{sample.output_json.a}}"}
    path = write(tmp_path / "t.jsonl", row("a", answer="x", reference={"a": "x"}))
    assert ("warning", "no_response_format") in codes(datasets.check(path, grader=grader))
    found = datasets.check(path, grader=grader, response_format={"type": "json_object"})
    assert codes(found) == [("info", "rows"), ("info", "references")]


def test_a_judge_is_not_called(tmp_path: Path) -> None:
    judge = {
        "type": "score_model",
        "name": "judge",
        "model": "any",
        "input": [{"role": "user", "content": "{{item.answer}}: {{sample.output_text}}"}],
    }
    check = datasets.check(write(tmp_path / "t.jsonl", row("a", answer="x")), grader=judge)
    assert codes(check) == [("info", "rows"), ("info", "references_not_graded")]


def test_a_malformed_grader_raises(tmp_path: Path) -> None:
    with pytest.raises(GraderSpecError):
        datasets.check(write(tmp_path / "t.jsonl", row("a")), grader={"type": "nope"})


def test_the_grader_says_the_reference_where_the_row_does_not(tmp_path: Path) -> None:
    grader = {**EXACT, "reference": "{{item.label}}"}
    check = datasets.check(write(tmp_path / "t.jsonl", row("a", label="x")), grader=grader)
    assert only(check, "references").message == "1 reference answer graded: it earns 1.000"


def test_repeated_and_conflicting_prompts(tmp_path: Path) -> None:
    rows = [row("a", answer="x"), row("b", answer="y"), row("a", answer="x"), row("b", answer="z")]
    path = write(tmp_path / "t.jsonl", *rows)
    valid = write(tmp_path / "v.jsonl", row("a", answer="w"))
    check = datasets.check(path, valid)
    assert places(only(check, "duplicate_rows")) == [f"{path}:3", f"{path}:4"]
    conflicts = only(check, "conflicting_rows")
    assert conflicts.severity == "warning"
    assert set(places(conflicts)) == {f"{path}:{n}" for n in (1, 2, 3, 4)} | {f"{valid}:1"}
    assert check.examples[f"{path}:3"] == rows[2]


def test_frames_are_told_apart_by_their_part() -> None:
    train = pd.DataFrame([row("a", answer="x"), row("b", answer="y")])
    valid = pd.DataFrame([row("c", answer="z"), row("b", answer="y")])
    check = datasets.check(train, valid)
    assert places(only(check, "shared_rows")) == ["valid DataFrame:2"]
    assert check.examples["valid DataFrame:2"]["answer"] == "y"
    assert [each.name for each in check.files] == ["train DataFrame", "valid DataFrame"]


def test_labels_and_keys(tmp_path: Path) -> None:
    rows = [
        row(f"q{n}", label="yes" if n else "no", source="s", free=f"text {n}", half=n % 2 == 0)
        for n in range(20)
    ]
    del rows[3]["half"]
    check = datasets.check(write(tmp_path / "t.jsonl", *rows))
    found = [each for each in check.findings if each.code == "label_balance"]
    [balance] = [each for each in found if each.figures["key"] == "label"]
    assert (balance.severity, balance.figures["values"]) == ("warning", {"yes": 19, "no": 1})
    assert "95%" in balance.advice
    assert only(check, "constant_key").figures["values"] == {"s": 20}
    assert "`half` is missing in 1 of 20 rows" in only(check, "missing_key").message


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to ada.lovelace@example.org today", "email"),
        ("call +44 20 7946 0958", "phone"),
        ("call (212) 555-0147", "phone"),
        ("card 4111 1111 1111 1111", "card"),
        ("card 4111 1111 1111 1112", None),
        ("account GB82 WEST 1234 5698 7654 32", "iban"),
        ("account GB83 WEST 1234 5698 7654 32", None),
        ("number 123-45-6789", "ssn"),
        ("key sk-abcdefghijklmnopqrstuvwx", "secret"),
        ("on 2024-03-05 at 12:30, order 1234567, 12,500.00 euros, 3.14159265358979", None),
    ],
)
def test_personal_strings_are_flagged(text: str, kind: str | None, tmp_path: Path) -> None:
    check = datasets.check(write(tmp_path / "t.jsonl", row("a"), row(text)))
    found = [each for each in check.findings if each.code == "personal_data"]
    assert [each.figures["kind"] for each in found] == ([kind] if kind else [])
    assert all(places(each)[0].endswith("t.jsonl:2") for each in found)


LONG = "the quick brown fox jumps over the lazy dog while seven wise owls watch from an old tree"


@pytest.mark.parametrize(
    "spelled",
    [
        "WHAT IS THE CAPITAL OF PERU?",
        "  What is  the capital of Peru",
        "what is the capital\nof peru!",
    ],
)
def test_a_quick_check_finds_leaks_that_differ_in_case_and_blanks(
    tmp_path: Path, spelled: str
) -> None:
    train = write(tmp_path / "t.jsonl", row("What is the capital of Peru?"), row("other"))
    valid = write(tmp_path / "v.jsonl", row("What is the capital of Chile?"), row(spelled))
    check = datasets.check(train, valid, near_duplicates=False)
    assert places(only(check, "near_shared_rows")) == [f"{valid}:2"]


def test_near_duplicates_within_and_across_files(tmp_path: Path) -> None:
    pytest.importorskip("rensa")
    other = " ".join(f"word{n}" for n in range(40))
    near = f"{LONG} {other}"
    train = write(tmp_path / "t.jsonl", row(near), row(other[::-1]), row(f"{near} indeed"))
    valid = write(tmp_path / "v.jsonl", row(f"so {near}"), row("short one"))
    check = datasets.check(train, valid)
    assert places(only(check, "near_duplicates")) == [f"{train}:3"]
    leak = only(check, "near_shared_rows")
    assert leak.severity == "warning"
    assert f"{valid}:1 is like {train}:" in leak.details[0]
    assert "80%" in leak.message
    without = datasets.check(train, valid, near_duplicates=False)
    assert not any("near" in code for _, code in codes(without))


def test_workers_find_the_same(tmp_path: Path) -> None:
    rows = [row(f"{LONG} {n % 50}", answer=str(n % 7)) for n in range(300)]
    rows[5:7] = ["{\n", "[1,]\n"]
    path = write(tmp_path / "t.jsonl", *rows)
    seen: list[tuple[int, int]] = []
    alone = datasets.check(path, processes=0)
    spread = datasets.check(path, processes=2, progress=lambda *at: seen.append(at))
    assert alone.to_dict() == spread.to_dict()
    assert seen[-1] == (300, 300)


def test_a_killed_worker_is_reported_and_the_next_check_works() -> None:
    with pytest.raises(RftkitError, match="a worker process was killed"):
        list(run_tasks(os._exit, [9, 9], processes=2))
    unread = run_tasks(abs, [-1, -2, -3], processes=2)
    assert next(unread) == 1
    unread.close()  # quietly: warnings are errors here
    with pytest.raises(TypeError):
        list(run_tasks(abs, ["x"], processes=2))


def test_a_worker_may_be_killed_while_tasks_are_still_being_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def send(*_: Any) -> None:
        raise BrokenProcessPool("a worker is gone")  # as joblib does, at times

    monkeypatch.setattr("joblib.Parallel.__call__", send)
    with pytest.raises(RftkitError, match="a worker process was killed"):
        list(run_tasks(abs, [1, 2], processes=2))


def test_a_source_that_cannot_be_read_to_its_end_stops_the_workers() -> None:
    def tasks() -> Iterator[int]:
        yield -1
        raise InputError("the source is cut off")

    with pytest.raises(InputError, match="cut off"):
        list(run_tasks(abs, tasks(), processes=2))


@settings(deadline=None, max_examples=40)
@given(
    parts=st.lists(
        st.sampled_from(
            [b'{"messages":[{"role":"user","content":"x"}]}', b"{", b"\xff", b"[]", b" "]
        )
        | st.binary(max_size=20),
        max_size=12,
    )
)
def test_rows_in_are_rows_kept_and_rows_named(
    parts: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz_check.jsonl"
    path.write_bytes(b"\n".join(parts))
    check = datasets.check(path)
    [facts] = check.files
    named = sum(each.count for each in check.findings if each.code == "invalid_row")
    assert named == facts.num_refused
    with datasets.open(path) as opened:
        kept = [each for each in opened if each.row]
    assert facts.num_rows == len(kept) + named
    json.dumps(check.to_dict())


SEARCH = {"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}
SERVER = {"name": "search", "server_url": "http://127.0.0.1:9/"}


@pytest.mark.parametrize(
    ("tools", "code", "words"),
    [
        (None, "tools_without_server", "have the functions search, and nothing says where"),
        ([SERVER], None, ""),
        ([{**SERVER, "name": "find"}], "unserved_tool", "1 row with the function 'search', and"),
        ([SERVER, {**SERVER, "name": "find"}], "unshown_tool", "no row has the function find"),
        ([{"type": "mcp", "server_label": "shop"}], None, ""),
    ],
)
def test_functions_of_rows_and_tools_of_the_job_match(
    tmp_path: Path, tools: Any, code: str | None, words: str
) -> None:
    rows = [{**row(f"say {n}"), "tools": [SEARCH]} for n in range(1)]
    check = datasets.check(write(tmp_path / "t.jsonl", *rows), tools=tools)
    found = {each.code: each for each in check.findings if "tool" in each.code}
    assert bool(found) == (code is not None)
    if code:
        assert words in found[code].message
    assert check.ok == (code != "unserved_tool")


def test_tools_that_are_no_functions_are_an_error_with_the_line(tmp_path: Path) -> None:
    rows = [row("a"), {**row("b"), "tools": [{"name": ""}]}, {**row("c"), "tools": [SERVER]}]
    check = datasets.check(write(tmp_path / "t.jsonl", *rows), tools=[SERVER])
    [finding] = [each for each in check.findings if each.severity == "error"]
    assert finding.code == "malformed_tool"
    assert finding.places[0].line == 2
    with pytest.raises(InputError, match="belongs into `tools` of the rows"):
        datasets.check(write(tmp_path / "u.jsonl", *rows[:1]), tools=[SEARCH])
