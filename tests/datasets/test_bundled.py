"""The four bundled datasets: rows, splits, graders, and the numbers their READMEs state."""

from __future__ import annotations

import json
import re
import runpy
from collections import Counter
from collections.abc import Callable, Iterator
from math import log
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from rftkit.datasets import reference_answer
from rftkit.graders import Sample, check_item_paths, compile_grader, validate
from rftkit.rows import read_rows

DATASETS = Path(__file__).parents[2] / "datasets"
NAMES = ("security_review", "contract_facts", "policy_lookup", "tiny_copy")
SPLITS = ("train", "valid", "test")
LEAST = {"train": 150, "valid": 50, "test": 50}
LABELS = ("yes", "no", "needs review")
CEILING = 0.45

Item = dict[str, Any]
Score = Callable[[Sample, Item], float]


def items(name: str, split: str) -> list[Item]:
    path = DATASETS / name / f"{split}.jsonl"
    with path.open("rb") as lines:
        return [row.item for row in read_rows(lines, path=path)]


def spec_of(name: str, file: str = "grader.json") -> dict[str, Any]:
    spec: dict[str, Any] = json.loads((DATASETS / name / file).read_text(encoding="utf-8"))
    return spec


def answer(name: str, item: Item) -> Sample:
    """The row's own reference answer, as a model would say it."""
    form = None if name == "tiny_copy" else spec_of(name, "response_format.json")
    text = reference_answer(item, form)
    assert text is not None
    return Sample.from_text(text, response_format=form)


@pytest.fixture(scope="module")
def contract_grade() -> Score:
    """The python grader run in this process: the source is ours and a sandbox is slower."""
    grade = runpy.run_path(str(DATASETS / "contract_facts" / "grader.py"))["grade"]
    return lambda sample, item: grade(sample.to_dict(), item)


@pytest.mark.parametrize("name", NAMES)
def test_make_writes_the_same_bytes_again(name: str, tmp_path: Path) -> None:
    runpy.run_path(str(DATASETS / name / "make.py"))["main"](tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {f"{split}.jsonl" for split in SPLITS} <= set(made)
    for file, content in made.items():
        assert content == (DATASETS / name / file).read_bytes(), file


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", SPLITS)
def test_the_splits_are_large_enough_and_share_no_prompt(name: str, split: str) -> None:
    rows = items(name, split)
    prompts = {row["messages"][-1]["content"] for row in rows}
    assert len(rows) >= LEAST[split]
    assert len(prompts) == len(rows)
    for other in set(SPLITS) - {split}:
        assert prompts.isdisjoint(row["messages"][-1]["content"] for row in items(name, other))


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_answer_earns_everything(name: str) -> None:
    rows = [row for split in SPLITS for row in items(name, split)]
    with compile_grader(spec_of(name)) as grader:
        grades = grader.grade_many([(answer(name, row), row) for row in rows])
    assert {(grade.outcome, grade.reward) for grade in grades} == {("graded", 1.0)}


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_states_rows_and_best_constant_answer(name: str, contract_grade: Score) -> None:
    rows = {split: items(name, split) for split in SPLITS}
    stated = readme_table(name)
    assert stated["rows"] == [f"{len(rows[split])}" for split in SPLITS]
    with compile_grader(spec_of(name), unconfined=True) as grader:
        score = contract_grade if name == "contract_facts" else by_grader(grader)
        best = max(constants(name, rows["train"]), key=lambda one: mean(score, one, rows["train"]))
        earned = [mean(score, best, rows[split]) for split in SPLITS]
    assert stated["best constant answer"] == [f"{reward:.3f}" for reward in earned]
    assert max(earned) <= CEILING


def test_the_labels_of_security_review_are_balanced() -> None:
    for split in SPLITS:
        rows = items("security_review", split)
        assert Counter(row["compliant"] for row in rows) == dict.fromkeys(LABELS, len(rows) / 3)


def test_no_topic_or_sentence_of_security_review_is_in_two_splits() -> None:
    topics, quotes = (
        [{row[key] for row in items("security_review", split)} for split in SPLITS]
        for key in ("topic", "explanation")
    )
    assert [len(names) for names in topics] == [25, 10, 10]
    assert all_disjoint(topics)
    assert all_disjoint(quotes)


def test_single_words_do_not_settle_the_label() -> None:
    counts = {label: Counter[str]() for label in LABELS}
    for row in items("security_review", "train"):
        counts[row["compliant"]].update(policy_words(row))
    known = set().union(*counts.values())

    def guess(row: Item) -> str:
        words = sorted(policy_words(row) & known)
        return max(LABELS, key=lambda one: sum(log(counts[one][word] + 0.5) for word in words))

    shares = []
    for split in SPLITS:
        rows = items("security_review", split)
        shares.append(sum(guess(row) == row["compliant"] for row in rows) / len(rows))
    stated = readme_table("security_review")["label accuracy of naive Bayes"]
    assert stated == [f"{share:.3f}" for share in shares]
    assert max(shares[1:]) < 0.75


def test_explanations_are_short_and_drawn_from_the_prompt() -> None:
    for split in SPLITS:
        for row in items("security_review", split):
            text, prompt = row["explanation"], row["messages"][-1]["content"]
            assert len(text.split()) <= 14
            if not text.startswith("The policy says nothing about "):
                assert text[1:-1] in prompt


def test_no_invented_name_is_in_two_contracts() -> None:
    names = [
        row[side]
        for split in SPLITS
        for row in items("contract_facts", split)
        for side in ("seller", "buyer")
    ]
    # `Drevask Foods Ltd` and `Ada Drevask`: all other words come from short common lists
    common = [word for word, times in Counter(" ".join(names).split()).items() if times > 1]
    stems = [[word for word in name.split() if word not in common] for name in names]
    assert len(set(names)) == len(names)
    assert all(len(stem) == 1 for stem in stems)


def test_unstated_facts_are_empty_and_some_rows_have_them() -> None:
    for split in SPLITS:
        rows = items("contract_facts", split)
        empty = sum(not row["date"] or not row["amount"] for row in rows)
        assert 0.1 <= empty / len(rows) <= 0.25
        assert all(row["seller"] and row["buyer"] for row in rows)


def test_tiny_copy_stays_within_the_alphabet_of_the_toy() -> None:
    for split in SPLITS:
        for row in items("tiny_copy", split):
            assert row["messages"] == [{"role": "user", "content": f"copy: {row['answer']}"}]
            assert re.fullmatch("[a-h]{3}", row["answer"])


@pytest.mark.parametrize("name", ["security_review", "contract_facts"])
def test_response_formats_are_strict_and_fit_the_reference(name: str) -> None:
    form = spec_of(name, "response_format.json")["json_schema"]
    schema = form["schema"]
    assert form["strict"] is True
    assert schema["additionalProperties"] is False
    assert schema["required"] == list(schema["properties"])
    for field in schema["properties"].values():
        assert set(field) <= {"type", "enum", "pattern"}
    validator = Draft202012Validator(schema)
    for split in SPLITS:
        for row in items(name, split):
            validator.validate(json.loads(answer(name, row).output_text))


def test_the_judged_variant_grades_the_same_rows() -> None:
    spec = spec_of("security_review", "grader_score_model.json")
    assert spec["graders"]["compliant"] == spec_of("security_review")["graders"]["compliant"]
    validate(spec)
    for split in SPLITS:
        for row in items("security_review", split):
            check_item_paths(spec, row)


FACTS = {
    "seller": "Drevask Foods Ltd",
    "buyer": "Ada Tolunk",
    "date": "2024-03-05",
    "amount": "EUR 12500",
}


@pytest.mark.parametrize(
    ("change", "reward"),
    [
        ({}, 1.0),
        ({"seller": "drevask  FOODS, Ltd."}, 1.0),
        ({"seller": "Drevask Foods"}, 0.95),
        ({"seller": "Ada Tolunk", "buyer": "Drevask Foods Ltd"}, 0.5),
        ({"date": "5 March 2024"}, 1.0),
        ({"date": "March 5th, 2024"}, 1.0),
        ({"date": "2024-03-07"}, 0.875),
        ({"date": "2023-03-05"}, 0.75),
        ({"date": "soon"}, 0.75),
        ({"amount": "€12,500"}, 1.0),
        ({"amount": "12,500.00 euros"}, 1.0),
        ({"amount": "12500"}, 0.875),
        ({"amount": "$12,500"}, 0.875),
        ({"amount": "EUR 1250"}, 0.75),
        ({"amount": ""}, 6 / 7),
        ({"seller": None, "buyer": 7, "date": [], "amount": {}}, 0.0),
    ],
)
def test_contract_facts_give_partial_credit(
    change: Item, reward: float, contract_grade: Score
) -> None:
    sample = Sample("", output_json=FACTS | change)
    assert contract_grade(sample, FACTS) == pytest.approx(reward)


def test_a_fact_that_is_not_stated_is_best_left_empty(contract_grade: Score) -> None:
    item = FACTS | {"date": ""}
    assert contract_grade(Sample("", output_json=item), item) == 1.0
    assert contract_grade(Sample("", output_json=FACTS), item) == pytest.approx(6 / 7)


@pytest.mark.parametrize("output", [None, [], "text", 3, {}, {"seller": "9" * 5000}])
def test_contract_facts_survive_any_output(output: Any, contract_grade: Score) -> None:
    assert contract_grade(Sample("", output_json=output), FACTS) == 0.0


def constants(name: str, rows: list[Item]) -> Iterator[Sample]:
    """Answers that a model could give to every prompt: all references of train, and label only."""
    said = dict.fromkeys(answer(name, row).output_text for row in rows)
    if name == "security_review":
        said |= dict.fromkeys(
            json.dumps({"compliant": label, "explanation": row["explanation"]})
            for label in LABELS
            for row in [*rows, {"explanation": ""}, {"explanation": "The policy says so."}]
        )
    return (Sample.from_text(text) for text in said)


def by_grader(grader: Any) -> Score:
    return lambda sample, item: float(grader.grade(sample, item).reward)


def mean(score: Score, sample: Sample, rows: list[Item]) -> float:
    return sum(score(sample, row) for row in rows) / len(rows)


def policy_words(item: Item) -> set[str]:
    policy = item["messages"][-1]["content"].partition("\n")[0].removeprefix("Policy: ")
    return set(re.findall("[a-z']+", policy.lower()))


def all_disjoint(sets: list[set[str]]) -> bool:
    return len(set().union(*sets)) == sum(map(len, sets))


def readme_table(name: str) -> dict[str, list[str]]:
    """First column -> the cells beside it."""
    text = (DATASETS / name / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\|(.+)\|$", text, flags=re.M)
    cells = ([cell.strip() for cell in line.split("|")] for line in lines)
    return {first: rest for first, *rest in cells}
