"""A Python function as a tool: its definition from types and docstring, and a call of it.

The schema is pydantic's of the parameters; the text of the docstring describes the function, and
its `Args:` section (Google's style) the parameters. Not here: HTTP (`serving`).
"""

from __future__ import annotations

import asyncio
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any

from rftkit.errors import InputError
from rftkit.examples import FUNCTION_NAME
from rftkit.jsontext import as_text
from rftkit.tools.values import Json

__all__ = ["Function", "ToolError"]

STATE = "state"
SECTION = re.compile(r"^\s*(Args|Arguments|Parameters|Returns|Raises|Yields|Example[s]?):\s*$")
PARAMETER = re.compile(r"^\s+(\w+)(?:\s*\([^)]*\))?:\s*(.*)$")


class ToolError(Exception):
    """What a function raises to answer the model with an error, such as `no such page`.

    Any other exception means that the tool is broken: the rollout fails.
    """


class Function:
    """A function that a model can call."""

    def __init__(self, function: Callable[..., Any], *, has_state: bool = False) -> None:
        """Inspect the function; with `has_state`, its parameter `state` is not shown to the model.

        Raises:
            InputError: the function has no name, a parameter without a type, or `*args`.
        """
        self.name = getattr(function, "__name__", "")
        if not FUNCTION_NAME.fullmatch(self.name):
            raise InputError(
                f"{function!r} has no name of letters, digits and _; define it with `def`"
            )
        self._function = function
        parameters = dict(inspect.signature(function).parameters)
        self.takes_state = has_state and parameters.pop(STATE, None) is not None
        self._model = _model(self.name, function, parameters)
        self.definition = self._definition()

    def call(self, arguments: Mapping[str, Any], state: Any = None) -> str:
        """Call it and return the text of its result; anything but text becomes JSON.

        Raises:
            ToolError: the arguments do not fit; or from the function.
        """
        from pydantic import ValidationError

        try:
            checked = self._model.model_validate(dict(arguments))
        except ValidationError as error:
            raise ToolError(_first(error)) from None
        given = {name: getattr(checked, f"p_{name}") for name in self._names}
        if self.takes_state:
            given[STATE] = state
        result = self._function(**given)
        if inspect.isawaitable(result):
            result = asyncio.run(_awaited(result))
        return as_text(result)

    @property
    def _names(self) -> list[str]:
        return [str(field.alias) for field in self._model.model_fields.values()]

    def _definition(self) -> Json:
        about, parameters = _described(inspect.getdoc(self._function) or "")
        schema = _plain(self._model.model_json_schema())
        for name, text in parameters.items():
            if name in schema.get("properties", {}):
                schema["properties"][name].setdefault("description", text)
        schema.setdefault("properties", {})
        function: Json = {"name": self.name, "parameters": schema}
        if about:
            function["description"] = about
        return {"type": "function", "function": function}


def _model(name: str, function: Any, parameters: Mapping[str, inspect.Parameter]) -> Any:
    from pydantic import ConfigDict, Field, create_model

    try:
        kinds = typing.get_type_hints(function, include_extras=True)
    except Exception as error:
        raise InputError(f"the types of {name} cannot be read: {error}") from None
    fields: dict[str, Any] = {}
    for each in parameters.values():
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD, each.POSITIONAL_ONLY):
            raise InputError(f"{name} takes {each}; a model gives named arguments only")
        if each.name not in kinds:
            raise InputError(f"the parameter {each.name} of {name} has no type; write {each}: str")
        default = ... if each.default is each.empty else each.default
        fields[f"p_{each.name}"] = (kinds[each.name], Field(default, alias=each.name))
    try:
        model = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
        model.model_json_schema()
    except Exception as error:
        raise InputError(
            f"the parameters of {name} have a type that is not JSON: {str(error).splitlines()[0]}"
        ) from None
    return model


def _described(text: str) -> tuple[str, dict[str, str]]:
    """The descriptions in a docstring: of the function, and of its parameters."""
    about: list[str] = []
    parameters: dict[str, str] = {}
    section, last = "", ""
    for line in text.splitlines():
        if found := SECTION.match(line):
            section, last = found[1], ""
        elif not section:
            about.append(line)
        elif section in ("Args", "Arguments", "Parameters"):
            if found := PARAMETER.match(line):
                last = found[1]
                parameters[last] = found[2].strip()
            elif last and line.strip():
                parameters[last] += f" {line.strip()}"
    return " ".join(" ".join(about).split()), parameters


def _plain(schema: Any) -> Any:
    """The schema without the titles that pydantic adds."""
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _plain(part) for name, part in value.items()}
        if key in ("properties", "$defs")
        else _plain(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
    }


def _first(error: Any) -> str:
    found = error.errors(include_url=False)[0]
    where = ".".join(str(each) for each in found["loc"])
    return f"Error: the argument {where}: {found['msg']}."


async def _awaited(result: Any) -> Any:
    return await result
