"""The base of all panels, tried on the smallest one: a counter. Copy its shape for a new panel."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ipywidgets
import pandas as pd
import pytest
import sample_comparison
from traitlets import Int, Unicode

from rftkit.errors import InputError
from rftkit.views import Html
from rftkit.views.markup import html, wrap
from rftkit.widgets import GraderLab, Labeller, RowBrowser, RunCompare, freeze, panel
from rftkit.widgets.panel import WIDGET, Panel


class Counter(Panel):
    """Counts, and divides a hundred by the count in a thread."""

    count = Int(0)
    unit = Unicode("sheep")
    share = 0.0

    def data(self) -> pd.DataFrame:
        return pd.DataFrame({"count": [self.count]})

    def to_html(self, *, max_bytes: int = 300_000) -> Html:
        words = f"{self.count} {self.unit}"
        return wrap(html("<p>{}</p>", words), plain=words)

    def _build(self) -> Sequence[ipywidgets.Widget]:
        self.more = self._button("More", self._more)
        self.divide = self._button("Divide", self._divide)
        self.field = ipywidgets.IntText(description="Count")
        self.view = self._html()
        self._bind("count", self.field)
        return [ipywidgets.HBox([self.more, self.divide, self.field]), self.view]

    def _draw(self) -> None:
        self.view.value = self.to_html()

    def _more(self) -> None:
        if self.count >= 3:
            raise InputError("three is enough")
        self.count += 1

    def _divide(self) -> None:
        self._work(lambda task: 100 / self.count, self._set_share, "Dividing")

    def _set_share(self, share: float) -> None:
        self.share = share


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFTKIT_MODE", "live")


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], str, bool]]:
    """What would have gone to the notebook: bundle, display id, update."""
    sent: list[tuple[dict[str, Any], str, bool]] = []
    monkeypatch.setattr(panel, "_shell", lambda: object())
    monkeypatch.setattr(
        panel, "_publish", lambda bundle, name, *, update: sent.append((bundle, name, update))
    )
    return sent


def test_a_control_and_an_attribute_are_the_same_thing(live: None) -> None:
    counter = Counter(count=1)
    counter.widget()
    counter.more.click()
    assert counter.count == 2
    assert counter.field.value == 2
    assert "2 sheep" in counter.view.value
    counter.count = 0
    assert counter.field.value == 0
    assert "0 sheep" in counter.view.value
    assert counter.state == {"count": 0, "unit": "sheep"}


def test_many_values_are_drawn_once(live: None, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter()
    counter.widget()
    drawn: list[str] = []
    monkeypatch.setattr(counter, "_draw", lambda: drawn.append(str(counter)))
    counter.set(count=7, unit="goats")
    assert drawn == ["7 goats"]


def test_state_that_is_not_there_is_refused_with_a_hint() -> None:
    with pytest.raises(InputError, match="did you mean 'count'"):
        Counter(cuont=1)
    with pytest.raises(InputError, match=r"Counter\.count"):
        Counter().set(count="many")


def test_an_error_of_a_callback_is_shown_and_goes_with_the_next_click(live: None) -> None:
    counter = Counter(count=3)
    counter.widget()
    counter.more.click()
    assert counter.error == "three is enough"
    assert 'role="alert"' in counter._alert.value
    counter.count = 1
    counter.more.click()
    assert counter.error == ""
    assert counter._alert.value == ""


def test_an_error_of_slow_work_is_shown_with_the_place(live: None) -> None:
    counter = Counter()
    counter.widget()
    counter.divide.click()
    assert counter.wait(10)
    assert counter.error == "ZeroDivisionError: division by zero"
    assert "100 / self.count" in counter._alert.value
    assert not counter.busy


def test_without_a_person_an_error_is_raised() -> None:
    counter = Counter(count=3)
    with pytest.raises(InputError, match="three is enough"):
        counter._guard(counter._more)


def test_only_the_newest_result_is_shown(live: None) -> None:
    counter, first_may_end = Counter(), threading.Event()

    def slow(task: Any) -> float:
        first_may_end.wait(10)
        assert task.cancelled
        return 1.0

    counter._work(slow, counter._set_share)
    first = counter._tasks[""]
    counter._work(lambda task: 2.0, counter._set_share)
    assert counter.wait(10)
    first_may_end.set()
    assert first.done.wait(10)
    assert counter.share == 2.0


def test_work_that_has_ended_shows_no_progress(live: None) -> None:
    """Threads that the work started may report after it."""
    counter, tasks = Counter(), list[Any]()
    counter.widget()
    counter._work(lambda task: tasks.append(task) or 1.0, counter._set_share, "Counting")
    assert counter.wait(10)
    tasks[0].report("8 of 8 sheep …")
    assert counter._status.value == ""


def test_a_headless_run_gets_html_and_text_only() -> None:
    bundle = Counter(count=5)._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}
    assert "<p>5 sheep</p>" in bundle["text/html"]
    assert bundle["text/plain"] == "5 sheep" == str(Counter(count=5))


def test_a_live_notebook_gets_the_widget_and_small_html(live: None) -> None:
    bundle = Counter()._repr_mimebundle_()
    assert set(bundle) == {WIDGET, "text/html", "text/plain"}
    # what is printed before a freeze
    assert "as it was when its cell ran" in bundle["text/html"]
    assert "<style>" in bundle["text/html"]
    assert "<script" not in bundle["text/html"]


def test_freeze_leaves_what_is_shown(live: None, published: Any) -> None:
    counter = Counter(count=2)
    counter._ipython_display_()
    counter.more.click()
    button = freeze(counter)
    assert button is not None
    button._ipython_display_()
    button.widget().children[3].click()
    (_, shown, _), _, (frozen, name, update), (sentence, _, _) = published
    assert (name, update) == (shown, True)
    assert set(frozen) == {"text/html", "text/plain"}
    assert "3 sheep" in frozen["text/html"]
    assert "static copies" in sentence["text/plain"]
    assert str(counter) == "3 sheep"


def test_a_headless_freeze_asks_nobody(published: Any) -> None:
    counter = Counter()
    counter._ipython_display_()
    counter.count = 9
    assert freeze() is None
    assert published[-1][0]["text/plain"] == "9 sheep"


def test_the_kernel_says_whether_somebody_can_click(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kernel:
        _allow_stdin = False

    class Shell:
        kernel = Kernel

    assert not panel.live()  # a plain interpreter
    monkeypatch.setattr(panel, "_shell", Shell)
    monkeypatch.setenv("JPY_SESSION_NAME", "inherited.ipynb")  # papermill below a notebook
    assert not panel.live()
    monkeypatch.setattr(Kernel, "_allow_stdin", True)
    assert panel.live()
    monkeypatch.delattr(Kernel, "_allow_stdin")
    assert panel.live()


def controls(root: Any) -> Iterator[Any]:
    yield root
    for child in getattr(root, "children", ()):
        yield from controls(child)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GraderLab("tiny_copy"),
        lambda: RowBrowser("tiny_copy"),
        lambda: RunCompare(sample_comparison.samples()),
        lambda: Labeller(sample_comparison.samples()),
    ],
)
def test_no_field_is_wider_than_a_narrow_screen(make: Callable[[], Panel], live: None) -> None:
    """17 rem is what a phone leaves an output; a text field without a width has 300 pixels."""
    shown = make()
    try:
        for each in controls(shown.widget()):
            is_field = isinstance(each, ipywidgets.Text) and "rk-acts" not in each._dom_classes
            width = each.layout.width or ("19rem" if is_field and not each.layout.flex else "")
            if width.endswith("rem") and float(width.removesuffix("rem")) > 17:
                assert each.layout.max_width, (each, each.description)
    finally:
        shown.close()
