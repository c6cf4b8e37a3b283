"""Scripted judges for rubric and relative graders: they answer from what they are shown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from rftkit.graders import Completion

__all__ = ["RelativeScript", "RubricScript"]

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "cached_tokens": 0}


class RubricScript:
    """`verdict(text of the criterion, its number from 0)` -> verdict; None leaves it out."""

    def __init__(self, verdict: Callable[[str, int], str | None], *, fail: bool = False) -> None:
        self.verdict, self.fail = verdict, fail
        self.asked: list[dict[str, Any]] = []

    def __call__(self, **question: Any) -> Completion:
        self.asked.append(question)
        if self.fail:
            return Completion(None, refusal="no")
        listing = question["messages"][-1]["content"]
        result = {}
        for number, text in re.findall(r"^c(\d+) \(\w+\): (.*)$", listing, re.MULTILINE):
            if (said := self.verdict(text, int(number) - 1)) is not None:
                result[f"c{number}"] = {"reason": f"because {text}", "verdict": said}
        return Completion(json.dumps({"result": result}), usage=dict(USAGE))


class RelativeScript:
    """`score(text of the answer, its position from 0)` -> score; None leaves it out."""

    def __init__(self, score: Callable[[str, int], float | None], *, fail: bool = False) -> None:
        self.score, self.fail = score, fail
        self.asked: list[list[str]] = []

    def __call__(self, **question: Any) -> Completion:
        listing = question["messages"][-1]["content"]
        shown = re.findall(r"<answer_(\d+)>\n(.*?)\n</answer_\1>", listing, re.DOTALL)
        self.asked.append([text for _, text in shown])
        if self.fail:
            return Completion(None, refusal="no")
        result = {}
        for position, (number, text) in enumerate(shown):
            if (said := self.score(text, position)) is not None:
                result[f"answer_{number}"] = {"reason": f"about {text}", "score": said}
        return Completion(json.dumps({"result": result}), usage=dict(USAGE))
