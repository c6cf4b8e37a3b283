"""What a model earns on rows, which of them teach, and how sure that is; token lengths."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import GRADER, Served
from hypothesis import given
from hypothesis import strategies as st

from rftkit import datasets
from rftkit.datasets import tokens
from rftkit.datasets.sampled import SampledRow, suggest_threshold
from rftkit.errors import InputError

PLACE = datasets.Place("t.jsonl", 0, 1)


def sampled(*rewards: float | None) -> SampledRow:
    return SampledRow(PLACE, rewards, ("",) * len(rewards), ())


def row(prompt: str, answer: str = "hi") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], "answer": answer}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def test_kinds_of_rows() -> None:
    assert sampled(1, 1, 1).kind(0.5) == "always right"
    assert sampled(0, 0, None).kind(0.5) == "always wrong"
    assert sampled(0.1, 0.2).kind(0.5) == "in between"  # never passes, and still teaches
    assert sampled(1, None).kind(0.5) == "unknown"
    assert sampled(None, None).mean is None


@given(
    rewards=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=7),
    size=st.integers(2, 7),
)
def test_the_chance_of_a_flat_group_is_the_share_of_flat_subsets(
    rewards: list[float], size: int
) -> None:
    chance = sampled(*rewards).flat_chance(size)
    assert chance is not None
    if size <= len(rewards):
        subsets = list(itertools.combinations(rewards, size))
        assert chance == pytest.approx(sum(len(set(s)) == 1 for s in subsets) / len(subsets))
    else:
        assert 0 <= chance <= 1
        assert chance <= (sampled(*rewards).flat_chance(len(rewards)) or 0) + 0.5


def test_the_threshold_tells_answers_apart() -> None:
    assert suggest_threshold([sampled(0.2, 0.8), sampled(0.3, 0.9)]) == 0.8
    assert suggest_threshold([sampled(1, 1), sampled(0, 0)]) is None
    assert suggest_threshold([]) is None


def test_a_preview_asks_grades_and_says_which_rows_teach(served: Served, tmp_path: Path) -> None:
    said = itertools.cycle(["hi", "no", "hi", "hi"])
    served.link.say = lambda request: (
        next(said) if "between" in request["messages"][0]["content"] else
        "hi" if "right" in request["messages"][0]["content"] else "no"
    )  # fmt: skip
    rows = [row("right"), row("between"), row("wrong"), row("right again")]
    path = write(tmp_path / "t.jsonl", rows)
    preview = datasets.preview(
        served.client,
        "rftkit-tiny",
        datasets.spread_rows(path, 10),
        grader=GRADER,
        source=str(path),
        completions=4,
    )
    assert served.link.requests[0]["n"] == 4
    assert preview.pass_threshold == 1
    assert preview.numbers("in between") == [1]
    assert preview.numbers("always right") == [0, 3]
    assert preview.numbers("always wrong") == [2]
    share = preview.share("in between")
    assert (share.value, share.num_rows) == (0.25, 4)
    assert share.low is not None
    assert share.high is not None
    assert 0 <= share.low < 0.25 < share.high < 0.8
    assert preview.flat_share(4).value == pytest.approx(0.75)
    [flat] = [each for each in preview.findings() if each.code == "flat_groups"]
    assert "teaches nothing by itself; on rftkit's platform reference answers guide" in flat.advice
    unguided = dataclasses.replace(preview, has_references=False)
    assert "reference answers" not in " ".join(each.advice for each in unguided.findings())
    record = preview.records()[1]
    assert record["pass_rate"] == 0.75
    assert record["low"] < 0.75 < record["high"]
    assert {each.code for each in preview.findings()} >= {"learnability", "flat_groups"}
    assert preview.write_useful(path, tmp_path / "useful.jsonl") == 1
    assert [each.item for each in datasets.read(tmp_path / "useful.jsonl")] == [rows[1]]


def test_answers_that_never_came_are_counted_not_zero(served: Served, tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [row("a")])
    rows = datasets.spread_rows(path, 1)
    preview = datasets.preview(
        served.client, "no-such-model", rows, grader=GRADER, completions=2, source="t"
    )
    assert preview.rows[0].rewards == (None, None)
    assert preview.share("in between").value is None
    [finding] = preview.findings()
    assert finding.code == "not_graded"
    assert "no-such-model" in finding.details[0]
    with pytest.raises(InputError, match="no sampled row is in between"):
        preview.write_useful(path, tmp_path / "u.jsonl")
    with pytest.raises(InputError, match="at least 2 completions"):
        datasets.preview(served.client, "m", rows, grader=GRADER, completions=1)
    with pytest.raises(InputError, match="no usable row"):
        datasets.preview(served.client, "m", [], grader=GRADER)


@pytest.fixture
def tiny(home: Path) -> str:
    """A tokenizer that splits at spaces, in a folder as the platform keeps them."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}"
    )
    folder = home / "models" / "words-v1"
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"max_position_embeddings": 300}')
    return "words"


def test_tokens_are_counted_with_the_model_s_own_template(tiny: str, tmp_path: Path) -> None:
    rows = [row(" ".join(["w"] * count)) for count in (1, 3, 5, 98)]
    path = write(tmp_path / "t.jsonl", rows)
    check = datasets.check(path, model=tiny)
    lengths, too_long = (
        next(each for each in check.findings if each.code == code)
        for code in ("token_lengths", "long_prompts")
    )
    assert lengths.figures["median"] == 5
    assert lengths.figures["longest"] == 100
    assert "the tokenizer and chat template of words" in lengths.message
    assert (too_long.severity, too_long.count) == ("error", 1)
    assert str(too_long.places[0]) == f"{path}:4"
    assert "256 of 300 tokens" in too_long.message


def test_a_model_is_found_by_every_name_that_the_platform_knows_it_by(
    tiny: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = home / "models" / f"{tiny}-v1"
    (home / "bases.json").write_text(json.dumps({"added": str(folder), "near": "models/words-v1"}))
    remote = {"url": "http://x", "model": "/srv/far/away", "tokenizer": str(folder)}
    (home / "tinker.json").write_text(json.dumps(remote))
    monkeypatch.chdir(tmp_path)
    names = [tiny, "added", "near", "away", str(folder)]
    names += [f"ft:{name}:local::1a2b3c4d" for name in names[:4]] + [
        "ft:near:local:x:1:ckpt-step-2"
    ]
    for name in names:
        assert tokens.find_counter(name).is_exact, name
    for name in ("", "w*", "[words]", "a**b", "../words", "ft:", "ft::local::1", "far", "other"):
        assert not tokens.find_counter(name).is_exact, name


def test_answers_that_were_cut_off_are_counted_apart(served: Served, tmp_path: Path) -> None:
    said = itertools.cycle(["length", "stop", "stop", "stop"])
    served.link.say = lambda request: {"text": "hi", "stop_reason": next(said)}
    rows = datasets.spread_rows(write(tmp_path / "t.jsonl", [row("a"), row("b")]), 2)
    found = datasets.preview(
        served.client, "rftkit-tiny", rows, grader=GRADER, completions=4, concurrency=1
    )
    assert found.num_cut == 2
    [finding] = [each for each in found.findings() if each.code == "cut_off"]
    assert finding.severity == "warning"
    assert finding.message.startswith("2 of 8 completions were cut off at their token limit")


def test_more_rows_than_can_be_counted_give_a_sample_with_intervals(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "EXACT_ROWS", 100)
    path = write(tmp_path / "t.jsonl", [row(" ".join(["w"] * (n % 50))) for n in range(400)])
    [lengths] = [
        each for each in datasets.check(path, model=tiny).findings if each.code == "token_lengths"
    ]
    assert "in a sample of 100 rows (seed 1" in lengths.message
    assert lengths.figures["num_counted"] == 100


def test_without_a_tokenizer_lengths_are_an_estimate_and_say_so(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [row("x" * 400)])
    check = datasets.check(path, model="o4-mini")
    [lengths] = [each for each in check.findings if each.code == "token_lengths"]
    assert "characters / 4, an estimate: no tokenizer of o4-mini is here" in lengths.message
    assert 100 <= lengths.figures["longest"] <= 120


def test_a_label_that_the_model_never_gives_is_named(served: Served, tmp_path: Path) -> None:
    served.link.say = lambda request: "yes"
    labels = ["yes", "no", "needs review"]
    path = write(tmp_path / "t.jsonl", [row(f"prompt {n}", labels[n % 3]) for n in range(12)])
    found = datasets.preview(
        served.client, "rftkit-tiny", datasets.spread_rows(path, 12), grader=GRADER, completions=4
    )
    said = {each.code: each for each in found.findings()}
    assert said["answer_shares"].message.startswith("`answer`: ")
    assert "yes 100%" in said["answer_shares"].message
    assert said["never_sampled"].severity == "warning"
    assert said["never_sampled"].message.startswith(
        "`needs review`, `no` were never sampled in 48 answers"
    )
