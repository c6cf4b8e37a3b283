"""Answers of several models to the same rows, side by side, with rewards and changes.

Running the models, grading and statistics over rows are elsewhere. The data is plain:

    {"dataset": str, "rows": [{"item": {"messages": […], …},
      "answers": {"base": {"model": str, "text": str, "tool_calls": […],
          "truncated": bool, "grade": {
          "reward": float | None, "outcome": "graded" | "failed" | "unscorable",
          "sub_rewards": {name: float | None}, "errors": {flag: bool | str}}}, "final": {…}}}]}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rftkit.views.conversation import prompt, readable, reference, said, titles
from rftkit.views.listing import disclosure, listing
from rftkit.views.markup import (
    Html,
    html,
    html_each,
    join,
    missing,
    note,
    number,
    signed,
    text,
    wrap,
)
from rftkit.views.textdiff import difference

__all__ = [
    "SAME",
    "answers",
    "change_verdict",
    "grade_notes",
    "judged_lines",
    "one_row",
    "reward_of",
]

SAME = 0.005
"""Rewards closer than this count as the same."""

MAX_BYTES = 4_000_000

MET = {True: "✓ met:", False: "✗ not met:", None: "? not decided:"}

Answer = dict[str, Any]


def answers(data: dict[str, Any], *, max_bytes: int = MAX_BYTES) -> Html:
    """One card per row: the prompt, each model's answer and grade, and the words that changed.

    Each card compares the first and the last model. Rows can be filtered, and sorted by the
    change of their reward.
    """
    rows: list[dict[str, Any]] = data["rows"]
    if not rows:
        return note("No answers to show. The file has no rows.")
    shared = _shared_instructions(rows)
    names = titles([row["item"] for row in rows])
    cards = [
        _card(row.get("line") or index, name, row, shared)
        for index, (name, row) in enumerate(zip(names, rows, strict=True), start=1)
    ]
    sorts = [("-change", "largest gain first"), ("change", "largest loss first")]
    last = list(rows[0]["answers"])[-1]
    sorts += [("final", f"lowest {last} reward first")]
    listed = listing(
        cards,
        lambda body: html('<div class="rk-items">{}</div>', body),
        page=10,
        max_bytes=max_bytes,
        sorts=sorts,
    )
    return join([_instructions(shared), listed], plain=listed.plain)


def reward_of(answer: Answer | None) -> float | None:
    """The reward that counts: None when the answer is absent or its grader failed."""
    grade = (answer or {}).get("grade") or {}
    reward: float | None = grade.get("reward")
    return None if grade.get("outcome") == "failed" or missing(reward) else reward


def _card(index: int, title: str, row: dict[str, Any], shared: list[dict[str, Any]]) -> Html:
    sides = _sides(row["answers"])
    (_, first), (_, last) = sides[0], sides[-1]
    before, after = reward_of(first), reward_of(last)
    change = None if before is None or after is None else after - before
    verdict, mark = change_verdict(change, alone=len(sides) == 1)
    messages = row["item"]["messages"]
    keys = join(
        html(' data-{}="{}"', key, "" if value is None else round(value, 6))
        for key, value in {"change": change, "final": after}.items()
    )
    move = f"{number(before, 2)} → {number(after, 2)}" if len(sides) > 1 else number(after, 2)
    return html(
        '<details class="rk-card" data-group="{}"{}>'
        '<summary data-lm-suppress-shortcuts="true"><span>{}</span>'
        '<span class="rk-title">{}</span><span class="rk-move">{}</span>'
        '<span class="rk-mark {}">{}</span></summary>'
        '<div class="rk-body">{}{}{}</div></details>',
        verdict,
        keys,
        index,
        title,
        move,
        _TONE[verdict],
        mark,
        prompt(messages[len(shared) :]),
        reference(row["item"]),
        _beside(sides),
    )


def one_row(item: dict[str, Any], given: dict[str, Answer]) -> Html:
    """One row, open: the prompt, what the grader knows, and every answer side by side.

    Args:
        item: the row; only `messages` is needed.
        given: label -> answer; `state`, if there, is shown in place of its reward.
    """
    sides = _sides(given)
    body = prompt(item["messages"]) + reference(item) + (_beside(sides) if sides else Html())
    plain = "\n".join(f"{name}: {_words(each)} {each.get('state', '')}" for name, each in sides)
    return wrap(
        html('<div class="rk-body">{}</div>', body), plain=plain or "no model has answered yet"
    )


def _beside(sides: Sequence[tuple[str, Answer]]) -> Html:
    answers = join(_side(name, answer) for name, answer in sides)
    return html('<div class="rk-sides">{}</div>{}', answers, _comparison(sides))


_TONE = {"better": "rk-good", "worse": "rk-bad", "same": "", "not graded": "rk-warn", "graded": ""}


def change_verdict(change: float | None, *, alone: bool = False) -> tuple[str, str]:
    """What a change of the reward is called, with a mark; `alone` is an answer without another."""
    if change is None or missing(change):
        return "not graded", "? not graded"
    if alone:
        return "graded", ""
    if abs(change) < SAME:
        return "same", "= same"
    if change > 0:
        return "better", f"▲ better {signed(change, 2)}"
    return "worse", f"▼ worse {signed(change, 2)}"


def _sides(given: dict[str, Answer]) -> list[tuple[str, Answer]]:
    """Labelled answers; a model that has two labels is shown once, under both."""
    by_model: dict[str, tuple[list[str], Answer]] = {}
    for name, answer in given.items():
        by_model.setdefault(answer.get("model") or name, ([], answer))[0].append(name)
    return [(" and ".join(names), answer) for names, answer in by_model.values()]


def _side(name: str, answer: Answer) -> Html:
    reward = reward_of(answer)
    shown = "not graded" if reward is None else f"reward {number(reward, 2)}"
    shown = text(answer.get("state") or shown)
    notes = grade_notes(answer.get("grade") or {}, truncated=bool(answer.get("truncated")))
    return html(
        '<div class="rk-side" title="{}"><div class="rk-who"><span>{}</span>'
        "<span>{}</span></div>{}{}{}</div>",
        answer.get("model") or "",
        name,
        shown,
        notes,
        prompt(answer.get("messages") or ()),
        disclosure(_words(answer), 1200),
    )


def _words(answer: Answer) -> str:
    """The text of an answer and its calls of functions."""
    calls = answer.get("tool_calls")
    content = readable(answer["text"]) if answer["text"] or not calls else ""
    return said({"content": content, "tool_calls": calls})


def grade_notes(grade: dict[str, Any], *, truncated: bool = False) -> Html:
    """A grade's sub-rewards, errors, the reason for a missing reward, and a cut answer."""
    lines = []
    if truncated and grade.get("outcome") != "unscorable":
        lines.append("! cut off at the token limit: the part before the cut was graded")
    if grade.get("outcome") == "failed":
        lines.append("! the grader failed, so this answer has no reward")
    elif grade.get("outcome") == "unscorable":
        lines.append(
            "! not scorable: the answer was cut off or does not follow the response format"
        )
    for name, reward in (grade.get("sub_rewards") or {}).items():
        lines.append(f"{name} {number(reward, 2)} {_mark(reward)}")
    for key, verdict in (grade.get("judged") or {}).items():
        lines += judged_lines(verdict, key)
    for flag, value in (grade.get("errors") or {}).items():
        if value:
            lines.append(flag.replace("_", " ") if value is True else f"{flag}: {value}")
    items = html_each("<li>{}</li>", lines)
    return html('<ul class="rk-grades">{}</ul>', items) if items else Html()


def judged_lines(judged: dict[str, Any], key: str = "") -> list[str]:
    """What a judge said besides the number: its verdicts on criteria, or its scores in two orders.

    Args:
        judged: one value of `Grade.judged`.
        key: of the sub-grader; empty for a grader that is not a multi.
    """
    begin = f"{key}: " if key else ""
    lines = []
    for each in judged.get("criteria") or ():
        kind = "required" if each["required"] else f"weight {each['weight']:g}"
        why = f": {each['reason']}" if each.get("reason") else ""
        lines.append(f"{begin}{MET[each['met']]} {each['text']} ({kind}, {each['check']}){why}")
    if scores := judged.get("scores"):
        both = " and ".join(number(score, 2) for score in scores)
        where = "the anchor" if "anchor" in judged else "the group"
        lines.append(f"{begin}scored {both} in the two orders, against {where}")
        lines += [f"{begin}{reason}" for reason in judged.get("reasons") or () if reason]
    return lines


def _mark(reward: float | None) -> str:
    if missing(reward):
        return "(not graded)"
    if reward == 1:
        return "✓ full"
    return "✗ none" if reward == 0 else "partial"


def _comparison(sides: Sequence[tuple[str, Answer]]) -> Html:
    if len(sides) < 2:
        return Html()
    (before, first), (after, last) = sides[0], sides[-1]
    old, new = _words(first), _words(last)
    shown = "The same text." if old == new else difference(old, new)
    return html(
        '<h4>What changed from {} to {}</h4><div class="rk-text">{}</div>', before, after, shown
    )


def _shared_instructions(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The leading system or developer messages, when they are the same in every row."""
    first: list[dict[str, Any]] = []
    for message in rows[0]["item"]["messages"]:
        if message["role"] not in ("system", "developer"):
            break
        first.append(message)
    same = all(row["item"]["messages"][: len(first)] == first for row in rows)
    return first if same and len(rows) > 1 else []


def _instructions(messages: Sequence[dict[str, Any]]) -> Html:
    if not messages:
        return Html("")
    return wrap(html("<h4>Instructions shared by all rows</h4>{}", prompt(messages)))
