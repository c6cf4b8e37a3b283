"""Rows of a dataset: a page of them, one a line, and one in full.

Not here: finding rows, grading, reading files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rftkit.datasets.forms import KEYS
from rftkit.examples import form_of
from rftkit.views.answers import grade_notes
from rftkit.views.conversation import outputs, prompt, readable, reference, said, taught, titles
from rftkit.views.listing import disclosure, is_numeric, table
from rftkit.views.markup import Html, fact_table, html, join, missing, note, number, text, wrap
from rftkit.wording import cut

__all__ = [
    "REFUSED",
    "cells",
    "has_hit",
    "row_button",
    "row_in_full",
    "row_page",
    "sort_heading",
]

REFUSED = "\x00refused"
"""The key of an item that stands for an unusable row; no row has such a key of its own."""

EXCERPT = 110
"""Characters of a cell in a page of rows."""


def row_page(
    lines: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    *,
    numbers: Sequence[int],
    sort: str = "",
    descending: bool = False,
    opened: int | None = None,
    hit: str = "",
) -> Html:
    """One page of rows for a panel: headings sort, numbers open a row.

    Args:
        lines: from `cells`.
        columns: keys in order.
        numbers: of the rows, from 0.
        sort: the column by which they are sorted; empty for file order.
        descending: whether they are sorted in descending order.
        opened: number of the row that is shown in full.
        hit: a text that was searched for: cells show it, highlighted.
    """
    numeric = {key for key in columns if is_numeric([line.get(key) for line in lines])}
    head = join(sort_heading(key, key in numeric, sort, descending) for key in columns)
    body = join(
        _line(at, line, columns, numeric, at == opened, hit)
        for at, line in zip(numbers, lines, strict=True)
    )
    return wrap(
        html(
            '<div class="rk-scroll" tabindex="0"><table class="rk-rows"><thead><tr>'
            '<th scope="col" class="rk-number">row</th>{}</tr></thead>'
            "<tbody>{}</tbody></table></div>",
            head,
            body,
        ),
        plain=f"{len(lines)} rows",
    )


def cells(items: Sequence[Mapping[str, Any]], hit: str = "") -> list[dict[str, Any]]:
    """The cells of each row in a list: its prompt as one text, and every other key.

    Of a prompt it is the part that tells rows apart, or the message with the `hit` of a search.
    """
    prompts = [taught(item)[0] for item in items]
    named = iter(titles([{"messages": messages} for messages in prompts if messages]))
    return [
        _cells(item, _title(next(named), messages, hit) if messages else "")
        for item, messages in zip(items, prompts, strict=True)
    ]


def has_hit(value: Any, hit: str) -> bool:
    """Whether the text of a cell contains what was searched for."""
    return bool(hit) and not missing(value) and hit.lower() in _text(value).lower()


def _title(title: str, messages: Sequence[dict[str, Any]], hit: str) -> str:
    if not hit or has_hit(title, hit):
        return title
    texts = (" ".join(said(message).split()) for message in reversed(messages))
    return next((each for each in texts if has_hit(each, hit)), title)


def row_in_full(
    item: Mapping[str, Any],
    *,
    place: str,
    answer: str | None = None,
    grade: Mapping[str, Any] | None = None,
    findings: Sequence[str] = (),
    neighbours: Sequence[Mapping[str, Any]] | None = None,
    history: Any = None,
    live: bool = False,
) -> Html:
    """One row as a conversation, with its grade, findings, similar rows and answers.

    Args:
        item: the row.
        place: file and line, such as `train.jsonl:12`.
        answer: its reference answer.
        grade: of the reference answer, as a mapping of `rftkit.graders.Grade`.
        findings: messages of the dataset check about it.
        neighbours: the rows most like it, `{"row", "alike", "prompt"}`; None when nobody searched.
        history: answers of runs, as `Samples.answers` gives them.
        live: in a panel, where the numbers of other rows are buttons that open them.
    """
    parts = [html('<h4 class="rk-place">{}</h4>', place)]
    parts += [html('<p class="rk-warn">! {}</p>', each) for each in findings]
    if REFUSED in item:
        parts.append(html('<p class="rk-bad">✗ not usable: {}</p>', item[REFUSED]))
        parts.append(_pairs({key: value for key, value in item.items() if key != REFUSED}))
    elif len(answers := taught(item)[1]) == 2:
        parts += [prompt(item["input"]["messages"]), _tools(item["input"]), outputs(answers)]
        parts.append(reference(dict(item)))
    elif item.get("messages"):
        parts += [prompt(item["messages"]), _tools(item), reference(dict(item))]
    else:
        parts.append(_pairs(item))
    parts += [_answer(answer, grade), _neighbours(neighbours, live), _history(history)]
    shown = join(parts)
    plain = _plain(item, place, answer, grade)
    return wrap(shown, "rk-full", plain=plain)


def row_button(at: int, label: str = "") -> Html:
    """The number of a row, for people from 1, as a button that opens it, in a panel."""
    return html(
        '<button type="button" data-act="open {}" data-lm-suppress-shortcuts="true" '
        'title="Show row {} in full">{}</button>',
        at,
        at + 1,
        label or f"{at + 1:,}",
    )


def sort_heading(key: str, numeric: bool, sort: str, descending: bool) -> Html:
    """The heading of a column as a button that sorts by it, in a panel."""
    order = ("descending" if descending else "ascending") if key == sort else "none"
    classes = Html(' class="rk-number"') if numeric else Html()
    return html(
        '<th scope="col" aria-sort="{}"{}><button type="button" data-act="sort {}" '
        'data-lm-suppress-shortcuts="true" title="Sort by {}">{}</button></th>',
        order,
        classes,
        key,
        key,
        key,
    )


def _line(
    at: int,
    line: Mapping[str, Any],
    columns: Sequence[str],
    numeric: set[str],
    opened: bool,
    hit: str = "",
) -> Html:
    state = Html(' class="rk-opened" aria-current="true"') if opened else Html()
    return html(
        '<tr{}><td class="rk-number">{}</td>{}</tr>',
        state,
        row_button(at),
        join(_cell(line.get(key), key in numeric, hit) for key in columns),
    )


def _cell(value: Any, numeric: bool, hit: str = "") -> Html:
    if missing(value):
        return html('<td class="rk-missing{}">–</td>', " rk-number" if numeric else "")
    if numeric:
        return html('<td class="rk-number">{}</td>', number(value))
    words = _text(value)
    return html("<td>{}</td>", _marked(_excerpt(words, hit), hit))


def _excerpt(words: str, hit: str) -> str:
    """The beginning of a text, or the part with the hit."""
    if len(words) <= EXCERPT:
        return words
    at = words.lower().find(hit.lower()) if hit else -1
    start = 0 if at + len(hit) < EXCERPT else max(0, at - EXCERPT // 3)
    shown = words[start : start + EXCERPT - 1].strip()
    return f"{'…' * (start > 0)}{shown}{'…' * (start + EXCERPT - 1 < len(words))}"


def _marked(words: str, hit: str) -> Html:
    """The text as markup, with every hit highlighted; letters are compared without case."""
    if not hit:
        return text(words)
    parts = re.split(f"({re.escape(hit)})", words, flags=re.IGNORECASE)
    return join(html("<mark>{}</mark>", p) if at % 2 else text(p) for at, p in enumerate(parts))


def _cells(item: Mapping[str, Any], title: str) -> dict[str, Any]:
    shown = {key: value for key, value in item.items() if key not in ("messages", "tools", REFUSED)}
    if REFUSED in item:
        shown = {k: v for k, v in item.items() if k not in ("messages", "tools", REFUSED)}
        return {"prompt": f"✗ not usable: {item[REFUSED]}"} | shown
    answers = taught(item)[1]
    own = KEYS[form_of(item)] if answers else KEYS["reinforcement"]
    shown = {key: value for key, value in item.items() if key not in own}
    if not title:
        return shown
    names = ("preferred", "not preferred") if len(answers) == 2 else ("answer to learn",)
    learnt = dict(zip(names, map(said, answers), strict=False))
    return {"prompt": title} | learnt | {k: v for k, v in shown.items() if k != "prompt"}


def _tools(item: Mapping[str, Any]) -> Html:
    tools = item.get("tools")
    if not tools:
        return Html()
    names = ", ".join(str((tool.get("function") or tool).get("name")) for tool in tools)
    return html("<h4>Tools</h4><p>{}</p>{}", names, disclosure(json.dumps(tools, indent=1), 0))


def _answer(answer: str | None, grade: Mapping[str, Any] | None) -> Html:
    if answer is None:
        return Html()
    reward = "" if grade is None else f"reward {_reward(grade)}"
    return html(
        '<h4>Reference answer</h4><div class="rk-side"><div class="rk-who">'
        "<span></span><span>{}</span></div>{}{}</div>",
        reward,
        grade_notes(dict(grade or {})),
        disclosure(readable(answer), 1200),
    )


def _reward(grade: Mapping[str, Any]) -> str:
    return "not graded" if grade.get("outcome") == "failed" else number(grade.get("reward"), 2)


def _neighbours(neighbours: Sequence[Mapping[str, Any]] | None, live: bool) -> Html:
    if neighbours is None:
        return Html()
    if not neighbours:
        return Html("<h4>Similar rows</h4>") + note("No other row has a similar prompt.")
    lines = join(
        html(
            '<li>{} {} <span class="rk-text">{}</span></li>',
            _other(each["row"], live),
            _alike(each["alike"]),
            _short(each["prompt"]),
        )
        for each in neighbours
    )
    return html('<h4>Similar rows</h4><ul class="rk-plain">{}</ul>', lines)


def _other(at: int, live: bool) -> str:
    label = f"row {at + 1:,}"
    return row_button(at, label) if live else label


def _alike(percent: float) -> str:
    return "the same prompt" if percent >= 99.95 else f"{percent:.0f} % similar"


def _history(history: Any) -> Html:
    if history is None or not len(history):
        return Html()
    rows = [
        {
            "run": line["run"],
            "reward": None if missing(line["reward"]) else float(line["reward"]),
            "outcome": line["outcome"],
            "answer": readable(None if missing(line["answer"]) else line["answer"]),
        }
        for line in history.to_dict("records")
    ]
    return html("<h4>Answers by run</h4>{}", table(rows, noun="answer"))


def _pairs(item: Mapping[str, Any]) -> Html:
    return fact_table((key, disclosure(_text(value), 1200)) for key, value in item.items())


def _plain(
    item: Mapping[str, Any], place: str, answer: str | None, grade: Mapping[str, Any] | None
) -> str:
    lines = [place]
    if REFUSED in item:
        named = {"not usable" if key == REFUSED else key: value for key, value in item.items()}
        return "\n".join([place, *(f"{key}: {_text(value)}" for key, value in named.items())])
    messages, answers = taught(item)
    lines += [f"{message['role']}: {said(message)}" for message in [*messages, *answers]]
    own = KEYS[form_of(item)] - {"tools"} if answers else {"messages"}
    lines += [f"{key}: {_text(value)}" for key, value in item.items() if key not in own]
    if answer is not None:
        reward = f"  (reward {_reward(grade)})" if grade else ""
        lines.append(f"reference answer: {answer}{reward}")
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float | int):
        return number(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _short(words: str) -> str:
    return cut(" ".join(words.split()), EXCERPT)
