"""One conversation: its messages, what the grader knows about it, and a name for it in a list.

Not here: grades, and lists of conversations.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rftkit.views.listing import disclosure
from rftkit.views.markup import text

__all__ = ["prompt", "readable", "reference", "titles"]


def prompt(messages: Sequence[dict[str, Any]]) -> str:
    """Messages one below the other, long ones folded."""
    return "".join(
        f'<div class="rk-message"><span class="rk-role">{text(message["role"])}</span>'
        f"{disclosure(_content(message), 1200)}</div>"
        for message in messages
    )


def reference(item: dict[str, Any]) -> str:
    """The other keys of the row, which the grader sees beside the answer."""
    pairs = {key: value for key, value in item.items() if key not in ("messages", "tools")}
    if not pairs:
        return ""
    lines = "".join(
        f'<tr><th scope="row">{text(key)}</th><td>{disclosure(_plain(value))}</td></tr>'
        for key, value in pairs.items()
    )
    return f"<h4>What the grader knows</h4><table><tbody>{lines}</tbody></table>"


def titles(items: Sequence[dict[str, Any]]) -> list[str]:
    """For each row: the last paragraph of its last message that most rows do not share."""
    paragraphs = [_paragraphs(item["messages"][-1]) for item in items]
    seen = Counter(each for own in paragraphs for each in set(own))
    found = []
    for own in paragraphs:
        special = [each for each in own if seen[each] <= len(items) // 2]
        words = (special or own or ["(empty)"])[-1]
        found.append(words if len(words) <= 200 else f"{words[:199]}…")
    return found


def readable(answer: str | None) -> str:
    """Lay out a JSON object with one key per line, so that spacing makes no difference."""
    if not answer:
        return "(no answer)" if answer is None else "(empty)"
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        return answer
    return "\n".join(f"{key}: {_plain(inner)}" for key, inner in value.items())


def _paragraphs(message: dict[str, Any]) -> list[str]:
    return [" ".join(part.split()) for part in _content(message).split("\n") if part.strip()]


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(part.get("text", f"[{part.get('type')}]") for part in content)
    return content or ""


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
