"""Numbers and lists as a sentence has them. Not here: numbers with a unit or a sign (`views`)."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["counted", "listed"]


def counted(count: int, noun: str, plural: str = "") -> str:
    """`1 row`, `2,000 rows`; `plural` is for nouns that take no plain s."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def listed(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([*([", ".join(parts[:-1])] if parts[:-1] else []), *parts[-1:]])
