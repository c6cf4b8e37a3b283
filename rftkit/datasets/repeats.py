"""Rows that repeat others: the same prompt, nearly the same, or the same with another answer.

Works on the hashes and signatures that `scan` computed for all rows. Not here: how near-duplicates
are found (`shingles`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rftkit.datasets import shingles
from rftkit.datasets.findings import Finding, Place
from rftkit.datasets.rowfile import Rows
from rftkit.datasets.scan import MAX_LISTED, Tally
from rftkit.wording import counted

__all__ = ["NO_NEAR", "Part", "conflicts", "folded_leaks", "near_repeats", "repeats"]

ROLE_WORDS = {"train": "training", "valid": "validation", "test": "test"}


@dataclass(frozen=True, slots=True)
class Part:
    """One source and the counts of its rows."""

    role: str
    rows: Rows
    tally: Tally

    def place(self, number: int) -> Place:
        """Return the place of a row of this source."""
        return Place(self.rows.name, int(number), self.rows.line(int(number)))

    def places(self, numbers: Any) -> tuple[Place, ...]:
        """Return the places of the first of some rows."""
        return tuple(self.place(number) for number in numbers[:MAX_LISTED])


def repeats(parts: list[Part]) -> Iterator[Finding]:
    """Report repeated prompts, within one file and across files."""
    for at, part in enumerate(parts):
        prompts, numbers = part.tally.array("prompts"), part.tally.array("numbers")
        _, first = np.unique(prompts, return_index=True)
        again = np.delete(numbers, first)
        if len(again):
            yield Finding(
                "warning" if part.role == "train" else "info",
                "duplicate_rows",
                f"{part.rows.name}: {counted(len(again), 'prompt')} "
                f"{'repeats' if len(again) == 1 else 'repeat'} an earlier one",
                "a repeated prompt counts twice; rftkit dataset split leaves repeats out",
                len(again),
                part.places(again),
            )
        for earlier in parts[:at]:
            shared = numbers[np.isin(prompts, earlier.tally.array("prompts"))]
            if len(shared):
                yield _shared_finding(part, earlier, shared)


def _shared_finding(part: Part, earlier: Part, numbers: Any) -> Finding:
    role, other = ROLE_WORDS[part.role], ROLE_WORDS[earlier.role]
    return Finding(
        "warning",
        "shared_rows",
        f"{part.rows.name}: {counted(len(numbers), f'{role} prompt')} also in the {other} file; "
        f"the {role} reward will be too high",
        f"remove them from {earlier.rows.name}",
        len(numbers),
        part.places(numbers),
    )


def folded_leaks(parts: list[Part]) -> Iterator[Finding]:
    """Report prompts that differ from one of another file in case, blanks or the end mark only.

    `near_repeats` finds them too; this is for a check without it.
    """
    for at, part in enumerate(parts):
        for earlier in parts[:at]:
            folds = part.tally.array("folds")
            alike = np.isin(folds, earlier.tally.array("folds")) & (folds != 0)
            same = np.isin(part.tally.array("prompts"), earlier.tally.array("prompts"))
            numbers = part.tally.array("numbers")[alike & ~same]
            if len(numbers):
                role, other = ROLE_WORDS[part.role], ROLE_WORDS[earlier.role]
                yield Finding(
                    "warning",
                    "near_shared_rows",
                    f"{part.rows.name}: {counted(len(numbers), f'{role} prompt')} also in the "
                    f"{other} file except for case, blanks or final punctuation; the {role} reward "
                    "will be too high",
                    f"remove them from {earlier.rows.name}",
                    len(numbers),
                    part.places(numbers),
                )


def conflicts(parts: list[Part]) -> Iterator[Finding]:
    """Report rows with the same prompt and different reference answers, in any file."""
    prompts, labels, owners, numbers = _columns(parts)
    known = labels != 0
    prompts, labels, owners, numbers = (a[known] for a in (prompts, labels, owners, numbers))
    order = np.argsort(prompts, kind="stable")
    prompts, labels = prompts[order], labels[order]
    differs = np.flatnonzero((prompts[1:] == prompts[:-1]) & (labels[1:] != labels[:-1]))
    if not len(differs):
        return
    rows = np.sort(order[np.isin(prompts, prompts[differs])])
    places = tuple(parts[int(owners[row])].place(numbers[row]) for row in rows[:MAX_LISTED])
    yield Finding(
        "warning",
        "conflicting_rows",
        f"{counted(len(rows), 'row')} with the prompt of another row and a different answer",
        "one answer is wrong, or the prompt lacks the deciding fact; correct or remove them",
        len(rows),
        places,
    )


def _columns(parts: list[Part]) -> tuple[Any, Any, Any, Any]:
    """Return, over all files: prompt, label, index of the part, row of the part."""
    owners = [np.full(len(part.tally.array("numbers")), at) for at, part in enumerate(parts)]
    columns = [
        np.concatenate([part.tally.array(name) for part in parts])
        for name in ("prompts", "labels", "numbers")
    ]
    return columns[0], columns[1], np.concatenate(owners), columns[2]


NO_NEAR = Finding(
    "info",
    "near_duplicates_not_looked_for",
    "near-duplicates were not searched: this needs the package 'rensa'; "
    "type: pip install 'rftkit[data]'",
)


def near_repeats(parts: list[Part]) -> Iterator[Finding]:
    """Report rows that nearly repeat an earlier one, in the same file or another."""
    prompts, _, owners, numbers = _columns(parts)
    table = np.concatenate([part.tally.array("signatures") for part in parts])
    pairs = shingles.near_pairs(table.reshape(-1, shingles.NUM_PERM), prompts)
    by_owners: dict[tuple[int, int], list[shingles.Pair]] = {}
    for pair in pairs:
        key = (int(owners[pair.later]), int(owners[pair.earlier]))
        by_owners.setdefault(key, []).append(pair)
    for (later, earlier), found in sorted(by_owners.items()):
        yield _near_finding(parts[later], parts[earlier], found, numbers)


def _near_finding(part: Part, earlier: Part, pairs: list[shingles.Pair], numbers: Any) -> Finding:
    rows = [int(numbers[pair.later]) for pair in pairs]
    details = tuple(
        f"{part.place(numbers[pair.later])} is like {earlier.place(numbers[pair.earlier])} "
        f"(similarity about {pair.similarity:.2f})"
        for pair in pairs[:MAX_LISTED]
    )
    threshold = f"at least {shingles.THRESHOLD:.0%} of their three-word runs in common"
    is_leak = part is not earlier
    return Finding(
        "warning" if is_leak else "info",
        "near_shared_rows" if is_leak else "near_duplicates",
        f"{part.rows.name}: {counted(len(rows), 'near-repeat')} of a prompt "
        + (f"of {earlier.rows.name}" if is_leak else "further up")
        + f" ({threshold})",
        "are they the same question? rftkit dataset split --near keeps such rows in one part"
        if is_leak
        else "",
        len(rows),
        part.places(rows),
        details,
        {"threshold": shingles.THRESHOLD},
    )
