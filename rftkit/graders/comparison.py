"""`text_similarity` for texts of any length: long ones run in a separate process, or are refused.

Comparing two texts of 300,000 characters takes ten seconds in one call that holds Python's global
lock, so nothing else in the process could run. The time of a comparison is estimated from the
lengths alone, so that the load of the machine never decides whether a pair is graded. Not here: the
metrics (`similarity`).
"""

from __future__ import annotations

import json
import subprocess
import sys

from rftkit.graders import similarity
from rftkit.graders.calls import Calls, if_abandoned
from rftkit.graders.outcome import Fault
from rftkit.graders.similarity import Metric

__all__ = ["comparison"]

ALONE_SECONDS = 0.1
"""Comparisons that take longer than this run in a separate process."""
MOST_SECONDS = 60.0
"""Longer comparisons are refused."""
PATIENCE = 5
"""A comparison may take this many times its estimate before it is stopped."""
SECONDS_PER_CHARACTER = 2e-6
SECONDS_PER_PAIR = {"fuzzy_match": 1e-10, "rouge_l": 2.5e-10}
"""For metrics that align two texts: seconds for each pair of characters, measured on one core of
2024."""


def comparison(name: str, calls: Calls) -> Metric:
    """Return the function of an `evaluation_metric`, for texts of any length.

    The function raises a Fault for texts whose comparison would take more than a minute.
    """
    metric = similarity.metric(name)

    def compare(answer: str, reference: str) -> float:
        seconds = _estimate(name, len(answer), len(reference))
        if seconds <= ALONE_SECONDS:
            return metric(answer, reference)
        if seconds > MOST_SECONDS:
            raise Fault(
                "other_error",
                f"{name} of texts of {len(answer):,} and {len(reference):,} characters would take "
                f"about {seconds:,.0f} s, and a comparison may take {MOST_SECONDS:g} s; compare "
                "shorter texts",
            )
        longest = PATIENCE * MOST_SECONDS
        return calls.run(lambda: _compare_alone([name, answer, reference]), longest)

    return compare


def _estimate(name: str, answer: int, reference: int) -> float:
    """Estimate the seconds that texts of these lengths take."""
    pairs = SECONDS_PER_PAIR.get(name, 0.0) * answer * reference
    return pairs + (0.0 if name == "fuzzy_match" else SECONDS_PER_CHARACTER * (answer + reference))


def _compare_alone(question: list[str]) -> float:
    """Run `similarity` as a program, which ends when the comparison is abandoned."""
    process = subprocess.Popen(
        [sys.executable, "-P", similarity.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with if_abandoned(process.kill):
        said, error = process.communicate(json.dumps(question).encode())
    if process.returncode:
        lines = error.decode(errors="replace").strip().splitlines()
        raise Fault(
            "other_error",
            f"the comparison's process ended with status {process.returncode}: "
            f"{lines[-1] if lines else 'it wrote nothing'}",
        )
    return float(said)
