"""Schemas that cannot be followed are refused in words; none ends in an error of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rftkit.errors import RequestError
from rftkit.server.engine.torch.engine import TorchEngine
from rftkit.server.engine.values import SampleRequest

NEXT = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"],
        "additionalProperties": False}  # fmt: skip
REFUSED: dict[str, Any] = {
    "itself": {"$ref": "#"},
    "a circle": {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]},
                                                "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}},
    "nowhere": {"$ref": "#/$defs/none"},
    "an end that never comes": NEXT,
    "many types": {"type": ["string"] * 100_000},
    "no type": {"type": "blub"},
    "a huge number": {"type": "integer", "maximum": 10**500},
    "a huge count": {"type": "object", "minProperties": 10**30},
    "a huge length": {"type": "string", "minLength": 10**12},
    "a deep pattern": {"type": "string", "pattern": "(" * 10_000},
}  # fmt: skip
TAKEN: dict[str, Any] = {
    "types again and again": {"type": ["string", "null", "integer"] * 200},
    "a long list": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
    "text": {"type": "string"},
}


@pytest.fixture(scope="module")
def engine(made_models: Path) -> TorchEngine:
    [folder] = made_models.glob("rftkit-tiny-*")
    return TorchEngine(folder, name="rftkit-tiny")


def sample(engine: TorchEngine, schema: Any) -> str:
    prompt = engine.encode([{"role": "user", "content": "hi"}])
    request = SampleRequest(
        prompt_ids=prompt, seeds=[(1, 0)], max_tokens=200, schema=json.dumps(schema)
    )
    return engine.sample([request], None)[0][0].text


@pytest.mark.parametrize("name", REFUSED)
def test_a_schema_that_cannot_be_followed_is_refused(engine: TorchEngine, name: str) -> None:
    with pytest.raises(RequestError, match="the JSON schema cannot be"):
        sample(engine, REFUSED[name])


@pytest.mark.parametrize("name", TAKEN)
def test_an_odd_schema_is_followed(engine: TorchEngine, name: str) -> None:
    assert sample(engine, TAKEN[name])


def test_nesting_beyond_the_interpreter_is_refused(engine: TorchEngine) -> None:
    schema = '{"properties": {"a": ' * 900 + "{}" + "}}" * 900
    with pytest.raises(RequestError, match="the JSON schema cannot be compiled"):
        engine.grammars.start(schema)
