"""A new grader type is a spec and a function: all else follows from the facts of the spec."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from rftkit import graders
from rftkit.errors import GraderSpecError
from rftkit.graders import leaves, types
from rftkit.graders.hosted import hosted
from rftkit.graders.template import compile_template
from rftkit.graders.words import in_a_sentence

SPEC = {"type": "length", "name": "short", "input": "{{sample.output_text}}", "target": 4}


class Length(types.Named):
    """How near the length of a text is to a target."""

    is_hosted = False
    works_in_jobs = False
    templates = ("input",)
    pays = "is how near the length of {input} is to {target}"

    type: Literal["length"]
    input: str
    target: int


def compiled(spec: dict[str, Any], param: str, context: leaves.Context) -> leaves.Score:
    text = compile_template(spec["input"])
    return lambda sample, item, _: max(0.0, 1 - abs(len(text(sample, item)) / spec["target"] - 1))


@pytest.fixture(autouse=True)
def _length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(types.SPECS, "length", Length)
    monkeypatch.setitem(leaves.COMPILERS, "length", compiled)


def test_it_is_checked_graded_and_described() -> None:
    assert graders.grade(SPEC, "abcde", {}, purpose="eval").reward == 0.75
    assert graders.reads_sample(SPEC)
    assert in_a_sentence(SPEC) == "The reward is how near the length of the answer is to 4."
    with pytest.raises(GraderSpecError, match="did you mean `target`"):
        graders.validate({**SPEC, "targt": 3}, purpose="eval")


def test_where_it_does_not_work_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GraderSpecError, match="length works in evals only"):
        graders.validate(SPEC)
    monkeypatch.setattr(Length, "works_in_jobs", True)
    with pytest.raises(GraderSpecError, match="hosted services have no such type"):
        hosted(SPEC)
