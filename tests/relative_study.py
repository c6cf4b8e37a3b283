"""How well does relative judging find the order of answers? Groups with planted qualities.

Groups of answers have planted qualities; a scripted judge sees them through the real grader and
says each quality with normal noise, and more for answers at the top of the list. For two answers
whose qualities are `gap` apart, the mean of two calls orders them rightly with the probability
Phi(gap / noise): the noise of a mean of two is noise / sqrt 2, and that of a difference of two
means is noise. That is the rate that is stated, and the grader must reach it whatever the judge
favours, because the second order is the reverse of the first.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from typing import Any, NamedTuple

from rftkit.graders import Completion, Sample, compile_grader
from rftkit.graders.relative import disagreement, position_bias

__all__ = ["GAP", "Found", "simulate", "stated"]

SPEC = {"type": "relative", "name": "better", "model": "judge",
        "input": [{"role": "user", "content": "{{item.question}}"}]}  # fmt: skip
GAP = 0.05
"""Between neighbours in quality."""


class Found(NamedTuple):
    """What many groups showed."""

    one_call: float
    """Share of neighbours that the first order alone ranks rightly."""
    both: float
    """The same of the grader's rewards."""
    stated: float
    bias: float
    """As the grader reports it."""
    disagreement: float


def stated(noise: float, gap: float = GAP) -> float:
    """The chance that the grader orders two answers rightly."""
    return 0.5 * (1 + math.erf(gap / noise / math.sqrt(2)))


def simulate(
    groups: int, size: int, noise: float, bias: float, seed: int = 0, gap: float = GAP
) -> Found:
    """Judge groups of this size with a judge of this noise and position bias."""
    dice = random.Random(seed)

    def judge(*, messages: Any, **_: Any) -> Completion:
        shown = re.findall(r"<answer_(\d+)>\n(.*?)\n", messages[-1]["content"])
        last = max(1, len(shown) - 1)
        result = {
            f"answer_{n}": {
                "reason": "",
                "score": float(text) + dice.gauss(0, noise) + bias * (0.5 - place / last),
            }
            for place, (n, text) in enumerate(shown)
        }
        return Completion(json.dumps({"result": result}))

    first, both, judged = [], [], []
    with compile_grader(SPEC, complete=judge, groups=True, concurrency=1) as grader:
        for number in range(groups):
            middle = [0.5 + gap * (place - (size - 1) / 2) for place in range(size)]
            texts = [f"{quality:.4f}" for quality in middle]
            grades = grader.grade_group([Sample(text) for text in texts], {"question": number})
            told = [grade.judged[""] for grade in grades]
            judged.append(told)
            rewards = [grade.reward or 0.0 for grade in grades]
            scores = [each["scores"][0] for each in told]
            both += [b > a for a, b in itertools.pairwise(rewards)]
            first += [b > a for a, b in itertools.pairwise(scores)]
    return Found(
        sum(first) / len(first),
        sum(both) / len(both),
        stated(noise, gap),
        position_bias([each for told in judged for each in told]) or 0.0,
        disagreement(judged) or 0.0,
    )
