"""Prompt files: searched for, written, and put before rows by jobs, eval runs and panels."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import GRADER, Served
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from rftkit import client, datasets, evals, ladder
from rftkit.cli import app as cli
from rftkit.errors import InputError, MissingExtraError
from rftkit.ladder.shots import draw_shots
from rftkit.prompts import Prompt, read_prompt, write_prompt
from rftkit.rows import Row
from rftkit.server.inference.worker_process import ChatError
from rftkit.widgets import Playground

Item = dict[str, Any]
Type = Callable[..., Result]


def user(text: str) -> Item:
    return {"role": "user", "content": text}


def says(text: str) -> Item:
    return {"role": "assistant", "content": text}


def system(text: str, role: str = "system") -> Item:
    return {"role": role, "content": text}


EXAMPLES = (user("1+1"), says("2"))


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, served: Served) -> Type:
    """Type a command in this process; `connect()` gives the platform in memory."""
    monkeypatch.setattr(client, "connect", lambda *_: served.client)
    return lambda *words: CliRunner().invoke(cli.app, [str(word) for word in words])


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(each)}\n" for each in rows), encoding="utf-8")
    return path


def task_rows(count: int, first: int = 0) -> list[Item]:
    """Rows whose answers, a or b, are known only to who is shown examples or told the rule."""
    return [
        {"messages": [user(f"number {n}")], "answer": "even" if n % 2 == 0 else "odd"}
        for n in range(first, first + count)
    ]


def model_that_learns(request: Item) -> str:
    """Right when it sees at least two examples or the rule, and silent otherwise."""
    messages = request["messages"]
    told = messages[0]["role"] == "system" and "even or odd" in messages[0]["content"]
    shown = sum(message["role"] == "assistant" for message in messages) > 2
    number = int(messages[-1]["content"].split()[-1])
    return ("even" if number % 2 == 0 else "odd") if told or shown else "what?"


# the file


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ([], [system("Be brief.")]),
        ([system("Old.")], [system("Be brief.\n\nOld.")]),
        ([system("Old.", "developer")], [system("Be brief.\n\nOld.", "developer")]),
        ([system("Start.")], [system("Be brief.")]),
    ],
)
def test_the_rows_own_system_message_is_kept_unless_the_file_replaces_it(
    own: list[Item], expected: list[Item]
) -> None:
    prompt = Prompt("Be brief.", EXAMPLES, replaces="Start.")
    assert prompt.before([*own, user("2+2")]) == [*expected, *EXAMPLES, user("2+2")]


@given(
    text=st.text(),
    replaces=st.none() | st.text(),
    pairs=st.lists(st.tuples(st.text(), st.text()), max_size=3),
)
def test_a_prompt_file_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    text: str,
    replaces: str | None,
    pairs: list[tuple[str, str]],
) -> None:
    examples = tuple(m for question, answer in pairs for m in (user(question), says(answer)))
    prompt, path = Prompt(text, examples, replaces), tmp_path_factory.mktemp("p") / "prompt.json"
    write_prompt(path, prompt, search={"chosen": "x"})
    assert read_prompt(path) == prompt


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([], "expected a prompt file"),
        ({"text": "x"}, "expected a prompt file"),
        ({"system": 1}, "`system` must be text"),
        ({"examples": [user("x")]}, "must be the assistant's"),
        ({"examples": [{"role": "system", "content": "x"}]}, r"`examples\[0\]`"),
    ],
)
def test_a_broken_prompt_file_is_refused_by_name(
    content: Any, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "prompt.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=expected) as caught:
        read_prompt(path)
    assert str(path) in str(caught.value)


# what takes it


def test_an_eval_run_puts_it_before_the_rows_and_pairs_with_one_without(
    typed: Type, served: Served, tmp_path: Path
) -> None:
    served.link.say = model_that_learns
    write_prompt(tmp_path / "rule.json", Prompt("Say even or odd."))
    write(tmp_path / "grader.json", [GRADER])
    source = write(tmp_path / "rows.jsonl", task_rows(6))
    words = ("eval", "run", source, "-m", "rftkit-tiny", "-g", tmp_path / "grader.json", "--json")
    before = json.loads(typed(*words).stdout)
    done = typed(*words, "--prompt", tmp_path / "rule.json")
    assert done.exit_code == 0, done.output
    after = json.loads(done.stdout)
    assert (before["runs"][0]["reward"]["value"], after["runs"][0]["reward"]["value"]) == (0, 1)
    assert after["runs"][0]["label"] == "rftkit-tiny with rule"
    found = evals.compare(evals.kept(*before["ids"], *after["ids"]))
    assert found.pairs[0].num_rows == 6
    assert any("a system text of 16 characters" in note for note in found.notes)


@pytest.mark.parametrize("form", ["rft", "supervised", "preference"])
def test_a_job_is_trained_on_rows_with_the_prompt(form: str, tmp_path: Path) -> None:
    row: Item = {"messages": [user("x")], "answer": "y"}
    if form == "supervised":
        row = {"messages": [user("x"), says("y")]}
    if form == "preference":
        row = {
            "input": {"messages": [user("x")]},
            "preferred_output": [says("y")],
            "non_preferred_output": [says("z")],
        }
    source, target = write(tmp_path / "in.jsonl", [row]), tmp_path / "out.jsonl"
    assert datasets.write_prompted(source, target, Prompt("S", EXAMPLES)) == 1
    made = json.loads(target.read_text())
    messages = made["input"]["messages"] if form == "preference" else made["messages"]
    roles = [message["role"] for message in messages]
    assert roles[:4] == ["system", "user", "assistant", "user"]
    assert ("weight" in messages[2]) == (form == "supervised")
    assert datasets.check(target).ok


def test_job_create_uploads_the_rows_with_the_prompt(
    typed: Type, served: Served, tmp_path: Path
) -> None:
    write_prompt(tmp_path / "p.json", Prompt("Be brief."))
    write(tmp_path / "grader.json", [GRADER])
    source = write(tmp_path / "rows.jsonl", task_rows(4))
    words = ["job", "create", "-m", "rftkit-tiny", "--valid", source, "--json"]
    words += ["-g", tmp_path / "grader.json", "--prompt", tmp_path / "p.json"]
    done = typed(*words, "--train", source)
    assert done.exit_code == 0, done.output
    file_id = json.loads(done.stdout)["training_file"]
    first = json.loads(served.client.files.content(file_id).text.splitlines()[0])
    assert first["messages"][0] == system("Be brief.")
    done = typed(*words, "--train", "file-1")
    assert isinstance(done.exception, InputError)
    assert "give the path of the file" in str(done.exception)


def test_the_playground_takes_it(served: Served, tmp_path: Path) -> None:
    served.link.say = model_that_learns
    write_prompt(tmp_path / "p.json", Prompt("Say even or odd."))
    panel = Playground(options={"tiny": "rftkit-tiny"}, client=served.client)
    panel.ask("number 3")
    assert panel.data()["text"].tolist() == ["what?"]
    panel.set(prompt_file=str(tmp_path / "p.json"))
    panel.ask("number 3")
    assert panel.data()["text"].tolist() == ["odd"]
    with pytest.raises(InputError, match="there is no such file"):
        panel.set(prompt_file="nowhere.json")


# the search


def test_examples_take_turns_over_the_labels() -> None:
    answered = [
        (Row({"messages": [user(f"q{n}")]}, n), json.dumps({"label": label, "why": f"w{n}"}))
        for n, label in enumerate(["a"] * 8 + ["b"] * 2 + ["c"] * 2, 1)
    ]
    sets = draw_shots(answered, 8, seed=1)
    assert len({each.lines for each in sets}) == 8
    for each in sets:
        labels = [json.loads(m["content"])["label"] for m in each.messages[1::2]]
        assert len(set(labels)) == min(3, len(labels))
    assert draw_shots([], 8, seed=1) == []


def test_a_search_without_a_reflection_model_finds_examples(
    typed: Type, served: Served, tmp_path: Path
) -> None:
    served.link.say = model_that_learns
    train = write(tmp_path / "train.jsonl", task_rows(40))
    valid = write(tmp_path / "valid.jsonl", task_rows(12, 100))
    write(tmp_path / "grader.json", [GRADER])
    out = tmp_path / "prompt.json"
    words = ("prompt", "optimize", train, "--valid", valid, "-g", tmp_path / "grader.json")
    done = typed(*words, "-m", "rftkit-tiny", "-o", out, "--candidates", "4", "--train-rows", "8")
    assert done.exit_code == 0, done.output
    prompt = read_prompt(out)
    assert len(prompt.examples) >= 4
    search = json.loads(out.read_text())["search"]
    assert search["candidates"][0]["label"] == "as it is"
    assert len(search["candidates"]) == 5
    by_label = {each["label"]: each for each in search["candidates"]}
    found = by_label[search["chosen"]]
    assert (found["valid"]["value"], found["verdict"]) == (1.0, "better")
    assert 0 < found["valid_difference"]["low"] <= 1 <= found["valid_difference"]["high"]
    assert all(each["train"]["num_rows"] == 8 for each in search["candidates"])
    trained = {line["messages"][0]["content"] for line in task_rows(40)}
    assert {m["content"] for m in prompt.examples[::2]} <= trained


Search = Callable[..., tuple[Result, int]]


@pytest.fixture
def search(typed: Type, served: Served, tmp_path: Path) -> Search:
    """Run `prompt optimize` on the toy task with more words; its result, and answers asked for."""
    asked: list[Item] = []

    def say(request: Item) -> str:
        asked.append(request)
        return model_that_learns(request)

    served.link.say = say
    train = write(tmp_path / "train.jsonl", task_rows(40))
    valid = write(tmp_path / "valid.jsonl", task_rows(12, 100))
    write(tmp_path / "grader.json", [GRADER])
    words = ("prompt", "optimize", train, "--valid", valid, "-g", tmp_path / "grader.json")
    words += ("-m", "rftkit-tiny", "-o", tmp_path / "prompt.json", "--candidates", "3")

    def run(*more: Any) -> tuple[Result, int]:
        asked.clear()
        return typed(*words, *more), len(asked)

    return run


def found_in(folder: Path) -> Item:
    """A prompt file, without what a clock decides."""
    value: Item = json.loads((folder / "prompt.json").read_text())
    del value["search"]["seconds"]
    return value


def test_a_killed_search_asks_only_for_what_is_not_kept(search: Search, tmp_path: Path) -> None:
    done, num = search()
    assert done.exit_code == 0, done.output
    first, kept = found_in(tmp_path), tmp_path / "prompt.search.jsonl"
    lines = [line for line in kept.read_bytes().splitlines() if line]
    answers = [at for at, line in enumerate(lines) if b'"answer"' in line]
    assert len(answers) == num
    cut = answers[num // 2]  # killed in the middle of this line
    kept.write_bytes(b"\n".join(lines[:cut]) + b"\n" + lines[cut][:40])
    (tmp_path / "prompt.json").unlink()
    done, again = search()
    assert again == num - num // 2
    assert f"Resuming: prompt.search.jsonl has {num // 2} answers already." in done.stderr
    assert found_in(tmp_path) == first
    assert search()[1] == 0


def test_ctrl_c_says_how_to_resume(
    search: Search, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rftkit.ladder.search._best", stop)
        done, num = search()
    assert done.exit_code != 0
    assert num > 0
    assert "To resume, run the same command again." in done.stderr
    kept = sum(b'"answer"' in line for line in (tmp_path / "prompt.search.jsonl").open("rb"))
    assert kept == num
    assert "Resuming: " in search()[0].stderr


@pytest.mark.parametrize("change", ["seed", "temperature", "grader", "training rows"])
def test_a_search_with_another_purpose_starts_anew_and_says_so(
    change: str, search: Search, tmp_path: Path
) -> None:
    _, num = search()
    more: tuple[Any, ...] = ()
    if change == "grader":
        write(tmp_path / "grader.json", [{**GRADER, "name": "other"}])
    elif change == "training rows":
        write(tmp_path / "train.jsonl", task_rows(40, 200))
    else:
        more = (f"--{change}", 1 if change == "temperature" else 2)
    done, again = search(*more)
    assert f"because of other settings than in prompt.search.jsonl: {change}." in done.stderr
    assert again == num
    assert search(*more)[1] == 0
    if more:  # back to what it was: nothing is lost
        done, again = search()
        assert again == 0
        assert f"has {num} answers already" in done.stderr


def test_a_service_that_answers_nothing_has_not_shown_that_no_prompt_is_better(
    search: Search, served: Served, tmp_path: Path
) -> None:
    works, served.link.say = served.link.say, lambda _: ChatError("out of order", status=400)
    done, _ = search()
    assert isinstance(done.exception, InputError)
    assert "no answer of rftkit-tiny could be graded: " in str(done.exception)
    assert "out of order" in str(done.exception)
    assert not (tmp_path / "prompt.json").exists()
    served.link.say = works
    assert search()[0].exit_code == 0


def test_a_file_of_something_else_is_not_taken_for_kept_answers(
    search: Search, tmp_path: Path
) -> None:
    other = write(tmp_path / "prompt.search.jsonl", [{"messages": []}])
    done, num = search()
    assert isinstance(done.exception, InputError)
    assert num == 0
    assert json.loads(other.read_text()) == {"messages": []}


def test_reflection_is_kept_too(served: Served, tmp_path: Path) -> None:
    pytest.importorskip("gepa")
    asked: list[Item] = []
    served.link.say = lambda request: asked.append(request) or model_that_learns(request)  # type: ignore[func-returns-value]
    rows = datasets.read(write(tmp_path / "rows.jsonl", task_rows(40)))

    def run() -> tuple[Prompt, int, int]:
        asked.clear()
        reflected: list[str] = []
        kept = ladder.open_kept(tmp_path / "kept.jsonl", {"seed": 1}, print)
        found = ladder.optimize_prompt(
            ladder.Task(served.client, GRADER, options={"temperature": 0}, kept=kept),
            "rftkit-tiny",
            rows[:28],
            rows[28:],
            reflect=lambda _: reflected.append("") or "```\nSay even or odd.\n```",  # type: ignore[func-returns-value]
            budget=ladder.Budget(candidates=1, reflection_answers=60, train_rows=8),
        )
        return found.prompt, len(reflected), len(asked)

    first = run()
    assert first[1] > 0
    assert run() == (first[0], 0, 0)


def test_the_prompt_stays_when_nothing_is_better(served: Served, tmp_path: Path) -> None:
    served.link.say = lambda _: "even"
    rows = datasets.read(write(tmp_path / "train.jsonl", task_rows(20)))
    task = ladder.Task(served.client, GRADER)
    found = ladder.optimize_prompt(task, "rftkit-tiny", rows[:12], rows[12:])
    assert found.prompt == Prompt()
    assert found.sentence.startswith("No prompt of ")
    assert found.tokens > 0


def test_a_reflection_model_rewrites_the_system_text(served: Served, tmp_path: Path) -> None:
    pytest.importorskip("gepa")
    asked: list[str] = []

    def reflect(request: str) -> str:
        asked.append(request)
        return "```\nSay even or odd.\n```"

    served.link.say = model_that_learns
    rows = datasets.read(
        write(
            tmp_path / "train.jsonl",
            [{**each, "messages": [system("Help."), *each["messages"]]} for each in task_rows(40)],
        )
    )
    found = ladder.optimize_prompt(
        ladder.Task(served.client, GRADER),
        "rftkit-tiny",
        rows[:28],
        rows[28:],
        reflect=reflect,
        budget=ladder.Budget(candidates=1, reflection_answers=60, train_rows=8),
    )
    assert "Help." in asked[0]
    assert "a right answer is: " in asked[0]
    assert found.prompt.system == "Say even or odd."
    assert found.prompt.replaces == "Help."
    assert found.valid.summary(found.chosen).reward.value == 1


def test_without_gepa_the_extra_is_named(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gepa", None)
    rows = datasets.read(write(tmp_path / "train.jsonl", task_rows(12)))
    with pytest.raises(MissingExtraError, match=r"rftkit\[prompt\]"):
        ladder.optimize_prompt(
            ladder.Task(served.client, GRADER), "rftkit-tiny", rows[:8], rows[8:], reflect=str
        )


def test_a_search_with_nothing_to_try_says_what_to_give(served: Served, tmp_path: Path) -> None:
    rows = datasets.read(
        write(tmp_path / "r.jsonl", [{"messages": [user(str(n))]} for n in range(8)])
    )
    grader = {**GRADER, "reference": "x", "operation": "ne"}
    with pytest.raises(InputError, match="--reflection-model"):
        ladder.optimize_prompt(ladder.Task(served.client, grader), "m", rows[:4], rows[4:])


def test_a_file_of_rows_needs_its_other_files(tmp_path: Path) -> None:
    source = write(tmp_path / "train.jsonl", task_rows(2))
    with pytest.raises(InputError, match="--grader, --valid"):
        ladder.open_data(source, needs_test=False)
    with pytest.raises(InputError, match="security_review"):
        ladder.open_data("nowhere")
    assert ladder.open_data("tiny_copy").name == "tiny_copy"
