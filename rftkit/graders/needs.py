"""What a grader needs: a spec that can be compiled, and rows that have what its templates name."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from rftkit.errors import RowError
from rftkit.graders import types
from rftkit.graders.engine import compile_grader, param_of
from rftkit.graders.leaves import leaf_paths
from rftkit.graders.outcome import Fault
from rftkit.graders.parse import parse
from rftkit.graders.rubric import criteria_of
from rftkit.graders.template import Path, lone_path, look_up
from rftkit.graders.types import Purpose

__all__ = ["check_item_paths", "reads_sample", "template_paths", "validate", "variables"]


def validate(
    spec: Mapping[str, Any], *, purpose: Purpose = "rft", groups: bool | None = None
) -> dict[str, Any]:
    """Check everything that can be checked without grading; return the normalised spec.

    Args:
        spec: a grader in the wire's form.
        purpose: what it is for.
        groups: whether whole groups are graded, so that a relative grader needs no anchor; default:
            only in training.

    Raises:
        GraderSpecError: `param` names the field.
    """
    # no process starts before the first grade, so it does not matter whether one could be isolated
    groups = purpose == "rft" if groups is None else groups
    with compile_grader(spec, purpose=purpose, unconfined=True, groups=groups) as grader:
        return grader.spec


def variables(spec: Mapping[str, Any]) -> list[str]:
    """The template paths a grader needs, such as `item.answer`; python graders name none.

    Raises:
        GraderSpecError: when the spec or a template is malformed.
    """
    return list(dict.fromkeys(map(str, template_paths(spec))))


def reads_sample(spec: Mapping[str, Any]) -> bool:
    """Whether a grader may read the sample: its templates do, or it is code that gets one.

    Raises:
        GraderSpecError: when the spec or a template is malformed.
    """
    if any(types.spec_type(part).gets for part in types.parts(spec).values()):
        return True
    return any(path.namespace == "sample" for path in template_paths(spec))


def check_item_paths(spec: Mapping[str, Any], item: Any) -> None:
    """Check that a row has every `item` path that the grader's templates name.

    Raises:
        RowError: names the path and the keys that the row has there.
        GraderSpecError: when the spec itself is malformed.
    """
    for path in template_paths(spec):
        if path.namespace == "item":
            try:
                look_up(path, None, item)
            except Fault as fault:
                raise RowError(f"the grader needs {fault.details}", param=str(path)) from None
    for part in types.parts(spec).values():
        if part["type"] == "rubric":
            try:
                criteria_of(part, item)
            except Fault as fault:
                raise RowError(fault.details, param=str(lone_path(part["criteria"]))) from None


def template_paths(spec: Mapping[str, Any]) -> tuple[Path, ...]:
    """The template paths of all parts of a grader, in order of appearance."""
    return _paths_of(json.dumps(spec, default=repr))


@functools.lru_cache(maxsize=16)
def _paths_of(text: str) -> tuple[Path, ...]:
    """Cached by the text of the spec, because it is called for every row of a dataset."""
    parts = types.parts(parse(json.loads(text), purpose="eval"))
    return tuple(path for key, part in parts.items() for path in leaf_paths(part, param_of(key)))
