"""Numbers, lists and problems as a sentence has them.

Not here: numbers with a unit or a sign (`views`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rftkit.errors import InputError

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = ["counted", "cut", "cut_counting", "first_problem", "listed", "the_only"]


def counted(count: int, noun: str, plural: str = "") -> str:
    """`1 row`, `2,000 rows`; `plural` is for nouns that take no plain s."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def cut(text: str, most: int) -> str:
    """The text, or its beginning and `…`, in at most so many characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def cut_counting(text: str, most: int) -> str:
    """The text, or so many characters of it and how many more there are."""
    left = len(text) - most
    return text if left <= 0 else f"{text[:most]} … ({left:,} more characters)"


def first_problem(error: ValidationError) -> str:
    """The first field that does not fit, and why: ``"`low`: input should be a valid number"``."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    return f"`{field}`: {first['msg'][:1].lower()}{first['msg'][1:]}"


def listed(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([*([", ".join(parts[:-1])] if parts[:-1] else []), *parts[-1:]])


def the_only(ids: Sequence[str], begin: str) -> str | None:
    """The one id that begins so; None if none does.

    Raises:
        InputError: several do.
    """
    if len(ids) > 1:
        raise InputError(f"{len(ids)} ids begin with {begin}: {', '.join(ids[:5])}; type more")
    return ids[0] if ids else None
