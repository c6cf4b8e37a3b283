"""Which parts of a reward moved: a headline that claims no more than its parts.

Not here: the statistics; a change comes with its interval, or without one when nobody knows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Change", "gain_sentence"]

SAME = 0.005
"""Changes below this are printed as 0.00, and no interval makes them a gain."""


@dataclass(frozen=True, slots=True)
class Change:
    """How much a mean changed."""

    value: float
    half_width: float | None = None
    """Of its 95 % interval; None when it is not known."""

    @property
    def direction(self) -> int:
        """1 it rose, -1 it fell, 0 it cannot be told from before (or nobody knows)."""
        if self.half_width is None or abs(self.value) < SAME:
            return 0
        return (self.value > self.half_width) - (-self.value > self.half_width)


def gain_sentence(total: Change, parts: Mapping[str, Change], what: str = "reward") -> str:
    """`The reward rose by 0.20. It came from `a`; `b` cannot be told from before.`

    Empty when there are fewer than two parts. Without intervals only the changes are stated.

    Args:
        total: of the reward.
        parts: of each sub-grader.
        what: is called the reward.
    """
    if len(parts) < 2:
        return ""
    if any(change.half_width is None for change in parts.values()):
        each = ", ".join(f"{_named(name)} {change.value:+.2f}" for name, change in parts.items())
        return f"By grader: {each}; how sure that is, is not reported."
    rose, fell, still = (
        [name for name, change in parts.items() if change.direction == way] for way in (1, -1, 0)
    )
    said = _total(total, what)
    if rose and total.direction > 0:
        rest = [f"it came from {_list(rose, parts)}"]
    else:
        rest = [f"{_list(rose, parts)} rose"] if rose else []
    rest += [f"{_list(fell, parts)} fell"] if fell else []
    if still:
        rest.append(f"{_list(still, parts, signs=False)} cannot be told from before")
    sentence = "; ".join(rest)
    return f"{said} {sentence[:1].upper()}{sentence[1:]}."


def _total(total: Change, what: str) -> str:
    if total.direction == 0:
        return f"The {what} ({total.value:+.2f}) cannot be told from before."
    return f"The {what} {'rose' if total.direction > 0 else 'fell'} by {abs(total.value):.2f}."


def _list(names: Sequence[str], parts: Mapping[str, Change], *, signs: bool = True) -> str:
    each = [_named(name) + (f" ({parts[name].value:+.2f})" if signs else "") for name in names]
    return " and ".join([*([", ".join(each[:-1])] if each[:-1] else []), each[-1]])


def _named(name: str) -> str:
    return f"`{name}`"
