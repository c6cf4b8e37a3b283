"""Which parts of a reward changed: a headline that claims no more than its parts.

The callers compute the changes, with their intervals where these are known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rftkit.diagnosis.story import grader_line, learning, scores
from rftkit.wording import listed

__all__ = ["Change", "gain_sentence", "validation_gains"]

Json = Mapping[str, Any]

CERTAINTY = 1.96
"""Standard errors on either side of a mean: 95 % of such intervals hold the true one."""


@dataclass(frozen=True, slots=True)
class Change:
    """How much a mean changed."""

    value: float
    low: float | None = None
    """Lower end of its 95 % interval; None when unknown."""
    high: float | None = None
    """Upper end."""

    @property
    def is_known(self) -> bool:
        """Whether there is an interval."""
        return self.low is not None and self.high is not None

    @property
    def direction(self) -> int:
        """1 if it rose, -1 if it fell, 0 if the change is unclear or its interval is unknown."""
        if self.low is None or self.high is None:
            return 0
        return (self.low > 0) - (self.high < 0)


def validation_gains(first: Json, last: Json) -> tuple[Change | None, dict[str, Change]]:
    """From one validation to another: the change of the reward, and of each grader.

    Intervals treat the two validations as independent, which makes them wider than a comparison
    row by row (`evals.compare`) would.
    """
    total = _change(
        (scores(first).get("valid_reward_mean"), learning(first).get("valid_reward_stderr")),
        (scores(last).get("valid_reward_mean"), learning(last).get("valid_reward_stderr")),
    )
    parts: dict[str, Change] = {}
    for line in scores(last).get("graders") or []:
        before = grader_line(first, line["name"])
        change = _change(
            (before.get("valid_reward_mean"), before.get("valid_reward_stderr")),
            (line.get("valid_reward_mean"), line.get("valid_reward_stderr")),
        )
        if change is not None:
            parts[line["name"]] = change
    return total, parts


def _change(
    before: tuple[float | None, float | None], after: tuple[float | None, float | None]
) -> Change | None:
    (start, start_error), (end, end_error) = before, after
    if start is None or end is None:
        return None
    if start_error is None or end_error is None:
        return Change(end - start)
    half = CERTAINTY * math.hypot(start_error, end_error)
    return Change(end - start, end - start - half, end - start + half)


def gain_sentence(total: Change, parts: Mapping[str, Change], what: str = "reward") -> str:
    """`The reward rose by 0.20. It came from `a`; `b` shows no clear change.`

    Empty when there are fewer than two parts. Without intervals only the changes are stated.

    Args:
        total: of the reward.
        parts: of each sub-grader.
        what: name of the reward in the sentence; empty for the parts alone.
    """
    if len(parts) < 2:
        return ""
    if not all(change.is_known for change in parts.values()):
        each = ", ".join(
            f"{_named(name)} {_signed(change.value)}" for name, change in parts.items()
        )
        return f"By grader: {each}; the uncertainty is not reported."
    rose, fell, still = (
        [name for name, change in parts.items() if change.direction == way] for way in (1, -1, 0)
    )
    said = f"{_total(total, what)} " if what else ""
    if rose and total.direction > 0:
        rest = [f"{'it' if what else 'the gain'} came from {_list(rose, parts)}"]
    else:
        rest = [f"{_list(rose, parts)} rose"] if rose else []
    rest += [f"{_list(fell, parts)} fell"] if fell else []
    if still:
        verb = "show" if len(still) > 1 else "shows"
        rest.append(f"{_list(still, parts, signs=False)} {verb} no clear change")
    sentence = "; ".join(rest)
    return f"{said}{sentence[:1].upper()}{sentence[1:]}."


def _total(total: Change, what: str) -> str:
    if total.direction == 0:
        return f"The {what} ({_signed(total.value)}) shows no clear change."
    verb = "rose" if total.direction > 0 else "fell"
    return f"The {what} {verb} by {_signed(abs(total.value))[1:]}."


def _list(names: Sequence[str], parts: Mapping[str, Change], *, signs: bool = True) -> str:
    each = [_named(name) + (f" ({_signed(parts[name].value)})" if signs else "") for name in names]
    return listed(each)


def _named(name: str) -> str:
    return f"`{name}`"


def _signed(value: float) -> str:
    """`+0.20`; a change is not rounded to nothing."""
    digits = next((n for n in range(2, 7) if round(value, n)), 2)
    return f"{value:+.{digits}f}"
