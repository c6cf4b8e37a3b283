"""The front door: specs in, grades out, three outcomes, the wire's form, spec errors by field."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rftkit import graders
from rftkit.errors import GraderSpecError, InputError
from rftkit.graders import Grade, Limits, Sample, compile_grader
from rftkit.graders.outcome import DETAILS, FLAGS

JSON_FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}


def check(operation: str = "eq", input: str = "{{sample.output_text}}", **more: Any) -> dict:
    spec = {"type": "string_check", "operation": operation, "input": input}
    return spec | {"reference": "{{item.answer}}"} | more


WHY = {
    "type": "text_similarity",
    "evaluation_metric": "fuzzy_match",
    "input": "{{sample.output_json.why}}",
    "reference": "{{item.why}}",
}


def multi(formula: str, **parts: dict) -> dict:
    return {"type": "multi", "graders": parts, "calculate_output": formula}


def python(body: str) -> dict:
    return {"type": "python", "source": f"def grade(sample, item):\n    {body}\n"}


@pytest.mark.parametrize(
    ("operation", "text", "reward"),
    [
        ("eq", "Yes", 1.0), ("eq", "yes", 0.0), ("eq", "Yes ", 0.0),
        ("ne", "Yes", 0.0), ("ne", "no", 1.0),
        ("like", "I say Yes!", 1.0), ("like", "I say yes!", 0.0),
        ("ilike", "I say yEs!", 1.0), ("ilike", "no", 0.0),
    ],
)  # fmt: skip
def test_string_check(operation: str, text: str, reward: float) -> None:
    grade = graders.grade(check(operation), text, {"answer": "Yes"})
    assert (grade.reward, grade.outcome, grade.errors) == (reward, "graded", {})


@pytest.mark.parametrize(
    "grader",
    [
        {"type": "python", "source": "def grade(sample, item):\n    return 2**70"},
        {"type": "python", "source": "def grade(sample, item):\n    return -1e300"},
        {"type": "score_model", "model": "j", "input": [{"role": "user", "content": "x"}],
         "range": [0, 1e12]},
        {"type": "endpoint", "url": "http://grader.test/"},
        {"type": "multi", "calculate_output": "a * 10 ^ 10", "graders": {
            "a": {"type": "string_check", "operation": "eq", "input": "x", "reference": "x"}}},
    ],
)  # fmt: skip
def test_a_reward_that_no_training_can_use_is_a_failed_grade(grader: Any) -> None:
    found = graders.grade(
        grader, "x", {}, http=lambda *_: (200, b'{"score": 1e10}'),
        complete=lambda **_: graders.Completion('{"steps": [], "result": 1e11}'),
    )  # fmt: skip
    assert (found.reward, found.outcome) == (None, "failed")
    assert "scale it" in str(found.errors)


@pytest.mark.parametrize("score", [0.5, -3, 10, 1e9])
def test_rewards_on_other_scales_are_rewards(score: float) -> None:
    spec = {"type": "endpoint", "url": "http://grader.test/"}
    body = json.dumps({"score": score}).encode()
    assert graders.grade(spec, "x", {}, http=lambda *_: (200, body)).reward == score


@pytest.mark.parametrize("score", ["true", "NaN", "Infinity", '"1"', "null", "1e400", "[1]"])
def test_what_is_no_number_is_no_reward(score: str) -> None:
    spec = {"type": "endpoint", "url": "http://grader.test/"}
    body = f'{{"score": {score}}}'.encode()
    assert graders.grade(spec, "x", {}, http=lambda *_: (200, body)).outcome == "failed"


def test_multi() -> None:
    spec = multi("0.5 * label + 0.5 * why",
                 label=check(input="{{sample.output_json.label}}"), why=WHY)  # fmt: skip
    sample = Sample.from_text('{"label": "Yes", "why": "abcd"}', response_format=JSON_FORMAT)
    with compile_grader(spec) as grader:
        grade = grader.grade(sample, {"answer": "Yes", "why": "abce"})
        assert grade.reward == 0.875
        assert grade.sub_rewards == {"label": 1.0, "why": 0.75}
        assert set(grade.sub_seconds) == {"label", "why"}
        assert [(leaf.key, leaf.name, leaf.type) for leaf in grader.leaves] == [
            ("label", "label", "string_check"),
            ("why", "why", "text_similarity"),
        ]
        assert Grade(**json.loads(json.dumps(dataclasses.asdict(grade)))) == grade


def test_python_sees_what_the_service_gives() -> None:
    body = (
        "assert item['messages'][0]['content'] == 'q'; "
        "assert sample['output_json'] == {'a': 1}; assert sample['output_tools'] == []; "
        "assert sample['choices'][0]['message']['content'] == sample['output_text']; return 2"
    )
    item = {"messages": [{"role": "user", "content": "q"}]}
    grade = graders.grade(python(body), '{"a": 1}', item)
    assert grade.reward == 2.0, grade.errors


class TestOutcomes:
    def test_failed_is_never_a_number(self) -> None:
        grade = graders.grade(check(), "Yes", {})
        assert grade.reward is None
        assert grade.outcome == "failed"
        assert grade.errors["invalid_variable_error"] is True
        assert "`item.answer` is missing" in str(grade.errors["invalid_variable_error_details"])

    def test_truncated_is_unscorable(self) -> None:
        sample = Sample.from_text("Yes", truncated=True)
        grade = graders.grade(check(), sample, {"answer": "Yes"})
        assert (grade.reward, grade.outcome) == (0.0, "unscorable")
        assert grade.errors["truncated_observation_error"] is True

    def test_not_the_json_that_was_asked_for(self) -> None:
        sample = Sample.from_text("Yes", response_format=JSON_FORMAT)
        grade = graders.grade(check(), sample, {"answer": "Yes"})
        assert (grade.outcome, grade.errors["sample_parse_error"]) == ("unscorable", True)
        assert graders.grade(check(), "Yes", {"answer": "Yes"}).reward == 1.0

    def test_floor_reward(self) -> None:
        judge = {"type": "score_model", "model": "m", "range": [-2, 2],
                 "input": [{"role": "user", "content": "?"}]}  # fmt: skip
        sample = Sample.from_text("x", truncated=True)
        assert graders.grade(judge, sample, {}).reward == -2.0
        assert graders.grade(judge, sample, {}, floor_reward=-1.0).reward == -1.0
        assert graders.grade(multi("a", a=judge), sample, {}).reward == 0.0

    def test_multi_with_a_failed_and_an_unscorable_part_is_failed(self) -> None:
        spec = multi("a + b + c", a=check(), b=check(input="{{sample.output_json.x}}"),
                     c=check(reference="x"))  # fmt: skip
        failed = graders.grade(spec, "plain", {})
        assert (failed.reward, failed.outcome) == (None, "failed")
        assert failed.sub_rewards == {"a": None, "b": None, "c": 0.0}
        assert set(failed.sub_errors) == {"a", "b"}
        assert (
            failed.errors["sample_parse_error"] is failed.errors["invalid_variable_error"] is True
        )
        unscorable = graders.grade(spec, "plain", {"answer": ""})
        assert (unscorable.reward, unscorable.outcome) == (0.0, "unscorable")
        assert unscorable.sub_rewards == {"a": 0.0, "b": 0.0, "c": 0.0}

    def test_an_unscorable_answer_has_the_lowest_reward_of_each_part(self) -> None:
        """A mean of a part would otherwise be that of the answers that could be read."""
        judge = {"type": "score_model", "model": "m", "range": [1, 5],
                 "input": [{"role": "user", "content": "?"}]}  # fmt: skip
        sample = Sample.from_text("Yes", truncated=True)
        grade = graders.grade(multi("a + judge", a=check(), judge=judge), sample, {"answer": "Yes"})
        assert (grade.reward, grade.outcome) == (0.0, "unscorable")
        assert grade.sub_rewards == {"a": 0.0, "judge": 1.0}

    def test_formula_without_a_value_is_failed(self) -> None:
        grade = graders.grade(multi("1 / a", a=check()), "no", {"answer": "Yes"})
        assert (grade.reward, grade.outcome) == (None, "failed")
        assert "division by zero" in str(grade.errors["formula_parse_error_details"])
        assert grade.sub_rewards == {"a": 0.0}

    def test_traceback_has_the_users_lines(self) -> None:
        source = (
            "def half(x):\n    return x / item\n\ndef grade(sample, item):\n    return half(1)\n"
        )
        grade = graders.grade({"type": "python", "source": source}, "x", {})
        details = str(grade.errors["python_grader_runtime_error_details"])
        assert 'File "grader.py", line 5, in grade\n    return half(1)' in details
        assert 'File "grader.py", line 2, in half\n    return x / item' in details
        assert details.endswith("NameError: name 'item' is not defined")
        assert "worker.py" not in details

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ("return 'x'", "TypeError: grade returned a str"),
            ("return None", "TypeError: grade returned a NoneType"),
            ("return float('nan')", "ValueError: grade returned nan"),
            ("return 1e999", "ValueError: grade returned inf"),
            ("return 1j", "TypeError: grade returned a complex"),
        ],
    )
    def test_not_a_number(self, body: str, words: str) -> None:
        grade = graders.grade(python(body), "x", {})
        assert grade.reward is None
        assert words in str(grade.errors["python_grader_runtime_error_details"])
        assert 'File "grader.py", line 1, in grade' in str(grade.errors)

    @pytest.mark.parametrize(
        ("body", "reward"),
        [("return True", 1.0), ("import fractions; return fractions.Fraction(1, 4)", 0.25),
         ("import numpy; return numpy.float32(0.5)", 0.5), ("return -7", -7.0)],
    )  # fmt: skip
    def test_numbers(self, body: str, reward: float) -> None:
        assert graders.grade(python(body), "x", {}).reward == reward

    def test_a_source_that_fails_to_load_fails_each_grade(self) -> None:
        spec = {"type": "python", "source": "x = 1 / 0\ndef grade(sample, item): return 1.0\n"}
        with compile_grader(spec) as grader:
            for _ in range(2):
                details = grader.grade(Sample("x"), {}).errors[
                    "python_grader_runtime_error_details"
                ]
                assert 'File "grader.py", line 1' in str(details)


def test_hanging_grade_does_not_hold_up_the_others() -> None:
    spec = python("while item.get('hang'): pass\n    return 1.0")
    order: list[int] = []
    pairs = [(Sample("x"), {"hang": place == 0}) for place in range(50)]
    with compile_grader(spec, workers=2, limits=Limits(seconds=1)) as grader:
        grades = grader.grade_many(pairs, progress=lambda place, grade: order.append(place))
    assert order[-1] == 0
    assert [grade.reward for grade in grades] == [None] + [1.0] * 49
    assert "no result within 1 s" in str(grades[0].errors)


def test_pairs_are_graded_as_they_come() -> None:
    order: list[int] = []
    has_graded = threading.Semaphore(0)

    def pairs() -> Iterator[tuple[Sample, Any]]:
        for place in range(6):
            yield Sample("x"), {"place": place}
            assert has_graded.acquire(timeout=20)  # the next one comes when this one is graded

    def progress(place: int, grade: Grade) -> None:
        order.append(place)
        has_graded.release()

    with compile_grader(python("return item['place']"), workers=2) as grader:
        grades = grader.grade_many(pairs(), progress=progress)
        assert grader.grade_many(iter([])) == []
    assert [grade.reward for grade in grades] == order == list(range(6))


def test_what_a_caller_raises_stops_all_threads_at_once() -> None:
    spec = python("while item == 'hang': pass\n    return 1.0")
    pairs = [(Sample("x"), "hang" if place == 1 else "") for place in range(200)]

    def give_up(place: int, grade: Grade) -> None:
        raise InterruptedError(place)

    with pytest.raises(InterruptedError), compile_grader(spec, workers=2) as grader:
        grader.grade_many(pairs[:1] + pairs[2:], progress=give_up)
    grader = compile_grader(spec, workers=2)
    threading.Timer(0.3, grader.close, kwargs={"now": True}).start()
    with pytest.raises(InterruptedError):
        grader.grade_many(pairs, progress=give_up)


def test_a_closed_grader_grades_again() -> None:
    grader = compile_grader(python("return 1.0"))
    for _ in range(2):
        assert grader.grade(Sample("x"), {}).reward == 1.0
        grader.close()


def test_wire_form() -> None:
    spec = graders.validate(
        multi("a / b", a=check(), b=check(operation="ne"), c=python("return 1"))
    )
    body = graders.grade(spec, "x", {"answer": "x"}).to_wire(spec)
    assert body["reward"] == 0.0
    assert body["sub_rewards"] == {"a": 1.0, "b": 0.0, "c": 1.0}
    metadata = body["metadata"]
    assert set(metadata["errors"]) == {*FLAGS, *DETAILS, "formula_parse_error_details"}
    assert [flag for flag in FLAGS if metadata["errors"][flag]] == ["formula_parse_error"]
    assert metadata["name"] == spec["name"]
    assert metadata["type"] == "multi"
    assert metadata["token_usage"] is None
    json.dumps(body, allow_nan=False).encode()


def test_normalised() -> None:
    spec = graders.validate(multi("a + b", a=check(), b=python("return 1") | {"name": "mine"}))
    assert spec["graders"]["a"]["name"] == "a"
    assert spec["graders"]["b"] | {"source": ""} == {
        "type": "python", "name": "mine", "source": "", "image_tag": "2025-05-08",
    }  # fmt: skip
    assert spec["name"] == "multi grader"
    assert graders.validate(spec) == spec
    echoed = check() | {"id": "x-1", "grdr_id": "y", "pass_threshold": 0.5, "name": "n"}
    assert graders.validate(echoed) == check() | {"name": "n", "pass_threshold": 0.5}


@pytest.mark.parametrize(
    ("spec", "param", "words"),
    [
        (None, None, "must be an object"),
        ({}, "type", "must be one of string_check"),
        ({"type": "strin_check"}, "type", '"strin_check"'),
        ({"type": ["multi"]}, "type", "must be one of"),
        (check() | {"operation": "neq"}, "operation", "'eq', 'ne', 'like' or 'ilike'"),
        ({"type": "string_check", "operation": "eq", "input": "x"}, "reference", "is missing"),
        (check(refrence="x"), "refrence", "did you mean `reference`"),
        (check(input={"a": 1}), "input", "valid string"),
        (check(input="{{item.}}"), "input", "is not a path"),
        ({"type": "label_model"}, "type", "evals only"),
        (multi("a", a=check(), b={"type": "multi"}), "graders.b", "inside a multi"),
        (multi("a + c", a=check()), "calculate_output", "'c' is not a grader"),
        (multi("a", a=check(operation=3)), "graders.a.operation", "found 3"),
        (multi("a", a=check(reference="{{x}}")), "graders.a.reference", "is not a path"),
        ({"type": "multi", "graders": [check()], "calculate_output": "a"}, "graders", "map from"),
        ({"type": "multi", "graders": check(), "calculate_output": "a"}, "graders", '{"format"'),
        ({"type": "multi", "graders": {}, "calculate_output": "1"}, "graders", "at least one"),
        (multi("a", **{"a-b": check()}), "graders", "cannot be used in a formula"),
        (multi("a", **{"if": check()}), "graders", "cannot be used in a formula"),
        ({"type": "python", "source": "def grade(sample, item)\n  x"}, "source", "line 1"),
        ({"type": "python", "source": "x = 1"}, "source", "must define grade"),
        ({"type": "python", "source": "class A:\n  def grade(s, i): 1"}, "source", "must define"),
        ({"type": "python", "source": "def grade(sample): return 1"}, "source", "exactly"),
        ({"type": "python", "source": "async def grade(s, i): return 1"}, "source", "not async"),
        ({"type": "python", "source": "import nosuchpackage\ndef grade(s, i): 1"}, "source",
         "line 1 imports 'nosuchpackage', which is not installed"),
        ({"type": "python", "source": "#" * 256_000}, "source", "256000 bytes"),
        ({"type": "score_model", "model": "m", "input": []}, "input", "at least 1 item"),
        ({"type": "score_model", "model": "m", "range": [1, 0],
          "input": [{"role": "user", "content": ""}]}, "range", "low < high"),
        ({"type": "score_model", "model": "m", "input": [{"role": "user", "content": "{{y}}"}]},
         "input[0].content", "is not a path"),
        ({"type": "score_model", "model": "m", "input": [{"role": "user", "content": ""}],
          "sampling_params": {"max_new_tokens": 3}},
         "sampling_params.max_new_tokens", "is not a field"),
        ({"type": "endpoint", "url": "ftp://x"}, "url", "must begin with http"),
    ],
)  # fmt: skip
def test_spec_errors_name_the_field(spec: Any, param: str | None, words: str) -> None:
    with pytest.raises(GraderSpecError) as caught:
        graders.validate(spec)
    assert caught.value.param == param
    assert words in caught.value.message


@pytest.mark.parametrize(
    "source",
    [
        "grade = lambda sample, item: 1.0",
        "from math import hypot as grade",
        "def grade(*both): return 1.0",
        "def grade(sample, item, *, extra=1): return 1.0",
        "try: import nosuchpackage\nexcept ImportError: pass\ndef grade(s, i): return 1.0",
        "import sys\nif sys:\n    def grade(s, i): return 1.0",
        "import numpy, rapidfuzz.fuzz\nfrom . import x\ndef grade(s, i): return '\\d'",
    ],
)
def test_sources_that_only_a_run_can_judge(source: str) -> None:
    graders.validate({"type": "python", "source": source})


def test_a_source_is_a_module_like_any_other() -> None:
    source = """
from __future__ import annotations
import inspect, pickle, typing
from dataclasses import dataclass

@dataclass
class Fact:
    name: typing.ClassVar[str]
    value: float = 0.5

def grade(sample: dict, item: dict) -> float:
    assert "value" in inspect.getsource(grade)
    return pickle.loads(pickle.dumps(Fact())).value
"""
    grade = graders.grade({"type": "python", "source": source}, "x", {})
    assert grade.reward == 0.5, grade.errors


def test_label_model_in_evals_and_cosine() -> None:
    label = {"type": "label_model", "model": "m", "labels": ["a", "b"], "passing_labels": ["a"],
             "input": [{"role": "user", "content": "?"}]}  # fmt: skip
    graders.validate(label, purpose="eval")
    with pytest.raises(GraderSpecError, match="passing label 'c'"):
        graders.validate(label | {"passing_labels": ["c"]}, purpose="eval")
    cosine = check() | {"type": "text_similarity", "evaluation_metric": "cosine"}
    del cosine["operation"]
    vectors = {"Yes": [1.0, 0.0], "no": [1.0, 1.0], "anti": [-1.0, 0.0], "zero": [0.0, 0.0]}
    with compile_grader(
        cosine, embed=lambda model, texts: [vectors[text] for text in texts]
    ) as grader:
        rewards = [grader.grade(Sample(text), {"answer": "Yes"}).reward for text in vectors]
        assert grader.grade(Sample(""), {"answer": "Yes"}).reward == 0.0
    assert rewards == [1.0, pytest.approx(math.sqrt(0.5)), 0.0, None]


def test_importing_graders_is_cheap() -> None:
    code = (
        "import sys, rftkit.graders as g; g.compile_grader; g.Grade\n"
        "heavy = {'nltk', 'rouge_score', 'pandas', 'numpy', 'httpx2', 'openai', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["security_review", "contract_facts", "tiny_copy"])
def test_our_datasets_can_be_graded(name: str) -> None:
    folder = Path(__file__).parents[2] / "datasets" / name
    spec = json.loads((folder / "grader.json").read_text())
    row = json.loads((folder / "valid.jsonl").read_text().splitlines()[0])
    graders.check_item_paths(spec, row)
    assert graders.grade(spec, "{}", row).outcome in ("graded", "unscorable")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec=None), max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
fields = [
    *("type", "name", "input", "reference", "operation", "evaluation_metric", "graders"),
    *("calculate_output", "source", "model", "range", "url", "sampling_params", "labels"),
]
types = st.sampled_from(["string_check", "text_similarity", "python", "multi", "score_model", "x"])
specs = st.dictionaries(st.sampled_from(fields), values, max_size=8).flatmap(
    lambda spec: st.builds(lambda kind: spec | {"type": kind}, types) | st.just(spec)
)


@given(spec=specs | values)
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_as_spec(spec: Any) -> None:
    try:
        graders.validate(spec)
    except InputError as error:
        error.message.encode()


COMPILED = compile_grader(
    multi("a + b + c", a=check("ilike"), b=check(reference="{{item.x[0]}} {{item}}"),
          c={"type": "text_similarity", "evaluation_metric": "rouge_l",
             "input": "{{sample.output_json.a}}", "reference": "{{sample}}"})
)  # fmt: skip


@given(text=st.text(st.characters(codec=None)) | values.map(json.dumps), item=values)
@settings(max_examples=300)
def test_any_json_as_sample_and_item(text: str, item: Any) -> None:
    grade = COMPILED.grade(Sample.from_text(text), item)
    assert (grade.reward is None) == (grade.outcome == "failed")
    json.dumps(grade.to_wire(COMPILED.spec), ensure_ascii=False).encode()


SANDBOXED = python("return float(len(sample['output_text']))")


def test_any_json_through_the_sandbox() -> None:
    with compile_grader(SANDBOXED, workers=1) as grader:

        @given(text=st.text(st.characters(codec=None)), item=values)
        @settings(max_examples=200, deadline=None)  # each grade crosses to another process
        def property_(text: str, item: Any) -> None:
            assert grader.grade(Sample.from_text(text), item).reward == len(text)

        property_()
        assert grader.grade(Sample("é\ud800" * 500_000), {}).reward == 1_000_000
        assert grader.grade(Sample("x"), {"when": {1, 2}}).errors["other_error"] is True
