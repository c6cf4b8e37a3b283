"""One conversation: its messages, what the grader knows about it, and a name for it in a list.

Not here: grades, and lists of conversations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rftkit.datasets.forms import KEYS
from rftkit.examples import form_of, trained_messages
from rftkit.jsontext import as_text, parse_json
from rftkit.views.listing import disclosure
from rftkit.views.markup import Html, html, join
from rftkit.wording import cut

__all__ = ["outputs", "prompt", "readable", "reference", "said", "taught", "titles"]


def prompt(messages: Sequence[dict[str, Any]]) -> Html:
    """Messages one below the other, long ones folded."""
    return join(
        html(
            '<div class="rk-message"><span class="rk-role">{}</span>{}</div>',
            _role(message),
            disclosure(said(message), 1200),
        )
        for message in messages
    )


def taught(item: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The prompt of a row of any form, and the answers that it teaches: none, one or two."""
    form = form_of(item)
    if form == "preference":
        prompt = (item.get("input") or {}).get("messages") or []
        pair = [item.get("preferred_output"), item.get("non_preferred_output")]
        return list(prompt), [output[0] for output in pair if output]
    given = item.get("messages")
    messages = list(given) if isinstance(given, list | tuple) else []
    places = trained_messages(messages) if form == "supervised" else []
    return (messages[: places[-1]], [messages[places[-1]]]) if places else (messages, [])


def said(message: Mapping[str, Any]) -> str:
    """What a message says: its text, and its calls of functions."""
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(part.get("text", f"[{part.get('type')}]") for part in content)
    calls = [each.get("function") or {} for each in message.get("tool_calls") or []]
    lines = [f"{each.get('name')}({each.get('arguments')})" for each in calls]
    return "\n".join(filter(None, [content or message.get("refusal"), *lines]))


def outputs(answers: Sequence[dict[str, Any]]) -> Html:
    """The two answers of a preference row, side by side."""
    names = ("preferred", "not preferred")
    sides = join(
        html(
            '<div class="rk-side"><div class="rk-who"><span>{}</span></div>{}</div>',
            name,
            disclosure(said(answer), 1200),
        )
        for name, answer in zip(names, answers, strict=False)
    )
    return html('<div class="rk-sides">{}</div>', sides)


def reference(item: dict[str, Any]) -> Html:
    """The other keys of the row, which the grader sees in addition to the answer."""
    own = KEYS[form_of(item)] | {"messages", "tools"}
    pairs = {key: value for key, value in item.items() if key not in own}
    if not pairs:
        return Html()
    lines = join(
        html('<tr><th scope="row">{}</th><td>{}</td></tr>', key, disclosure(as_text(value)))
        for key, value in pairs.items()
    )
    return html("<h4>What the grader knows</h4><table><tbody>{}</tbody></table>", lines)


def titles(items: Sequence[dict[str, Any]]) -> list[str]:
    """For each row: the last paragraph of its last message that most rows do not share."""
    paragraphs = [_paragraphs(item["messages"][-1]) for item in items]
    seen = Counter(each for own in paragraphs for each in set(own))
    found = []
    for own in paragraphs:
        special = [each for each in own if seen[each] <= len(items) // 2]
        words = (special or own or ["(empty)"])[-1]
        found.append(cut(words, 200))
    return found


def readable(answer: str | None) -> str:
    """Lay out a JSON object with one key per line, so that spacing makes no difference."""
    if not answer:
        return "(no answer)" if answer is None else "(empty)"
    try:
        value = parse_json(answer)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        return answer
    return "\n".join(f"{key}: {as_text(inner)}" for key, inner in value.items())


def _paragraphs(message: dict[str, Any]) -> list[str]:
    return [" ".join(part.split()) for part in said(message).split("\n") if part.strip()]


def _role(message: dict[str, Any]) -> str:
    return f"{message['role']}, not trained" if message.get("weight") == 0 else message["role"]
