"""The parameters of a report notebook: its tagged cell, read and checked before anything runs.

The cell is parsed and never executed. Its assignments are the parameters. Values are checked
against the annotations, or else against the types of plain defaults. Not here: running it.
"""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional, Union

from rftkit.errors import ReportError
from rftkit.jsontext import parse_json
from rftkit.strictjson import flaw_in

__all__ = ["Parameter", "checked", "declared", "default_files", "from_text"]

TAG = "parameters"
_TYPES: dict[str, Any] = {
    each.__name__: each for each in (str, int, float, bool, list, dict, tuple)
} | {"Any": Any, "Literal": Literal, "Optional": Optional, "Union": Union}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One assignment of the tagged cell."""

    name: str
    kind: Any
    """The type that a value must have; `typing.Any` if the cell does not state it."""
    annotation: str
    """The annotation of the type as written in the cell."""
    default: str
    """Source text of the default."""


def declared(notebook: Any, name: str) -> dict[str, Parameter]:
    """The parameters of a notebook, by name.

    Args:
        notebook: as nbformat reads it.
        name: of its file, for messages.

    Raises:
        ReportError: no cell has the tag, or the tagged cell is not plain Python.
    """
    tagged = (cell for cell in notebook.cells if TAG in cell.metadata.get("tags", []))
    if (cell := next(tagged, None)) is None:
        raise ReportError(
            f"{name} has no cell tagged 'parameters', so it cannot take any; in "
            "JupyterLab: select the cell that assigns them, open Property Inspector, add the tag"
        )
    try:
        body = ast.parse(cell.source).body
    except SyntaxError as error:
        raise ReportError(
            f"{name}: the cell tagged 'parameters' must be plain assignments, such as "
            f"`seed: int = 1  # what it does`; line {error.lineno} is not Python: {error.msg}"
        ) from error
    found = (_parameter(line) for line in body)
    return {each.name: each for each in found if each}


def default_files(known: Mapping[str, Parameter]) -> dict[str, str]:
    """The defaults that are paths of files or folders, by the name of their parameter."""
    found = {}
    for each in known.values():
        with contextlib.suppress(ValueError, TypeError, SyntaxError, OSError, RuntimeError):
            value = ast.literal_eval(each.default)
            if isinstance(value, str) and value and Path(value).expanduser().exists():
                found[each.name] = value
    return found


def checked(known: Mapping[str, Parameter], values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The values as papermill takes them.

    Raises:
        ReportError: one is unknown or has the wrong type.
    """
    return {key: _fitting(_known(known, key, name), value, name) for key, value in values.items()}


def from_text(
    known: Mapping[str, Parameter], pairs: Iterable[tuple[str, str]], name: str
) -> dict[str, Any]:
    """Parse values from the command line by their parameter's type: text as it is, others as JSON.

    Raises:
        ReportError: a name is unknown, or its value cannot be read as that.
    """
    values = {}
    for key, words in pairs:
        parameter = _known(known, key, name)
        values[key] = _fitting(parameter, _read(parameter, words), name)
    return values


def _parameter(line: ast.stmt) -> Parameter | None:
    if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value:
        annotation, default = ast.unparse(line.annotation), ast.unparse(line.value)
        return Parameter(line.target.id, _kind(annotation), annotation, default)
    if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
        kind = _kind_of_default(line.value)
        annotation = getattr(kind, "__name__", "anything")
        return Parameter(line.targets[0].id, kind, annotation, ast.unparse(line.value))
    return None


def _kind(annotation: str) -> Any:
    try:
        return _type(ast.parse(annotation, mode="eval").body)
    except Exception:  # a type that the notebook defines itself
        return Any


def _type(node: ast.expr) -> Any:
    """The type that an annotation names: read, never evaluated.

    Raises:
        Exception: The type is not known here.
    """
    match node:
        case ast.Name(id=name):
            return _TYPES[name]
        case ast.Constant(value=None):
            return None
        case ast.Constant(value=str(text)):
            return _type(ast.parse(text, mode="eval").body)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union.__getitem__((_type(left), _type(right)))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            found = ast.literal_eval(inner)
            return Literal[found]
        case ast.Subscript(value=outer, slice=ast.Tuple(elts=parts)):
            return _type(outer)[tuple(map(_type, parts))]
        case ast.Subscript(value=outer, slice=inner):
            return _type(outer)[_type(inner)]
        case ast.Constant(value=value) if value is ...:
            return ...
    raise TypeError(ast.unparse(node))


def _kind_of_default(value: ast.expr) -> Any:
    try:
        kind = type(ast.literal_eval(value))
    except ValueError:
        return Any
    return kind if kind in (str, int, float, bool, list, dict) else Any


def _known(known: Mapping[str, Parameter], key: str, name: str) -> Parameter:
    if key not in known:
        takes = ", ".join(known) or "none"
        raise ReportError(f"{name} has no parameter {key!r}; it takes: {takes}")
    return known[key]


def _fitting(parameter: Parameter, value: Any, name: str) -> Any:
    value = str(value) if isinstance(value, Path) else value
    value = _plain(value)
    if not _fits(parameter.kind, value):
        raise ReportError(
            f"{name}: parameter {parameter.name!r} must be {parameter.annotation}, found "
            f"{type(value).__name__} {value!r}"
        )
    return value


def _plain(value: Any) -> Any:
    """A value with lists in place of tuples and arrays at any depth, and plain numbers for numpy's,
    so that a notebook can hold it.
    """
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _fits(kind: Any, value: Any) -> bool:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    adapter = TypeAdapter(kind, config=ConfigDict(strict=True))
    try:
        adapter.validate_python(value)
    except ValidationError:
        return _fits_as_json(adapter, value)
    return True


def _fits_as_json(adapter: Any, value: Any) -> bool:
    """Whether a list fits an annotated tuple, since notebooks get lists for both."""
    try:
        adapter.validate_json(json.dumps(value))
    except (TypeError, ValueError):
        return False
    return isinstance(value, list | dict)


def _read(parameter: Parameter, words: str) -> Any:
    if parameter.kind is not Any and _fits(parameter.kind, words):
        return words
    try:
        value = parse_json(words.lower() if words in ("True", "False") else words)
    except ValueError:
        return words
    if isinstance(value, dict | list) and (flaw := flaw_in(words)):
        raise ReportError(f"parameter {parameter.name!r} cannot be used as JSON: {flaw[1]}")
    return value
