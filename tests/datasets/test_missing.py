"""A missing value never becomes a word, and is named by whoever meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rftkit import datasets, graders
from rftkit.datasets.blanks import BLANKS
from rftkit.errors import InputError

EQ = {
    "type": "string_check",
    "name": "eq",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def converted(tmp_path: Path, *rows: Any) -> tuple[datasets.Conversion, list[dict[str, Any]]]:
    target = tmp_path / "out.jsonl"
    made = datasets.convert(write(tmp_path / "in.jsonl", *rows), target)
    return made, [json.loads(line) for line in target.read_text().split("\n") if line]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": {"a": None, "b": True}}, '{"a": null, "b": true}'),
        ({"prompt": ["a", None]}, '["a", null]'),
        ({"prompt": True}, "true"),
        ({"prompt": 1.0}, "1.0"),
        ({"instruction": "Translate.", "input": "Hello", "output": "x"}, "Translate.\n\nHello"),
        ({"instruction": "Name one.", "input": "", "output": "x"}, "Name one."),
        ({"instruction": "Name one.", "input": None, "output": "x"}, "Name one."),
        ({"instruction": "Sum up.", "context": "Long.", "response": "x"}, "Sum up.\n\nLong."),
        ({"question": "Who?", "context": "Ada wrote it."}, "Who?\n\nAda wrote it."),
        ({"input": "alone", "output": "x"}, "alone"),
    ],
)
def test_a_prompt_is_text_or_json(tmp_path: Path, row: dict[str, Any], prompt: str) -> None:
    _, [made] = converted(tmp_path, row)
    assert made["messages"] == [{"role": "user", "content": prompt}]


TURNS = [{"from": "human", "value": None}, {"from": "gpt", "value": "x"}]
NO_PROMPT: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "the prompt"),
    ({"prompt": " "}, "the prompt"),
    ({"input": None, "output": "x"}, "the prompt"),
    ({"conversations": TURNS}, "a turn has the value null"),
    ({"prompt": [{"role": "user", "content": None}]}, r"`messages[0].content` must be text"),
    ({"input": {"messages": []}, "preferred_output": [], "non_preferred_output": []}, "`"),
]


@pytest.mark.parametrize(("row", "words"), NO_PROMPT)
def test_a_missing_prompt_is_refused_with_its_line(
    tmp_path: Path, row: dict[str, Any], words: str
) -> None:
    made, rows = converted(tmp_path, {"prompt": "ok"}, row)
    assert (made.num_refused, len(rows)) == (1, 1)
    assert made.refused[0].startswith(f"{tmp_path / 'in.jsonl'}:2: {words}")


ASKED = {"role": "user", "content": "q"}
WITH_SYSTEM: list[dict[str, Any]] = [
    {"prompt": "q", "answer": "x", "system": "be brief"},
    {"messages": [ASKED, {"role": "assistant", "content": "x"}], "system": "be brief"},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "x"}],
     "system": "be brief"},
]  # fmt: skip


@pytest.mark.parametrize("row", WITH_SYSTEM)
def test_a_system_text_beside_the_prompt_is_its_first_message(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    _, [made] = converted(tmp_path, row)
    assert made["messages"] == [{"role": "system", "content": "be brief"}, ASKED]
    assert "system" not in made
    assert made["reference_answer"] == "x"


def test_the_history_of_an_instruction_goes_before_it(tmp_path: Path) -> None:
    row = {"instruction": "c", "output": "x", "history": [["a", "b"]]}
    _, [made] = converted(tmp_path, row)
    assert [each["content"] for each in made["messages"]] == ["a", "b", "c"]
    assert "history" not in made
    _, [other] = converted(tmp_path / "same", row | {"history": "of Rome"})
    assert other["history"] == "of Rome"
    chat = [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]
    messages = {"prompt": [*chat, {"role": "user", "content": "e"}], "answer": "x"}
    _, [third] = converted(tmp_path / "chat", messages | {"history": [["a", "b"]]})
    assert third["history"] == [["a", "b"]]  # not said elsewhere, so not lost


def test_a_missing_answer_stays_missing(tmp_path: Path) -> None:
    given = [{"prompt": "a", "answer": None, "output": "b"}, {"prompt": "c", "answer": None}]
    _, rows = converted(tmp_path, *given)
    assert rows[0]["reference_answer"] == "b"
    assert rows[1]["reference_answer"] is None
    assert datasets.reference_answer({"answer": None}) is None
    assert datasets.reference_answer({"reference_answer": None, "answer": "x"}) == "x"


@pytest.mark.parametrize("key", ["reference_answer", "answer", "reference", "ideal"])
def test_two_answers_are_both_kept_and_reported(tmp_path: Path, key: str) -> None:
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "worked"}]
    made, [row] = converted(tmp_path, {"messages": chat, key: "42"})
    assert {"42", "worked"} <= {value for value in row.values() if isinstance(value, str)}
    assert made.num_clashes == 1
    assert "in.jsonl:1" in str(made)
    same, _ = converted(tmp_path / "same", {"messages": chat, key: "worked"})
    assert same.num_clashes == 0


@pytest.fixture(autouse=True)
def folders(tmp_path: Path) -> None:
    for name in ("same", "chat"):
        (tmp_path / name).mkdir()


def test_check_names_what_is_missing(tmp_path: Path) -> None:
    def row(prompt: Any, answer: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": prompt}], "answer": answer}

    parts = [{"type": "text", "text": " "}]
    rows = [row("", "a"), row(" \n", "b"), row(parts, "c"), row("d", None), row("e", " ")]
    rows += [row("f", "Paris\n"), row("g", " Rome"), row("h", 3), row("i", "x")]
    path = write(tmp_path / "rows.jsonl", *rows)
    for grader in (None, EQ):
        found = {each.code: each for each in datasets.check(path, grader=grader).findings}
        lines = {
            code: [place.line for place in found[code].places]
            for code in found
            if code.endswith(("_prompts", "_references"))
        }
        assert lines == {
            "empty_prompts": [1, 2, 3],
            "null_references": [4],
            "empty_references": [5],
            "padded_references": [6, 7],
        }


def test_a_key_that_only_the_grader_knows_is_looked_at_too(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "q"}], "gold": "x "}] * 2
    spec = EQ | {"reference": "{{ item.gold }}"}
    found = datasets.check(write(tmp_path / "r.jsonl", *rows), grader=spec)
    assert "padded_references" in {each.code for each in found.findings}


def test_an_empty_answer_of_a_csv_is_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "said.csv"
    path.write_text("question,answer,output_text\nblank?,,\nfilled?,Name,Name\n,Name,\n")
    grades = graders.grade_many(EQ, pd.read_csv(path))
    assert grades.outcome.tolist() == ["failed", "graded", "graded"]
    assert grades.reward.tolist()[1:] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("plain", "plain"),
        ("", ""),
        ({"output_text": "x"}, "x"),
        ({"choices": [{"message": {"role": "assistant", "content": "x"}}]}, "x"),
        ({"choices": [{"message": {"content": None, "refusal": "no"}}]}, "no"),
        ({"output": [{"type": "message", "content": [{"type": "output_text", "text": "x"}]}]}, "x"),
        ([{"type": "reasoning"}, {"type": "message", "content": [{"text": "x"}]}], "x"),
        ({"output_text": None, "output_tools": [{"id": "1"}]}, ""),
    ],
)
def test_every_form_of_an_answer_is_read(said: Any, text: str) -> None:
    assert graders.given_sample(said).output_text == text


@pytest.mark.parametrize(
    "said",
    [None, 3, True, [], {}, {"output_text": 5}, {"output_text": None}, {"choices": []},
     {"choices": [{}]}, {"choices": "x"}, {"output": "x"}, {"output": [3]}, {"content": 1},
     {"output_text": "x", "output_tools": "y"}],
)  # fmt: skip
def test_what_is_no_answer_is_refused_in_words(said: Any) -> None:
    with pytest.raises(InputError, match=r"answer|Response|message"):
        graders.given_sample(said)


INVISIBLE = ["\u200b", " \ufeff", "\u2060\n", "\u3000", "\u2800"]


@pytest.mark.parametrize("blank", INVISIBLE)
def test_what_shows_nothing_is_empty(blank: str, tmp_path: Path) -> None:
    def codes(row: dict[str, Any]) -> set[str]:
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(row) + "\n")
        return {each.code for each in datasets.check(path, grader=PART).findings}

    row = {"messages": [{"role": "user", "content": "q"}], "facts": {"city": ["Bonn"]}}
    assert not codes(row) & set(BLANKS)
    prompt = [{"role": "user", "content": [{"type": "text", "text": blank}]}]
    assert codes({**row, "messages": prompt}) & set(BLANKS) == {"empty_prompts"}
    for city, kind in {
        blank: "empty_references", f"Bonn{blank}": "padded_references",
        f"{blank}Bonn": "padded_references", None: "null_references",
    }.items():  # fmt: skip
        assert codes({**row, "facts": {"city": [city]}}) & set(BLANKS) == {kind}
        assert codes({**row, "reference_answer": city}) & set(BLANKS) == {kind}
    assert codes({**row, "reference_answer": [blank, None]}) & set(BLANKS) == {"empty_references"}
    assert not codes({**row, "reference_answer": []}) & set(BLANKS)


PART = {
    "type": "string_check", "name": "c", "operation": "eq",
    "input": "{{sample.output_json.city}}", "reference": "{{item.facts.city[0]}}",
}  # fmt: skip


def test_the_number_that_an_instruction_is_about_is_in_the_prompt(tmp_path: Path) -> None:
    _, [row] = converted(tmp_path, {"instruction": "Double it.", "input": 21, "output": 42})
    assert row["messages"][0]["content"] == "Double it.\n\n21"


@pytest.mark.parametrize(
    ("one", "other"),
    [("Straße", "STRASSE?"), ("naïve café", "nai\u0308ve cafe\u0301"), ("ＦＵＬＬ", "full"),
     ("so\u00adft hy\u200bphen", "soft hyphen")],
)  # fmt: skip
def test_one_question_in_two_spellings_is_a_leak(one: str, other: str, tmp_path: Path) -> None:
    for name, text in (("train", one), ("test", other)):
        row = {"messages": [{"role": "user", "content": text}], "reference_answer": "a"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    for near in (True, False):
        found = datasets.check(
            tmp_path / "train.jsonl", None, tmp_path / "test.jsonl", near_duplicates=near
        )
        assert "near_shared_rows" in {each.code for each in found.findings}


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"question": "q", "choices": ["x", "y"], "answer": 1}, "q\n\nA) x\nB) y", "B"),
        (
            {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]},
             "answerKey": "2"},
            "q\n\n1) x\n2) y", "2",
        ),
        ({"question": "q", "options": {"A": "x", "B": "y"}, "answer": "A"}, "q\n\nA) x\nB) y", "A"),
        ({"question": "q", "options": ["A)21", "B)3"], "correct": "B"}, "q\n\nA)21\nB)3", "B"),
        ({"question": "q", "choices": [2, 1], "answer": 1}, "q\n\nA) 2\nB) 1", 1),
        ({"passage": "p", "question": "q", "answer": "no"}, "q\n\np", "no"),
        ({"question": "q", "choices": "none", "answer": 1}, "q", 1),
        ({"prompt": "q A) x B) y", "choices": ["x", "y"], "answer": "B"}, "q A) x B) y", "B"),
    ],
)  # fmt: skip
def test_the_choices_of_a_question_are_in_the_prompt(
    tmp_path: Path, row: dict[str, Any], prompt: str, answer: Any
) -> None:
    _, [made] = converted(tmp_path, row)
    assert made["messages"] == [{"role": "user", "content": prompt}]
    assert made["reference_answer"] == answer
