"""A grader that pays no right answer, or everything alike, gets one verdict wherever it is used."""

from __future__ import annotations

import json
from typing import Any

import pytest
from in_process import ROWS, add_job, run

from rftkit import datasets, graders
from rftkit.graders import Completion, compile_grader, recognise
from rftkit.graders.recognition import Tried, verdict
from rftkit.jobs.preflight import check_data, check_grader
from rftkit.reports import summary
from rftkit.server.worker.worker import Worker
from rftkit.views.headline import headline

ITEMS = [
    {"messages": [{"role": "user", "content": f"What is {n} plus {n}?"}], "answer": str(2 * n)}
    for n in range(1, 13)
]
THAI = [{**ITEMS[0], "answer": text} for text in ("สวัสดี ครับ", "ขอบคุณ ครับ", "ลาก่อน")]


def python(body: str) -> dict[str, Any]:
    return {
        "type": "python",
        "name": "p",
        "source": f"def grade(sample, item):\n    said = sample['output_text']\n{body}",
    }


def check(reference: str, operation: str = "eq", given: str = "{{sample.output_text}}") -> Any:
    return {
        "type": "string_check",
        "name": "s",
        "operation": operation,
        "input": given,
        "reference": reference,
    }


SWALLOW = python(
    "    try:\n        return float(sample['completion'] == item['answer'])\n"
    "    except Exception:\n        return 0.0\n"
)
ROUGE = {
    "type": "text_similarity",
    "name": "r",
    "evaluation_metric": "rouge_l",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}
BROKEN = {
    "a swallowed key": (SWALLOW, ITEMS),
    "rouge on Thai": (ROUGE, THAI),
    "a prefix": (check("Answer: {{item.answer}}"), ITEMS),
    "another key": (check("{{item.messages[0].content}}"), ITEMS),
    "the sides of ne": (check("{{item.answer}}", "ne"), ITEMS),
    "zero for all": (python("    return 0.0\n"), ITEMS),
    "a negative constant": (python("    return -1.0\n"), ITEMS),
    "a dead multi": (
        {
            "type": "multi",
            "name": "m",
            "graders": {"a": check("Answer: {{item.answer}}"), "b": SWALLOW},
            "calculate_output": "0.5 * a + 0.5 * b",
        },
        ITEMS,
    ),
}
ALIKE = {
    "one": python("    return 1.0\n"),
    "half": python("    return 0.5\n"),
    "like an empty text": check("", "like"),
}
PER_ROW = {
    "only the row": python("    return float(item['answer'] in ('2', '4'))\n"),
    "the length of the row": python("    return len(item['answer']) / 10\n"),
}
INVERTED = {
    "two minus": python("    return 2.0 - float(said == item['answer'])\n"),
    "a distance": python(
        "    return 1.0 + abs(len(said) - len(item['answer'])) + (said != item['answer'])\n"
    ),
}
UNSTEADY = {
    "random": "import random\ndef grade(sample, item):\n    return random.random()\n",
    "a counter": "n = 0\ndef grade(sample, item):\n    global n\n    n += 1\n    return float(n)\n",
}
SOUND = {
    "exact": check("{{item.answer}}"),
    "like": check("{{item.answer}}", "like"),
    "a distance below zero": python("    return -abs(len(said) - len(item['answer']))\n"),
    "minus a numeric distance": python(
        "    try:\n        return -abs(float(said) - float(item['answer']))\n"
        "    except ValueError:\n        return -100.0\n"
    ),
    "a length": python("    return float(len(said) < 50)\n"),
    "anything said": python("    return float(bool(said.strip()))\n"),
    "fuzzy": ROUGE | {"evaluation_metric": "fuzzy_match"},
}


def found(spec: dict[str, Any], items: list[Any]) -> graders.Verdict | None:
    with compile_grader(spec) as grader:
        return recognise(grader, items)


@pytest.mark.parametrize("name", BROKEN)
def test_no_right_answer_is_recognised(name: str) -> None:
    spec, items = BROKEN[name]
    broken = found(spec, items)
    assert broken is not None
    assert broken.code == "not_recognised"
    assert "no reference answer earns anything" in broken.sentence


@pytest.mark.parametrize("name", ALIKE)
def test_everything_earns_the_same(name: str) -> None:
    broken = found(ALIKE[name], ITEMS)
    assert broken is not None
    assert broken.code == "constant"


@pytest.mark.parametrize("name", PER_ROW)
def test_what_ignores_the_answer_is_constant_even_if_rows_differ(name: str) -> None:
    broken = found(PER_ROW[name], ITEMS)
    assert broken is not None
    assert (broken.code, broken.sentence[:38]) == (
        "constant",
        "the grader does not look at the answer",
    )
    assert graders.audit(PER_ROW[name], ITEMS).verdict == broken


@pytest.mark.parametrize("name", INVERTED)
def test_what_pays_every_wrong_answer_more_is_an_error(name: str) -> None:
    broken = found(INVERTED[name], ITEMS)
    assert broken is not None
    assert broken.code == "inverted"
    assert graders.audit(INVERTED[name], ITEMS).verdict == broken


@pytest.mark.parametrize("name", UNSTEADY)
def test_what_pays_the_same_answer_differently_is_named(name: str) -> None:
    broken = found({"type": "python", "name": "u", "source": UNSTEADY[name]}, ITEMS)
    assert broken is not None
    assert broken.code == "unsteady"
    assert datasets.verdict_finding(broken).severity == "warning"


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_grader_gets_no_verdict(name: str) -> None:
    assert found(SOUND[name], ITEMS) is None
    assert graders.audit(SOUND[name], ITEMS).verdict is None


def test_the_rule_by_hand() -> None:
    assert verdict([], []) is None
    assert verdict([0.0], []) is not None
    assert verdict([1.0, 1.0], []) is None, "no other answer was tried"
    assert verdict([1.0], [Tried(1.0, {"empty": 1.0})]) is not None
    assert verdict([1.0], [Tried(1.0, {"empty": 0.0})]) is None
    assert verdict([0.0], [Tried(0.0, {"other_answer": -1.0})]) is None
    assert verdict([1.0], [Tried(1.0, {"other_answer": 1.0})], floor=1.0) is not None


def test_the_causes_are_named() -> None:
    assert "catches exceptions" in str(found(*BROKEN["a swallowed key"]))
    assert "does not read this script" in str(found(*BROKEN["rouge on Thai"]))
    assert "'s' compares '2' with 'Answer: 2'" in str(found(*BROKEN["a prefix"]))


@pytest.mark.parametrize("name", BROKEN)
def test_the_same_verdict_in_check_audit_and_checklist(name: str, tmp_path: Any) -> None:
    spec, items = BROKEN[name]
    path = tmp_path / "rows.jsonl"
    lines = [line_of(item) for item in items]
    path.write_text("".join(lines), encoding="utf-8")
    checked = datasets.check(path, grader=spec)
    assert not checked.ok
    assert "grader_not_recognised" in {each.code for each in checked.findings}
    assert check_data(path, path, grader=spec).state == "error"


def test_an_audit_of_a_broken_grader_says_nothing_of_cheats() -> None:
    [only] = graders.audit(SWALLOW, ITEMS).findings()
    assert "no reference answer earns anything" in only
    point = check_grader(SWALLOW, ITEMS)
    assert point.state == "error"
    assert "does not recognise a right answer" in point.result


def test_a_judge_that_gives_everything_its_lowest() -> None:
    judge = {
        "type": "score_model",
        "model": "m",
        "range": [1, 5],
        "input": [{"role": "user", "content": "{{sample.output_text}}"}],
    }

    def complete(**_: Any) -> Completion:
        return Completion('{"result": 1}')

    audited = graders.audit(judge, ITEMS[:3], complete=complete)
    assert audited.verdict is not None
    assert audited.verdict.code == "not_recognised"


def test_a_part_that_pays_nothing_is_named(tmp_path: Any) -> None:
    spec = {
        "type": "multi",
        "name": "m",
        "graders": {
            "exact": check("{{item.answer}}"),
            "dead": SWALLOW,
            "long": python("    return float(len(said) > 100)\n"),
        },
        "calculate_output": "exact + dead - 0.5 * long",
    }
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(map(line_of, ITEMS)))
    named = [
        each for each in datasets.check(path, grader=spec).findings if "sub-grader" in str(each)
    ]
    assert [each.figures["key"] for each in named] == ["dead"]


def test_a_job_warns_once_and_its_report_says_it(worker: Worker) -> None:
    job = run(worker, add_job(worker, grader=SWALLOW))
    assert job.status == "succeeded"
    events = [
        {"level": each.level, "type": each.type, "message": each.message, "data": each.data}
        for each in worker.store.events(job.id, limit=1000)[0]
    ]
    [warned] = [each for each in events if "grader_verdict" in (each["data"] or {})]
    assert warned["level"] == "warn"
    assert "does not recognise a right answer" in warned["message"]
    assert "does not recognise a right answer" in headline(summary(events))


def test_a_sound_job_is_not_warned(worker: Worker) -> None:
    job = run(worker, add_job(worker, rows=ROWS))
    said = [each.message for each in worker.store.events(job.id, limit=1000)[0]]
    assert not any("recognise" in each for each in said)


def line_of(item: dict[str, Any]) -> str:
    return json.dumps(item, ensure_ascii=False) + "\n"


JUDGE = {
    "type": "score_model",
    "name": "j",
    "model": "judge-1",
    "input": [{"role": "user", "content": "{{sample.output_text}}"}],
}
BOTH = {
    "type": "multi",
    "graders": {"judge": JUDGE, "form": check("{{item.messages[0].content}}")},
    "calculate_output": "0.5 * judge + 0.5 * form",
}
ENDPOINT = {"type": "endpoint", "name": "e", "url": "http://grader.test/x"}


def refuses(**_: Any) -> Completion:
    return Completion(None, refusal="I do not grade")


def likes(*, messages: Any, **_: Any) -> Completion:
    said = messages[-1]["content"]
    return Completion(json.dumps({"result": 0.9 if said.isdigit() else 0.1}))


def answers(score: Any) -> Any:
    """An endpoint that always answers this."""

    def post(*_: Any, **__: Any) -> Any:
        if isinstance(score, Exception):
            raise score
        return 200, json.dumps({"score": score}).encode()

    return post


@pytest.mark.parametrize("spec", [JUDGE, BOTH], ids=["alone", "in a formula"])
def test_a_judge_that_fails_on_every_reference_is_broken_and_not_merely_unchecked(
    spec: dict[str, Any],
) -> None:
    found = graders.audit(spec, ITEMS, complete=refuses)
    assert found.verdict is not None
    assert found.verdict.code == "not_graded"
    assert "I do not grade" in found.findings()[0]
    assert "RFTKIT_JUDGE_BASE_URL" in str(found)
    checked = check_grader(spec, ITEMS, complete=refuses)
    assert (checked.state, checked.is_green) == ("error", False)


def test_a_code_that_fails_on_every_reference_warns_in_a_job() -> None:
    with compile_grader(python("    return 1 / 0")) as grader:
        found = recognise(grader, ITEMS)
    assert found is not None
    assert found.code == "not_graded"
    assert "ZeroDivisionError" in found.sentence


def test_a_grader_that_can_score_no_reference_is_broken() -> None:
    json_only = {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}
    rows = [{**item, "reference_answer": "no JSON"} for item in ITEMS]
    found = graders.audit(check("x"), rows, references=["no"] * 12, response_format=json_only)
    assert found.verdict is not None
    assert found.verdict.code == "not_recognised"
    assert "can be scored" in found.findings()[0]


@pytest.mark.parametrize(("low", "top"), [(0, 1), (1, 5)])
def test_a_judge_that_pays_every_right_answer_its_lowest_is_broken(low: int, top: int) -> None:
    def lowest(**_: Any) -> Completion:
        return Completion(json.dumps({"result": low}))

    found = graders.audit(JUDGE | {"range": [low, top]}, ITEMS, complete=lowest)
    assert found.verdict is not None
    assert found.verdict.code == "not_recognised"


def test_a_part_that_never_pays_is_named_beside_a_judge() -> None:
    found = graders.audit(BOTH, ITEMS, complete=likes)
    assert found.dead == ("form",)
    assert any("from the sub-grader 'form'" in each for each in found.findings())
    assert not check_grader(BOTH, ITEMS, complete=likes).is_green
    ranged = {**BOTH, "graders": {**BOTH["graders"], "judge": JUDGE | {"range": [1, 5]}}}
    dead = graders.audit(ranged, ITEMS, complete=likes).dead
    assert dead == ("judge", "form"), "a judge clipped to its lowest grade never pays"


def test_the_dataset_check_tests_the_parts_that_call_nothing(tmp_path: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    codes = {each.code for each in datasets.check(path, grader=BOTH).findings}
    assert {"references_not_graded", "sub_grader_pays_nothing"} <= codes
    gated = BOTH | {"calculate_output": "judge * form"}
    assert "sub_grader_pays_nothing" in {
        each.code for each in datasets.check(path, grader=gated).findings
    }
    penalty = BOTH | {"calculate_output": "judge - form"}
    fine = {each.code for each in datasets.check(path, grader=penalty).findings}
    assert "sub_grader_pays_nothing" not in fine


def test_an_endpoint_that_fails_or_pays_nothing_is_broken() -> None:
    zero = graders.audit(ENDPOINT, ITEMS, http=answers(0.0))
    assert zero.verdict is not None
    assert zero.verdict.code == "not_recognised"
    down = graders.audit(ENDPOINT, ITEMS[:1], http=answers({"not": "a number"}))
    assert down.verdict is not None
    assert down.verdict.code == "not_graded"


def test_a_relative_grader_is_not_tried_on_single_answers(tmp_path: Any) -> None:
    spec = {"type": "relative", "name": "r", "model": "judge-1"}
    checked = check_grader(spec, ITEMS, complete=likes)
    assert (checked.state, "anchor" in checked.result) == ("not checked", True)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    assert check_data(path, grader=spec).is_green
