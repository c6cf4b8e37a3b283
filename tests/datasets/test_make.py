"""Split, sample, convert and profile datasets: what goes where, and that nothing gets lost."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rftkit import datasets
from rftkit.datasets.shingles import folded
from rftkit.errors import InputError


def row(prompt: str, **keys: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], **keys}


def write(path: Path, rows: list[Any]) -> Path:
    texts = [each if isinstance(each, str) else json.dumps(each) for each in rows]
    path.write_text("\n".join(texts))
    return path


def items(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_split_is_stratified_and_ties_groups(tmp_path: Path) -> None:
    rows = [row(f"q{n}", label="yes" if n % 4 else "no", topic=f"t{n // 5}") for n in range(200)]
    source = write(tmp_path / "all.jsonl", rows)
    made = datasets.split(source, tmp_path / "by_label", stratify="label")
    assert made.num_rows == {"train": 160, "valid": 20, "test": 20}
    for path in made.files.values():
        counts = Counter(each["label"] for each in items(path))
        assert counts["no"] / counts.total() == pytest.approx(0.25, abs=0.06)
    made = datasets.split(source, tmp_path / "by_topic", group="topic")
    topics = [{each["topic"] for each in items(path)} for path in made.files.values()]
    assert sum(map(len, topics)) == len(set().union(*topics)) == 40
    assert sum(made.num_rows.values()) == 200


def test_a_small_part_has_its_share_of_each_label_unless_told_otherwise(tmp_path: Path) -> None:
    """Ten rows for validation were drawn at random: eight of them had one category of four."""
    kinds = ("billing", "access", "bug", "other")
    rows = [row(f"q{n}", reason=f"because {n}", category=kinds[n % 4]) for n in range(100)]
    source = write(tmp_path / "all.jsonl", rows)
    made = datasets.split(source, tmp_path / "auto")
    counts = Counter(each["category"] for each in items(made.files["valid"]))
    assert made.stratify == "category"
    assert "share of every value of category" in str(made)
    assert set(counts) == set(kinds)
    assert max(counts.values()) <= 3
    assert datasets.split(source, tmp_path / "random", stratify=None).stratify is None
    halves = {"a": 0.5, "b": 0.5}
    made = datasets.split(source, tmp_path / "groups", shares=halves, group="category")
    assert made.stratify is None  # a part has all rows of a category, or none


def test_a_split_says_what_it_was_made_of_and_comes_out_the_same_again(tmp_path: Path) -> None:
    source = write(tmp_path / "all.jsonl", [row(f"q{n}") for n in range(30)])
    first = datasets.split(source, tmp_path / "a", seed=7)
    again = datasets.split(source, tmp_path / "b", seed=7)
    other = datasets.split(source, tmp_path / "c", seed=8)
    assert items(first.files["train"]) == items(again.files["train"])
    assert items(first.files["train"]) != items(other.files["train"])
    record = json.loads((tmp_path / "a" / "split.json").read_text())
    assert record["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (record["seed"], record["num_rows"]) == (7, first.num_rows)
    with pytest.raises(InputError, match="exists already"):
        datasets.split(source, tmp_path / "a", seed=7)


def test_repeats_are_left_out_or_stay_together(tmp_path: Path) -> None:
    rows = [row(f"q{n % 10}", n=n) for n in range(40)] + ["{"]
    source = write(tmp_path / "all.jsonl", rows)
    made = datasets.split(source, tmp_path / "a")
    assert (made.num_repeats, made.num_refused, sum(made.num_rows.values())) == (30, 1, 10)
    made = datasets.split(source, tmp_path / "b", deduplicate=False)
    prompts = [
        {each["messages"][0]["content"] for each in items(path)} for path in made.files.values()
    ]
    assert sum(made.num_rows.values()) == 40
    assert sum(map(len, prompts)) == 10


def test_near_repeats_stay_together(tmp_path: Path) -> None:
    pytest.importorskip("rensa")
    texts = [" ".join(f"w{n}x{k}" for k in range(60)) for n in range(12)]
    rows = [row(text, n=n) for n, text in enumerate(texts)]
    rows += [row(f"please {text}", n=n) for n, text in enumerate(texts)]
    made = datasets.split(write(tmp_path / "t.jsonl", rows), tmp_path / "a", near_duplicates=True)
    seen = [{each["n"] for each in items(path)} for path in made.files.values()]
    assert sum(map(len, seen)) == 12


@settings(deadline=None, max_examples=40)
@given(
    groups=st.lists(st.integers(0, 5), min_size=1, max_size=40),
    shares=st.sampled_from([{"a": 1.0}, {"a": 0.5, "b": 0.5}, {"a": 0.3, "b": 0.2}]),
)
def test_every_row_is_in_one_part_or_left(
    groups: list[int], shares: dict[str, float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("split")
    rows = [row(f"q{n}", g=group, n=n) for n, group in enumerate(groups)]
    source = write(folder / "t.jsonl", rows)
    try:
        made = datasets.split(source, folder / "out", shares=shares, group="g")
    except InputError:  # too few groups for so many parts
        return
    assert all(made.num_rows.values())
    numbers = [each["n"] for path in made.files.values() for each in items(path)]
    assert len(numbers) == len(set(numbers))
    assert len(numbers) + made.num_left == len(groups)
    if sum(shares.values()) == 1:
        assert made.num_left == 0


@pytest.mark.parametrize("shares", [{}, {"train": 0.0}, {"train": 0.9, "valid": 0.2}])
def test_shares_that_cannot_be(shares: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shares must be"):
        datasets.split(write(tmp_path / "t.jsonl", [row("a")]), tmp_path / "o", shares=shares)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "t.jsonl", [row("a", topic="x"), row("b")])
    with pytest.raises(InputError, match=r"t\.jsonl:2: the row has no key 'topic'"):
        datasets.split(source, tmp_path / "o", group="topic")
    assert not (tmp_path / "o").exists()


def test_a_sample_keeps_shares(tmp_path: Path) -> None:
    rows = [row(f"q{n}", label="yes" if n % 4 else "no") for n in range(100)]
    source = write(tmp_path / "t.jsonl", rows)
    assert datasets.sample(source, tmp_path / "s.jsonl", 20, stratify="label", seed=3) == 20
    assert Counter(each["label"] for each in items(tmp_path / "s.jsonl")) == {"yes": 15, "no": 5}
    with pytest.raises(InputError, match="cannot draw 101 of 100"):
        datasets.sample(source, tmp_path / "t2.jsonl", 101)


CONVERTED = [
    (
        {"messages": [*row("hi")["messages"], {"role": "assistant", "content": "yo"}], "id": 1},
        {**row("hi"), "reference_answer": "yo", "id": 1},
    ),
    ({"prompt": "2+2?", "completion": "4"}, {**row("2+2?"), "reference_answer": "4"}),
    ({"question": "q", "answer": "a", "x": 1}, {**row("q"), "reference_answer": "a", "x": 1}),
    ({"input": row("q")["messages"], "ideal": "a"}, {**row("q"), "reference_answer": "a"}),
    ({"item": {"question": "q", "answer": "a"}}, {**row("q"), "reference_answer": "a"}),
    ({"item": row("q", label="x"), "sample": {"output_text": "s"}}, row("q", label="x")),
    (row("as it is", answer=2), row("as it is", answer=2)),
    (
        {"id": 1, "conversations": [
            {"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]},
        {**row("hi"), "reference_answer": "yo", "id": 1},
    ),
    (
        {"system": "Be brief.", "conversation": [
            {"from": "user", "value": "a"}, {"from": "assistant", "value": "b"},
            {"from": "human", "value": "hi"}], "label": "x"},
        {"messages": [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"}, {"role": "user", "content": "hi"}],
         "label": "x"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), CONVERTED)
def test_other_shapes_become_rows(before: Any, after: Any, tmp_path: Path) -> None:
    made = datasets.convert(write(tmp_path / "in.jsonl", [before]), tmp_path / "out.jsonl")
    assert items(tmp_path / "out.jsonl") == [after]
    assert made.num_rows == 1
    datasets.read(tmp_path / "out.jsonl")


def test_a_dry_run_shows_the_difference_and_names_what_is_left_out(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [CONVERTED[1][0], {"a": 1}, "{", CONVERTED[1][0]])
    made = datasets.convert(source, None)
    assert (made.num_rows, made.num_refused, made.kinds) == (2, 2, {"prompts with an answer": 2})
    assert '-  "prompt": "2+2?"' in made.diff.replace('- "', '-  "')
    assert "in.jsonl:2: neither a chat" in made.refused[0]
    assert "in.jsonl:3: not valid JSON" in made.refused[1]
    assert "a dry run" in str(made)
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["in.jsonl"]


def test_turns_of_nobody_known_are_named(tmp_path: Path) -> None:
    turns = [{"from": "observation", "value": "3"}, {"from": "gpt", "value": None}]
    made = datasets.convert(write(tmp_path / "in.jsonl", [{"conversations": turns}]), None)
    assert made.num_rows == 0
    assert "in.jsonl:1: a turn is from 'observation'" in made.refused[0]
    [turn] = turns[1:]
    empty = [{"from": "human", "value": "hi"}, turn]
    made = datasets.convert(write(tmp_path / "two.jsonl", [{"conversations": empty}]), None)
    assert "None" not in made.diff


def test_a_table_of_prompts_and_answers(tmp_path: Path) -> None:
    frame = pd.DataFrame({"prompt": ["a", "b"], "answer": ["x", None], "score": [1.5, 2]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    datasets.convert(tmp_path / "t.csv", tmp_path / "c.jsonl")
    datasets.convert(frame, tmp_path / "f.jsonl")
    assert items(tmp_path / "c.jsonl")[0] == {**row("a"), "reference_answer": "x", "score": "1.5"}
    assert items(tmp_path / "f.jsonl")[1] == {**row("b"), "reference_answer": None, "score": 2.0}


def test_a_profile_has_a_line_for_every_row(tmp_path: Path) -> None:
    rows = [row("a b", answer="x", topic="t"), "{", row("a b", answer="y" * 80)]
    frame = datasets.profile(write(tmp_path / "t.jsonl", rows), model="somewhere/else")
    assert frame.index.tolist() == [0, 1, 2]
    assert frame["usable"].tolist() == [True, False, True]
    assert frame["prompt_chars"].tolist()[0] == 3
    assert frame["label"].tolist()[0] == "x"
    assert frame["answer_chars"].tolist()[2] == 80
    assert frame["prompt_hash"][0] == frame["prompt_hash"][2]
    assert frame["item.topic"].tolist()[0] == "t"
    assert "an estimate" in frame.attrs["counted_by"]
    assert frame["tokens"].notna().tolist() == [True, False, True]


def test_a_part_without_rows_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    rows = [row(f"question number {n}", site="a" if n % 2 else "b") for n in range(20)]
    source = write(tmp_path / "t.jsonl", rows)
    with pytest.raises(InputError, match="would hold no rows"):
        datasets.split(source, tmp_path / "out", group="site")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_short_prompts_that_are_the_same_question_stay_together(tmp_path: Path) -> None:
    texts = ["What is 2+2?", "what is  2+2", "WHAT IS 2+2 ?", "What is 2-2?"]
    train = write(tmp_path / "t.jsonl", [row(texts[0]), row("other"), row(texts[3])])
    valid = write(tmp_path / "v.jsonl", [row(texts[1]), row(texts[2]), row("more")])
    found = {each.code: each for each in datasets.check(train, valid).findings}
    assert [place.line for place in found["near_shared_rows"].places] == [1, 2]


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ("What is 2 + 2?", "what is 2+2", True), ("¿Qué es?", "qué es", True),
        ("Sum: 3, 4;", "sum : 3 , 4.", True), ("Is it so؟", "is it so", True),
        ("Add 1 23", "Add 12 3", False), (".5 + 1", "5 + 1", False), ("# . .\n#", "# ..#", False),
    ],
)  # fmt: skip
def test_what_makes_no_other_question(first: str, second: str, is_same: bool) -> None:
    assert (folded(first) == folded(second)) is is_same


@pytest.mark.parametrize("names", ["sample, item", "s: dict, data: dict", "answer,\n    row"])
def test_conflicts_are_seen_with_a_python_grader(tmp_path: Path, names: str) -> None:
    read = names.split(",")[1].split(":")[0].strip()
    source = f"def grade({names}):\n    return float({read}['gold'] in 'x')\n"
    spec = {"type": "python", "name": "p", "source": source}
    path = write(tmp_path / "t.jsonl", [row("q", gold="x", id=1), row("q", gold="y", id=2)])
    found = {each.code for each in datasets.check(path, grader=spec).findings}
    assert "conflicting_rows" in found
    same = write(tmp_path / "s.jsonl", [row("q", gold="x", id=1), row("q", gold="x", id=2)])
    found = {each.code for each in datasets.check(same, grader=spec).findings}
    assert "conflicting_rows" not in found


@pytest.mark.parametrize(
    "code",
    [
        "KEY = 'gold'\ndef grade(sample, item):\n    return float(item[KEY] in 'x')",
        "def grade(sample, item):\n    row = item\n    return float(row['gold'] in 'x')",
        "def right(it):\n    return it.get('gold')\n"
        "def grade(sample, item):\n    return float(right(item) in 'x')",
        "def grade(sample, item):\n    match item:\n        case {'gold': gold}:\n"
        "            return float(gold in 'x')",
    ],
)
def test_conflicts_are_seen_whatever_a_grader_calls_the_row(tmp_path: Path, code: str) -> None:
    spec = {"type": "python", "name": "p", "source": code}
    path = write(tmp_path / "t.jsonl", [row("q", gold="x", id=1), row("q", gold="y", id=2)])
    assert "conflicting_rows" in {f.code for f in datasets.check(path, grader=spec).findings}
    same = write(tmp_path / "s.jsonl", [row("q", gold="x", id=1), row("q", gold="x", id=2)])
    assert "conflicting_rows" not in {f.code for f in datasets.check(same, grader=spec).findings}


def test_keys_of_rows_may_have_any_name(tmp_path: Path) -> None:
    rows = [row("q", refused="mine", refusal="own", line=7)]
    with datasets.open(write(tmp_path / "t.jsonl", rows)) as opened:
        frame = opened.frame([0])
    assert frame["line"].tolist() == [1]
    assert frame["item.line"].tolist() == [7]
    assert frame["item.refusal"].tolist() == ["own"]
    assert frame["refused"].tolist() == ["mine"]
