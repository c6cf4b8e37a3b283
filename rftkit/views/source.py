"""Graders and other JSON as readable source: templates marked, python code laid out.

Not here: checking a spec, or running it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from rftkit.views.markup import Html, text, wrap

__all__ = ["spec"]

_TEMPLATE = re.compile(r"\{\{.*?\}\}", re.DOTALL)
_JSON = re.compile(r'(?P<key>"(?:[^"\\]|\\.)*")(?=\s*:)|(?P<string>"(?:[^"\\]|\\.)*")')


def spec(value: dict[str, Any] | None, *, caption: str = "") -> Html:
    """A grader, or other JSON of a job: `{{ templates }}` marked, python sources laid out below."""
    title = f"<h4>{text(caption)}</h4>" if caption else ""
    if value is None:
        return wrap(f'{title}<p class="rk-note">None was given.</p>', plain=f"{caption} not given")
    parts = [title, f"<pre><code>{_json(_fold_sources(value))}</code></pre>"]
    for where, source in _python_sources(value):
        parts.append(f"<h4>Python source of {text(where)}</h4>")
        parts.append(f"<pre><code>{_python(source).rstrip()}</code></pre>")
    return wrap("".join(parts), plain=json.dumps(value, indent=2, ensure_ascii=False))


def _json(value: Any) -> str:
    source = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    parts, end = [], 0
    for found in _JSON.finditer(source):
        parts.append(text(source[end : found.start()]))
        kind = "rk-k" if found["key"] else "rk-s"
        parts.append(f'<span class="{kind}">{_templates(found[0])}</span>')
        end = found.end()
    return "".join([*parts, text(source[end:])])


def _templates(source: str) -> str:
    parts, end = [], 0
    for found in _TEMPLATE.finditer(source):
        parts.append(text(source[end : found.start()]))
        parts.append(f'<span class="rk-template">{text(found[0])}</span>')
        end = found.end()
    return "".join([*parts, text(source[end:])])


def _python(source: str) -> str:
    from pygments.lexers import PythonLexer
    from pygments.token import Comment, Keyword, String

    kinds = {Comment: "rk-c", Keyword: "rk-k", String: "rk-s"}
    parts = []
    for token, value in PythonLexer().get_tokens(source):
        kind = next((name for family, name in kinds.items() if token in family), None)
        parts.append(f'<span class="{kind}">{text(value)}</span>' if kind else text(value))
    return "".join(parts)


def _python_sources(grader: dict[str, Any], name: str = "") -> Iterator[tuple[str, str]]:
    name = name or str(grader.get("name") or grader.get("type"))
    if grader.get("type") == "python" and isinstance(grader.get("source"), str):
        yield name, grader["source"]
    for key, inner in _inner(grader).items():
        yield from _python_sources(inner, key)


def _fold_sources(grader: dict[str, Any]) -> dict[str, Any]:
    """The spec with each python source replaced by a word, since it is shown below."""
    folded = dict(grader)
    if folded.get("type") == "python":
        folded["source"] = "(shown below)"
    if inner := _inner(grader):
        folded["graders"] = {key: _fold_sources(each) for key, each in inner.items()}
    return folded


def _inner(grader: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The graders of a multi grader, by name."""
    inner = grader.get("graders")
    if not isinstance(inner, dict):
        return {}
    return {key: each for key, each in inner.items() if isinstance(each, dict)}
