"""Stored chats and responses as the rows of an eval run: the prompt and the answer.

A row's number is its `seq` in the store. So a run that resumes after a kill has the same rows, even
if answers were added or deleted. The runner samples new answers for the same prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rftkit.server.inference.response_items import messages_from
from rftkit.server.store.records import EvalRun, StoredResponse
from rftkit.server.store.store import Store

__all__ = ["ITEM_SCHEMA", "stored_entries"]

Json = dict[str, Any]

KINDS = {"stored_completions": "chatcmpl-", "responses": "resp_"}
ITEM_SCHEMA: Json = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "input": {"type": "array", "items": {"type": "object"}},
        "model": {"type": "string"},
        "metadata": {"type": "object"},
    },
    "required": ["id", "input", "model", "metadata"],
}
"""The keys that templates can read under `item`."""


def stored_entries(store: Store, run: EvalRun) -> Iterator[tuple[int, Json]]:
    """Yield row number and `{item, sample, facts}` of each stored answer that matches."""
    source = run.data_source["source"]
    wanted = {**(store.eval(run.eval_id).data_source_config.get("metadata") or {}),
              **(source.get("metadata") or {})}  # fmt: skip
    before = min(run.created_at, source.get("created_before") or run.created_at)
    found = store.kept_answers(
        KINDS[source["type"]],
        model=source.get("model"),
        metadata=wanted,
        created_after=source.get("created_after"),
        created_before=before,
    )
    is_chat = source["type"] == "stored_completions"
    fitting = [pair for pair in found if is_chat or _fits(pair[1].body, source)]
    for number, record in fitting[-source["limit"] :] if source.get("limit") else fitting:
        yield number, _of_chat(record) if is_chat else _of_response(record)


def _of_chat(record: StoredResponse) -> Json:
    choice = record.body["choices"][0]
    usage = record.body["usage"]
    return _entry(
        record,
        list(record.input),
        choice["message"].get("content") or "",
        choice["message"].get("tool_calls") or [],
        choice["finish_reason"],
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )


def _of_response(record: StoredResponse) -> Json:
    body = record.body
    said = messages_from(body["output"])
    asked = record.input[: len(record.input) - len(said)]
    if body.get("instructions"):
        asked = [{"role": "developer", "content": body["instructions"]}, *asked]
    calls = [call for message in said for call in message.get("tool_calls") or []]
    return _entry(
        record,
        asked,
        "".join(message.get("content") or "" for message in said),
        calls,
        "length" if body["status"] == "incomplete" else "tool_calls" if calls else "stop",
        body["usage"]["input_tokens"],
        body["usage"]["output_tokens"],
    )


def _entry(
    record: StoredResponse,
    asked: list[Json],
    text: str,
    calls: list[Json],
    finish_reason: str,
    prompt_tokens: int,
    completion_tokens: int,
) -> Json:
    return {
        "item": {
            "id": record.id,
            "input": asked,
            "model": record.model,
            "metadata": record.body.get("metadata") or {},
        },
        "sample": {
            "output_text": text,
            "output_tools": calls,
            "model": record.model,
            "finish_reason": finish_reason,
        },
        "facts": {
            "input": asked,
            "model": record.model,
            "finish_reason": finish_reason,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
        },
    }


def _fits(body: Json, source: Json) -> bool:
    """Return whether a response passes the filters that only responses have."""
    has_calls = any(item["type"] == "function_call" for item in body["output"])
    names = {tool.get("name") for tool in body.get("tools") or []}
    search = source.get("instructions_search")
    return (
        all(source.get(key) in (None, body.get(key)) for key in ("temperature", "top_p"))
        and source.get("has_tool_calls") in (None, has_calls)
        and source.get("reasoning_effort") in (None, (body.get("reasoning") or {}).get("effort"))
        and names.issuperset(source.get("tools") or ())
        and (not source.get("users") or body.get("user") in source["users"])
        and (not search or search.lower() in (body.get("instructions") or "").lower())
    )
