"""`{{ item.a.b[0] }}` and `{{ sample.output_json.x }}`: parse, list the paths, render.

There are two namespaces, paths into them, and nothing else: no filters, no expressions, no logic.
Text is substituted as it is; everything else as JSON (`null`, `true`, `[1, 2]`). An opening `{{`
without `}}` is plain text. As in Jinja, `{{ "{{" }}` writes literal braces: quoted text that holds
`{{` or `}}` is copied. A missing `item` path is the grader's failure; a missing path below
`sample.output_json` makes the sample unscorable, because the model chose those keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rftkit.errors import GraderSpecError
from rftkit.graders.outcome import Fault, Sample
from rftkit.wording import counted, cut

__all__ = [
    "SAMPLE_VARIABLES",
    "Path",
    "Render",
    "compile_template",
    "lone_path",
    "look_up",
    "paths",
    "plain_value",
]

Render = Callable[[Sample, Any], str]

SAMPLE_VARIABLES = ("output_text", "output_json", "output_tools", "choices", "model")

_NAME = re.compile(r"\.([^\s.\[\]{}]+)")
_QUOTED = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)')\s*\}\}""")
"""Text that can follow the opening `{{` if the slot is quoted and not meant as a template."""
_INDEX = re.compile(r"\[(?:(\d{1,9})|'([^']*)'|\"([^\"]*)\")\]")


@dataclass(frozen=True, slots=True)
class Path:
    """A place in `item` or `sample`."""

    namespace: str
    """`item` or `sample`."""
    steps: tuple[str | int, ...]
    """Keys and list indices below it."""

    def __str__(self) -> str:
        return self.namespace + "".join(map(_spell, self.steps))


def paths(text: str, *, param: str | None = None) -> list[Path]:
    """Return the paths of a template, in order of appearance.

    Raises:
        GraderSpecError: when a slot is not a path into `item` or `sample`.
    """
    return [_parse(slot, param) for slot in _split(text)[1]]


def lone_path(text: str) -> Path | None:
    """The path of a template that is one slot and nothing else."""
    literals, slots = _split(text.strip())
    return _parse(slots[0], None) if literals == ["", ""] else None


def compile_template(text: str, *, param: str | None = None) -> Render:
    """Turn a template into a function of (sample, item).

    Raises:
        GraderSpecError: when a slot is not a path into `item` or `sample`.
    """
    literals, slots = _split(text)
    getters = [_getter(_parse(slot, param)) for slot in slots]
    if not getters:
        return lambda sample, item: literals[0]
    if len(getters) == 1 and literals == ["", ""]:
        only = getters[0]

        def whole(sample: Sample, item: Any) -> str:
            value = only(sample, item)
            return value if type(value) is str else _to_text(value)

        return whole

    def render(sample: Sample, item: Any) -> str:
        out = [literals[0]]
        for get, literal in zip(getters, literals[1:], strict=True):
            value = get(sample, item)
            out += (value if type(value) is str else _to_text(value), literal)
        return "".join(out)

    return render


def _split(text: str) -> tuple[list[str], list[str]]:
    """The plain texts of a template and the slots between them, in time linear in its length."""
    literals, slots, pending, end = [], [], list[str](), 0
    while (start := text.find("{{", end)) >= 0 and (close := text.find("}}", start + 2)) >= 0:
        pending.append(text[end:start])
        quoted = _QUOTED.match(text, start + 2)
        braces = (quoted[1] or quoted[2] or "") if quoted else ""
        if quoted and ("{{" in braces or "}}" in braces):
            pending.append(braces)
            end = quoted.end()
        else:
            literals.append("".join(pending))
            slots.append(text[start + 2 : close])
            pending, end = [], close + 2
    return [*literals, "".join([*pending, text[end:]])], slots


def look_up(path: Path, sample: Sample | None, item: Any) -> Any:
    """Follow a path step by step.

    Raises:
        Fault: `invalid_variable_error`, or `sample_parse_error` when the answer is not JSON.
    """
    value, done = _root(path, sample, item), path.namespace
    for step in path.steps:
        value = _descend(value, step, done, path)
        done += _spell(step)
        if done == "sample.output_json" and value is None:
            raise Fault("sample_parse_error", "the answer is not JSON", unscorable=True)
    return value


def _parse(slot: str, param: str | None) -> Path:
    text = slot.strip()
    namespace = next(re.finditer(r"\w*", text))[0]
    steps: list[str | int] = []
    position = len(namespace)
    while match := _NAME.match(text, position) or _INDEX.match(text, position):
        if match.re is _NAME:
            steps.append(match[1])
        else:
            number = match[1]
            steps.append(int(number) if number is not None else match[2] or match[3] or "")
        position = match.end()
    if namespace not in ("item", "sample") or position != len(text):
        raise GraderSpecError(
            f"`{param or 'template'}`: {{{{{cut(slot, 60)}}}}} is not a path; write "
            f"{{{{item.key}}}} or {{{{sample.output_text}}}}, with .key and [0] to go deeper, "
            'or {{ "{{" }} for literal braces',
            param=param,
        )
    if namespace == "sample" and steps and steps[0] not in SAMPLE_VARIABLES:
        raise GraderSpecError(
            f"`{param or 'template'}`: the sample has no {steps[0]!r}; it has "
            f"{', '.join(SAMPLE_VARIABLES)}",
            param=param,
        )
    return Path(namespace, tuple(steps))


def _getter(path: Path) -> Callable[[Sample, Any], Any]:
    """Return a fast getter for the common paths; `look_up` handles a missing one."""
    steps = path.steps
    if path.namespace == "sample" and steps == ("output_text",):
        return lambda sample, item: sample.output_text
    if len(steps) == 1 and path.namespace == "item":
        key = steps[0]

        def top(sample: Sample, item: Any) -> Any:
            if type(item) is dict and key in item:
                return item[key]
            return look_up(path, sample, item)

        return top
    if path.namespace == "sample" and len(steps) == 2 and steps[0] == "output_json":
        field = steps[1]

        def answer(sample: Sample, item: Any) -> Any:
            found = sample.output_json
            if type(found) is dict and field in found:
                return found[field]
            return look_up(path, sample, item)

        return answer
    return lambda sample, item: look_up(path, sample, item)


def _root(path: Path, sample: Sample | None, item: Any) -> Any:
    if path.namespace == "item":
        return item
    return sample.to_dict() if sample is not None else {}


def _descend(value: Any, step: str | int, done: str, path: Path) -> Any:
    if isinstance(step, int):
        if isinstance(value, list | tuple):
            if step < len(value):
                return value[step]
            found = f"`{cut(done, 200)}` has {counted(len(value), 'element')}"
        else:
            found = f"`{cut(done, 200)}` is {_kind(value)}, not a list"
    elif isinstance(value, dict):
        if step in value:
            return value[step]
        if done == "sample":
            raise Fault("invalid_variable_error", f"the sample does not say its `{step}`")
        keys = ", ".join(repr(key)[1:-1] for key in list(value)[:20]) or "none"
        found = f"`{cut(done, 200)}` has the keys: {cut(keys, 400)}"
    else:
        found = f"`{cut(done, 200)}` is {_kind(value)}, not an object"
    raise Fault(
        "invalid_variable_error",
        f"`{cut(str(path), 200)}` is missing: {found}",
        unscorable=done.startswith("sample."),
    )


def plain_value(value: Any) -> Any:
    """Convert values to JSON: numpy and pandas values, decimals, dates; missing becomes null."""
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, Decimal):
        return float(value)
    for name in ("tolist", "isoformat"):  # numpy arrays and scalars; dates
        if hasattr(value, name):
            return getattr(value, name)()
    raise TypeError(f"a value of type {type(value).__name__} cannot be written as JSON")


def _to_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=plain_value)
    except (TypeError, ValueError, RecursionError) as error:
        raise Fault("invalid_variable_error", f"cannot be written as JSON: {error}") from None


def _spell(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if _NAME.fullmatch("." + step) else f"[{step!r}]"


def _kind(value: Any) -> str:
    names = {str: "text", bool: "a boolean", type(None): "null", dict: "an object"}
    return names.get(type(value), "a list" if isinstance(value, list | tuple) else "a number")
