"""Bodies that clients of others send, recorded from their versions: each is answered in shape.

`golden/client_bodies.jsonl` has one request a line: the client and its version, what it was asked
to do, the route and the body. They were recorded by a hook on the clients' own HTTP client.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Served
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

GOLDEN = Path(__file__).parents[2] / "golden" / "client_bodies.jsonl"
SENT: list[dict[str, Any]] = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
KINDS: dict[str, Any] = {
    "/v1/chat/completions": ChatCompletion,
    "/v1/responses": Response,
}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What a model says that follows what constrains it."""
    if not request["must_call"]:
        return {"text": '{"size": "small", "ok": true}'}
    function = {"name": request["must_call"][0], "arguments": '{"size": "small", "ok": true}'}
    return {"text": "", "tool_calls": [{"id": "call_1", "type": "function", "function": function}]}


def events(text: str) -> list[dict[str, Any]]:
    data = [line[len("data: ") :] for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(each) for each in data if each != "[DONE]"]


@pytest.mark.parametrize("sent", SENT, ids=lambda sent: f"{sent['client']}, {sent['does']}")
def test_a_body_of_another_client(served: Served, sent: dict[str, Any]) -> None:
    served.link.say = answer
    path, body = sent["path"], sent["body"]
    found = served.http.post(path, json=body)
    assert found.status_code == 200, found.text
    [request] = served.link.requests
    if path == "/v1/embeddings":
        numbers = base64.b64decode(found.json()["data"][0]["embedding"])
        assert np.frombuffer(numbers, dtype=np.float32).tolist() == [1.0, 1.0]
        return
    if not body.get("stream"):
        KINDS[path].model_validate(found.json(), strict=True)
        said = found.text
    elif path == "/v1/responses":
        [done] = [each for each in events(found.text) if each["type"] == "response.completed"]
        Response.model_validate(done["response"], strict=True)
        said = json.dumps(done["response"])
    else:
        for chunk in events(found.text):
            ChatCompletionChunk.model_validate(chunk, strict=True)
        said = found.text
    assert is_honoured(body, request, said)


def is_honoured(body: dict[str, Any], request: dict[str, Any], said: str) -> bool:
    """Whether what the client asks for reaches the model, and the answer has the call."""
    choice = body.get("tool_choice")
    forced = choice == "required" or isinstance(choice, dict)
    tokens = body.get("max_tokens") or body.get("max_completion_tokens")
    form = body.get("response_format") or (body.get("text") or {}).get("format")
    assert request["max_tokens"] == (tokens or body.get("max_output_tokens"))
    assert bool(request["tools"]) == bool(body.get("tools"))
    assert (request["response_format"] is not None) == (form is not None)
    if body.get("parallel_tool_calls") is False and body.get("tools"):
        assert request["most_calls"] == 1
    return bool(request["must_call"]) == forced == ("call_1" in said)
