"""Objects that list their keys are closed, and what several schemas describe stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rftkit.formats import closed_format, closed_schema, open_objects

KEYS = {"a": {"type": "string"}}
OPEN: dict[str, Any] = {"type": "object", "properties": KEYS, "required": ["a"]}
CLOSED = {**OPEN, "additionalProperties": False}


def named(schema: Any, **rest: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, **rest}}


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        (OPEN, CLOSED),
        ({"type": "array", "items": OPEN}, {"type": "array", "items": CLOSED}),
        ({"anyOf": [OPEN, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        (
            {"$defs": {"A": OPEN}, "$ref": "#/$defs/A"},
            {"$defs": {"A": CLOSED}, "$ref": "#/$defs/A"},
        ),
        (
            {"properties": {"b": OPEN}},
            {"properties": {"b": CLOSED}, "additionalProperties": False},
        ),
        (
            {"type": "object", "additionalProperties": OPEN},
            {"type": "object", "additionalProperties": CLOSED},
        ),
    ],
)
def test_what_lists_its_keys_has_no_others(schema: Any, closed: Any) -> None:
    assert closed_schema(schema) == closed
    assert closed_schema(closed) == closed
    assert closed_format(named(schema)) == named(closed)
    assert open_objects(named(schema))
    assert not open_objects(named(closed))


@pytest.mark.parametrize(
    "schema",
    [
        {**OPEN, "additionalProperties": True},
        {**OPEN, "additionalProperties": {"type": "string"}},
        {"type": "object"},
        {"type": "object", "properties": {}},
        {"allOf": [OPEN, {"properties": {"b": {}}}]},
        {**OPEN, "anyOf": [{"properties": {"b": {}}}, {"properties": {"c": {}}}]},
        {**OPEN, "patternProperties": {"^x": {}}},
        {**OPEN, "unevaluatedProperties": False},
        {"$defs": {"A": OPEN}, "allOf": [{"$ref": "#/$defs/A"}, {"properties": {"b": {}}}]},
        True,
        {},
        {"properties": [1]},
    ],
)
def test_what_may_have_others_stays_as_it_is(schema: Any) -> None:
    assert closed_schema(schema) == schema
    assert not open_objects(named(schema))


def test_an_object_beside_composed_ones_is_closed_all_the_same() -> None:
    schema = {"properties": {"b": {"allOf": [OPEN]}, "c": OPEN}}
    assert closed_schema(schema) == {
        "properties": {"b": {"allOf": [OPEN]}, "c": CLOSED}, "additionalProperties": False,
    }  # fmt: skip


@pytest.mark.parametrize("given", [None, {"type": "text"}, {"type": "json_object"}, {}])
def test_other_formats_stay_as_they_are(given: Any) -> None:
    assert closed_format(given) == given
    assert not open_objects(given)


schemas = st.recursive(
    st.sampled_from([{"type": "string"}, {"type": "integer"}, {}]),
    lambda inner: (
        st.builds(
            lambda properties: {"type": "object", "properties": properties},
            st.dictionaries(st.sampled_from("abc"), inner, min_size=1),
        )
        | st.builds(lambda items: {"type": "array", "items": items}, inner)
        | st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=2))
    ),
    max_leaves=6,
)


@given(schemas)
def test_closing_twice_changes_nothing_and_nothing_given_is_changed(schema: Any) -> None:
    before = repr(schema)
    once = closed_schema(schema)
    assert closed_schema(once) == once
    assert repr(schema) == before
