"""What a grader compared: every template of a spec, rendered for one answer and its row.

Shown beside the grade to people who write graders. Not here: grading (`engine`). Python and
endpoint graders have no templates; they get the whole sample and row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rftkit.graders import types
from rftkit.graders.engine import param_of
from rftkit.graders.outcome import Fault, Sample
from rftkit.graders.template import compile_template

__all__ = ["Rendered", "render_all"]


@dataclass(frozen=True, slots=True)
class Rendered:
    """One template, filled in."""

    key: str
    """The key of the sub-grader; empty for a grader that is not a multi."""
    field: str
    """`input`, `reference`, or `input[0]` for a message of a judge's prompt."""
    template: str
    text: str | None
    """The text; None if the template could not be filled in."""
    problem: str = ""
    """Why not."""


def render_all(spec: Mapping[str, Any], sample: Sample, item: Any) -> list[Rendered]:
    """Fill in every template of a normalised spec, in the order of the spec.

    Raises:
        GraderSpecError: a template is malformed.
    """
    return [
        _render(key, field, template, param_of(key), sample, item)
        for key, part in types.parts(spec).items()
        for field, template in _templates(part)
    ]


def _render(key: str, field: str, template: str, param: str, sample: Sample, item: Any) -> Rendered:
    render = compile_template(template, param=f"{param}.{field}".strip("."))
    try:
        return Rendered(key, field, template, render(sample, item))
    except Fault as fault:
        return Rendered(key, field, template, None, fault.details)


def _templates(part: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for field in ("input", "reference", "anchor"):
        value = part.get(field)
        if isinstance(value, str):
            yield field, value
        for place, message in enumerate(value if isinstance(value, list) else []):
            content = message["content"]
            parts = content if isinstance(content, list) else [content]
            texts = [each if isinstance(each, str) else each.get("text", "") for each in parts]
            yield f"{field}[{place}]", "\n".join(filter(None, texts))
