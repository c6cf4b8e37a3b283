"""Split a dataset into train, valid and test, or draw a sample of it, so that nothing leaks.

Rows that belong together form units: rows with the same prompt, rows that nearly repeat each other,
and rows with the same value under `group` (a topic, a document). Within each stratum (a value under
`stratify`) the units are shuffled with the seed and distributed so that every part gets its share:
by default of the first key that has few values, or a part of ten rows might lack most of them.
The result records the source (SHA-256) and the seed: the same call writes the same bytes again.
Lines are copied unchanged.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit.datasets import shingles
from rftkit.datasets.proposals import command_for
from rftkit.datasets.rowfile import Rows, open
from rftkit.datasets.rowlines import NumberedRow, batched
from rftkit.datasets.scan import prompt_hash, prompt_text
from rftkit.datasets.writing import refuse_existing, sha256, write_lines
from rftkit.errors import InputError
from rftkit.graders.closed import MAX_VALUES, is_label

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

__all__ = ["SHARES", "Split", "sample", "split"]

SHARES: Mapping[str, float] = {"train": 0.8, "valid": 0.1, "test": 0.1}
_LEFT = ""  # the rows in no part
AT_ONCE = 5000  # texts whose signatures are made at once
MAX_VALUE = 200  # characters; of a longer value only the digest is kept


@dataclass(frozen=True, slots=True)
class Split:
    """The result of a split, and its source."""

    source: str
    source_sha256: str | None
    """Hash of the source file; None for a frame."""
    seed: int
    shares: dict[str, float]
    stratify: str | None
    """The key whose values have the same shares in every part."""
    group: str | None
    files: dict[str, str]
    """Part -> path."""
    num_rows: dict[str, int]
    """Part -> rows written."""
    num_repeats: int
    """Rows left out because an earlier row has the same prompt."""
    num_refused: int
    """Rows left out because they cannot be used."""
    num_left: int
    """Rows in no part, because the shares add up to less than 1."""

    def __str__(self) -> str:
        lines = [f"{part}: {self.num_rows[part]:,} rows  {self.files[part]}" for part in self.files]
        lines.append(
            f"left out: {self.num_repeats:,} repeats, {self.num_refused:,} unusable, "
            f"{self.num_left:,} not drawn; seed {self.seed}; source {self.source}"
        )
        if self.stratify:
            lines.append(f"each part has its share of every value of {self.stratify}")
        return "\n".join(lines)


@dataclass(slots=True)
class _Row:
    number: int
    prompt: int
    group: str | None
    stratum: str


def split(
    source: str | Path | pd.DataFrame,
    folder: str | Path,
    *,
    shares: Mapping[str, float] | None = None,
    seed: int = 1,
    stratify: str | None = "auto",
    group: str | None = None,
    deduplicate: bool = True,
    near_duplicates: bool = False,
) -> Split:
    """Write train.jsonl, valid.jsonl, test.jsonl, and split.json with how they were made.

    Args:
        source: As for `open`.
        folder: The folder of the new files; created if necessary. None of them may exist.
        shares: Part -> share of the rows; at most 1 in total.
        seed: Another seed makes another split.
        stratify: A key whose values have the same shares in every part. "auto" takes the first key
            with few values (a label), if there is one.
        group: A key; rows with the same value stay in one part.
        deduplicate: Write only the first of the rows with the same prompt.
        near_duplicates: Also keep near-duplicates together (see `shingles`).

    Raises:
        InputError: Shares, keys or files cannot be used.
    """
    shares = dict(SHARES if shares is None else shares)
    if not shares or min(shares.values()) <= 0 or sum(shares.values()) > 1 + 1e-9:
        raise InputError(f"shares must be above 0 and at most 1 together, found {shares}")
    paths = {part: Path(folder) / f"{part}.jsonl" for part in shares}
    record = Path(folder) / "split.json"
    for path in (*paths.values(), record):
        refuse_existing(path)
    with open(source, form=None) as rows:
        if stratify == "auto":
            stratify = _label(rows, group)
        kept, num_repeats, num_refused = _read(rows, stratify, group, deduplicate)
        units = _units(kept, rows, near_duplicates)
        parts = _hand_out(units, kept, shares, seed)
        if empty := [part for part, numbers in parts.items() if not numbers]:
            raise InputError(
                f"{' and '.join(empty)} would hold no rows: {rows.name} has {len(kept):,} rows in "
                f"{len(units):,} groups that stay together; choose fewer parts with --share, or "
                "another key"
            )
        written = {
            part: write_lines(paths[part], rows.lines_at(sorted(numbers)))
            for part, numbers in parts.items()
        }
        made = Split(
            source=rows.name,
            source_sha256=sha256(Path(rows.name)) if Path(rows.name).exists() else None,
            seed=seed,
            shares=shares,
            stratify=stratify,
            group=group,
            files={part: str(path) for part, path in paths.items()},
            num_rows=written,
            num_repeats=num_repeats,
            num_refused=num_refused,
            num_left=len(kept) - sum(written.values()),
        )
    write_lines(record, [json.dumps(asdict(made), ensure_ascii=False, indent=1).encode()])
    return made


def sample(
    source: str | Path | pd.DataFrame,
    target: str | Path,
    num_rows: int,
    *,
    seed: int = 1,
    stratify: str | None = None,
) -> int:
    """Write about `num_rows` rows, drawn with the seed, to a new file; return how many.

    Each value under `stratify` keeps its share. Rows that cannot be used are not drawn, and
    of rows with the same prompt only the first can be drawn.

    Raises:
        InputError: There are too few rows, or the key or file cannot be used.
    """
    refuse_existing(target)
    with open(source, form=None) as rows:
        kept, _, _ = _read(rows, stratify, None, True)
        if not 0 < num_rows <= len(kept):
            raise InputError(f"cannot draw {num_rows:,} of {len(kept):,} different usable rows")
        units = [[at] for at in range(len(kept))]
        drawn = _hand_out(units, kept, {"drawn": num_rows / len(kept)}, seed)["drawn"]
        return write_lines(target, rows.lines_at(sorted(drawn)))


def _label(rows: Rows, group: str | None) -> str | None:
    """The first key that every row has with one of a few values; None if there is none."""
    counts: dict[str, Counter[str]] | None = None
    for each in rows:
        if each.row is None:
            continue
        item = each.row.item
        if counts is None:
            counts = {key: Counter() for key in item if key != group}
        for key, found in list(counts.items()):
            if key not in item or isinstance(item[key], dict | list) or len(found) > MAX_VALUES:
                del counts[key]
            else:
                found[_value(rows, each, key)] += 1
        if not counts:
            return None
    return next((key for key, found in (counts or {}).items() if is_label(found)), None)


def _read(
    rows: Rows, stratify: str | None, group: str | None, deduplicate: bool
) -> tuple[list[_Row], int, int]:
    """Return the rows to distribute, without repeats and refused rows."""
    kept: list[_Row] = []
    seen: set[int] = set()
    num_repeats = num_refused = 0
    for each in rows:
        if each.row is None:
            num_refused += 1
            continue
        prompt = prompt_hash(each.row)
        if deduplicate and prompt in seen:
            num_repeats += 1
            continue
        seen.add(prompt)
        stratum = _value(rows, each, stratify) if stratify else ""
        kept.append(
            _Row(each.number, prompt, _value(rows, each, group) if group else None, stratum)
        )
    if not kept:
        command = command_for(rows)
        how = f"; to make rows of it, type: {command}" if command else ""
        raise InputError(f"{rows.name} holds no usable rows{how}")
    return kept, num_repeats, num_refused


def _value(rows: Rows, each: NumberedRow, key: str) -> str:
    assert each.row is not None
    if key not in each.row.item:
        keys = ", ".join(sorted(each.row.item))
        raise InputError(f"{rows.name}:{each.line}: the row has no key {key!r}; its keys: {keys}")
    value = json.dumps(each.row.item[key], sort_keys=True)
    return value if len(value) <= MAX_VALUE else hashlib.sha256(value.encode()).hexdigest()


def _units(kept: list[_Row], rows: Rows, near_duplicates: bool) -> list[list[int]]:
    """Return the indexes of rows that stay together."""
    parent = list(range(len(kept)))

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = parent[parent[at]]
            at = parent[at]
        return at

    for first, second in _ties(kept, rows, near_duplicates):
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    units: dict[int, list[int]] = {}
    for at in range(len(kept)):
        units.setdefault(root(at), []).append(at)
    return list(units.values())


def _ties(kept: list[_Row], rows: Rows, near_duplicates: bool) -> Iterator[tuple[int, int]]:
    first_of: dict[Any, int] = {}
    for at, row in enumerate(kept):
        for key in (row.prompt, *((row.group,) if row.group is not None else ())):
            yield first_of.setdefault(key, at), at
    if near_duplicates:
        import numpy as np

        hashes = np.array([row.prompt for row in kept], dtype=np.uint64)
        for pair in shingles.near_pairs(_signatures(kept, rows), hashes):
            yield pair.earlier, pair.later


def _signatures(kept: list[_Row], rows: Rows) -> np.ndarray[Any, Any]:
    import numpy as np

    tables = []
    for found in batched(rows.each_at(row.number for row in kept), AT_ONCE):
        tables.append(shingles.signatures([prompt_text(each.row) for each in found if each.row]))
    return np.concatenate(tables)


def _hand_out(
    units: Iterable[list[int]], kept: list[_Row], shares: Mapping[str, float], seed: int
) -> dict[str, list[int]]:
    """Return part -> numbers of its rows. Each unit goes to the part that lacks most rows."""
    strata: dict[str, list[list[int]]] = {}
    for unit in units:
        strata.setdefault(kept[unit[0]].stratum, []).append(unit)
    targets = {**shares, _LEFT: max(0.0, 1 - sum(shares.values()))}
    parts: dict[str, list[int]] = {part: [] for part in targets}
    wanted = dict.fromkeys(targets, 0.0)
    for stratum in sorted(strata):
        found = strata[stratum]
        random.Random(f"{seed} {stratum}").shuffle(found)
        total = sum(map(len, found))
        for part, share in targets.items():
            wanted[part] += share * total
        for unit in sorted(found, key=len, reverse=True):  # large first, or a part overflows
            part = max(targets, key=lambda name: wanted[name] - len(parts[name]))
            parts[part] += [kept[at].number for at in unit]
    del parts[_LEFT]
    return parts
