"""The rows with the prompts most similar to that of one row, found by a few searches.

`datasets.check` finds the near-duplicates of a whole dataset.
"""

from __future__ import annotations

from typing import Any

from rftkit.evals.samples import prompt_of
from rftkit.views.conversation import taught
from rftkit.widgets.rowsource import RowSource
from rftkit.widgets.task import Task

__all__ = ["nearest", "prompt_text"]


def nearest(
    source: RowSource, number: int, task: Task, *, count: int = 5, floor: float = 70.0
) -> list[tuple[int, float]]:
    """The rows with the prompts most similar to that of row `number`, with similarity (0 to 100).

    Candidates share one of the row's rarest three-word phrases. So this takes a few searches
    instead of a comparison with every row; a near copy without such a phrase is missed.
    """
    from rapidfuzz import fuzz

    own = prompt_text(source.items([number])[0])
    candidates: set[int] = set()
    for shingle in _rare_shingles(own, source):
        task.raise_if_cancelled()
        candidates.update(map(int, source.search(shingle, task, limit=100)))
    candidates.discard(number)
    picked = sorted(candidates)
    scored = [
        (each, fuzz.ratio(own, prompt_text(item)))
        for each, item in zip(picked, source.items(picked), strict=True)
    ]
    return sorted(((n, s) for n, s in scored if s >= floor), key=lambda pair: -pair[1])[:count]


def prompt_text(item: dict[str, Any]) -> str:
    """The prompt of a row: the last user message, or the first text of the row."""
    texts = (value for value in item.values() if isinstance(value, str))
    return prompt_of({"messages": taught(item)[0]}) or next(texts, "")


def _rare_shingles(text: str, source: RowSource, count: int = 3) -> list[str]:
    """Three-word phrases within a line of a text; phrases that few other rows have come first."""
    shingles = [
        " ".join(words[start : start + 3])
        for line in text.splitlines()
        for words in [line.split(" ")]
        for start in range(max(1, len(words) - 2))
        if line.strip()
    ]
    size = len(source)
    sampled = range(0, size, max(1, size // 50))
    others = [prompt_text(item) for item in source.items(list(sampled)[:50])]
    by_rarity = sorted(
        dict.fromkeys(shingles), key=lambda s: (sum(s in other for other in others), -len(s))
    )
    return by_rarity[:count]
