"""The reference answer of a row, derived from the grader and the row.

Where a leaf compares one field of the sample with one field of the row, that field of the answer is
known; all of them together are an answer that should get the highest reward. Judges and python
graders reveal no such fields: then the row's own `reference_answer`, `reference` or `answer` is
used, or its values for the properties of the response format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rftkit.graders import types
from rftkit.graders.outcome import Fault
from rftkit.graders.template import Path, lone_path, look_up, paths
from rftkit.jsontext import as_text, parse_json

__all__ = ["REFERENCE_KEYS", "reference_answer", "right_answer"]

REFERENCE_KEYS = ("reference_answer", "reference", "answer")


def reference_answer(
    item: Mapping[str, Any],
    response_format: Mapping[str, Any] | None = None,
    *,
    grader: Mapping[str, Any] | None = None,
) -> str | None:
    """Return the answer that a model should give, in its form; None when it is unknown.

    Args:
        item: the row.
        response_format: the format of the answers; the row is searched for its properties.
        grader: the normalised spec (`validate`), to use what the grader compares.
    """
    properties = _properties(response_format)
    fields: dict[str, Any] = {}
    for path, value in _wanted(grader, item) if grader is not None else ():
        match path.steps:
            case ("output_text",) if value is not None:
                return as_text(value)
            case ("output_json", *keys) if keys and all(isinstance(key, str) for key in keys):
                _set(fields, [str(key) for key in keys], value)
    if fields:
        return as_text({key: item[key] for key in properties if key in item} | fields)
    for key in REFERENCE_KEYS:
        if item.get(key) is not None:  # a missing value is not the word "null"
            return as_text(item[key])
    if properties and all(key in item for key in properties):
        return as_text({key: item[key] for key in properties})
    return None


def right_answer(
    item: Mapping[str, Any],
    response_format: Mapping[str, Any] | None,
    grader: Mapping[str, Any],
) -> str | None:
    """Return the row's own answer; only without one, the answer that the grader looks for.

    A grader is tested on the row's own answer, because it always likes the one derived from it.
    If the grader reads JSON, an answer that is not JSON is not what a model would write.
    """
    own = reference_answer(item, response_format)
    wanted = reference_answer(item, response_format, grader=grader)
    return wanted if own is None or (_is_object(wanted) and not _is_object(own)) else own


def _is_object(text: str | None) -> bool:
    try:
        return text is not None and isinstance(parse_json(text), dict)
    except ValueError:
        return False


def _properties(response_format: Mapping[str, Any] | None) -> list[str]:
    schema = ((response_format or {}).get("json_schema") or {}).get("schema") or {}
    return list(schema.get("properties") or {})


def _wanted(spec: Mapping[str, Any], item: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """Yield (field of the sample, its right value)."""
    for leaf in types.parts(spec).values():
        if not types.spec_type(leaf).compares or leaf.get("operation") == "ne":
            continue
        for one, other in (("input", "reference"), ("reference", "input")):
            place = lone_path(leaf[one])
            if place and place.namespace == "sample":
                yield from ((place, value) for value in _value(leaf[other], item))


def _value(text: str, item: Mapping[str, Any]) -> Iterator[Any]:
    source = lone_path(text)
    if source and source.namespace == "item":
        try:
            yield look_up(source, None, item)
        except Fault:
            return
    elif not paths(text):
        yield text


def _set(fields: dict[str, Any], keys: list[str], value: Any) -> None:
    *folders, last = keys
    for key in folders:
        inner = fields.setdefault(key, {})
        if not isinstance(inner, dict):
            return
        fields = inner
    fields.setdefault(last, value)
