"""The ground of every view: HTML that Jupyter shows, escaping, numbers, style, script and page.

Not here: what is shown. A view is a pure function `data -> Html`; the same string is shown in a
notebook cell, inside a widget and in a report, so there is one look and one place to repair it.

Three rules hold for all views. The markup is readable before the script runs (an untrusted notebook
strips scripts and styles). Whatever comes from data is escaped. Colour never carries a meaning
alone: a word or a sign says the same.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

from rftkit.views.stills import moving, stilled

__all__ = [
    "REST",
    "REST_SCRIPT",
    "Html",
    "about",
    "assets",
    "bullets",
    "charts_script",
    "copyable",
    "heading",
    "join",
    "json_script",
    "missing",
    "note",
    "number",
    "page",
    "prose",
    "scrolled_to",
    "signed",
    "style",
    "text",
    "wrap",
]

DASH = "–"
REST = "<!--rest-->"
"""Where the other items of a list belong."""
REST_SCRIPT = '<script type="text/html" class="rk-rest">'
"""What they are in until the script or a page puts them there."""


class Html(str):
    """A piece of markup. Jupyter shows it; as a `str` it is the bare markup, without assets."""

    plain: str

    def __new__(cls, markup: str, plain: str = "") -> Html:
        """`plain` is what a viewer without HTML shows."""
        self = super().__new__(cls, markup)
        self.plain = plain or f"{len(markup):,} characters of HTML"
        return self

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": f"{stilled(self)}{assets()}", "text/plain": self.plain}


def join(parts: Iterable[str], plain: str = "") -> Html:
    """Put pieces one after the other."""
    return Html("".join(parts), plain)


def wrap(inner: str, kind: str = "", plain: str = "") -> Html:
    """The outermost element of a view; the style sheet applies inside it only."""
    return Html(f'<div class="{" ".join(("rk", kind)).strip()}">{inner}</div>', plain)


def prose(sentence: str) -> str:
    """A sentence, escaped, with what stands between backticks as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", text(sentence))


def text(value: Any) -> str:
    """Escape anything for use between tags or in a quoted attribute."""
    return html.escape(str(value), quote=True)


def copyable(label: str, content: str, *, is_open: bool = False) -> Html:
    """A text, folded unless it `is_open`, with a button that copies it where scripts run.

    Where the browser refuses to copy, the text is shown and selected, and the button says so.
    """
    shown = label.removeprefix("Copy ")
    return Html(
        f'<div class="rk-copyable"><button type="button" class="rk-copy" style="display:none" '
        f'data-lm-suppress-shortcuts="true" onclick="{text(_COPY)}">{text(label)}</button>'
        f'<details{" open" if is_open else ""}><summary data-lm-suppress-shortcuts="true">'
        f"{text(shown[:1].upper() + shown[1:])}</summary>"
        f"<pre>{text(content)}</pre></details></div>",
        plain=content,
    )


_COPY = """const box = this.parentElement, pre = box.querySelector('pre'), label = this.textContent;
const say = words => {
  this.textContent = words;
  setTimeout(() => { this.textContent = this.dataset.label; }, 4000);
};
this.dataset.label ??= label;
const select = () => {
  box.querySelector('details').open = true;
  getSelection().selectAllChildren(pre);
  say(document.execCommand('copy') ? 'Copied' : 'Selected: press Ctrl+C to copy');
};
navigator.clipboard
  ? navigator.clipboard.writeText(pre.textContent).then(() => say('Copied'), select) : select();"""


def scrolled_to(count: int) -> str:
    """An empty element that scrolls itself into view when it is put into a panel.

    A style element reports that it was loaded; a script in a widget does not run. Another `count`
    is another element, so that the next one scrolls too.
    """
    smooth = "this.parentElement.scrollIntoView({block: 'start', behavior: 'auto'})"
    return f'<style onload="{text(smooth)}">.rk-scrolled-{count} {{}}</style>'


def note(message: str) -> Html:
    """A grey sentence below a view, or in its place."""
    return wrap(f'<p class="rk-note">{text(message)}</p>', plain=message)


def heading(words: str) -> Html:
    """The first heading of a page, from words that may be anybody's; Markdown would run them."""
    return Html(f"<h1>{text(words)}</h1>", plain=words)


def about(sentences: Iterable[str]) -> Html:
    """What a page is about, below its heading; names between backticks are code."""
    said = list(sentences)
    inner = "".join(f"<p>{prose(each)}</p>" for each in said)
    return wrap(inner, "rk-about", plain="\n".join(said))


def bullets(lines: Iterable[str], otherwise: str) -> Html:
    """Sentences as a list; without any, the one that says so."""
    if not (said := list(lines)):
        return note(otherwise)
    items = "".join(f"<li>{text(line)}</li>" for line in said)
    return wrap(f"<ul>{items}</ul>", plain="\n".join(said))


def missing(value: Any) -> bool:
    """True for None, NaN and pandas' NA: not measured, not graded. Zero is not missing."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: `1,234`, `0.417`, `12.5`; a dash when it is missing."""
    if value is None or missing(value):
        return DASH
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{int(value):,}"
    if value != 0 and abs(value) < 10**-digits:
        return f"{value:.1e}"
    return f"{value:,.{digits if abs(value) < 10 else 1}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """A difference: `+0.120`, `−0.034`, `±0`."""
    if value is None or missing(value):
        return DASH
    if round(value, digits) == 0:
        return "±0"
    return f"{'+' if value > 0 else '−'}{number(abs(value), digits)}"


def json_script(value: Any, *, kind: str = "application/json", name: str = "") -> str:
    """Data inside a page; `<` is written as an escape, so no value can end the element."""
    body = json.dumps(value, ensure_ascii=False, default=str).replace("<", "\\u003c")
    identity = f' id="{text(name)}"' if name else ""
    return f'<script type="{kind}"{identity}>{body}</script>'


@cache
def assets() -> str:
    """The style sheet and the scripts of all views, as inline elements."""
    return f"{style()}<script>{_asset('views.js')}\n{charts_script()}</script>"


@cache
def style() -> str:
    """The style sheet alone, for widgets, where inline scripts do not run."""
    return f"<style>{_asset('views.css')}</style>"


@cache
def charts_script() -> str:
    """The script of charts alone, for panels, whose lists are made in the kernel."""
    return _asset("charts.js")


def page(title: str, body: str, *, head: str = "", foot: str = "") -> str:
    """One HTML document that reaches for nothing outside itself; the browser is told to hold that.

    Assets that views left in `body` are taken out: the page carries them once.
    """
    return _PAGE.format(
        title=text(title),
        head=head,
        style=_asset("views.css"),
        body=_with_all_items(moving(body.replace(assets(), ""))),
        foot=foot,
        script=f"{_asset('views.js')}\n{charts_script()}",
    )


def _with_all_items(body: str) -> str:
    """A page has every item of its lists as plain markup; the script makes pages of them.

    nbconvert writes the attributes of an element in an order of its own.
    """
    whole = _REST_OF_LIST.sub(lambda found: found["rest"] + found["after"], body)
    return _COUNT.sub(lambda found: found["tag"] + found["all"], whole)


_REST_OF_LIST = re.compile(
    rf"{REST}(?P<after>.*?)<script\b[^>]*\brk-rest\b[^>]*>(?P<rest>.*?)</script>", re.DOTALL
)
_COUNT = re.compile(r'(?P<tag><p\b[^>]*\bdata-all="(?P<all>[^"]*)"[^>]*>)[^<]*')


@cache
def _asset(name: str) -> str:
    return files("rftkit.views").joinpath(name).read_text(encoding="utf-8").strip()


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
font-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; form-action 'none'; \
base-uri 'none'">
<link rel="icon" href="data:,">
<title>{title}</title>
{head}<style>{style}</style>
</head>
<body class="rk-page">
<main>
{body}
</main>
<footer class="rk">{foot}</footer>
<script>{script}</script>
</body>
</html>
"""
