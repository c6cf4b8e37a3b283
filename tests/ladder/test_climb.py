"""A ladder on a real platform with a toy model: climbed, resumed, read, and made into a page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import openai
import pytest

from rftkit import ladder
from rftkit.cli.ladder import ladder_text, write_page
from rftkit.datasets import Dataset, bundled
from rftkit.errors import InputError
from rftkit.ladder import Ladder, Plan, State
from rftkit.ladder.rungs import key_of, parent_of

RUNGS = ladder.rungs_for()
FAST = {"batch_size": 8, "n_epochs": 1, "learning_rate_multiplier": 5}


def data_in(folder: Path) -> Dataset:
    """A few rows of the toy task."""
    given = bundled("tiny_copy")
    paths = {}
    for name, count in (("train", 48), ("valid", 12), ("test", 12)):
        lines = getattr(given, name).read_text().splitlines(keepends=True)[:count]
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("".join(lines))
    return replace(given, **paths)


PLAN = Plan(
    model="rftkit-tiny",
    temperature=1.0,
    max_completion_tokens=8,
    hyperparameters=dict.fromkeys(ladder.METHODS, FAST),
    budget=ladder.Budget(candidates=2, train_rows=6, finalists=1),
    pair_rows=32,
)


@pytest.fixture(scope="module")
def climbed(
    platform: openai.OpenAI, tmp_path_factory: Any
) -> Iterator[tuple[State, Dataset, list[str]]]:
    """A ladder with all rungs, climbed once."""
    health: Any = platform.get(urljoin(str(platform.base_url), "/health"), cast_to=object)
    folder, said = tmp_path_factory.mktemp("ladder"), list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RFTKIT_HOME", health["home"])
        data = data_in(folder)
        state = ladder.climb(platform, data, PLAN, RUNGS, folder / "l.json", say=said.append)
        yield state, data, said


def test_every_rung_has_a_result(climbed: tuple[State, Dataset, list[str]]) -> None:
    state, _, said = climbed
    assert tuple(state.rungs) == RUNGS
    assert {name: each.error for name, each in state.rungs.items() if each.error} == {}, said
    found = ladder.read(state)
    assert found.comparison.baseline == "base"
    assert [run.label for run in found.comparison.runs] == [ladder.LABELS[each] for each in RUNGS]
    assert {run.num_rows for run in found.comparison.runs} == {12}
    assert {pair.num_looks for pair in found.comparison.pairs} == {5}


def test_costs_include_the_rung_below(climbed: tuple[State, Dataset, list[str]]) -> None:
    found = ladder.read(climbed[0])
    assert found.tokens("base") == 0
    for label in ("dpo", "RFT from supervised"):
        [own] = [each for each in found.rungs if ladder.LABELS[each.rung] == label]
        assert own.parent == "supervised"
        assert found.tokens(label) == (own.tokens or 0) + found.tokens("supervised")
    assert all((each.tokens or 0) > 0 for each in found.rungs if each.rung != "base")


def test_the_job_of_a_rung_starts_from_the_rung_below(
    climbed: tuple[State, Dataset, list[str]], platform: openai.OpenAI
) -> None:
    state, _, _ = climbed
    for rung, method in ladder.METHODS.items():
        job = platform.fine_tuning.jobs.retrieve(str(state.rungs[rung].job))
        assert job.method is not None
        assert job.method.type == method
        assert job.model == state.rungs[state.rungs[rung].parent].model
        assert (job.metadata or {})["rung"] == rung


def test_a_second_start_finds_every_rung_again(
    climbed: tuple[State, Dataset, list[str]], platform: openai.OpenAI
) -> None:
    state, data, _ = climbed
    said: list[str] = []
    before = [each.id for each in platform.fine_tuning.jobs.list(limit=100)]
    ladder.climb(platform, data, PLAN, RUNGS, state.path, say=said.append)
    assert said == [f"{ladder.LABELS[rung]}: found again" for rung in RUNGS]
    # without the file, the jobs are found by their metadata
    said.clear()
    elsewhere = state.path.with_name("other.json")
    again = ladder.climb(platform, data, PLAN, ("base", "supervised"), elsewhere, say=said.append)
    assert f"supervised: {state.rungs['supervised'].job} found again" in said
    assert again.rungs["supervised"].model == state.rungs["supervised"].model
    assert [each.id for each in platform.fine_tuning.jobs.list(limit=100)] == before


def test_the_sentence_names_the_cheapest_that_cannot_be_told_from_the_best(
    climbed: tuple[State, Dataset, list[str]],
) -> None:
    found = ladder.read(climbed[0])
    assert found.comparison.choice is not None
    tied = found.comparison.choice.tied
    assert found.worth in tied
    assert all(found.seconds(str(found.worth)) <= found.seconds(label) for label in tied)
    assert found.sentence.startswith(str(found.worth))
    assert str(found.best) in found.sentence
    text = ladder_text(found)
    assert all(label in text for label in ladder.LABELS.values())
    json.dumps(found.to_dict())


@pytest.mark.slow
def test_the_page(climbed: tuple[State, Dataset, list[str]], tmp_path: Path) -> None:
    page = write_page(climbed[0].path, tmp_path / "ladder.html").read_text()
    found = ladder.read(climbed[0])
    for words in (found.sentence, "RFT from supervised", "seconds in all", "rows fixed"):
        assert words.replace("&", "&amp;") in page, words


def test_a_rung_that_cannot_be_done_says_why_and_the_others_go_on(
    climbed: tuple[State, Dataset, list[str]], platform: openai.OpenAI, tmp_path: Path
) -> None:
    _, data, _ = climbed
    bare = tmp_path / "bare.jsonl"
    rows = [json.loads(line) for line in data.train.read_text().splitlines()]
    bare.write_text("".join(json.dumps({"messages": row["messages"]}) + "\n" for row in rows))
    grader = {**data.grader, "type": "string_check", "operation": "ne", "input": "x",
              "reference": "{{sample.output_text}}"}  # fmt: skip
    for key in set(grader) - {"type", "name", "operation", "input", "reference"}:
        del grader[key]
    broken = Dataset("bare", bare, bare, bare, grader, None)
    state = ladder.climb(
        platform, broken, PLAN, ("base", "supervised", "dpo"), tmp_path / "l.json",
        say=lambda line: None,
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
