"""Which rows a step takes: epochs shuffled one by one and laid end to end, stratified or not.

In a stratified epoch each value of one key of the rows is spread evenly, so that every batch has
about the mix of the whole file: of eight random rows with one of three labels, three times in four
one label has four or more, and a policy that is still undecided follows it. Not here: epochs and
steps (`plan`).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

from rftkit.rows import Row
from rftkit.server.training.offline_plan import OfflinePlan
from rftkit.server.training.plan import Plan
from rftkit.server.training.references import value_of

__all__ = ["batch_rows", "epoch_rows", "spare_rows"]

T = TypeVar("T")


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


def epoch_rows(rows: Sequence[T], plan: OfflinePlan, step: int) -> list[T]:
    """The rows of a step that goes through its epoch in batches; the last batch may be short."""
    epoch, place = divmod(step - 1, plan.eval_interval)
    order = list(range(len(rows)))
    random.Random(f"{plan.seed}/{epoch}").shuffle(order)
    start = place * plan.batch_size
    return [rows[index] for index in order[start : start + plan.batch_size]]


def spare_rows(rows: Sequence[Row], plan: Plan, step: int, num: int) -> list[Row]:
    """At most `num` other rows for the same step, drawn by their own generator."""
    taken = {row.line for row in batch_rows(rows, plan, step)}
    rest = [row for row in rows if row.line not in taken]
    random.Random(f"{plan.seed}/spare/{step}").shuffle(rest)
    return rest[:num]  # a longer sequence begins with the same rows


def _order(rows: Sequence[Row], seed: str, key: str | None) -> list[int]:
    order = list(range(len(rows)))
    generator = random.Random(seed)
    generator.shuffle(order)
    if key is None:
        return order
    strata: dict[str | None, list[int]] = defaultdict(list)
    for index in order:
        strata[value_of(rows[index].item, key)].append(index)
    # The n-th of a stratum's N rows has its place at (n + u) / N of the epoch.
    placed = [
        ((n + offset) / len(stratum), index)
        for stratum, offset in ((each, generator.random()) for each in strata.values())
        for n, index in enumerate(stratum)
    ]
    return [index for _, index in sorted(placed)]
