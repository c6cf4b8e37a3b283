"""Which tokens of an answer learn from which sub-grader.

A sub-grader that reads only some fields of a JSON answer does not depend on the text after them.
Its advantage on those later tokens is noise: zero on average, and more noise than signal for a
verdict of one token before an explanation of twenty. With `fields` it reaches only the tokens up to
the end of the last field that it reads. What is before the field keeps it, since the field may
depend on it (reward-to-go: Williams 1992; Sutton et al. 2000, "Policy gradient methods for
reinforcement learning with function approximation"; here one sub-grader at a time). Not here: the
advantages themselves (`advantages`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rftkit.graders import Grade, types
from rftkit.graders.leaves import leaf_paths
from rftkit.jsontext import parse_json
from rftkit.server.engine.base import Engine
from rftkit.server.engine.values import Completion
from rftkit.server.training.advantages import Leaf

__all__ = ["field_ends", "fields_read", "token_advantages"]

Fields = frozenset[str] | None
"""Top-level fields of a JSON answer; None: it may be all of the answer."""
BLANK = " \n\t\r"


def fields_read(spec: Mapping[str, Any], leaves: Sequence[Leaf]) -> list[Fields]:
    """The fields of the answer that each leaf reads, from its templates.

    Code may read anything, and so does a template with the whole answer in it.

    Args:
        spec: of the grader, normalised.
        leaves: of the same grader.
    """
    parts = list(types.parts(spec).values())
    return [_fields(part) for part in parts] if len(parts) == len(leaves) else [None] * len(leaves)


def _fields(part: Mapping[str, Any]) -> Fields:
    fields = set()
    for path in leaf_paths(part, ""):
        match path.namespace, path.steps:
            case "item", _:
                pass
            case "sample", ("output_json", str(key), *_):
                fields.add(key)
            case _:
                return None
    return frozenset(fields) or None


def field_ends(text: str) -> dict[str, int]:
    """Where the value of each key ends in the text of a JSON object; empty if it is not an object.

    A repeated key ends where its last value does.
    """
    try:
        if not isinstance(parse_json(text), dict):
            return {}
    except ValueError:
        return {}
    decoder, ends = json.JSONDecoder(), {}
    at = _behind(text, text.index("{") + 1, BLANK)
    while text[at] != "}":
        key, at = decoder.raw_decode(text, at)
        _, at = decoder.raw_decode(text, _behind(text, at, BLANK + ":"))
        ends[key] = at
        at = _behind(text, at, BLANK + ",")
    return ends


def _behind(text: str, at: int, some: str) -> int:
    """The first place from `at` on that has none of some characters."""
    while text[at] in some:
        at += 1
    return at


def token_advantages(
    engine: Engine,
    completions: Sequence[Completion],
    grades_G: Sequence[Grade],
    by_leaf: Sequence[Sequence[float | None]],
    read: Sequence[Fields],
) -> list[list[float]]:
    """The advantage of each token of a group's completions.

    An answer that was cut off, or is not scorable, has no fields: its advantages reach all of it.

    Args:
        engine: knows what its tokens say.
        completions: of the group, guided ones too.
        grades_G: of the completions.
        by_leaf: weighted advantages of each leaf, one for each completion.
        read: of each leaf, as `fields_read` gives them.
    """
    rows = []
    for g, (completion, grade) in enumerate(zip(completions, grades_G, strict=True)):
        is_whole = completion.stop_reason == "stop" and grade.outcome == "graded"
        ends = field_ends(completion.text) if is_whole else {}
        row = [0.0] * len(completion.tokens)
        for fields, advantages_G in zip(read, by_leaf, strict=True):
            advantage = advantages_G[g] or 0.0
            for t in range(_reach(engine, completion, fields, ends) if advantage else 0):
                row[t] += advantage
        rows.append(row)
    return rows


def _reach(engine: Engine, completion: Completion, fields: Fields, ends: Mapping[str, int]) -> int:
    """How many tokens the text up to the end of these fields takes."""
    if fields is None or not fields <= ends.keys():
        return len(completion.tokens)
    said = completion.text[: max(ends[key] for key in fields)]
    found = engine.tokens_until(completion.tokens, said)
    return len(completion.tokens) if found is None else found
