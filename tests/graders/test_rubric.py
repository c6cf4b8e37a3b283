"""Rubrics: what the judge is asked, the arithmetic, what is missing, and the hosted form."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rubric_judge import RubricScript

from rftkit import graders
from rftkit.errors import GraderSpecError, InputError, RowError
from rftkit.graders.hosted import hosted, hosted_criteria
from rftkit.graders.outcome import Fault
from rftkit.graders.rubric import read_criteria, scored
from rftkit.graders.words import in_a_sentence

CRITERIA = [
    {"text": "names the clause", "required": True},
    {"text": "gives the notice period", "weight": 2},
    {"text": "mentions the law", "check": "presence"},
    {"text": "invents a clause", "weight": -1},
]
RUBRIC = {
    "type": "rubric",
    "name": "quality",
    "model": "judge-1",
    "criteria": CRITERIA,
    "input": [{"role": "user", "content": "{{item.q}} / {{sample.output_text}}"}],
}
IN_ROWS = RUBRIC | {"criteria": "{{item.rubric}}"}


def grade(*verdicts: str | None, spec: dict[str, Any] = RUBRIC, **item: Any) -> graders.Grade:
    judge = RubricScript(lambda _, number: verdicts[number])
    return graders.grade(spec, "A", {"q": "Q"} | item, complete=judge)


@pytest.mark.parametrize(
    ("verdicts", "reward"),
    [
        (("met", "met", "met", "not_met"), 1.0),
        (("met", "not_met", "met", "not_met"), 0.5),
        (("met", "met", "met", "met"), 0.75),
        (("met", "not_met", "not_met", "met"), 0.0),
        (("not_met", "met", "met", "not_met"), 0.0),
        (("met", "met", "cannot_tell", "not_met"), 1.0),
        (("met", "not_met", "cannot_tell", "not_met"), 1 / 3),
    ],
)
def test_the_reward_is_the_share_of_weight_behind_the_gate(
    verdicts: tuple[str, ...], reward: float
) -> None:
    found = grade(*verdicts)
    assert (found.outcome, found.reward) == ("graded", pytest.approx(reward))


def test_one_call_has_every_criterion_and_its_verdicts_are_kept() -> None:
    judge = RubricScript(lambda text, _: "met" if "clause" in text else "not_met")
    found = graders.grade(RUBRIC, "A", {"q": "Q"}, complete=judge)
    (asked,) = judge.asked
    result = asked["response_format"]["json_schema"]["schema"]["properties"]["result"]
    assert asked["response_format"]["json_schema"]["strict"] is True
    assert list(result["properties"]) == result["required"] == ["c1", "c2", "c3", "c4"]
    assert asked["messages"][1] == {"role": "user", "content": "Q / A"}
    listing = asked["messages"][2]["content"]
    assert "c3 (presence): mentions the law" in listing
    assert "only mentions the subject does not meet it" in listing
    told = found.judged[""]["criteria"]
    assert [each["met"] for each in told] == [True, False, False, True]
    assert told[0] == CRITERIA[0] | {
        "weight": 1.0, "check": "correctness", "met": True, "reason": "because names the clause",
    }  # fmt: skip


def test_an_undecided_required_criterion_is_not_graded_and_never_zero() -> None:
    for said in ("cannot_tell", "maybe", None):
        found = grade(said, "met", "met", "not_met")
        assert (found.outcome, found.reward) == ("failed", None)
        assert found.errors["model_grader_parse_error"] is True
        assert "names the clause" in str(found.errors["model_grader_parse_error_details"])
        assert found.judged[""]["criteria"][0]["met"] is None


def test_a_reward_needs_half_of_the_weight() -> None:
    found = grade("met", "cannot_tell", "cannot_tell", "not_met")
    assert (found.outcome, found.reward) == ("failed", None)
    assert "decided 2 of 4 criteria" in str(found.errors["model_grader_parse_error_details"])


def test_a_failed_call_leaves_everything_missing() -> None:
    judge = RubricScript(lambda *_: "met", fail=True)
    found = graders.grade(RUBRIC, "A", {"q": "Q"}, complete=judge)
    assert (found.outcome, found.reward, found.judged) == ("failed", None, {})


def test_an_undecided_answer_is_asked_about_again() -> None:
    said, cache = iter(["cannot_tell", "met"]), dict[str, str]()
    judge = RubricScript(lambda _, n: next(said) if n == 0 else "met")
    with graders.compile_grader(RUBRIC, complete=judge, cache=cache) as grader:
        found = [grader.grade(graders.Sample("A"), {"q": "Q"}) for _ in range(3)]
    assert [each.outcome for each in found] == ["failed", "graded", "graded"]
    assert len(judge.asked) == 2


def test_a_rubric_in_a_formula_keeps_its_verdicts_under_its_key() -> None:
    spec = {
        "type": "multi",
        "graders": {
            "rubric": RUBRIC,
            "short": {"type": "string_check", "operation": "eq", "input": "1", "reference": "1"},
        },
        "calculate_output": "0.5 * rubric + 0.5 * short",
    }
    found = grade("met", "not_met", "met", "not_met", spec=spec)
    assert (found.reward, found.sub_rewards) == (0.75, {"rubric": 0.5, "short": 1.0})
    assert len(found.judged["rubric"]["criteria"]) == 4
    failed = grade(None, "met", "met", "not_met", spec=spec)
    assert (failed.outcome, failed.sub_rewards["rubric"]) == ("failed", None)
    assert graders.Grade(**json.loads(json.dumps(dataclasses.asdict(failed)))) == failed


def test_rows_have_their_own_criteria() -> None:
    item = {"rubric": ["is polite", {"text": "is right", "weight": 3}]}
    assert grade("met", "not_met", spec=IN_ROWS, **item).reward == 0.25
    graders.check_item_paths(IN_ROWS, {"q": "Q"} | item)
    for rubric, message in (
        (None, "found null"),
        ([], "found an empty list"),
        ([{"txt": "a"}], "criterion 1: `text` is missing"),
        (["a", {"text": "b", "wieght": 1}], "did you mean weight?"),
    ):
        with pytest.raises(RowError, match=r"item\.rubric") as error:
            graders.check_item_paths(IN_ROWS, {"q": "Q", "rubric": rubric})
        assert message in str(error.value)
        found = grade("met", spec=IN_ROWS, rubric=rubric)
        assert (found.outcome, found.reward) == ("failed", None)
    with pytest.raises(RowError, match="is missing"):
        graders.check_item_paths(IN_ROWS, {"q": "Q"})


@pytest.mark.parametrize(
    ("criteria", "param", "message"),
    [
        ([], "criteria", "found an empty list"),
        ("all good", "criteria", "one place in the row"),
        ("{{sample.output_text}}", "criteria", "one place in the row"),
        ([{"text": ""}], "criteria[0].text", "at least 1 character"),
        ([{"text": "a", "weight": 0}], "criteria[0].weight", "must be not 0"),
        ([{"text": "a", "weight": 1e308}], "criteria[0].weight", "less than or equal to 1000000"),
        ([{"text": "a", "weight": -1}], "criteria", "no criterion has a weight above 0"),
        ([{"text": "a", "weight": -1, "required": True}], "criteria[0].weight", "is required"),
        (["a", 3], "criteria[1]", "must be an object or a text"),
        ([{"text": "a", "check": "truth"}], "criteria[0].check", "'correctness' or 'presence'"),
        (["a"] * 65, "criteria", "at most 64 criteria"),
        (["a", "b", " a "], "criteria[2].text", "criterion 3 repeats criterion 1"),
        (["a", " \n"], "criteria[1].text", "`text` is blank"),
    ],
)
def test_malformed_criteria_are_refused_by_name(criteria: Any, param: str, message: str) -> None:
    with pytest.raises(GraderSpecError) as error:
        graders.validate(RUBRIC | {"criteria": criteria})
    assert (error.value.param, message in str(error.value)) == (param, True), str(error.value)


@pytest.mark.parametrize(
    ("said", "met"),
    [("Met", True), ("NOT MET", False), (True, True), (" cannot tell ", None), (1, None)],
)
def test_a_judge_without_strict_schemas_may_spell_its_verdicts(said: Any, met: Any) -> None:
    def judge(**_: Any) -> graders.Completion:
        verdicts = {"c2": {"verdict": "met"}, "c1": {"verdict": said, "reason": None}}
        return graders.Completion(json.dumps({"result": verdicts}))

    spec = RUBRIC | {"criteria": ["a", {"text": "b", "weight": 3}]}
    found = graders.grade(spec, "A", {"q": "Q"}, complete=judge)
    assert [each["met"] for each in found.judged[""]["criteria"]] == [met, True]


@pytest.mark.parametrize(
    "answer",
    [
        "I think it is fine.", '{"result": "good"}', '{"result": []}', '{"result": [true, true]}',
        '{"verdicts": {"c1": "met"}}', "[]", "null", "", '{"result": {"c1": "met"}}',
        '{"result": {"answer_1": {"verdict": "met"}}}',
    ],
)  # fmt: skip
def test_what_is_no_verdict_is_not_graded_and_never_zero(answer: str) -> None:
    spec = RUBRIC | {"criteria": ["a", "b", "c"]}
    judge = lambda **_: graders.Completion(answer)  # noqa: E731
    found = graders.grade(spec, "A", {"q": "Q"}, complete=judge)
    assert (found.outcome, found.reward) == ("failed", None)
    assert "model_grader_parse_error" in found.errors


def test_one_text_may_be_checked_in_both_ways() -> None:
    both = [{"text": "names the law", "check": check} for check in ("presence", "correctness")]
    judge = RubricScript(lambda _, number: "met" if number == 0 else "not_met")
    spec = RUBRIC | {"criteria": both}
    frame = graders.grade_many(spec, [(graders.Sample("A"), {"q": "Q"})], complete=judge)
    assert frame["criterion/names the law (presence)"].tolist() == [1.0]
    assert frame["criterion/names the law (correctness)"].tolist() == [0.0]


def test_criteria_may_contain_braces() -> None:
    judge = RubricScript(lambda *_: "met")
    spec = RUBRIC | {"criteria": ["writes {{name}} as it is"]}
    assert graders.grade(spec, "A", {"q": "Q"}, complete=judge).reward == 1.0
    assert "writes {{name}} as it is" in judge.asked[0]["messages"][2]["content"]
    assert graders.variables(spec) == ["item.q", "sample.output_text"]


def test_a_table_of_grades_has_a_column_for_each_criterion() -> None:
    judge = RubricScript(lambda text, _: "cannot_tell" if "law" in text else "met")
    frame = graders.grade_many(RUBRIC, [(graders.Sample("A"), {"q": "Q"})], complete=judge)
    assert frame["criterion/names the clause"].tolist() == [1.0]
    assert frame["criterion/mentions the law"].isna().all()
    assert "rubric" in in_a_sentence(RUBRIC)


VERDICTS = st.lists(st.sampled_from(["met", "not_met"]), min_size=4, max_size=4)


@given(VERDICTS)
def test_the_hosted_form_gives_the_same_reward(verdicts: list[str]) -> None:
    spec = hosted(RUBRIC)
    assert spec["type"] == "multi"
    assert {part["type"] for part in spec["graders"].values()} == {"score_model"}

    def judge(*, messages: list[dict[str, Any]], **_: Any) -> graders.Completion:
        [place] = [n for n, c in enumerate(CRITERIA) if str(c["text"]) in messages[0]["content"]]
        return graders.Completion(json.dumps({"result": float(verdicts[place] == "met")}))

    found = graders.grade(spec, "A", {"q": "Q"}, complete=judge)
    assert found.reward == pytest.approx(grade(*verdicts).reward)


def test_the_hosted_forms_validate_and_keep_the_judge() -> None:
    one = hosted(IN_ROWS)
    assert one["type"] == "score_model"
    assert "{{item.rubric}}" in one["input"][0]["content"]
    graders.validate(one)
    labels = hosted_criteria(RUBRIC)
    assert [each["type"] for each in labels] == ["label_model"] * 4
    assert {each["model"] for each in labels} == {"judge-1"}
    for each in labels:
        graders.validate(each, purpose="eval")
    multi = {
        "type": "multi",
        "graders": {
            "rubric": RUBRIC,
            "c1": {"type": "string_check", "operation": "eq", "input": "1", "reference": "1"},
        },
        "calculate_output": "0.5 * rubric + 0.5 * c1",
    }
    written = graders.validate(hosted(multi))
    assert list(written["graders"]) == ["rubric_c1", "rubric_c2", "rubric_c3", "rubric_c4", "c1"]
    with pytest.raises(GraderSpecError, match="at most 32"):
        hosted(RUBRIC | {"criteria": [f"a{n}" for n in range(33)]})
    with pytest.raises(GraderSpecError, match="hosted services have no such type"):
        hosted({"type": "relative", "name": "r", "model": "judge-1"})


def test_the_hosted_form_overwrites_no_other_grader() -> None:
    check = {"type": "string_check", "operation": "eq", "input": "1", "reference": "1"}
    parts = {"a": RUBRIC, "a_c1": {**RUBRIC, "name": "second"}, "a_c2": {**check, "name": "own"}}
    multi = {"type": "multi", "graders": parts, "calculate_output": "a + 2 * a_c1 + 4 * a_c2"}

    def judge(**_: Any) -> graders.Completion:
        return graders.Completion(json.dumps({"result": 1.0}))

    written = hosted(multi)
    assert len(written["graders"]) == 9
    assert written["graders"]["a_c2"]["type"] == "string_check"
    found = graders.grade(written, "A", {"q": "Q"}, complete=judge)
    each = graders.grade(hosted(RUBRIC), "A", {"q": "Q"}, complete=judge).reward
    assert each is not None
    assert found.reward == pytest.approx(3 * each + 4)


WEIGHTS = st.floats(-5, 5).filter(lambda w: abs(w) > 0.01)


@given(st.lists(st.tuples(WEIGHTS, st.sampled_from([True, False, None])), min_size=1, max_size=8))
def test_a_reward_is_between_0_and_1_or_missing(given: list[tuple[float, bool | None]]) -> None:
    try:
        criteria = read_criteria([{"text": "x", "weight": weight} for weight, _ in given])
        reward = scored(criteria, [(met, "") for _, met in given]).reward
    except (InputError, Fault):
        return
    assert 0 <= reward <= 1
