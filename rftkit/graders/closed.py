"""Answers that are one of a few values: which fields of an answer are closed, and their values.

A field is closed when the response format has an enum (or a boolean) there, or when the references
of the rows have few values there. Then it is possible to report that a model never gives one of the
values, or gives the same one to every row. Other fields are open: only their most common value is
useful. Not here: counting over the answers of a job (`server.training.metrics`) or an eval run.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rftkit.graders.outcome import Fault, Sample
from rftkit.graders.references import reference_answer
from rftkit.graders.template import Path, compile_template, lone_path, look_up, paths
from rftkit.graders.types import parts
from rftkit.jsontext import as_text, parse_json

__all__ = ["OTHER", "AnswerField", "Shares", "answer_fields", "is_label", "shares"]

Json = Mapping[str, Any]

MAX_VALUES = 12
"""A field with more values than this is open."""
ROWS_PER_VALUE = 2
"""Of a label each value is in at least as many rows, on average."""
MAX_FIELDS = 8
READ_ITEMS = 2000
"""Rows that are read to find the values of the references."""
SHOWN = 60
"""Longer values are cut off at this many characters."""
OTHER = "(other)"
"""Stands for every value outside the fixed set."""
SCALARS = {"string", "integer", "number", "boolean", "null"}


@dataclass(frozen=True, slots=True)
class AnswerField:
    """One field of an answer, such as `compliant` of a JSON answer, or the whole text."""

    name: str
    """Keys joined by dots; `answer` for the whole text."""
    grader: str | None
    """The name of the string_check that reads it; None if there is none."""
    values: tuple[str, ...]
    """The possible values; empty when the field is open."""
    read: Callable[[Sample], str]
    """Reads the field of an answer; raises Fault if the answer lacks it."""
    reference: Callable[[Json], str | None]
    """Reads the field of a row's reference; None if the row has none."""
    is_contained: bool = False
    """Whether the grader searches the value in the text (like, ilike)."""

    def value(self, sample: Sample) -> str | None:
        """Return the value of an answer, OTHER if it is not closed; None without the field."""
        if sample.truncated or (sample.expects_json and sample.output_json is None):
            return None
        try:
            found = self.read(sample)
        except Fault:
            return None
        return self._among(found)

    def wanted(self, item: Json) -> str | None:
        """Return the value of a row's reference."""
        found = self.reference(item)
        return None if found is None else self._among(found)

    def _among(self, found: str) -> str:
        if not self.values:
            return found[:SHOWN]
        if found in self.values:
            return found
        if self.is_contained:
            folded = found.casefold()
            held = [value for value in self.values if value.casefold() in folded]
            return max(held, key=len, default=OTHER)
        return OTHER


@dataclass(frozen=True, slots=True)
class Shares:
    """How often each value of a field occurs, in some answers and in references of rows."""

    samples: dict[str, float]
    """Value -> share of the answers: every closed value, and OTHER if it occurs."""
    references: dict[str, float]
    """Value -> share of the rows with a reference; empty when there are none."""
    num_samples: int
    """Answers that have the field."""
    num_references: int


def shares(field: AnswerField, samples: Iterable[Sample], items: Iterable[Json]) -> Shares:
    """Count a field over answers, and over their rows (each row once)."""
    said = Counter(value for each in samples if (value := field.value(each)) is not None)
    wanted = Counter(value for each in items if (value := field.wanted(each)) is not None)
    return Shares(_share(field, said), _share(field, wanted), said.total(), wanted.total())


def is_label(counts: Counter[str]) -> bool:
    """Whether the values of one key, counted over rows, are few enough for a label."""
    return 1 < len(counts) <= min(MAX_VALUES, counts.total() // ROWS_PER_VALUE)


def answer_fields(
    spec: Json | None, response_format: Json | None, items: Sequence[Json]
) -> list[AnswerField]:
    """Return the fields of an answer that are worth counting, those that a grader compares first.

    Args:
        spec: the grader, normalised (`validate`); None when it is not known.
        response_format: what constrains the answers.
        items: rows, whose references give the possible values.
    """
    some = items[:: max(1, -(-len(items) // READ_ITEMS))]
    found: dict[str, AnswerField] = {}
    for field in (*_checked(spec), *_of_schema(response_format, spec)):
        known = found.get(field.name)
        if known is None:
            found[field.name] = field
        elif not known.values:  # read it as the grader does, with the values of the format
            found[field.name] = replace(known, values=field.values)
    if not found:
        found["answer"] = _whole_text(spec, response_format)
    closed = [each if each.values else _closed_by(each, some) for each in found.values()]
    return sorted(closed, key=lambda each: not each.values)[:MAX_FIELDS]


def _share(field: AnswerField, counts: Counter[str]) -> dict[str, float]:
    if not counts:
        return {}
    total = counts.total()
    if field.values:
        named = {value: counts[value] / total for value in field.values}
        return named | ({OTHER: counts[OTHER] / total} if counts[OTHER] else {})
    value, often = min(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return {value: often / total}


def _checked(spec: Json | None) -> Iterator[AnswerField]:
    """The fields that a string_check compares with the row."""
    leaves = [] if spec is None else list(parts(spec).values())
    for leaf in leaves:
        if leaf["type"] != "string_check" or leaf["operation"] == "ne":
            continue
        is_contained = leaf["operation"] in ("like", "ilike")
        sides = [("input", "reference")] + ([] if is_contained else [("reference", "input")])
        for answer, row in sides:
            if _reads_only("sample", leaf[answer]) and _reads_only("item", leaf[row]):
                path = lone_path(leaf[answer])
                yield AnswerField(
                    _name(path) if path else leaf["name"],
                    leaf["name"],
                    (),
                    functools.partial(_rendered, compile_template(leaf[answer])),
                    functools.partial(_rendered_row, compile_template(leaf[row])),
                    is_contained,
                )


def _of_schema(response_format: Json | None, spec: Json | None) -> Iterator[AnswerField]:
    schema = ((response_format or {}).get("json_schema") or {}).get("schema")
    if not isinstance(schema, Mapping):
        return
    for keys, values in _scalars(schema, schema, ()):
        path = Path("sample", ("output_json", *keys))
        yield AnswerField(
            ".".join(keys),
            None,
            values,
            functools.partial(_at, path),
            functools.partial(_reference_at, keys, response_format, spec),
        )


def _scalars(
    schema: Json, root: Json, keys: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Yield the keys of each field with one value, and its possible values."""
    if len(keys) > 3:
        return
    for name, given in (schema.get("properties") or {}).items():
        inner = _resolved(given, root)
        kind = inner.get("type")
        if isinstance(inner.get("enum"), list):
            values = tuple(map(as_text, inner["enum"]))
            yield (*keys, name), values if 1 < len(values) <= MAX_VALUES else ()
        elif kind == "boolean":
            yield (*keys, name), ("true", "false")
        elif kind == "object":
            yield from _scalars(inner, root, (*keys, name))
        elif kind in SCALARS or isinstance(kind, list):
            yield (*keys, name), ()


def _resolved(given: Any, root: Json) -> Json:
    """Resolve a schema with a `$ref`, or an `allOf` of one schema; return others unchanged."""
    for _ in range(8):
        if not isinstance(given, Mapping):
            return {}
        if isinstance(given.get("$ref"), str):
            target: Any = root
            for step in given["$ref"].removeprefix("#/").split("/"):
                target = target.get(step) if isinstance(target, Mapping) else None
            given = target
        elif isinstance(given.get("allOf"), list) and len(given["allOf"]) == 1:
            given = given["allOf"][0]
        else:
            return given
    return {}


def _whole_text(spec: Json | None, response_format: Json | None) -> AnswerField:
    return AnswerField(
        "answer",
        None,
        (),
        lambda sample: sample.output_text.strip(),
        lambda item: reference_answer(item, response_format, grader=spec),
    )


def _closed_by(field: AnswerField, items: Sequence[Json]) -> AnswerField:
    """Close the field with the values of the references if they are few and each is common."""
    counts = Counter(value for item in items if (value := field.reference(item)) is not None)
    if not (1 < len(counts) <= MAX_VALUES and 2 * len(counts) <= counts.total()):
        return field
    ordered = sorted(counts, key=lambda value: (-counts[value], value))
    return replace(field, values=tuple(ordered))


def _rendered(render: Callable[[Sample, Any], str], sample: Sample) -> str:
    return render(sample, {})


def _rendered_row(render: Callable[[Sample, Any], str], item: Json) -> str | None:
    try:
        return render(Sample(""), item)
    except Fault:
        return None


def _at(path: Path, sample: Sample) -> str:
    return as_text(look_up(path, sample, {}))


def _reference_at(
    keys: tuple[str, ...], response_format: Json | None, spec: Json | None, item: Json
) -> str | None:
    text = reference_answer(item, response_format)
    if text is None:
        text = reference_answer(item, response_format, grader=spec)
    try:
        value: Any = parse_json(text) if text is not None else None
        for key in keys:
            value = value[key]
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return None if value is None else as_text(value)


def _reads_only(namespace: str, template: str) -> bool:
    found = paths(template)
    return bool(found) and all(path.namespace == namespace for path in found)


def _name(path: Path) -> str:
    keys = path.steps[1:] if path.steps[:1] == ("output_json",) else ()
    return ".".join(map(str, keys)) or "answer"
