"""Numbers, lists and problems as a sentence has them.

Not here: numbers with a unit or a sign (`views`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = ["counted", "first_problem", "listed"]


def counted(count: int, noun: str, plural: str = "") -> str:
    """`1 row`, `2,000 rows`; `plural` is for nouns that take no plain s."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def first_problem(error: ValidationError) -> str:
    """The first field that does not fit, and why: ``"`low`: input should be a valid number"``."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    return f"`{field}`: {first['msg'][:1].lower()}{first['msg'][1:]}"


def listed(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([*([", ".join(parts[:-1])] if parts[:-1] else []), *parts[-1:]])
