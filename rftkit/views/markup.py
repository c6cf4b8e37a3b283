"""What every view is built on: HTML that Jupyter shows, escaping, numbers, style, script and page.

Not here: what is shown. A view is a pure function `data -> Html`; the same string is shown in a
notebook cell, inside a widget and in a report, so there is one look and one place to fix it.

Three rules hold for all views. The markup is readable before the script runs (an untrusted notebook
strips scripts and styles). Colour never carries a meaning alone: a word or a sign says the same.
Whatever comes from data is escaped, by default: markup is written as a template, `html("<p>{}</p>",
value)`, and every value that is not `Html` already is escaped when it is put in. An f-string of
markup would not escape; a test refuses it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

from markupsafe import Markup, escape

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
    "fact_table",
    "heading",
    "html",
    "html_each",
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


class Html(Markup):
    """A piece of markup. Jupyter shows it; as a `str` it is the bare markup, without assets.

    What is joined, added or formatted into it is escaped, unless it is markup too. The constructor
    trusts its text: it takes a literal, never data.
    """

    plain: str

    def __new__(cls, markup: str = "", plain: str = "") -> Html:
        """`plain` is what a viewer without HTML shows."""
        self = super().__new__(cls, markup)
        self.plain = plain or f"{len(markup):,} characters of HTML"
        return self

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": f"{stilled(self)}{assets()}", "text/plain": self.plain}


DASH = "–"
ROUNDING = 1e-12
"""Rounding errors may be this large instead of 0."""
REST = Html("<!--rest-->")
"""The place of the other items of a list."""
REST_SCRIPT = Html('<script type="text/html" class="rk-rest">')
"""The script element that holds them until the page shows them."""


def html(template: str, *values: object, plain: str = "") -> Html:
    """Fill in the `{}` of a literal piece of markup; values that are not `Html` are escaped."""
    return Html(Html(template).format(*values), plain)


def join(parts: Iterable[Html], plain: str = "") -> Html:
    """Put pieces one after the other; those that are not `Html` are escaped."""
    return Html(Html().join(parts), plain)


def html_each(template: str, values: Iterable[object]) -> Html:
    """The template once for each value: `html_each("<li>{}</li>", lines)`."""
    return join(html(template, value) for value in values)


def fact_table(facts: Iterable[tuple[str, object]]) -> Html:
    """Names and values below each other."""
    lines = join(html('<tr><th scope="row">{}</th><td>{}</td></tr>', *fact) for fact in facts)
    return html('<div class="rk-scroll" tabindex="0"><table><tbody>{}</tbody></table></div>', lines)


def wrap(inner: Html, kind: str = "", plain: str = "") -> Html:
    """The outermost element of a view; the style sheet applies inside it only."""
    return html('<div class="{}">{}</div>', f"rk {kind}".strip(), inner, plain=plain)


def prose(sentence: str) -> Html:
    """A sentence, escaped, with what is between backticks as code."""
    parts = re.split("`([^`]+)`", sentence)
    return join(html("<code>{}</code>", p) if at % 2 else text(p) for at, p in enumerate(parts))


def text(value: Any) -> Html:
    """Escape anything for use between tags or in a quoted attribute."""
    return Html(escape(str(value)))


def copyable(label: str, content: str, *, is_open: bool = False) -> Html:
    """A text, folded unless it `is_open`, with a button that copies it where scripts run.

    Where the browser refuses to copy, the text is shown and selected, and the button says so.
    """
    shown = label.removeprefix("Copy ")
    return html(
        '<div class="rk-copyable"><button type="button" class="rk-copy" style="display:none" '
        'data-lm-suppress-shortcuts="true" onclick="{}">{}</button><details{}>'
        '<summary data-lm-suppress-shortcuts="true">{}</summary><pre>{}</pre></details></div>',
        _COPY,
        label,
        " open" if is_open else "",
        shown[:1].upper() + shown[1:],
        content,
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


def scrolled_to(count: int) -> Html:
    """An empty element that scrolls itself into view when it is put into a panel.

    A style element reports that it was loaded; a script in a widget does not run. Another `count`
    is another element, so that the next one scrolls too.
    """
    smooth = "this.parentElement.scrollIntoView({block: 'start', behavior: 'auto'})"
    return html('<style onload="{}">.rk-scrolled-{} {{}}</style>', smooth, count)


def note(message: str) -> Html:
    """A grey sentence below a view, or in its place."""
    return wrap(html('<p class="rk-note">{}</p>', message), plain=message)


def heading(words: str) -> Html:
    """The first heading of a page, from words that may be anybody's; Markdown would run them."""
    return html("<h1>{}</h1>", words, plain=words)


def about(sentences: Iterable[str]) -> Html:
    """What a page is about, below its heading; names between backticks are code."""
    said = list(sentences)
    return wrap(html_each("<p>{}</p>", map(prose, said)), "rk-about", plain="\n".join(said))


def bullets(lines: Iterable[str], otherwise: str) -> Html:
    """Sentences as a list; without any, the one that says so."""
    if not (said := list(lines)):
        return note(otherwise)
    return wrap(html("<ul>{}</ul>", html_each("<li>{}</li>", said)), plain="\n".join(said))


def missing(value: Any) -> bool:
    """True for None, NaN and pandas' NA: not measured, not graded. Zero is not missing."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: `1,234`, `0.417`, `12.5`, `0.00074`; a dash when it is missing."""
    if value is None or missing(value):
        return DASH
    if abs(value) < ROUNDING:
        value = 0.0 if isinstance(value, float) else value
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{int(value):,}"
    if value != 0 and abs(value) < 10**-digits:
        # digits after the point for two significant digits
        places = 1 - math.floor(math.log10(abs(value)))
        return f"{value:.{places}f}".rstrip("0") if places < 8 else f"{value:.1e}"
    return f"{value:,.{digits if abs(value) < 10 else 1}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """A difference: `+0.120`, `−0.034`, `±0`."""
    if value is None or missing(value):
        return DASH
    if round(value, digits) == 0:
        return "±0"
    return f"{'+' if value > 0 else '−'}{number(abs(value), digits)}"


def json_script(value: Any, *, kind: str = "application/json", name: str = "") -> Html:
    """Data inside a page; `<` is written as an escape, so no value can end the element."""
    body = json.dumps(value, ensure_ascii=False, default=str).replace("<", "\\u003c")
    identity = html(' id="{}"', name) if name else ""
    return html('<script type="{}"{}>{}</script>', kind, identity, Html(body))


@cache
def assets() -> Html:
    """The style sheet and the scripts of all views, as inline elements."""
    return html("{}<script>{}</script>", style(), _scripts())


@cache
def style() -> Html:
    """The style sheet alone, for widgets, where inline scripts do not run."""
    return html("<style>{}</style>", Html(_asset("views.css")))


@cache
def charts_script() -> str:
    """The script of charts alone, for panels, whose lists are made in the kernel."""
    return _asset("charts.js")


def _scripts() -> Html:
    return Html(f"{_asset('views.js')}\n{charts_script()}")


def page(title: str, body: Html, *, head: str = "", foot: str = "") -> str:
    """One HTML document that loads nothing from outside; the browser is told to enforce that.

    Assets that views left in `body` are taken out: the page carries them once.
    """
    whole = _PAGE.format(
        title=title,
        head=head,
        style=Html(_asset("views.css")),
        body=_with_all_items(moving(body.replace(assets(), ""))),
        foot=foot,
        script=_scripts(),
    )
    return str(whole)


def _with_all_items(body: str) -> Html:
    """A page has every item of its lists as plain markup; the script makes pages of them.

    nbconvert writes the attributes of an element in an order of its own.
    """
    whole = _REST_OF_LIST.sub(lambda found: found["rest"] + found["after"], body)
    return Html(_COUNT.sub(lambda found: found["tag"] + found["all"], whole))


_REST_OF_LIST = re.compile(
    r"<!--rest-->(?P<after>.*?)<script\b[^>]*\brk-rest\b[^>]*>(?P<rest>.*?)</script>", re.DOTALL
)
_COUNT = re.compile(r'(?P<tag><p\b[^>]*\bdata-all="(?P<all>[^"]*)"[^>]*>)[^<]*')


@cache
def _asset(name: str) -> str:
    return files("rftkit.views").joinpath(name).read_text(encoding="utf-8").strip()


_PAGE = Html("""<!doctype html>
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
""")
