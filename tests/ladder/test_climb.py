"""A ladder: climbed, resumed and read with training played by the test; in full on a toy model."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import openai
import pytest
from conftest import Served
from typer.testing import CliRunner

from rftkit import client, ladder, reports
from rftkit.cli import app as cli
from rftkit.cli import demo_ladder
from rftkit.cli.ladder import ladder_text, write_page
from rftkit.datasets.io import Complete
from rftkit.errors import InputError
from rftkit.ladder import Ladder, Plan, State
from rftkit.ladder.rungs import key_of, parent_of
from rftkit.server.inference.worker_process import ChatError

RUNGS = ladder.rungs_for()
Json = dict[str, Any]
FAST = {"batch_size": 8, "n_epochs": 1, "learning_rate_multiplier": 5}


def data_in(folder: Path) -> Complete:
    """A few rows of the toy task."""
    given = ladder.open_data("tiny_copy")
    paths = {}
    for name, count in (("train", 48), ("valid", 12), ("test", 12)):
        lines = getattr(given, name).read_text().splitlines(keepends=True)[:count]
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("".join(lines))
    return replace(given, **paths)


PLAN = Plan(
    model="rftkit-tiny",
    temperature=0.0,
    max_completion_tokens=8,
    hyperparameters=dict.fromkeys(ladder.METHODS, FAST),
    budget=ladder.Budget(candidates=2, train_rows=6, finalists=1),
    pair_rows=32,
)


RIGHT = {"dpo": 0.8, "reinforcement": 0.7, "supervised": 0.75}
"""Method -> the share of rows that its model copies right; a chain of two copies all."""
Climbed = tuple[State, Complete, list[str]]


def say(request: Json) -> str:
    """Copies as well as the model's name promises, the same row always alike at temperature 0."""
    word = request["messages"][-1]["content"].removeprefix("copy: ")
    methods = [method for method in RIGHT if f"-{method}" in request["model"]]
    share = max((RIGHT[method] for method in methods), default=0.1)
    share = 1.0 if len(methods) > 1 else share
    if len(request["messages"]) > 1:
        share += 0.2  # examples help
    luck = random.Random(f"{word} {request['model']}").random()
    if request["temperature"]:
        luck = random.random()
    return word if luck < share else "zzzz"


def train_all(served: Served, done: threading.Event) -> None:
    """Play the worker: every job that waits succeeds, with a model named after its method."""
    store = served.platform.store
    while not done.wait(0.005):
        for job in store.unfinished_jobs():
            tuned = f"{job.model}-{job.method_type}"
            store.add_model(tuned, "rftkit-tiny", job.id, "")
            store.update_job(
                job.id,
                status="succeeded",
                fine_tuned_model=tuned,
                trained_tokens=100,
                finished_at=job.created_at + 7,
            )


@pytest.fixture
def trained(served: Served) -> Iterator[Served]:
    """A platform in memory whose jobs succeed at once."""
    done = threading.Event()
    served.link.say = say
    thread = threading.Thread(target=train_all, args=(served, done))
    thread.start()
    yield served
    done.set()
    thread.join()


@pytest.fixture
def platform_client(trained: Served) -> openai.OpenAI:
    return trained.client


@pytest.fixture
def climbed(platform_client: openai.OpenAI, tmp_path: Path) -> Climbed:
    """A ladder with all rungs, climbed once."""
    said: list[str] = []
    data = data_in(tmp_path)
    state = ladder.climb(
        platform_client, data, PLAN, RUNGS, tmp_path / "l.json", on_progress=said.append
    )
    return state, data, said


def test_every_rung_has_a_result(climbed: Climbed) -> None:
    state, _, said = climbed
    assert tuple(state.rungs) == RUNGS
    assert {name: each.error for name, each in state.rungs.items() if each.error} == {}, said
    found = ladder.read(state)
    assert found.comparison.baseline == "base"
    assert [run.label for run in found.comparison.runs] == [ladder.LABELS[each] for each in RUNGS]
    assert {run.num_rows for run in found.comparison.runs} == {12}
    assert {pair.num_comparisons for pair in found.comparison.pairs} == {5}
    costs_include_the_rung_below(found)
    the_sentence_names_the_cheapest_that_cannot_be_told_from_the_best(found)


def costs_include_the_rung_below(found: Ladder) -> None:
    assert found.tokens("base") == 0
    for label in ("dpo", "RFT from supervised"):
        [own] = [each for each in found.rungs if ladder.LABELS[each.rung] == label]
        assert own.parent == "supervised"
        assert found.tokens(label) == (own.tokens or 0) + found.tokens("supervised")
    assert all((each.tokens or 0) > 0 for each in found.rungs if each.rung != "base")


def test_the_job_of_a_rung_starts_from_the_rung_below(
    climbed: Climbed, platform_client: openai.OpenAI
) -> None:
    state, _, _ = climbed
    for rung, method in ladder.METHODS.items():
        job = platform_client.fine_tuning.jobs.retrieve(str(state.rungs[rung].job))
        assert job.method is not None
        assert job.method.type == method
        assert job.model == state.rungs[state.rungs[rung].parent].model
        assert (job.metadata or {})["rung"] == rung


def test_a_second_start_finds_every_rung_again(
    climbed: Climbed, platform_client: openai.OpenAI
) -> None:
    state, data, _ = climbed
    said: list[str] = []
    before = [each.id for each in platform_client.fine_tuning.jobs.list(limit=100)]
    ladder.climb(platform_client, data, PLAN, RUNGS, state.path, on_progress=said.append)
    assert said == [f"{ladder.LABELS[rung]}: found again" for rung in RUNGS]
    # without the file, the jobs are found by their metadata
    said.clear()
    elsewhere = state.path.with_name("other.json")
    again = ladder.climb(
        platform_client, data, PLAN, ("base", "supervised"), elsewhere, on_progress=said.append
    )
    assert f"supervised: {state.rungs['supervised'].job} found again" in said
    assert again.rungs["supervised"].model == state.rungs["supervised"].model
    assert [each.id for each in platform_client.fine_tuning.jobs.list(limit=100)] == before


def the_sentence_names_the_cheapest_that_cannot_be_told_from_the_best(found: Ladder) -> None:
    assert found.comparison.choice is not None
    tied = found.comparison.choice.tied
    assert found.worth in tied
    assert all(found.seconds(str(found.worth)) <= found.seconds(label) for label in tied)
    assert found.sentence.startswith(str(found.worth))
    assert str(found.best) in found.sentence
    text = ladder_text(found)
    assert all(label in text for label in ladder.LABELS.values())
    json.dumps(found.to_dict())


def test_the_page_needs_no_service(climbed: Climbed, tmp_path: Path) -> None:
    found = ladder.read(climbed[0])
    page = write_page(climbed[0].path, tmp_path / "ladder.html").read_text()
    for words in (found.sentence, "RFT from supervised", "seconds in all", "rows fixed"):
        assert words in page, words
    assert reports.read_summary(tmp_path / "ladder.html")["worth"] == found.worth


def test_a_rung_that_cannot_be_done_says_why_and_the_others_go_on(
    climbed: Climbed, platform_client: openai.OpenAI, tmp_path: Path
) -> None:
    _, data, _ = climbed
    bare = tmp_path / "bare.jsonl"
    rows = [json.loads(line) for line in data.train.read_text().splitlines()]
    bare.write_text("".join(json.dumps({"messages": row["messages"]}) + "\n" for row in rows))
    grader = {**data.grader, "type": "string_check", "operation": "ne", "input": "x",
              "reference": "{{sample.output_text}}"}  # fmt: skip
    for key in set(grader) - {"type", "name", "operation", "input", "reference"}:
        del grader[key]
    broken = Complete("bare", bare, bare, bare, grader, None)
    state = ladder.climb(
        platform_client, broken, PLAN, ("base", "supervised", "dpo"), tmp_path / "l.json",
        on_progress=lambda line: None,
    )  # fmt: skip
    assert "has a reference answer to learn from" in str(state.rungs["supervised"].error)
    assert "it starts from supervised, which has no model" in str(state.rungs["dpo"].error)
    found: Ladder = ladder.read(state)
    assert found.sentence == "There is one rung, so that nothing can be compared."
    assert [line["reward"] is None for line in found.records()] == [False, True, True]


def test_keys_change_with_what_decides_a_rung(tmp_path: Path) -> None:
    data = data_in(tmp_path)

    def key(rung: str, plan: Plan = PLAN) -> str:
        return key_of(rung, RUNGS, plan, data)

    faster = replace(PLAN, hyperparameters={"supervised": {"n_epochs": 9}})
    assert key("supervised") != key("supervised", faster)
    assert key("supervised_reinforcement") != key("supervised_reinforcement", faster)
    assert key("base") == key("base", faster)
    assert parent_of("dpo", ("base", "dpo")) == "base"
    with data.train.open("a") as file:
        file.write("\n")
    assert key("base") != key_of("base", RUNGS, PLAN, replace(data, train=data.valid))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hyperparameters": {"dpo": {"batchsize": 4}}}, "dpo: there is no .*did you mean batch_s"),
        ({"hyperparameters": {"supervized": {}}}, "did you mean supervised"),
        ({"metadata": {"batch_size": "4"}}, "it is a hyperparameter"),
    ],
)
def test_misspelt_settings_are_refused_before_the_first_rung(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        replace(PLAN, **settings)


@pytest.mark.parametrize(("chosen", "rungs"), [
    (["prompt"], ("base", "prompt")),
    (["reinforcement", "supervised"],
     ("base", "supervised", "reinforcement", "supervised_reinforcement")),
])  # fmt: skip
def test_rungs_of_a_choice(chosen: list[str], rungs: tuple[str, ...]) -> None:
    assert ladder.rungs_for(chosen) == rungs


def test_what_is_no_rung_or_no_ladder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no rung 'sft'"):
        ladder.rungs_for(["sft"])
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InputError, match="this is no ladder"):
        ladder.read(tmp_path / "x.json")
    with pytest.raises(InputError, match="there is no such file"):
        ladder.read(tmp_path / "y.json")


def test_answers_that_nobody_could_grade_are_no_result(trained: Served, tmp_path: Path) -> None:
    trained.link.say = lambda _: ChatError("out of order", status=400)
    state = ladder.climb(
        trained.client, data_in(tmp_path), PLAN, ("base",), tmp_path / "l.json",
        on_progress=lambda line: None,
    )  # fmt: skip
    assert "out of order" in str(state.rungs["base"].error)
    assert not state.rungs["base"].is_done
    trained.link.say = say
    state = ladder.climb(
        trained.client, data_in(tmp_path), PLAN, ("base",), tmp_path / "l.json",
        on_progress=lambda line: None,
    )  # fmt: skip
    assert state.rungs["base"].is_done
    assert state.rungs["base"].error is None


def test_the_commands(trained: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "connect", lambda *_: trained.client)
    monkeypatch.setattr(reports, "run", lambda name, out, **_: out)
    data = data_in(tmp_path)
    (tmp_path / "g.json").write_text(json.dumps(data.grader))
    words = ["ladder", str(data.train), "-m", "rftkit-tiny", "-g", str(tmp_path / "g.json")]
    words += ["--rungs", "supervised", "-o", str(tmp_path / "page.html"), "--json"]
    done = CliRunner().invoke(cli.app, words)
    assert isinstance(done.exception, InputError)
    assert "--valid, --test" in str(done.exception)
    words += ["--valid", str(data.valid), "--test", str(data.test)]
    done = CliRunner().invoke(cli.app, [*words, "-p", "sft.n_epochs=1"])
    assert "the rungs are supervised, dpo" in str(done.exception)
    done = CliRunner().invoke(cli.app, [*words, "-p", "supervised.n_epochs=1"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [line["rung"] for line in found["rungs"]] == ["base", "supervised"]
    assert found["sentence"]
    [job] = trained.client.fine_tuning.jobs.list().data
    assert job.to_dict()["method"]["supervised"]["hyperparameters"]["n_epochs"] == 1


def test_the_demo(trained: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_ladder, "connect", lambda: trained.client)
    monkeypatch.setattr(reports, "run", lambda name, out, **_: out)
    said: list[str] = []
    result = demo_ladder.run_ladder("tiny_copy", seed=3, out=tmp_path, on_progress=said.append)
    assert [line["rung"] for line in result["rungs"]] == [
        ladder.LABELS[rung] for rung in demo_ladder.RUNGS
    ]
    assert all(line["reward"] is not None for line in result["rungs"])
    assert result["sentence"] in "\n".join(said)
    assert {str(job.seed) for job in trained.client.fine_tuning.jobs.list()} == {"3"}
    json.dumps(result)


@pytest.mark.slow
def test_a_real_ladder_and_its_page(platform: openai.OpenAI, tmp_path: Path) -> None:
    health: Any = platform.get(urljoin(str(platform.base_url), "/health"), cast_to=object)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RFTKIT_HOME", health["home"])
        plan = replace(PLAN, temperature=1.0)
        state = ladder.climb(platform, data_in(tmp_path), plan, RUNGS, tmp_path / "l.json")
        assert {each: found.error for each, found in state.rungs.items() if found.error} == {}
        found = ladder.read(state)
        page = write_page(state.path, tmp_path / "ladder.html").read_text()
    for words in (found.sentence, "RFT from supervised", "seconds in all", "rows fixed"):
        assert words in page, words


def test_a_killed_ladder_asks_for_no_answer_twice(
    trained: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def counting(request: Json) -> str:
        asked.append(request["model"])
        return say(request)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    trained.link.say = counting
    data, path = data_in(tmp_path), tmp_path / "l.json"
    rungs = ("base", "supervised", "dpo")

    def climb() -> State:
        asked.clear()
        return ladder.climb(trained.client, data, PLAN, rungs, path, on_progress=lambda line: None)

    with monkeypatch.context() as patch:  # before the pairs of dpo are written
        patch.setattr("rftkit.datasets.preferences", killed)
        with pytest.raises(KeyboardInterrupt):
            climb()
    assert len(asked) == 12 + 12 + 24 * 4  # two rungs, and the pairs of dpo
    assert climb().rungs["dpo"].error is None
    assert len(asked) == 12  # the test rows of dpo
    path.unlink()  # a new ladder
    for job in trained.client.fine_tuning.jobs.list():
        trained.platform.store.update_job(job.id, metadata={})
    climb()
    assert len(asked) == 12 + 12 + 24 * 4 + 12
