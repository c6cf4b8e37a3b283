"""The page that a run's `report_url` opens: counts, pass rates and items as one HTML text.

It is for a quick look in a browser: no script, and nothing is loaded from elsewhere. Whatever
others wrote is escaped, and long texts are cut with words. Not here: comparing runs
(`rftkit.evals`), and the routes (`eval_runs`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from rftkit.safetext import printable

__all__ = ["HEADERS", "run_page"]

Json = dict[str, Any]

HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Should anything slip through the escaping, a browser still runs and loads nothing."""

MOST = 2_000
"""Characters of one cell."""
STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #c9302c; }
@media (prefers-color-scheme: dark) { :root { --good: #4ac26b; --bad: #ff7b72; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 0 0 1.5rem; }
th, td { border-bottom: 1px solid var(--line); padding: .4rem .6rem; text-align: left;
  vertical-align: top; }
td { white-space: pre-wrap; overflow-wrap: anywhere; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.yes { color: var(--good); } .no, .error { color: var(--bad); }
"""


def run_page(run: Json, evaluation: Json, rates: Mapping[str, Sequence[int]],
             items: Iterable[Json], *, more: str | None, is_first: bool) -> str:  # fmt: skip
    """The page of one run.

    Args:
        run: the wire's `eval.run`.
        evaluation: the wire's `eval`, for the names of its criteria.
        rates: id of a criterion → how many of its results passed, failed and have no score.
        items: the output items to show, on the wire's terms.
        more: id of the last item shown, when others follow.
        is_first: whether the items begin at the first row.
    """
    names = {each.get("id"): each.get("name") for each in evaluation.get("testing_criteria") or []}
    title = f"{run.get('name') or run['id']}: {run.get('status')}"
    body = [
        f"<h1>{_text(title)}</h1>",
        _facts(run),
        "<h2>Criteria</h2>",
        _table(
            ("Criterion", "Pass rate", "Passed", "Failed", "Not graded"),
            [_criterion(names.get(key) or key, *counts) for key, counts in rates.items()],
            empty="No item has been graded yet.",
        ),
        "<h2>Items</h2>",
        _table(
            ("Row", "Input", "Answer", "Score", "Passed", "Error"),
            [_item(item, names) for item in items],
            empty="No item is finished yet. Load the page again in a moment.",
        ),
        _links(more, is_first),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _facts(run: Json) -> str:
    counts = run.get("result_counts") or {}
    lines = {
        "Run": run["id"],
        "Eval": run.get("eval_id"),
        "Model": run.get("model"),
        "Error": (run.get("error") or {}).get("message"),
        "Items": ", ".join(
            f"{counts.get(name, 0)} {name}" for name in ("total", "passed", "failed", "errored")
        ),
    }
    shown = [f"<tr><th>{name}</th><td>{_text(said)}</td></tr>" for name, said in lines.items()
             if said]  # fmt: skip
    return f"<table>{''.join(shown)}</table>"


def _criterion(name: Any, passed: int, failed: int, ungraded: int) -> str:
    graded = passed + failed
    rate = f"{passed / graded:.1%}" if graded else "–"
    numbers = "".join(
        f'<td class="number">{each}</td>' for each in (rate, passed, failed, ungraded)
    )
    return f"<tr><td>{_text(name)}</td>{numbers}</tr>"


def _item(item: Json, names: Mapping[Any, Any]) -> str:
    sample, results = item.get("sample") or {}, item.get("results") or []
    scores = [f"{names.get(r.get('name')) or r.get('name')}: {_score(r)}" for r in results]
    passed = item.get("status") in ("pass", "passed")
    said = [sample.get("error"), *(result.get("errors") for result in results)]
    return (
        f'<tr><td class="number">{_text(item.get("datasource_item_id"))}</td>'
        f"<td>{_text(_messages(sample.get('input')) or item.get('datasource_item'))}</td>"
        f"<td>{_text(_messages(sample.get('output')))}</td>"
        f"<td>{_text(chr(10).join(scores))}</td>"
        f'<td class="{"yes" if passed else "no"}">{"yes" if passed else "no"}</td>'
        f'<td class="error">{_text(chr(10).join(_error(each) for each in said if each))}</td></tr>'
    )


def _score(result: Json) -> str:
    score = result.get("score")
    is_number = isinstance(score, int | float)
    return f"{score:.3f}" if is_number else "not graded"


def _error(error: Any) -> str:
    """Its message, or the flags that are set with their details."""
    if not isinstance(error, Mapping):
        return str(error)
    if error.get("message"):
        return str(error["message"])
    flags = [key for key, value in error.items() if value is True]
    details = [str(value) for value in error.values() if value and value is not True]
    return "; ".join([*flags, *details])


def _messages(messages: Any) -> str:
    """Chat messages as text; tool calls as JSON."""
    lines = []
    for message in messages if isinstance(messages, list) else []:
        if not isinstance(message, Mapping):
            lines.append(_plain(message))
            continue
        is_answer = message.get("role") == "assistant"
        start = "" if is_answer or not message.get("role") else f"{message['role']}: "
        if message.get("content"):
            lines.append(start + _plain(message["content"]))
        if message.get("tool_calls"):
            lines.append(f"tool calls: {_plain(message['tool_calls'])}")
    return "\n".join(lines)


def _links(more: str | None, is_first: bool) -> str:
    links = [] if is_first else ['<a href="?">First items</a>']
    if more is not None:
        links.append(f'More items follow: <a href="?after={quote(more, safe="")}">next items</a>')
    return f"<p>{' · '.join(links)}</p>" if links else ""


def _table(heads: Sequence[str], rows: Sequence[str], *, empty: str) -> str:
    if not rows:
        return f"<p>{empty}</p>"
    head = "".join(f"<th>{each}</th>" for each in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _text(value: Any) -> str:
    """Any value as text of a page: cut with words, control characters spelled out, escaped."""
    text = "" if value is None else _plain(value)
    if len(text) > MOST:
        text = f"{text[:MOST]}… ({len(text) - MOST:,} more characters)"
    return escape(printable(text))
