"""Escaping, numbers and the page: what every view stands on."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_job import GRADER, PROBE, answers, events

from rftkit import views
from rftkit.reports import summary
from rftkit.views import markup

VIEWS = {
    "table": lambda: views.table([{"a": PROBE, PROBE: 1}], caption=PROBE, noun=PROBE),
    "long cell": lambda: views.table([{"a": PROBE * 40}]),
    "answers": lambda: views.answers(answers()),
    "keyvalues": lambda: views.keyvalues({PROBE: PROBE, "list": [PROBE]}, caption=PROBE),
    "events": lambda: views.events(events()),
    "spec": lambda: views.spec(GRADER | {"name": PROBE, "input": f"{{{{ {PROBE} }}}}"}),
    "note": lambda: views.note(PROBE),
    "headline": lambda: views.headline(summary(events(), answers()) | {"status": PROBE}),
    "picture": lambda: views.reward_chart(events()),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_data_never_becomes_markup(view):
    html = view()

    assert "<script>" not in html
    assert "<img src=x" not in html
    assert "<b>" not in re.sub(r"<b>[–\d.,]*</b>", "", html)


@given(st.recursive(st.text() | st.none() | st.floats(allow_nan=False), st.lists))
def test_json_in_a_page_comes_back_and_cannot_end_its_element(value):
    element = markup.json_script(value)
    body = element.removeprefix('<script type="application/json">').removesuffix("</script>")

    assert "<" not in body
    assert json.loads(body) == value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0, "0"),
        (0.0, "0.000"),
        (0.41739, "0.417"),
        (0.00003, "0.00003"),
        (-7.4e-4, "-0.00074"),
        (1e-9, "1.0e-09"),
        (12.345, "12.3"),
        (1234567, "1,234,567"),
    ],
)
def test_numbers_for_people(value, shown):
    assert markup.number(value) == shown


def test_differences_carry_their_sign():
    assert [markup.signed(x, 2) for x in (0.4, -0.4, 0.001, None)] == ["+0.40", "−0.40", "±0", "–"]


def test_jupyter_gets_markup_with_assets_and_a_plain_text():
    view = views.table([{"a": 1}])
    bundle = view._repr_mimebundle_()

    assert bundle["text/html"] == view + markup.assets()
    assert bundle["text/plain"] == "1 of 1 row"
    assert "<style>" not in view


def test_a_page_carries_its_assets_once_and_forbids_requests():
    view = views.table([{"a": 1}])
    shown = view._repr_mimebundle_()["text/html"]
    page = views.page("A & B", shown + shown)

    assert page.count("<style>") == 1
    assert page.count("<script>") == 1
    assert "<title>A &amp; B</title>" in page
    assert "default-src 'none'" in page


def test_a_python_source_without_a_name_is_called_no_name() -> None:
    shown = views.spec({"type": "python", "source": "def grade(sample, item):\n    return 1\n"})
    assert "<h4>Python source</h4>" in shown
    assert "Python source of mine" in views.spec({"type": "python", "name": "mine", "source": "x"})
