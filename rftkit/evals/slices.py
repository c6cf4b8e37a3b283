"""Group the rows of a comparison by a key: where the reward rose and where it fell.

With many slices, some change by luck alone. So the p of each slice is corrected for their number
(Holm), and the intervals of the differences hold simultaneously (Bonferroni). Not here: which runs
are compared (`compare`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rftkit.evals import stats
from rftkit.evals.cells import Array
from rftkit.evals.comparison import Slice, SliceTable
from rftkit.evals.samples import Samples
from rftkit.evals.table import Table
from rftkit.wording import counted

__all__ = ["By", "rows_by", "slice_rows"]

By = str | Callable[[Mapping[str, Any]], Any]
"""A key of the item (dots lead into objects), or a function from an item to a value."""

SMALL = 20
"""With fewer rows than this an interval is not reliable."""
MOST = 50
"""Slices shown; of keys with more values the largest are kept."""
MISSING = "(missing)"


def slice_rows(table: Table, name: str, by: By, before: str, after: str) -> SliceTable:
    """Group the rows by a key, the worst group first.

    Args:
        table: The rows' rewards.
        name: The name of the grouping.
        by: The key or the function.
        before: Label.
        after: Label; its difference to `before` orders the slices.
    """
    import numpy as np

    groups = _groups(table.samples, table.cells.keys, by)
    graded: Any = np.isfinite(table.rewards).any(axis=1)
    places = {value: [at for at in found if graded[at]] for value, found in groups.items()}
    kept = sorted((v for v in places if places[v]), key=lambda value: -len(places[value]))[:MOST]
    difference = table.difference(before, after)
    tests = [_test(table, before, after, difference, places[value]) for value in kept]
    num_tests = sum(p is not None for p in tests)
    slices = [
        _slice(table, value, places[value], difference, p, num_tests)
        for value, p in zip(kept, _holm(tests), strict=True)
    ]
    slices.sort(key=_trouble)
    notes = _notes(name, {value: len(found) for value, found in places.items()}, slices)
    return SliceTable(name, before, after, tuple(slices), notes)


def _test(
    table: Table, before: str, after: str, difference: Array, places: list[int]
) -> float | None:
    p = stats.permutation_p(difference[places], seed=table.seed)
    other = table.exchange_p(before, after, places)
    return p if p is None or other is None else max(p, other)


def _slice(
    table: Table,
    value: str,
    places: list[int],
    difference: Array,
    p: float | None,
    num_tests: int,
) -> Slice:
    alpha = 1 - table.level
    found = table.mean_difference(difference[places], level=1 - alpha / max(1, num_tests))
    found = stats.as_tested(found, p, alpha)
    return Slice(
        value=value,
        num_rows=len(places),
        rows=tuple(table.cells.keys[at] for at in places),
        means={
            label: table.mean_reward(table.rewards[places, at])
            for at, label in enumerate(table.cells.labels)
        },
        difference=found,
        p=p,
        verdict=stats.direction(found, p, alpha),
        is_small=len(places) < SMALL,
    )


def rows_by(samples: Samples, keys: Sequence[str], by: By) -> dict[str, list[str]]:
    """Value -> the keys of its rows."""
    return {
        value: [keys[at] for at in places] for value, places in _groups(samples, keys, by).items()
    }


def _groups(samples: Samples, keys: Sequence[str], by: By) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for at, key in enumerate(keys):
        item = samples.items.get(key) or {}
        value = by(item) if callable(by) else _value(item, by)
        groups.setdefault(_text(value), []).append(at)
    return groups


def _value(item: Mapping[str, Any], path: str) -> Any:
    if path in item:
        return item[path]
    value: Any = item
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _text(value: Any) -> str:
    if value is None:
        return MISSING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _holm(tests: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction; what could not be tested does not count as a test."""
    order = sorted((p, at) for at, p in enumerate(tests) if p is not None)
    corrected: list[float | None] = [None] * len(tests)
    largest = 0.0
    for place, (p, at) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - place)))
        corrected[at] = largest
    return corrected


def _trouble(each: Slice) -> tuple[bool, float, str]:
    high, value = each.difference.high, each.difference.value
    end = high if high is not None else value
    return end is None, 0.0 if end is None else end, each.value


def _notes(name: str, sizes: Mapping[str, int], slices: Sequence[Slice]) -> tuple[str, ...]:
    notes = []
    if set(sizes) == {MISSING}:
        notes.append(f"No row has the key {name!r}, so there are no slices.")
    elif MISSING in sizes:
        notes.append(f"{counted(sizes[MISSING], 'row')} without {name!r}: shown as {MISSING}.")
    num_slices = sum(size > 0 for size in sizes.values())
    if num_slices > len(slices):
        notes.append(f"The {len(slices)} largest of {num_slices} slices are shown.")
    small = sum(each.is_small for each in slices)
    if small:
        notes.append(
            f"{counted(small, 'slice')} with fewer than {SMALL} rows: too few for a reliable "
            "interval."
        )
    return tuple(notes)
