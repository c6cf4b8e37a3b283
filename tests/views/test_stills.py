"""Charts as images: the form that an untrusted notebook keeps, and the way back from it."""

from __future__ import annotations

import re
import xml.dom.minidom
from urllib.parse import unquote

import pytest
import sample_comparison
from sample_job import events

from rftkit import views
from rftkit.views import stills
from rftkit.views.markup import Html

CHARTS = {
    "rewards": lambda: views.reward_chart(events()),
    "health": lambda: views.health_chart(events()),
    "times": lambda: views.time_chart(events()),
    "comparison": lambda: views.reward_curve(sample_comparison.comparison()),
    "paths": lambda: views.row_paths(sample_comparison.comparison()),
}


def sources(shown: str) -> list[str]:
    return [unquote(each) for each in re.findall(r'src="data:image/svg\+xml,([^"]*)"', shown)]


@pytest.mark.parametrize("name", CHARTS)
def test_a_notebook_has_images_and_a_page_the_drawings(name: str) -> None:
    chart = CHARTS[name]()
    shown = chart._repr_mimebundle_()["text/html"].partition("<style>")[0]

    assert "<svg" not in shown
    assert len(sources(shown)) == chart.count("<svg")
    assert stills.moving(shown) == chart
    assert views.page("Page", chart._repr_mimebundle_()["text/html"]) == views.page("Page", chart)


@pytest.mark.parametrize("name", CHARTS)
def test_an_image_is_whole_in_itself(name: str) -> None:
    """A browser reads an image as XML, without the style sheet of the page."""
    for source in sources(stills.stilled(CHARTS[name]())):
        drawn = xml.dom.minidom.parseString(source).documentElement
        assert drawn.namespaceURI == "http://www.w3.org/2000/svg"
        assert "--accent:#0a58a8;" in source
        for used in set(re.findall(r'class="[^"]*(rk-(?:line|main|grid|fill0))\b', source)):
            assert f".{used}" in source


def test_an_image_says_what_the_chart_says() -> None:
    labelled = re.findall(r'class="rk-svg"[^>]*aria-label="([^"]*)"', CHARTS["rewards"]())
    shown = stills.stilled(CHARTS["rewards"]())

    assert [each for each in re.findall(r'alt="([^"]*)"', shown) if each] == labelled


def test_what_xml_cannot_hold_is_left_out() -> None:
    drawn = '<svg viewBox="0 0 1 1"><title>a\x0cb &amp; " # % é</title></svg>'
    (source,) = sources(Html(drawn)._repr_mimebundle_()["text/html"])

    assert "ab &amp; " in source
    xml.dom.minidom.parseString(source)
