"""Markup escapes what is put into it, and no module writes markup in a way that does not."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import rftkit
from rftkit.views.markup import Html, heading, html, join, note, wrap

ELEMENT = re.compile(
    r"</?(a|b|br|button|circle|code|details|div|em|figure|h[1-6]|html|i|img|input|ins|del|label|li|"
    r"line|mark|nav|ol|option|p|path|polygon|pre|rect|script|section|select|small|span|strong|"
    r"style|summary|svg|table|tbody|td|text|th|thead|title|tr|ul)\b"
)
ATTRIBUTE = re.compile(r'[\w-]="\{\}')
TAKES_MARKUP = {"html", "html_each", "Html", "Markup"}
TRUSTED = {
    "Html(template)",  # html() and html_each(), whose callers are checked here
    "html(template, value)",
    "Html(Html(template).format(*values), plain)",
    "Html(Html().join(parts), plain)",
    "Html(escape(str(value)))",
    "Html(body)",  # json_script: JSON without `<`
    "Html(_asset('views.css'))",  # files of the package
    "Html(f\"{_asset('views.js')}\\n{charts_script()}\")",
    "Html(_COUNT.sub(lambda found: found['tag'] + found['all'], whole))",  # of a finished page
    "Html(rendered)",  # nbconvert's page
    "Markup(found[1])",  # to undo the escaping of a heading
    "Markup(STYLE)",  # a constant of the page of a run
}
"""Calls that declare a text to be markup, which is not a literal; each is harmless."""
REWRITES = {"rftkit/views/stills.py"}
"""Modules that take finished markup apart, and write no data into it."""


def by_hand(source: str) -> list[str]:
    """What a module writes as markup without the escaping that `html` has."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.JoinedStr(values=values):
                words = "".join(
                    str(v.value) if isinstance(v, ast.Constant) else "{}" for v in values
                )
                is_markup = bool(ELEMENT.search(words) or ATTRIBUTE.search(words))
            case (
                ast.BinOp(left=ast.Constant(value=str(words)), op=ast.Mod() | ast.Add())
                | ast.BinOp(right=ast.Constant(value=str(words)), op=ast.Add())
                | ast.Call(func=ast.Attribute(value=ast.Constant(value=str(words)), attr="format"))
            ):
                is_markup = bool(ELEMENT.search(words))
            case ast.Call(func=ast.Attribute(value=ast.Constant(), attr="join"), args=[parts]):
                is_markup = re.search(r"\b[hH]tml\(", ast.unparse(parts)) is not None
            case ast.Call(
                func=ast.Name(id="html" | "html_each" | "Html" | "Markup"), args=[first, *_]
            ):
                is_markup = not isinstance(first, ast.Constant) and ast.unparse(node) not in TRUSTED
            case _:
                continue
        if is_markup:
            found.append(f"line {node.lineno}: {ast.unparse(node)[:90]}")
    return found


def test_no_markup_is_put_together_by_hand() -> None:
    root = Path(rftkit.__file__).parent
    found = {
        name: parts
        for path in sorted(root.rglob("*.py"))
        if (name := path.relative_to(root.parent).as_posix()) not in REWRITES
        if (parts := by_hand(path.read_text(encoding="utf-8")))
    }
    assert not found, 'write html("<p>{}</p>", value): it escapes, an f-string does not'


@pytest.mark.parametrize(
    "line",
    [
        'f"<p>{name}</p>"', "f' title=\"{name}\"'", '"<b>" + name', 'name + "</b>"',
        '"<b>%s</b>" % name', '"<b>{}</b>".format(name)', "Html(name)", 'Html(f"{name}")',
        'html(f"{name}", 1)', "html(template, name)", "Markup(name)",
    ],
)  # fmt: skip
def test_markup_by_hand_is_found(line: str) -> None:
    assert by_hand(line)


def test_what_is_put_into_markup_is_escaped() -> None:
    sly = "<img src=x onerror=alert(1)>\"'"
    for shown in (
        html("<p>{}</p>", sly),
        html('<p title="{}"></p>', sly),
        join([Html(), sly]),
        wrap(sly),
        Html("<b>") + sly,
        note(sly),
        heading(sly),
    ):
        assert "<img" not in shown
        assert sly[-2:] not in shown
    assert html("<p>{}</p>", html("<b>{}</b>", 1)) == "<p><b>1</b></p>"
