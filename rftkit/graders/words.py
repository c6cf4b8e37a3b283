"""A grader in one sentence, for the top of a report. Not here: its whole spec (`views.spec`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rftkit.graders.types import spec_type

__all__ = ["in_a_sentence"]

Spec = Mapping[str, Any]
MOST_PARTS = 6
"""Graders of a formula that are described one by one."""
_OPERATIONS = {
    "eq": "is exactly",
    "ne": "is not",
    "like": "contains",
    "ilike": "contains, in any case,",
}


def in_a_sentence(spec: Spec) -> str:
    """What a grader pays for, such as *The reward is 1 if the answer contains the row's `key`*."""
    if spec.get("type") != "multi":
        return f"The reward {_pays(spec)}."
    parts = spec.get("graders") or {}
    named = parts.items() if isinstance(parts, Mapping) else [(p.get("name"), p) for p in parts]
    said = [f"`{name}` {_pays(each)}" for name, each in list(named)[:MOST_PARTS]]
    more = len(parts) - len(said)
    said += [f"{more} more are in its formula"] if more > 0 else []
    return f"The reward is `{spec.get('calculate_output')}`: {'; '.join(said)}."


def _pays(spec: Spec) -> str:
    kind = spec_type(spec)
    fields = {name: _in_words(name, spec.get(name)) for name in kind.model_fields}
    return kind.pays.format(**fields | {"type": str(spec.get("type"))})


def _in_words(name: str, value: Any) -> str:
    if name in ("input", "reference"):
        return _named(value)
    if name == "operation":
        return _OPERATIONS.get(str(value), str(value))
    return str(value).replace("_", " ") if name == "evaluation_metric" else str(value)


def _named(template: Any) -> str:
    """`{{ item.category }}` as *the row's `category`*; any other template as it is."""
    found = re.fullmatch(r"\s*\{\{\s*(item|sample)\.([\w.]+)\s*\}\}\s*", str(template))
    if not found:
        return f"`{str(template)[:60]}`"
    if found[1] == "item":
        return f"the row's `{found[2]}`"
    if found[2] == "output_text":
        return "the answer"
    return f"the answer's `{found[2].removeprefix('output_json.')}`"
