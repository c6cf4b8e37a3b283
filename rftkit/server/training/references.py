"""What rows and their grader contain about right answers: the key of a label, a reference answer.
Used once, before the first step. Not here: what is done with either (`batches`, `guidance`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rftkit.errors import RequestError
from rftkit.graders import types
from rftkit.graders.closed import is_label
from rftkit.graders.outcome import Fault
from rftkit.graders.references import reference_answer
from rftkit.graders.template import Path, lone_path, look_up
from rftkit.rows import Row

__all__ = ["have_references", "resolve_key", "value_of"]


def have_references(
    rows: Sequence[Row], spec: Mapping[str, Any], response_format: Mapping[str, Any] | None
) -> bool:
    """Whether some row has a reference answer; rows with tools have none that could be given."""
    return any(
        not row.tools and reference_answer(row.item, response_format, grader=spec) is not None
        for row in rows
    )


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
        if all(value_of(row.item, asked) is None for row in rows):
            raise RequestError(
                f"metadata `stratify` is {asked!r}, and no training row has that key; name a key "
                f"of the rows ({', '.join(sorted(rows[0].item))}), auto or none",
                param="metadata.stratify",
            )
        return asked
    for part in types.parts(spec).values():
        key = _compared_with(part)
        if key is not None and is_label(Counter(str(value_of(r.item, key)) for r in rows)):
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


def value_of(item: Any, key: str) -> str | None:
    """The text of a value; None when it is not there."""
    try:
        return json.dumps(look_up(Path("item", tuple(key.split("."))), None, item), sort_keys=True)
    except Fault:
        return None
