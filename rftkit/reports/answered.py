"""Answers of a base and a final model to the same test rows, compared as eval runs are.

The input is the file of before and after answers (`rftkit.views.answers`). There is no second
kind of statistics for reports: an interval on a page is the one of `rftkit.evals`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rftkit.views.answers import reward_of

if TYPE_CHECKING:
    from rftkit.evals import Comparison, Samples

__all__ = ["NAMES", "before_and_after"]

NAMES = {"base": "base model", "final": "final model"}
"""Key of an answer in the file -> the label of its run."""

Json = dict[str, Any]


def before_and_after(rows: Sequence[Json]) -> Comparison:
    """Compare the final model with the base model, which is one planned comparison.

    Args:
        rows: `rows` of the file of answers.
    """
    from rftkit import evals

    return evals.compare(_samples(rows), baseline=NAMES["base"], after=NAMES["final"])


def _samples(rows: Sequence[Json]) -> Samples:
    import pandas as pd

    from rftkit.evals.samples import COLUMNS, SCORE, Run, Samples

    lines = [
        _line(str(number), label, row["answers"][key])
        for number, row in enumerate(rows)
        for key, label in NAMES.items()
        if row["answers"].get(key)
    ]
    names = [name for line in lines for name in line if name.startswith(SCORE)]
    frame = pd.DataFrame(lines, columns=[*COLUMNS, *dict.fromkeys(names)])
    floats = ["reward", *dict.fromkeys(names)]
    frame[floats] = frame[floats].astype(float)
    frame["passed"] = frame["passed"].astype("boolean")
    return Samples(
        runs=tuple(Run(label, key) for key, label in NAMES.items()),
        frame=frame,
        items={str(number): row["item"] for number, row in enumerate(rows)},
        numbers={str(at): at + 1 for at in range(len(rows))},
    )


def _line(row: str, label: str, answer: Json) -> Json:
    from rftkit.evals.samples import SCORE

    grade = answer.get("grade") or {}
    scores = {f"{SCORE}{name}": value for name, value in (grade.get("sub_rewards") or {}).items()}
    return {
        "run": label,
        "row": row,
        "sample": 0,
        "reward": reward_of(answer),
        "outcome": grade.get("outcome") or "failed",
        "truncated": bool(answer.get("truncated")),
        "answer": answer.get("text") or "",
        **scores,
    }
