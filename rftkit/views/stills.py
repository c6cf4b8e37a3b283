"""Charts as images, for notebooks that nobody has trusted yet.

JupyterLab, and sites that show notebooks, keep the `<img>` of an untrusted output. Of an `<svg>`
they keep the words alone, one after the other, and they drop style sheets and scripts. So a chart
is put into a notebook as an image of the same SVG, with the rules of the style sheet that it needs
(`stilled`). Where scripts run, `views.js` puts the SVG back, whose points can be reached; a page of
a report has the SVG itself (`moving`). Not here: drawing (`svg`).
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from urllib.parse import quote, unquote

__all__ = ["moving", "stilled"]

_SVG = re.compile(r"<svg\b([^>]*)>(.*?)</svg>", re.DOTALL)
_STILL = re.compile(r"<img\b[^>]*\brk-still\b[^>]*>")
_SOURCE = re.compile(r'src="data:image/svg\+xml,([^"]*)"')
_ADDED = re.compile(r' xmlns="[^"]*"|<style>.*?</style>', re.DOTALL)
_RULE = re.compile(r"([^{}]+)\{([^{}]*)\}")
_COLOUR = re.compile(r"--(\w+): (?:var\([^,]+, )?light-dark\((#\w+),")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def stilled(markup: str) -> str:
    """The markup with each SVG as an image, described by the label of the SVG."""
    return _SVG.sub(_still, markup)


def moving(markup: str) -> str:
    """The markup with each such image as an SVG again."""
    return _STILL.sub(_moved, markup)


def _still(found: re.Match[str]) -> str:
    head, inner = found.groups()
    label = re.search(r'aria-label="([^"]*)"', head)
    width, height = re.findall(r'viewBox="0 0 (\S+) (\S+)"', head)[0]
    drawn = (
        f'<svg xmlns="http://www.w3.org/2000/svg"{head}><style>{_style(head + inner)}</style>'
        f"{inner}</svg>"
    )
    source = quote(_NOT_XML.sub("", drawn), safe=" =:/;,()!*.-_")
    return (
        f'<img class="rk-still" alt="{label[1] if label else ""}" width="{width}" '
        f'height="{height}" src="data:image/svg+xml,{source}">'
    )


def _moved(found: re.Match[str]) -> str:
    source = _SOURCE.search(found[0])
    return _ADDED.sub("", unquote(source[1])) if source else found[0]


def _style(drawn: str) -> str:
    """The rules that apply to something in a drawing, in light colours."""
    used = set(re.findall(r"rk-\w+", drawn))
    colours, rules = _sheet()
    kept = [f"{rule}{{{body}}}" for rule, body in rules if _names(rule) <= used]
    ground = "background:#fff;" if "rk-svg" in used else ""
    return f"svg{{{colours}color-scheme:light;{ground}font-family:sans-serif}}{''.join(kept)}"


def _names(selector: str) -> set[str]:
    """The classes that a selector needs; for a beginning such as `rk-job` any matching class will
    do.
    """
    return set(re.findall(r"\.(rk-\w+)", selector))


@cache
def _sheet() -> tuple[str, list[tuple[str, str]]]:
    """Colours, and (selector, declarations) of each rule about charts, one selector a rule."""
    sheet = files("rftkit.views").joinpath("views.css").read_text(encoding="utf-8")
    _, _, charts = sheet.partition("/* Charts")
    charts = charts.partition("*/")[2].partition("@media")[0]
    rules = [
        (one.strip().removeprefix(".rk.rk "), body.strip())
        for selectors, body in _RULE.findall(charts)
        for one in selectors.split(",")
        if ":" not in one and "rk-" in one and one.strip() != ".rk.rk .rk-svg"
    ]
    colours = "".join(
        f"--{name}:{light};" for name, light in _COLOUR.findall(sheet.partition("}")[0])
    )
    return colours, rules
