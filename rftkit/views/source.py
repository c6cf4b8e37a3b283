"""Graders and other JSON as readable source, with highlighted templates and python code.

Not here: checking a spec, or running it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from rftkit.views.markup import Html, html, join, text, wrap

__all__ = ["spec"]

_TEMPLATE = re.compile(r"\{\{.*?\}\}", re.DOTALL)
_JSON = re.compile(r'(?P<key>"(?:[^"\\]|\\.)*")(?=\s*:)|(?P<string>"(?:[^"\\]|\\.)*")')


def spec(value: dict[str, Any] | None, *, caption: str = "") -> Html:
    """A grader, or other JSON of a job: `{{ templates }}` highlighted, python sources below."""
    title = html("<h4>{}</h4>", caption) if caption else Html()
    if value is None:
        return wrap(
            html('{}<p class="rk-note">Not given.</p>', title), plain=f"{caption} not given"
        )
    parts = [title, html("<pre><code>{}</code></pre>", _json(_fold_sources(value)))]
    for where, source in _python_sources(value):
        parts.append(html("<h4>Python source{}</h4>", f" of {where}" if where else ""))
        parts.append(html("<pre><code>{}</code></pre>", _python(source).rstrip()))
    return wrap(join(parts), plain=json.dumps(value, indent=2, ensure_ascii=False))


def _json(value: Any) -> Html:
    source = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    parts, end = [], 0
    for found in _JSON.finditer(source):
        parts.append(text(source[end : found.start()]))
        kind = "rk-k" if found["key"] else "rk-s"
        parts.append(html('<span class="{}">{}</span>', kind, _templates(found[0])))
        end = found.end()
    return join([*parts, text(source[end:])])


def _templates(source: str) -> Html:
    parts, end = [], 0
    for found in _TEMPLATE.finditer(source):
        parts.append(text(source[end : found.start()]))
        parts.append(html('<span class="rk-template">{}</span>', found[0]))
        end = found.end()
    return join([*parts, text(source[end:])])


def _python(source: str) -> Html:
    from pygments.lexers import PythonLexer
    from pygments.token import Comment, Keyword, String

    kinds = {Comment: "rk-c", Keyword: "rk-k", String: "rk-s"}
    parts = []
    for token, value in PythonLexer().get_tokens(source):
        kind = next((name for family, name in kinds.items() if token in family), None)
        parts.append(html('<span class="{}">{}</span>', kind, value) if kind else text(value))
    return join(parts)


def _python_sources(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Name and source of every python grader anywhere in `value`."""
    if not isinstance(value, dict):
        return
    if _is_python(value):
        yield name or str(value.get("name") or ""), value["source"]
    for key, inner in value.items():
        yield from _python_sources(inner, "" if key == "grader" else key)


def _fold_sources(value: Any) -> Any:
    """`value` without its python sources, which are shown below."""
    if not isinstance(value, dict):
        return value
    folded = {key: _fold_sources(inner) for key, inner in value.items()}
    return folded | {"source": "(shown below)"} if _is_python(value) else folded


def _is_python(value: dict[str, Any]) -> bool:
    return value.get("type") == "python" and isinstance(value.get("source"), str)
