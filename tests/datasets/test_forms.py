"""RFT rows, supervised rows and preference rows: checked, uploaded, browsed, and converted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import GRADER, Served
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from rftkit import client, datasets, evals, graders
from rftkit.cli import app as cli
from rftkit.datasets import GradedAnswer, GradedGroup
from rftkit.errors import InputError, RowError
from rftkit.widgets import RowBrowser

Type = Callable[..., Result]
Item = dict[str, Any]

FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "verdict",
        "schema": {"type": "object", "properties": {"label": {}, "why": {"type": "string"}}},
    },
}
PARTS = {
    "type": "multi",
    "graders": {
        name: {
            "type": "string_check",
            "name": name,
            "operation": "eq",
            "input": "{{sample.output_json." + name + "}}",
            "reference": "{{item.truth." + name + "}}",
        }
        for name in ("label", "why")
    },
    "calculate_output": "(label + why) / 2",
}


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, served: Served) -> Type:
    """Type a command in this process; `connect()` gives the platform in memory."""
    monkeypatch.setattr(client, "connect", lambda *_: served.client)
    return lambda *words: CliRunner().invoke(cli.app, [str(word) for word in words])


def user(text: str) -> Item:
    return {"role": "user", "content": text}


def says(text: str, **keys: Any) -> Item:
    return {"role": "assistant", "content": text, **keys}


def supervised(prompt: str, answer: str, **keys: Any) -> Item:
    return {"messages": [user(prompt), says(answer)], **keys}


def preference(prompt: str, good: str, bad: str) -> Item:
    return {
        "input": {"messages": [user(prompt)]},
        "preferred_output": [says(good)],
        "non_preferred_output": [says(bad)],
    }


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(each)}\n" for each in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[Item]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


ROWS = {
    "reinforcement": [{"messages": [user(f"say {n}")], "answer": "hi"} for n in range(12)],
    "supervised": [supervised(f"say {n}", f"it is {n}") for n in range(12)],
    "dpo": [preference(f"say {n}", f"it is {n}", "no idea") for n in range(12)],
}


@pytest.mark.parametrize("method", ROWS)
def test_a_check_names_the_method_that_a_file_fits(method: str, tmp_path: Path) -> None:
    found = datasets.check(write(tmp_path / "rows.jsonl", ROWS[method]), near_duplicates=False)
    assert found.ok
    assert f"which fit method {method}" in str(found)
    assert {each.severity for each in found.findings} == {"info"}


@pytest.mark.parametrize("method", ROWS)
@pytest.mark.parametrize("wanted", ROWS)
def test_rows_of_another_form_are_named_with_their_lines(
    method: str, wanted: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS[method])
    found = datasets.check(path, method=wanted, near_duplicates=False)
    assert found.ok == (method == wanted)
    if method != wanted:
        assert "rows.jsonl:1: " in str(found)
        assert f"which fits method {method}" in str(found)


BROKEN: list[tuple[str, Item, str]] = [
    ("supervised", {"messages": [user("a"), says("b", weight=2)]}, "weight` must be 0 or 1"),
    ("supervised", {"messages": [user("a"), says("b", weight=0)]}, "weight 0"),
    ("supervised", {"messages": [user("a")], "answer": "b"}, "this is an RFT row"),
    ("dpo", {**ROWS["dpo"][0], "preferred_output": []}, "one assistant message"),
    ("dpo", {**ROWS["dpo"][0], "input": {"messages": [user("a"), says("b")]}}, "`input.messages`"),
    ("dpo", {"input": "x", "preferred_output": [says("b")]}, "non_preferred_output"),
]


@pytest.mark.parametrize(("method", "row", "expected"), BROKEN)
def test_a_broken_row_of_any_form_has_file_and_line(
    method: str, row: Item, expected: str, tmp_path: Path, served: Served
) -> None:
    path = write(tmp_path / "rows.jsonl", [*ROWS[method][:4], row, *ROWS[method][5:]])
    found = datasets.check(path, near_duplicates=False)
    [error] = [each for each in found.findings if each.severity == "error"]
    assert error.details[0].startswith(f"{path}:5: ")
    assert expected in error.details[0]
    with pytest.raises(RowError, match=r"rows\.jsonl:5: "):
        datasets.upload(served.client, path)


def test_what_teaches_nothing_is_a_warning(tmp_path: Path) -> None:
    late = {"messages": [user("a"), says("b"), user("c"), says("d", weight=0)]}
    rows = [*ROWS["supervised"], late, supervised("e", " "), supervised("f", "g", topic="x")]
    codes = {
        each.code: each.severity
        for each in datasets.check(write(tmp_path / "s.jsonl", rows)).findings
    }
    assert {"late_messages", "empty_answers", "unknown_keys"} <= set(codes)
    assert {codes[each] for each in ("late_messages", "empty_answers")} == {"warning"}
    pairs = write(tmp_path / "p.jsonl", [*ROWS["dpo"], preference("x", "same", "same")])
    assert "equal_outputs" in {each.code for each in datasets.check(pairs).findings}


def test_two_answers_to_one_prompt_are_a_conflict(tmp_path: Path) -> None:
    rows = [*ROWS["supervised"], supervised("say 0", "something else")]
    found = datasets.check(write(tmp_path / "s.jsonl", rows))
    assert "conflicting_rows" in {each.code for each in found.findings}


@pytest.mark.parametrize("method", ROWS)
def test_every_form_is_uploaded_split_and_profiled(
    method: str, tmp_path: Path, served: Served
) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS[method])
    assert datasets.upload(served.client, path).purpose == "fine-tune"
    made = datasets.split(path, tmp_path / "parts", shares={"a": 0.5, "b": 0.5})
    assert sum(len(read(Path(each))) for each in made.files.values()) == 12
    frame = datasets.profile(path)
    assert frame["usable"].all()
    assert frame["answer_chars"].notna().all()


def test_a_command_that_asks_models_names_the_way_out(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS["supervised"])
    with pytest.raises(RowError, match="rftkit dataset convert FILE"):
        datasets.read(path)


@pytest.mark.parametrize("method", ROWS)
def test_the_browser_opens_every_form(method: str, tmp_path: Path) -> None:
    browser = RowBrowser(write(tmp_path / "rows.jsonl", ROWS[method]), row=3)
    page = browser.to_html()
    assert "say 3" in page
    assert "not usable" not in page
    if method == "supervised":
        assert "answer to learn" in page
    if method == "dpo":
        answers = page[page.index("rk-sides") :]
        assert answers.index("it is 3") < answers.index("not preferred") < answers.index("no idea")
        assert "not preferred" in page
    assert "say 7" in RowBrowser(ROWS[method], row=7).to_html()


# conversions


texts = st.text(min_size=1).filter(lambda text: text.strip() == text and text.isprintable())


@given(label=st.one_of(texts, st.booleans(), st.integers(-9, 9)), why=texts, prompt=texts)
def test_an_answer_moves_into_the_last_message_and_back(
    tmp_path_factory: pytest.TempPathFactory, label: Any, why: str, prompt: str
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    row = {"messages": [user(prompt)], "label": label, "why": why, "topic": "t"}
    write(folder / "rft.jsonl", [row])
    help_with: Item = {"response_format": FORMAT, "keep_keys": False}
    datasets.convert(folder / "rft.jsonl", folder / "s.jsonl", to="supervised", **help_with)
    [made] = read(folder / "s.jsonl")
    assert set(made) == {"messages"}
    assert made["messages"][-1]["content"] == graders.reference_answer(row, FORMAT)
    datasets.convert(folder / "s.jsonl", folder / "back.jsonl", **help_with)
    assert read(folder / "back.jsonl") == [{k: v for k, v in row.items() if k != "topic"}]


def test_a_grader_names_the_keys_of_the_answer(typed: Type, tmp_path: Path) -> None:
    write(tmp_path / "grader.json", [PARTS])
    row = {"messages": [user("?")], "truth": {"label": "no", "why": "it says so"}}
    source = write(tmp_path / "rft.jsonl", [row])
    grader = ("-g", tmp_path / "grader.json")
    done = typed(
        *("dataset", "convert", source, tmp_path / "s.jsonl", "--to", "supervised"), *grader
    )
    assert done.exit_code == 0, done.output
    [made] = read(tmp_path / "s.jsonl")
    assert json.loads(made["messages"][-1]["content"]) == row["truth"]
    done = typed(*("dataset", "convert", tmp_path / "s.jsonl", tmp_path / "back.jsonl"), *grader)
    assert done.exit_code == 0, done.output
    assert read(tmp_path / "back.jsonl") == [row]


def test_other_keys_are_kept_on_request(tmp_path: Path) -> None:
    row = {"messages": [user("?")], "reference_answer": "yes", "topic": "t"}
    source = write(tmp_path / "rft.jsonl", [row])
    made = datasets.convert(source, tmp_path / "s.jsonl", to="supervised", keep_keys=True)
    assert str(made).startswith("1 supervised rows from")
    assert read(tmp_path / "s.jsonl")[0]["topic"] == "t"
    datasets.convert(tmp_path / "s.jsonl", tmp_path / "back.jsonl")
    assert read(tmp_path / "back.jsonl") == [row]


def test_rows_without_an_answer_are_left_out_and_named(typed: Type, tmp_path: Path) -> None:
    rows = [{"messages": [user("a")]}, ROWS["reinforcement"][0]]
    source = write(tmp_path / "rft.jsonl", rows)
    done = typed("dataset", "convert", source, tmp_path / "s.jsonl", "--to", "supervised")
    assert done.exit_code == 1
    assert f"{source}:1: the row has no reference answer" in done.stdout
    assert len(read(tmp_path / "s.jsonl")) == 1


def test_preference_rows_become_rows_of_the_other_forms(tmp_path: Path) -> None:
    source = write(tmp_path / "p.jsonl", ROWS["dpo"][:1])
    datasets.convert(source, tmp_path / "r.jsonl")
    assert read(tmp_path / "r.jsonl") == [
        {"messages": [user("say 0")], "reference_answer": "it is 0"}
    ]
    datasets.convert(source, tmp_path / "s.jsonl", to="supervised")
    assert read(tmp_path / "s.jsonl") == [supervised("say 0", "it is 0")]


def test_supervised_rows_with_weights_and_calls(tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    rows = [
        {"messages": [user("a"), says("b", weight=0), user("c"), says("d", weight=1)]},
        {"messages": [user("a"), {"role": "assistant", "tool_calls": [call]}]},
    ]
    made = datasets.convert(write(tmp_path / "s.jsonl", rows), tmp_path / "r.jsonl")
    [row] = read(tmp_path / "r.jsonl")
    assert row == {"messages": [user("a"), says("b"), user("c")], "reference_answer": "d"}
    assert "s.jsonl:2: the answer calls functions" in made.refused[0]
    same = datasets.convert(tmp_path / "s.jsonl", tmp_path / "t.jsonl", to="supervised")
    assert (same.num_rows, same.kinds) == (2, {"supervised rows already": 2})


def test_the_best_and_the_worst_answer_make_a_pair(tmp_path: Path) -> None:
    item = ROWS["reinforcement"][0]

    def group(*rewards: float | None, cut: int = -1, item: Item | None = item) -> GradedGroup:
        answers = [
            GradedAnswer(f"answer {at}", reward, at == cut) for at, reward in enumerate(rewards)
        ]
        return GradedGroup(item, tuple(answers))

    groups = [
        group(0.2, 0.9, None, 0.0),
        group(0.5, 0.5),  # flat
        group(0.5, None),  # only one graded
        group(0.1, 0.9, cut=1),  # only one finished
        group(0.1, 0.9, item=None),
        group(0.2, 0.9, None, 0.0),  # the first again
    ]
    made = datasets.preferences(groups, tmp_path / "p.jsonl", source="here")
    assert read(tmp_path / "p.jsonl") == [preference("say 0", "answer 1", "answer 3")]
    assert (made.num_groups, made.num_rows) == (6, 1)
    assert (made.num_flat, made.num_few, made.num_lost, made.num_repeated) == (1, 2, 1, 1)
    assert made.gap == pytest.approx(0.9)
    assert "1 flat" in str(made)
    assert datasets.check(tmp_path / "p.jsonl").ok


def test_a_file_of_graded_answers_makes_pairs(typed: Type, tmp_path: Path) -> None:
    item = ROWS["reinforcement"][0]
    answers = [{"item": item, "sample": text} for text in ("hi", "no", "hi there")]
    source = write(tmp_path / "answers.jsonl", answers)
    words = ("dataset", "convert", source, tmp_path / "p.jsonl", "--to", "preference")
    done = typed(*words)
    assert isinstance(done.exception, InputError)
    assert "no answer has a `reward`" in str(done.exception)
    write(tmp_path / "grader.json", [GRADER])
    done = typed(*words, "-g", tmp_path / "grader.json")
    assert done.exit_code == 0, done.output
    [row] = read(tmp_path / "p.jsonl")
    assert row["preferred_output"] == [says("hi")]
    graded = [{**each, "reward": at} for at, each in enumerate(answers)]
    datasets.preferences(
        datasets.read_groups(write(tmp_path / "graded.jsonl", graded)), tmp_path / "q.jsonl"
    )
    assert read(tmp_path / "q.jsonl") == [preference("say 0", "hi there", "hi")]


def test_a_flat_file_says_so_and_fails(typed: Type, tmp_path: Path) -> None:
    rows = [{**ROWS["reinforcement"][0], "output_text": text, "reward": 1} for text in ("a", "b")]
    source = write(tmp_path / "answers.jsonl", rows)
    done = typed("dataset", "convert", source, tmp_path / "p.jsonl", "--to", "preference")
    assert done.exit_code == 1
    assert "1 flat (all rewards are equal)" in done.stdout


def test_an_eval_run_makes_pairs(served: Served, typed: Type, tmp_path: Path) -> None:
    said = iter(["hi", "no"] * 50)
    served.link.say = lambda _: next(said)
    rows = datasets.read(write(tmp_path / "rows.jsonl", ROWS["reinforcement"]))
    made = evals.run(served.client, "rftkit-tiny", rows, GRADER, samples=2, concurrency=1)
    name = made.runs[0].id
    done = typed("dataset", "convert", name, tmp_path / "p.jsonl", "--to", "preference")
    assert done.exit_code == 0, done.output
    assert len(read(tmp_path / "p.jsonl")) == 12


def test_no_command_writes_over_its_own_input(typed: Type, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", ROWS["reinforcement"])
    done = typed("dataset", "convert", source, source, "--to", "supervised")
    assert isinstance(done.exception, InputError)
    assert read(source) == ROWS["reinforcement"]
