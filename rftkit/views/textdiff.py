"""Two texts as one: removed words are struck through, added words are underlined.

Word by word, over rapidfuzz's longest common subsequence: a thousand words take milliseconds.
Changes close to each other are joined, so that a rewritten clause is one change.
"""

from __future__ import annotations

import re
from typing import Any

from rftkit.views.markup import Html, html, join, text

__all__ = ["difference"]

MAX_WORDS = 20_000
"""Most words of both sides together; longer pairs are shown without a comparison."""
_TOKENS = re.compile(r"\w+|\s+|[^\w\s]")


def difference(before: str, after: str, *, least: float = 0.0) -> Html:
    """`after` as HTML, with words removed from `before` in `<del>` and added words in `<ins>`.

    Args:
        before: plain text.
        after: plain text.
        least: share of words that must be unchanged, 0–1; below it, `after` is shown alone and
            labelled as rewritten.
    """
    from rapidfuzz.distance import LCSseq

    old, new = _TOKENS.findall(before), _TOKENS.findall(after)
    if len(old) + len(new) > MAX_WORDS:
        return Html("<em>The answers are too long to be compared word by word.</em>")
    hunks: list[tuple[str, str, bool]] = []  # (removed, added, equal)
    stayed = 0
    each: Any
    for each in LCSseq.opcodes(old, new):
        removed = "".join(old[each.src_start : each.src_end])
        added = "".join(new[each.dest_start : each.dest_end])
        stayed += _words(old[each.src_start : each.src_end]) if each.tag == "equal" else 0
        _append(hunks, removed, added, each.tag == "equal")
    if stayed < least * max(_words(old), _words(new)):
        return html("<em>rewritten:</em> {}", after)
    return join(
        text(added) if equal else _changed(removed, added)
        for removed, added, equal in _joined(hunks)
    )


def _words(tokens: list[str]) -> int:
    return sum(token[0].isalnum() for token in tokens)


def _append(hunks: list[tuple[str, str, bool]], removed: str, added: str, equal: bool) -> None:
    """Neighbouring changes are one."""
    if not equal and hunks and not hunks[-1][2]:
        removed, added = hunks[-1][0] + removed, hunks[-1][1] + added
        hunks.pop()
    hunks.append((removed, added, equal))


def _joined(hunks: list[tuple[str, str, bool]]) -> list[tuple[str, str, bool]]:
    """Equal stretches that only happen to be there, between two changes, become part of them.

    That is what is no longer than either change beside it, and what holds no word.
    """
    joined: list[tuple[str, str, bool]] = []
    for at, (removed, added, equal) in enumerate(hunks):
        inside = equal and 0 < at < len(hunks) - 1
        beside = min(_size(hunks[at - 1]), _size(hunks[at + 1])) if inside else 0
        is_chance = inside and (len(added) <= beside or not re.search(r"\w|\n", added))
        _append(joined, removed, added, equal and not is_chance)
    return joined


def _size(hunk: tuple[str, str, bool]) -> int:
    return max(len(hunk[0]), len(hunk[1]))


def _changed(removed: str, added: str) -> Html:
    out = html("<del>{}</del>", removed) if removed else Html()
    return out + (html("<ins>{}</ins>", added) if added else Html())
