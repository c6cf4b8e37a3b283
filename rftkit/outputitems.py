"""Fields of the output items and errors that services send, whatever their quirks.

Shared by those who read runs from a service (`evals`) and from a saved account (`importer`).
"""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["answer_text", "error_text", "grader_name"]

_UUID = re.compile(r"-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", re.IGNORECASE)


def answer_text(output: Any) -> str | None:
    """The model's last text in `sample.output`; its tool calls as JSON where it has no text.

    None where nothing was answered, which an empty text is not.
    """
    found = None
    for message in reversed(output if isinstance(output, list) else []):
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str) and content:
            return content
        if isinstance(message, dict) and message.get("tool_calls"):
            return json.dumps(message["tool_calls"], ensure_ascii=False)
        if content == "":
            found = ""
    return found


def error_text(error: Any) -> str | None:
    """The message of an error; None for null and for `{}`, which means no error."""
    if isinstance(error, str):
        return error or None
    if not isinstance(error, dict):
        return None
    return error.get("message") or error.get("code") or None


def grader_name(name: Any) -> str | None:
    """The name of a result or criterion without the `-<uuid>` that services append."""
    return _UUID.sub("", str(name)) if name else None
