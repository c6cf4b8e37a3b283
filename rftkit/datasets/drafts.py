"""A first grader and a first response format for rows, to be changed by whoever knows the task.

The grader compares the answer with the right answers in the rows, key by key: short values that
repeat must be equal, other texts similar. The response format asks for the fields that a grader
reads of `sample.output_json`, with the values that the rows have there. Both are guesses from some
rows: a value that none of these rows has is not in the enum. Not here: whether they fit (`check`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rftkit.datasets.columns import is_blank
from rftkit.datasets.proposals import guess_columns, is_identifier
from rftkit.graders import types
from rftkit.graders.needs import template_paths
from rftkit.graders.references import REFERENCE_KEYS
from rftkit.graders.template import Path, lone_path
from rftkit.jsontext import parse_json

__all__ = ["draft_format", "draft_grader", "right_keys"]

MAX_VALUES = 12
"""A column with more different values than this counts as free text."""
MAX_CHARS = 40
MAX_KEYS = 6
"""Sub-graders of a first grader."""

Json = dict[str, Any]
Item = Mapping[str, Any]


def draft_grader(items: Sequence[Item], response_format: Item | None = None) -> Json:
    """A grader that compares answers with the keys of the rows that have the right answer.

    Args:
        items: Some rows, or records of a table that are no rows yet.
        response_format: Its properties are what an answer has.
    """
    keys, whole = right_keys(items, response_format)
    if whole:
        place = Path("sample", ("output_text",))
        return _leaf(place, keys[0] if keys else "reference_answer", items)
    leaves = {_name(key): _leaf(Path("sample", ("output_json", key)), key, items) for key in keys}
    if len(leaves) == 1:
        [(name, leaf)] = leaves.items()
        return {"type": leaf.pop("type"), "name": name, **leaf}
    named = {name: {"type": leaf["type"], "name": name, **leaf} for name, leaf in leaves.items()}
    formula = f"({' + '.join(named)}) / {len(named)}"
    return {"type": "multi", "name": "answer", "graders": named, "calculate_output": formula}


def draft_format(spec: Item, items: Sequence[Item]) -> Json | None:
    """A response format with every field that a grader reads; None when it reads no JSON."""
    compared = dict(_compared(spec))
    read = [path.steps for path in template_paths(spec) if path.namespace == "sample"]
    named = (str(steps[1]) for steps in read if steps[0] == "output_json" and len(steps) > 1)
    fields = list(dict.fromkeys(named))
    if not fields:
        return None
    properties = {field: _schema(field, compared.get(field, field), items) for field in fields}
    schema = {
        "type": "object",
        "additionalProperties": False,
        "required": fields,
        "properties": properties,
    }
    inner = {"name": "answer", "strict": True, "schema": schema}
    return {"type": "json_schema", "json_schema": inner}


def right_keys(items: Sequence[Item], response_format: Item | None) -> tuple[list[str], bool]:
    """The keys with the right answer, and whether the answer is the text of one of them."""
    known = list(dict.fromkeys(key for item in items for key in item if isinstance(key, str)))
    schema = ((response_format or {}).get("json_schema") or {}).get("schema") or {}
    if shared := [key for key in schema.get("properties") or {} if key in known]:
        return shared[:MAX_KEYS], False
    if inner := [key for key in _inner_keys(items) if key in known]:
        return inner[:MAX_KEYS], False
    if own := next((key for key in REFERENCE_KEYS if key in known), None):
        return [own], True
    if not any(item.get("messages") for item in items) and (guess := guess_columns(items)):
        return list(guess.answer)[:MAX_KEYS], not guess.answer
    rest = [k for k in known if k not in ("messages", "tools") and not is_identifier(k)]
    scalar = [k for k in rest if all(not isinstance(i.get(k), dict | list) for i in items)]
    closed = [key for key in scalar if _values(key, items)]
    found = (closed or scalar)[:MAX_KEYS]
    return (found, not found) if closed else (found[:1], True)


def _inner_keys(items: Sequence[Item]) -> list[str]:
    """Keys of the reference answers, where these are JSON objects."""
    found: dict[str, None] = {}
    for item in items:
        try:
            value = parse_json(item.get("reference_answer") or "")
        except (TypeError, ValueError):
            return []
        if not isinstance(value, dict):
            return []
        found |= dict.fromkeys(value)
    return list(found)


def _leaf(place: Path, key: str, items: Sequence[Item]) -> Json:
    pair = {"input": f"{{{{{place}}}}}", "reference": f"{{{{{Path('item', (key,))}}}}}"}
    texts = [item[key] for item in items if isinstance(item.get(key), str)]
    if texts and not _values(key, items) and any(len(text.split()) > 2 for text in texts):
        return {"type": "text_similarity", "evaluation_metric": "fuzzy_match", **pair}
    return {"type": "string_check", "operation": "eq", **pair}


def _values(key: str, items: Sequence[Item]) -> list[str]:
    """The values of a closed key, in order of appearance; empty for free text and numbers."""
    found = [item[key] for item in items if not is_blank(item.get(key))]
    if not found or not all(isinstance(each, str) and _is_label(each) for each in found):
        return []
    values = list(dict.fromkeys(found))
    return values if len(values) <= MAX_VALUES and 2 * len(values) <= len(found) else []


def _is_label(value: str) -> bool:
    """Whether a value could be one of a few: short, and with letters, unlike dates and amounts."""
    return len(value) <= MAX_CHARS and re.search(r"[^\W\d_]", value) is not None


def _schema(field: str, key: str, items: Sequence[Item]) -> Json:
    if values := _values(key, items):
        return {"type": "string", "enum": values}
    kinds = {type(item[key]) for item in items if item.get(key) is not None}
    for kind, name in ((bool, "boolean"), (int, "integer"), (list, "array"), (dict, "object")):
        if kinds == {kind}:
            return {"type": name}
    return {"type": "number" if kinds and kinds <= {int, float} else "string"}


def _compared(spec: Item) -> Iterator[tuple[str, str]]:
    """(field of the answer, key of the row) that a leaf compares."""
    for leaf in types.parts(spec).values():
        if isinstance(leaf.get("input"), str) and isinstance(leaf.get("reference"), str):
            sides = [lone_path(leaf[name]) for name in ("input", "reference")]
            for one, other in (sides, sides[::-1]):
                match (one, other):
                    case (Path("sample", ("output_json", field)), Path("item", (key,))):
                        yield str(field), str(key)


def _name(key: str) -> str:
    name = re.sub(r"\W+", "_", key).strip("_") or "answer"
    return f"key_{name}" if name[0].isdigit() else name
