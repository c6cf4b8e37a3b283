"""Which rows a step takes: each row once an epoch, and of each label its share."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest

from rftkit.errors import RequestError
from rftkit.rows import Row
from rftkit.server.store.records import Job
from rftkit.server.training.batches import batch_rows, spare_rows
from rftkit.server.training.plan import Plan
from rftkit.server.training.references import resolve_key
from rftkit.server.training.rft_plan import make_plan

LABELS = ["yes"] * 24 + ["no"] * 12 + ["needs review"] * 12


def rows(labels: list[str] = LABELS) -> list[Row]:
    return [
        Row({"label": label, "id": n, "deep": {"er": label}}, line=n + 1)
        for n, label in enumerate(labels)
    ]


def plan(stratify: str | None, batch_size: int = 8, seed: int = 1) -> Plan:
    method = {"reinforcement": {"hyperparameters": {"batch_size": batch_size}}}
    job = Job(
        id="j",
        created_at=0,
        model="m",
        seed=seed,
        training_file="f",
        validation_file="f",
        method=method,
        metadata={},
    )
    return dataclasses.replace(make_plan(job, len(LABELS)), stratify=stratify)


@pytest.mark.parametrize("stratify", [None, "label", "deep.er"])
def test_an_epoch_has_each_row_once_and_the_next_another_order(stratify: str | None) -> None:
    made, all_rows = plan(stratify), rows()
    first, second = (
        [row.line for step in steps for row in batch_rows(all_rows, made, step)]
        for steps in (range(1, 7), range(7, 13))
    )
    assert sorted(first) == sorted(second) == list(range(1, 49))
    assert first != second


@pytest.mark.parametrize("seed", range(20))
def test_every_stratified_batch_has_the_mix_of_the_file(seed: int) -> None:
    for step in range(1, 7):
        batch = batch_rows(rows(), plan("label", seed=seed), step)
        counts = Counter(row.item["label"] for row in batch)
        assert all(abs(counts[x] - n) <= 1 for x, n in (("yes", 4), ("no", 2)))
        assert counts["needs review"] in (1, 2, 3)


def test_what_is_asked_again_is_the_same_and_seeds_differ() -> None:
    assert batch_rows(rows(), plan("label"), 3) == batch_rows(rows(), plan("label"), 3)
    assert batch_rows(rows(), plan("label"), 3) != batch_rows(rows(), plan("label", seed=2), 3)


def test_a_batch_may_be_larger_than_the_file_and_values_may_be_missing() -> None:
    few = [Row({"label": "yes"}, line=1), Row({}, line=2), Row({"label": None}, line=3)]
    batch = batch_rows(few, plan("label", batch_size=7), 1)
    assert Counter(row.line for row in batch[:6]) == {1: 2, 2: 2, 3: 2}


def test_spare_rows_are_others_and_no_more_than_there_are() -> None:
    made = plan(None, batch_size=40)
    spare = spare_rows(rows(), made, 1, 100)
    taken = {row.line for row in batch_rows(rows(), made, 1)}
    assert {row.line for row in spare} == set(range(1, 49)) - taken
    assert spare[:3] == spare_rows(rows(), made, 1, 3)


def check(**given: Any) -> dict[str, Any]:
    return {
        "type": "string_check", "name": "x", "operation": "eq",
        "input": "{{sample.output_text}}", "reference": "{{item.label}}",
    } | given  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        (check(), "label"),
        (check(input="{{item.deep.er}}", reference="{{sample.output_json.x}}"), "deep.er"),
        (check(reference="{{item.id}}"), None),  # takes a value of its own in every row
        (check(reference="yes"), None),
        (check(reference="{{item.gone}}"), None),
        (check(reference="a {{item.label}}"), None),
        ({"type": "text_similarity", "input": "", "reference": "{{item.label}}"}, None),
        (
            {"type": "multi", "graders": {"a": check(reference="{{item.id}}"), "b": check()}},
            "label",
        ),
    ],
)
def test_the_key_is_what_a_string_check_compares_with_if_it_takes_few_values(
    spec: dict[str, Any], key: str | None
) -> None:
    assert resolve_key("auto", spec, rows()) == key
    assert resolve_key(None, spec, rows()) is None


def test_a_key_may_be_named_and_one_that_no_row_has_is_refused() -> None:
    assert resolve_key("id", check(), rows()) == "id"
    with pytest.raises(RequestError, match=r"no training row has that key.*deep, id, label"):
        resolve_key("lable", check(), rows())
