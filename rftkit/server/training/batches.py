"""Which rows a step takes: epochs shuffled one by one and laid end to end, stratified or not.

In a stratified epoch each value of one key of the rows is spread evenly, so that every batch has
about the mix of the whole file: of eight random rows with one of three labels, three times in four
one label has four or more, and a policy that is still undecided follows it. Not here: epochs and
steps (`plan`).
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rftkit.errors import RequestError
from rftkit.graders import types
from rftkit.graders.outcome import Fault
from rftkit.graders.template import Path, lone_path, look_up
from rftkit.rows import Row
from rftkit.server.training.plan import Plan

__all__ = ["batch_rows", "resolve_key", "spare_rows"]

MOST_VALUES = 12
"""A reference with more values is not a label."""
ROWS_PER_VALUE = 2


def batch_rows(rows: Sequence[Row], plan: Plan, step: int) -> list[Row]:
    """The rows of a step."""
    orders: dict[int, list[int]] = {}
    result = []
    for position in range((step - 1) * plan.batch_size, step * plan.batch_size):
        epoch, place = divmod(position, len(rows))
        if epoch not in orders:
            orders[epoch] = _order(rows, f"{plan.seed}/{epoch}", plan.stratify)
        result.append(rows[orders[epoch][place]])
    return result


def spare_rows(rows: Sequence[Row], plan: Plan, step: int, num: int) -> list[Row]:
    """At most so many other rows for the same step, drawn by a generator of their own."""
    taken = {row.line for row in batch_rows(rows, plan, step)}
    rest = [row for row in rows if row.line not in taken]
    random.Random(f"{plan.seed}/spare/{step}").shuffle(rest)
    return rest[:num]  # the first of more are the same


def _order(rows: Sequence[Row], seed: str, key: str | None) -> list[int]:
    order = list(range(len(rows)))
    generator = random.Random(seed)
    generator.shuffle(order)
    if key is None:
        return order
    strata: dict[str | None, list[int]] = defaultdict(list)
    for index in order:
        strata[_value(rows[index].item, key)].append(index)
    # The n-th of a stratum's N rows has its place at (n + u) / N of the epoch.
    placed = [
        ((n + offset) / len(stratum), index)
        for stratum, offset in ((each, generator.random()) for each in strata.values())
        for n, index in enumerate(stratum)
    ]
    return [index for _, index in sorted(placed)]


def resolve_key(asked: str | None, spec: Mapping[str, Any], rows: Sequence[Row]) -> str | None:
    """The key to stratify by; None: by none.

    Args:
        asked: None, a key of the rows (`a.b` for one inside another), or "auto": what a
            string_check compares the answer with, if it takes few values.
        spec: of the job's grader, normalised.
        rows: of the training file.

    Raises:
        RequestError: when the rows do not have the key that was asked for.
    """
    if asked is None:
        return None
    if asked != "auto":
        if all(_value(row.item, asked) is None for row in rows):
            raise RequestError(
                f"metadata `stratify` is {asked!r}, and no training row has that key; name a key "
                f"of the rows ({', '.join(sorted(rows[0].item))}), auto or none",
                param="metadata.stratify",
            )
        return asked
    for part in types.parts(spec).values():
        key = _compared_with(part)
        if key is not None and _is_label(rows, key):
            return key
    return None


def _compared_with(part: Mapping[str, Any]) -> str | None:
    """The place in the row that a string_check compares the answer with."""
    if part["type"] != "string_check":
        return None
    for side in ("reference", "input"):
        path = lone_path(part[side])
        if path and path.namespace == "item" and all(isinstance(s, str) for s in path.steps):
            return ".".join(map(str, path.steps))
    return None


def _is_label(rows: Sequence[Row], key: str) -> bool:
    counts: Counter[str | None] = Counter()
    for row in rows:
        counts[_value(row.item, key)] += 1
        if len(counts) > MOST_VALUES:
            return False
    return 1 < len(counts) <= len(rows) // ROWS_PER_VALUE


def _value(item: Any, key: str) -> str | None:
    """The text of a value; None when it is not there."""
    try:
        return json.dumps(look_up(Path("item", tuple(key.split("."))), None, item), sort_keys=True)
    except Fault:
        return None
