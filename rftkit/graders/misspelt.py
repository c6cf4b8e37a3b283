"""Fields that a grader's templates name and that cannot exist: a mistake in the grader, found
early.

A misspelt `sample.output_json.categry` makes every answer unscorable, as if the answers were wrong.
Where the keys of the rows and the fields of the answers are known, it is found before any grade.
Not here: malformed templates (`template`), and rows that lack a key which others have (`needs`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rftkit.errors import nearest_name
from rftkit.graders import types
from rftkit.graders.engine import param_of
from rftkit.graders.leaves import leaf_paths
from rftkit.graders.needs import template_paths
from rftkit.graders.template import Path

__all__ = ["Misspelt", "closed_fields", "format_problems", "misspelt"]


class Misspelt(NamedTuple):
    """A template that names what is not there."""

    part: str
    """Key of the sub-grader; empty for a grader that is not a multi."""
    field: str
    """Its field that holds the template, such as `input`."""
    param: str
    """The place of the field, as in GraderSpecError, such as `graders.a.input`."""
    message: str
    """`` `graders.a.input`: no key `categry` …; did you mean category? ``"""


def misspelt(
    spec: Mapping[str, Any],
    *,
    item_keys: Sequence[str] = (),
    answer_keys: Sequence[str] = (),
    items_are_known: bool = True,
    answers_are_known: bool = True,
) -> list[Misspelt]:
    """The templates of a normalised grader that name a key which no row or answer has.

    Args:
        spec: normalised (`validate`).
        item_keys: every key of the rows; empty when they are not known.
        answer_keys: every field of a JSON answer; empty when they are not known.
        items_are_known: False when rows may have other keys too: then only a name that is nearly
            one of `item_keys` counts as misspelt.
        answers_are_known: the same of `answer_keys`.
    """
    found = []
    for key, leaf in types.parts(spec).items():
        for name in types.spec_type(leaf).templates:
            for path in leaf_paths({**_without(leaf, name), name: leaf.get(name)}, ""):
                said = _in_items(path, item_keys) or _in_answers(path, answer_keys)
                is_known = items_are_known if path.namespace == "item" else answers_are_known
                if said and (is_known or "did you mean" in said):
                    where = f"{param_of(key)}.{name}".strip(".")
                    found.append(Misspelt(key, name, where, f"`{where}`: {said}"))
    return found


def closed_fields(response_format: Mapping[str, Any] | None) -> list[str] | None:
    """The only fields that answers under a response format can have; None when there are others."""
    schema = ((response_format or {}).get("json_schema") or {}).get("schema") or {}
    if schema.get("additionalProperties") is not False or not schema.get("properties"):
        return None
    return list(schema["properties"])


def format_problems(
    spec: Mapping[str, Any], response_format: Mapping[str, Any] | None
) -> list[str]:
    """Why answers under a response format cannot be scored by a normalised grader; else empty."""
    reads = any(
        path.namespace == "sample" and path.steps[:1] == ("output_json",)
        for path in template_paths(spec)
    )
    if reads and response_format is None:
        return [
            "the grader reads sample.output_json, which a job fills only under a response format"
        ]
    closed = closed_fields(response_format)
    return [each.message for each in misspelt(spec, answer_keys=closed or ())]


def _without(leaf: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A leaf whose other templates are empty, so that its paths are those of one field."""
    others = {each: None for each in types.spec_type(leaf).templates if each != name}
    return {**leaf, **others}


def _in_items(path: Path, keys: Sequence[str]) -> str | None:
    first = path.steps[0] if path.steps else None
    if path.namespace != "item" or not keys or first is None or first in keys:
        return None
    return f"no row has a key `{first}`; {nearest_name(str(first), keys)}"


def _in_answers(path: Path, keys: Sequence[str]) -> str | None:
    if path.namespace != "sample" or path.steps[:1] != ("output_json",) or not keys:
        return None
    field = path.steps[1] if len(path.steps) > 1 else None
    if not isinstance(field, str) or field in keys:
        return None
    return f"no answer has a field `{field}`; {nearest_name(field, keys)}"
