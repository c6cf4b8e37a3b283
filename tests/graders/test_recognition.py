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
