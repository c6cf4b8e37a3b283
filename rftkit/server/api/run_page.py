"""The page that a run's `report_url` opens: counts, pass rates and items as one HTML text.

It is for a quick look in a browser: no script, and nothing is loaded from elsewhere. Jinja escapes
every value of the template, and long texts are cut with words. Not here: comparing runs
(`rftkit.evals`), and the routes (`eval_runs`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from rftkit.safetext import printable
from rftkit.wording import cut_counting

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
PAGE = """\
<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ title }}</title><style>{{ style }}</style></head><body>
<h1>{{ title }}</h1>
<table>
{%- for name, value in facts.items() if value %}
<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{%- endfor %}
</table>
<h2>Criteria</h2>
{%- if criteria %}
<table><thead><tr><th>Criterion</th><th>Pass rate</th><th>Passed</th><th>Failed</th>
<th>Not graded</th></tr></thead><tbody>
{%- for name, numbers in criteria %}
<tr><td>{{ name }}</td>{% for each in numbers %}<td class="number">{{ each }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table>
{%- else %}
<p>No item has been graded yet.</p>
{%- endif %}
<h2>Items</h2>
{%- if items %}
<table><thead><tr><th>Row</th><th>Input</th><th>Answer</th><th>Score</th><th>Passed</th>
<th>Error</th></tr></thead><tbody>
{%- for row, given, answer, scores, passed, errors in items %}
<tr><td class="number">{{ row }}</td><td>{{ given }}</td><td>{{ answer }}</td><td>{{ scores }}</td>
<td class="{{ passed }}">{{ passed }}</td><td class="error">{{ errors }}</td></tr>
{%- endfor %}
</tbody></table>
{%- else %}
<p>No item is finished yet. Load the page again in a moment.</p>
{%- endif %}
<p>
{%- if not is_first %}<a href="?">First items</a>{% endif %}
{%- if more is not none %} More items follow: <a href="?{{ more }}">next items</a>{% endif -%}
</p>
</body></html>
"""


def run_page(run: Json, evaluation: Json, rates: Mapping[str, Sequence[int]],
             items: Iterable[Json], *, num_cut: int, more: str | None,
             is_first: bool) -> str:  # fmt: skip
    """The page of one run.

    Args:
        run: the wire's `eval.run`.
        evaluation: the wire's `eval`, for the names of its criteria.
        rates: id of a criterion → how many of its results passed, failed and have no score.
        items: the output items to show, on the wire's terms.
        num_cut: how many answers of the run ended at their token limit.
        more: id of the last item shown, when others follow.
        is_first: whether the items begin at the first row.
    """
    names = {each.get("id"): each.get("name") for each in evaluation.get("testing_criteria") or []}
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_shown)
    return environment.from_string(PAGE).render(
        title=f"{run.get('name') or run['id']}: {run.get('status')}",
        style=Markup(STYLE),
        facts=_facts(run) | {"Cut off at the token limit": num_cut and f"{num_cut} of the answers"},
        criteria=[(names.get(key) or key, _numbers(*counts)) for key, counts in rates.items()],
        items=[_item(item, names) for item in items],
        more=None if more is None else urlencode({"after": more}),
        is_first=is_first,
    )


def _facts(run: Json) -> dict[str, Any]:
    counts = run.get("result_counts") or {}
    return {
        "Run": run["id"],
        "Eval": run.get("eval_id"),
        "Model": run.get("model"),
        "Error": (run.get("error") or {}).get("message"),
        "Items": ", ".join(
            f"{counts.get(name, 0)} {name}" for name in ("total", "passed", "failed", "errored")
        ),
    }


def _numbers(passed: int, failed: int, ungraded: int) -> tuple[str, int, int, int]:
    graded = passed + failed
    return f"{passed / graded:.1%}" if graded else "–", passed, failed, ungraded


def _item(item: Json, names: Mapping[Any, Any]) -> tuple[Any, ...]:
    """The cells of an item: row, input, answer, scores, passed, errors."""
    sample, results = item.get("sample") or {}, item.get("results") or []
    scores = [f"{names.get(r.get('name')) or r.get('name')}: {_score(r)}" for r in results]
    errors = [sample.get("error"), *(result.get("errors") for result in results)]
    return (
        item.get("datasource_item_id"),
        _messages(sample.get("input")) or item.get("datasource_item"),
        _answer(sample),
        "\n".join(scores),
        "yes" if item.get("status") in ("pass", "passed") else "no",
        "\n".join(_error(each) for each in errors if each),
    )


def _answer(sample: Json) -> str:
    said = _messages(sample.get("output"))
    return (
        f"{said}\n(cut off at the token limit)" if sample.get("finish_reason") == "length" else said
    )


def _score(result: Json) -> str:
    score = result.get("score")
    is_number = isinstance(score, int | float)
    return f"{score:.3f}" if is_number else "not graded"


def _error(error: Any) -> str:
    """The error message of an item, or its flags with their details."""
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


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _shown(value: Any) -> str:
    """A value as text: cut with words, control characters spelled out. Jinja escapes it then."""
    if isinstance(value, Markup):
        return value
    text = "" if value is None else _plain(value)
    return printable(cut_counting(text, MOST))
