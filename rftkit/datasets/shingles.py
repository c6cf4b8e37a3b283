"""Near-duplicates: texts that share most of their runs of three words.

A text becomes the set of its runs of three words in lower case, the set becomes a MinHash signature
(`rensa`), and signatures that agree in one band are compared. Two texts of similarity `s` (the
share of runs they have in common) are compared with probability 1 - (1 - s^6)^20: 0.9978 at 0.8.
Texts under `MIN_WORDS` words are not compared, because one different word makes another question.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rftkit.datasets.blanks import INVISIBLE
from rftkit.errors import MissingExtraError

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "MIN_WORDS", "NUM_PERM", "THRESHOLD", "Pair", "folded", "is_available", "near_pairs",
    "signatures",
]  # fmt: skip

THRESHOLD = 0.8
"""Two texts with at least this similarity are near-duplicates."""
MIN_WORDS = 8
_AT_THE_START, _AT_THE_END = " ¿¡", " ?!.:;…。？！؟।"
"""Differences, besides case and spaces, between short texts that ask the same question."""
_BESIDE_A_MARK = re.compile(r"(?<=\w) (?=[^\w\s])|(?<=[^\w\s]) (?=\w)")
"""A blank that asks nothing else, as in `2 + 2` and `2+2`; between marks it may draw a picture."""
STRETCH_CHARS = 100_000
_HIDDEN = dict.fromkeys(map(ord, INVISIBLE))
_WORD, _BLANK = re.compile(r"\S+"), re.compile(r"\s")
NUM_PERM, BANDS = 120, 20
SEED = 1
COMPARED_AT_ONCE = 100_000


class Pair(NamedTuple):
    """Two rows that are nearly the same."""

    later: int
    earlier: int
    similarity: float
    """Estimated from the signatures; the standard error at 0.8 is about 0.04."""


def is_available() -> bool:
    """Whether the package that computes signatures is installed."""
    try:
        import rensa  # noqa: F401
    except ImportError:
        return False
    return True


def folded(text: str) -> str:
    """The text without the differences that make no other question: case, blanks, the end mark."""
    plain = " ".join(_plain(text).split()).lstrip(_AT_THE_START).rstrip(_AT_THE_END)
    return _BESIDE_A_MARK.sub("", plain)


def _plain(text: str) -> str:
    """The text in one case, its letters written in one way and without invisible ones."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", text).translate(_HIDDEN).casefold()


def signatures(texts: Sequence[str]) -> npt.NDArray[np.uint32]:
    """Compute MinHash signatures, (texts, NUM_PERM); all zero for an empty text.

    Raises:
        MissingExtraError: `rensa` is not installed.
    """
    try:
        from rensa import RMinHash
    except ImportError:
        raise MissingExtraError("rensa", "data") from None
    out = np.zeros((len(texts), NUM_PERM), dtype=np.uint32)
    for row, text in enumerate(texts):
        if len(list(islice(_WORD.finditer(text), MIN_WORDS))) == MIN_WORDS:
            sketch = RMinHash(NUM_PERM, SEED)
            for words in _stretches(text):
                runs = zip(words, words[1:], words[2:], strict=False)
                sketch.update([" ".join(run) for run in runs])
            out[row] = sketch.digest()
        elif short := folded(text):
            sketch = RMinHash(NUM_PERM, SEED)
            sketch.update([short])  # equal only for the same text
            out[row] = sketch.digest()
    return out


def _stretches(text: str) -> Iterator[list[str]]:
    """Yield the words of a text in pieces; each piece repeats the last two words of the one before.

    The words of a text take ten times its memory, their runs another ten.
    """
    words, start = list[str](), 0
    while start < len(text):
        blank = _BLANK.search(text, start + STRETCH_CHARS)
        end = blank.start() if blank else len(text)
        words = words[-2:] + _plain(text[start:end]).split()
        yield words
        start = end


def near_pairs(table: npt.NDArray[np.uint32], hashes: npt.NDArray[np.uint64]) -> list[Pair]:
    """For each row that nearly repeats an earlier one, return the most similar earlier row.

    Args:
        table: From `signatures`.
        hashes: Hashes of the whole prompts; of equal prompts only the first is compared.
    """
    _, first = np.unique(hashes, return_index=True)
    rows = np.sort(first[table[first].any(axis=1)])
    best: dict[int, Pair] = {}
    seen: Any = np.empty(0, dtype=np.int64)
    for left, right in _candidates(table, rows):
        keys = left * len(table) + right
        keys = np.setdiff1d(keys, seen)
        seen = np.union1d(seen, keys)
        for pair in _compared(table, keys // len(table), keys % len(table)):
            if pair.later not in best or best[pair.later].similarity < pair.similarity:
                best[pair.later] = pair
    return [best[row] for row in sorted(best)]


def _candidates(table: Any, rows: Any) -> Any:
    """Return (later rows, earlier rows) that agree in one band.

    Each row is paired with the first row of the band and with its neighbour.
    """
    weights = np.random.default_rng(SEED).integers(1, 2**63, NUM_PERM // BANDS, dtype=np.uint64)
    weights |= np.uint64(1)
    for band in range(BANDS):
        part = table[rows, band * len(weights) : (band + 1) * len(weights)].astype(np.uint64)
        values = (part * weights).sum(axis=1, dtype=np.uint64)
        order = np.argsort(values, kind="stable")
        ordered, numbers = values[order], rows[order]
        is_first = np.append(True, ordered[1:] != ordered[:-1])
        if is_first.all():
            continue
        run = np.maximum.accumulate(np.where(is_first, np.arange(len(rows)), 0))
        later = np.flatnonzero(~is_first)
        yield (
            np.concatenate([numbers[later], numbers[later]]),
            np.concatenate([numbers[run[later]], numbers[later - 1]]),
        )


def _compared(table: Any, later: Any, earlier: Any) -> Any:
    for start in range(0, len(later), COMPARED_AT_ONCE):
        left, right = (each[start : start + COMPARED_AT_ONCE] for each in (later, earlier))
        similarity = (table[left] == table[right]).mean(axis=1)
        for at in np.flatnonzero(similarity >= THRESHOLD):
            yield Pair(int(left[at]), int(right[at]), float(similarity[at]))
