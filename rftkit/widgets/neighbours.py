"""The rows whose prompts are most like that of one row, found by a few searches.

Not here: near-duplicates of a whole dataset, which `datasets.check` finds.
"""

from __future__ import annotations

from typing import Any

from rftkit.evals.samples import prompt_of
from rftkit.widgets.rowsource import RowSource
from rftkit.widgets.task import Task

__all__ = ["nearest", "prompt_text"]


def nearest(
    source: RowSource, number: int, task: Task, *, count: int = 5, floor: float = 70.0
) -> list[tuple[int, float]]:
    """The rows whose prompts are most like that of row `number`, with how alike (0 to 100).

    Candidates share one of the row's rarest runs of three words, so this costs a few searches and
    not a comparison with every row; a near copy that shares no such run is missed.
    """
    from rapidfuzz import fuzz

    own = prompt_text(source.items([number])[0])
    candidates: set[int] = set()
    for shingle in _rare_shingles(own, source):
        task.go_on()
        candidates.update(map(int, source.search(shingle, task, limit=100)))
    candidates.discard(number)
    picked = sorted(candidates)
    scored = [
        (each, fuzz.ratio(own, prompt_text(item)))
        for each, item in zip(picked, source.items(picked), strict=True)
    ]
    return sorted(((n, s) for n, s in scored if s >= floor), key=lambda pair: -pair[1])[:count]


def prompt_text(item: dict[str, Any]) -> str:
    """What a row asks: the last thing the user said, else its first text."""
    texts = (value for value in item.values() if isinstance(value, str))
    return prompt_of(item) or next(texts, "")


def _rare_shingles(text: str, source: RowSource, count: int = 3) -> list[str]:
    """Runs of three words on one line of a text, those first that few other rows have."""
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
