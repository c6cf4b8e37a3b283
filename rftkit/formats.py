"""A response format's schema with its objects closed, so that an answer cannot run on forever.

In JSON Schema an object may have other keys than those it lists, unless it says
`additionalProperties: false`. A small model uses that freedom until its answer is cut. OpenAI asks
for the keyword where a format is `strict`, and elsewhere its models do without other keys. Here
chats, responses and evals close the objects of any format. A job follows the format as it is, since
its reference answers may have other keys, and says so. Not here: what else a format must be
(`server.inference.body`), and constrained decoding (`server.engine`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["CLOSE", "OPEN", "closed_format", "closed_schema", "open_objects"]

OPEN = (
    "answers may have other fields than those it lists, and a small model may add them until its "
    "answer is cut"
)
CLOSE = "put `additionalProperties: false` into every object of its schema"
SHARED = frozenset(
    {"allOf", "not", "if", "dependentSchemas", "unevaluatedProperties", "$dynamicRef"}
)
"""Keywords by which one object follows several schemas: closing one of them could leave none."""
BESIDE = frozenset({"$ref", "anyOf", "oneOf", "patternProperties"})
"""Keywords that may give keys to the object beside `properties`."""
MAPS, LISTS = ("properties", "$defs", "definitions"), ("anyOf", "oneOf", "prefixItems")


def closed_format(response_format: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A response format whose schema is closed (`closed_schema`); others as they are."""
    given = (response_format or {}).get("json_schema")
    if response_format is None or not isinstance(given, Mapping) or "schema" not in given:
        return response_format
    closed = {**given, "schema": closed_schema(given["schema"])}
    return {**response_format, "json_schema": closed}


def closed_schema(schema: Any) -> Any:
    """A schema in which an object that lists its keys has no others, unless it says so."""
    keywords = _keywords(schema)
    return schema if SHARED & keywords and "$ref" in keywords else _closed(schema)


def open_objects(response_format: Mapping[str, Any] | None) -> bool:
    """Whether answers may have keys that the format does not list, without saying so."""
    return closed_format(response_format) != response_format


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if SHARED & schema.keys() or ("properties" in schema and BESIDE & schema.keys()):
        return schema
    found = dict(schema)
    for name in MAPS:
        if isinstance(schema.get(name), dict):
            found[name] = {key: _closed(each) for key, each in schema[name].items()}
    for name in (*LISTS, "items", "additionalProperties"):
        if name in schema:
            found[name] = _closed(schema[name])
    if isinstance(schema.get("properties"), dict) and schema["properties"]:
        found.setdefault("additionalProperties", False)
    return found


def _keywords(schema: Any) -> set[str]:
    """Every key of a schema; names of properties count too, which only leaves more open."""
    return set(_keys(schema))


def _keys(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from schema
    inner = schema.values() if isinstance(schema, dict) else schema
    if isinstance(schema, dict | list):
        for each in inner:
            yield from _keys(each)
