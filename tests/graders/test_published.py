"""Graders as OpenAI, Azure and their cookbooks publish them run unchanged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rftkit import graders
from rftkit.graders import Completion, Sample

RUBRIC = """# Overview
Evaluate how well the model's explanation matches the expected one.
## Scoring
1, .75, .5, .25 or 0.
## Policy
A policy: {"in": {"braces": 1}} stays text.
Reference Explanation: {{item.explanation}}
Model-generated Explanation: {{sample.output_json.explanation}}
"""
SECURITY = {
    "type": "multi",
    "graders": {
        "explanation": {
            "name": "Explanation text grader",
            "type": "score_model",
            "input": [{"role": "user", "type": "message", "content": RUBRIC}],
            "model": "gpt-4o-2024-08-06",
            "pass_threshold": 0.75,
        },
        "compliant": {
            "name": "compliant",
            "type": "string_check",
            "reference": "{{item.compliant}}",
            "operation": "eq",
            "input": "{{sample.output_json.compliant}}",
        },
    },
    "calculate_output": "0.5 * compliant + 0.5 * explanation",
}
TOOLS = {
    "type": "multi",
    "graders": {
        "function_name": {
            "name": "function_name", "type": "string_check", "operation": "eq",
            "input": "get_acceptors", "reference": "{{sample.output_tools[0].function.name}}",
        },
        "arguments": {
            "name": "arguments", "type": "string_check", "operation": "eq",
            "input": '{"smiles": "{{item.smiles}}"}',
            "reference": "{{sample.output_tools[0].function.arguments}}",
        },
    },
    "calculate_output": "0.5 * function_name + 0.5 * arguments",
}  # fmt: skip
COUNTS = """
import json

def _count(name, sample, item):
    found = set(json.loads(sample["output_text"]).get(name, []))
    return float(len(found & set(item[name])))

def grade(sample, item) -> float:
    return _count("facts", sample, item)
"""
F1 = {
    "type": "multi",
    "graders": {
        "tp": {"type": "python", "source": COUNTS, "image_tag": "2025-05-08"},
        "predicted": {"type": "python", "source": "def grade(sample, item):\n"
                      "    return float(len(sample['output_json']['facts']))"},
        "wanted": {"type": "python", "source": "def grade(sample, item):\n"
                   "    return float(len(item['facts']))"},
    },
    "calculate_output": "2 * tp / max(predicted + wanted, 1e-9)",
}  # fmt: skip
COUNTDOWN = {
    "type": "score_model",
    "name": "countdown",
    "model": "o3-mini",
    "range": [0, 5],
    "pass_threshold": 5,
    "sampling_params": {"reasoning_effort": "low", "max_completions_tokens": None},
    "input": [
        {"role": "developer", "content": "Score from 0 to 5."},
        {
            "role": "user",
            "content": "Numbers {{item.nums}}, target {{item.target}}. {{item.messages}}",
        },
    ],
}
FUZZY = """
from rapidfuzz import fuzz, utils

def grade(sample, item) -> float:
    text = sample["output_text"]
    reference = item["reference_answer"]
    score = fuzz.WRatio(text, reference, processor=utils.default_process) / 100.0
    print("score", score)
    return 0.85 * score + 0.15 * (text.strip().lower() == reference.strip().lower())
"""


def judge(**question: Any) -> Completion:
    assert "{{" not in json.dumps(question["messages"])
    return Completion('{"steps": [{"description": "d", "conclusion": "c"}], "result": 0.5}')


def run(spec: dict, text: str, item: dict, **sample: Any) -> float | None:
    grade = graders.grade(spec, Sample.from_text(text, **sample), item, complete=judge)
    assert grade.outcome == "graded", grade.errors
    return grade.reward


def test_security_review_of_the_guide() -> None:
    item = {
        "messages": [{"role": "user", "content": "Do you have a dedicated security team?"}],
        "compliant": "yes",
        "explanation": "A dedicated security team follows strict protocols.",
    }
    answer = '{"compliant": "yes", "explanation": "There is one."}'
    format_ = {"type": "json_schema", "json_schema": {"name": "security_assistant", "schema": {}}}
    assert run(SECURITY, answer, item, response_format=format_) == 0.75


def test_tool_calls_of_the_guide() -> None:
    call = {"id": "call_1", "type": "function",
            "function": {"name": "get_acceptors", "arguments": '{"smiles": "CCO"}'}}  # fmt: skip
    assert run(TOOLS, "", {"smiles": "CCO"}, tool_calls=[call]) == 1.0
    assert run(TOOLS, "", {"smiles": "CC"}, tool_calls=[call]) == 0.5


def test_f1_of_the_build_hour() -> None:
    assert run(F1, '{"facts": ["a", "b"]}', {"facts": ["b", "c"]}) == 0.5
    assert run(F1, '{"facts": []}', {"facts": []}) == 0.0


def test_countdown_of_azure() -> None:
    item = {"nums": [3, 4], "target": 7, "messages": [{"role": "user", "content": "?"}]}
    assert run(COUNTDOWN, "3 + 4", item) == 0.5


def test_fuzzy_python_of_the_cookbook() -> None:
    spec = {"type": "python", "name": "fuzzy", "source": FUZZY, "image_tag": "2025-05-08"}
    item = {"reference_answer": "Atrial fibrillation"}
    assert run(spec, "atrial fibrillation", item) == pytest.approx(1.0)


@pytest.mark.parametrize("spec", [SECURITY, TOOLS, F1, COUNTDOWN])
def test_echoed_specs_are_accepted_again(spec: dict) -> None:
    once = graders.validate(spec)
    assert graders.validate(json.loads(json.dumps(once))) == once
