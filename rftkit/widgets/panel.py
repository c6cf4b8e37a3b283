"""The base of every panel: one object that is data, HTML and, in a live notebook, controls.

A panel has its *state* (traits, so plain attributes that can be read and set), `data()`, which is
what it now shows as a table, and `to_html()`, the same as markup that needs no kernel. Only
`widget()` builds core ipywidgets, and these hold nothing of their own: a control sets a trait, a
trait redraws. So everything that can be clicked can be typed, and a headless run shows the same.

Three rules for those who write one. What may take longer than a blink goes through `_work`, which
runs it in a thread, because some kernels call a callback in a thread and others in the middle of
the user's cell. Only `.value` and traits are set from there: nothing prints, nothing plots with
pyplot. Every callback goes through `_guard`, because Jupyter drops what a callback raises.

Not here: what any panel shows, and turning them into static copies (`freezing`).
"""

from __future__ import annotations

import difflib
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import ipywidgets
from traitlets import Bool, HasTraits, TraitError, Unicode, link

from rftkit import settings
from rftkit.client import api_message
from rftkit.errors import InputError, RftkitError
from rftkit.views.markup import Html, assets, style, text
from rftkit.widgets.task import Task

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SHOWN", "Panel", "live"]

T = TypeVar("T")
WIDGET = "application/vnd.jupyter.widget-view+json"
STORED_BYTES = 30_000
"""Of the HTML that goes into the .ipynb beside a live widget, each time it is shown."""


def live() -> bool:
    """Whether somebody can click: a notebook with a person in front of it, not a headless run.

    `RFTKIT_MODE` decides if it is set. Else the kernel does: who executes a notebook without a
    person (papermill, nbclient, nbconvert) tells the kernel that nobody can answer `input()`.
    """
    if (mode := settings.mode()) is not None:
        return mode == "live"
    kernel = getattr(_shell(), "kernel", None)
    answers = getattr(kernel, "_allow_stdin", None)  # private, so it may be gone one day
    return kernel is not None and (
        settings.jupyter_session() is not None if answers is None else bool(answers)
    )


class Panel(HasTraits):
    """What all panels can do. A subclass says what it shows.

    A subclass declares its state as traits, gives `data` and `to_html`, and for live notebooks
    `_build` (its widgets, made once) and `_draw` (put the present state into them).
    """

    busy = Bool(False, read_only=True, help="Whether slow work is under way; see `wait`.")
    error = Unicode("", read_only=True, help="The last callback's error, as the panel shows it.")

    def __init__(self, **state: Any) -> None:
        """`state` are values for the panel's traits, as in `set`."""
        super().__init__()
        self._lock = threading.RLock()
        self._holder: int | None = None
        self._root: ipywidgets.Box | None = None
        self._tasks: dict[str, Task] = {}
        self._closed = False
        self._display_id = f"rftkit-{uuid4().hex[:12]}"
        self._assign(state)
        self.observe(lambda change: self._on_trait(change["name"]), names=list(self.state))

    # what a subclass gives

    def data(self) -> pd.DataFrame:
        """What the panel now shows, as a table."""
        raise NotImplementedError

    def to_html(self, *, max_bytes: int = 300_000) -> Html:
        """What the panel now shows, as markup that needs no kernel and no network.

        Args:
            max_bytes: about how large it may be; the markup says what was left out.
        """
        raise NotImplementedError

    def _build(self) -> Sequence[ipywidgets.Widget]:
        """The widgets from top to bottom; called once, when the panel is first shown live."""
        raise NotImplementedError

    def _draw(self) -> None:
        """Put the present state into the widgets; called under the lock, and only once built."""
        raise NotImplementedError

    def _changed(self, names: Set[str]) -> None:
        """React to new state (`names` of traits) before it is drawn; by default nothing."""

    # state

    @property
    def state(self) -> dict[str, Any]:
        """The state of every control, by name; `set(**panel.state)` brings it back."""
        own = [name for name in self.trait_names() if name not in ("busy", "error")]
        return {name: getattr(self, name) for name in sorted(own) if not name.startswith("_")}

    def set(self, **values: Any) -> None:
        """Set any of the state at once; the panel is drawn again one time.

        Raises:
            InputError: a name is not part of the state, or a value does not fit.
        """
        before = self.state
        with self._holding():
            self._assign(values)
        changed = {name for name, value in self.state.items() if value is not before[name]}
        if changed:
            self._redraw(changed)

    def _assign(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if name not in self.state:
                near = difflib.get_close_matches(name, self.state, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(self.state)}"
                raise InputError(f"{type(self).__name__} has no state {name!r}; {hint}")
            try:
                setattr(self, name, value)
            except TraitError as error:
                raise InputError(f"{type(self).__name__}.{name}: {error}") from None

    def _on_trait(self, name: str) -> None:
        if self._holder != threading.get_ident():
            self._redraw({name})

    def _redraw(self, names: Set[str]) -> None:
        def draw() -> None:
            with self._holding():
                self._changed(names)
                if self._root is not None:
                    self._draw()

        self._guard(draw)

    @contextmanager
    def _holding(self) -> Iterator[None]:
        """State that this thread sets meanwhile is not drawn at once."""
        with self._lock:
            before, self._holder = self._holder, threading.get_ident()
            try:
                yield
            finally:
                self._holder = before

    # showing

    def widget(self) -> ipywidgets.Box:
        """The live controls; built once."""
        if self._root is None:
            with self._lock:
                self._alert, self._status = self._html(), self._html()
                acts = self._acts_channel()
                children = self._build()
                self._root = ipywidgets.VBox(
                    [self._html(style()), acts, self._alert, *children, self._status],
                    layout=ipywidgets.Layout(max_width="100%", overflow="hidden"),
                )
                self._root.add_class("rk-panel")
            with self._holding():
                self._guard(self._draw)
        return self._root

    def __str__(self) -> str:
        return self.to_html(max_bytes=STORED_BYTES).plain

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        if live() and not self._closed:
            view = self.widget()._repr_mimebundle_()[WIDGET]
            html = self.to_html(max_bytes=STORED_BYTES)
            return {WIDGET: view, "text/html": str(html), "text/plain": html.plain}
        html = self.to_html()
        return {"text/html": f"{html}{assets()}", "text/plain": html.plain}

    def _ipython_display_(self) -> None:
        """Show the bundle under an id, which a last expression alone would not have."""
        SHOWN.add(self)
        _replace_panels_of_this_cell(self)
        _publish(self._repr_mimebundle_(), self._display_id, update=False)

    def freeze(self) -> None:
        """Replace the live panel, wherever it is shown, by what it shows now, and close it.

        The saved notebook then holds HTML and needs no kernel, no widget state and no trust.
        """
        self.close()
        self._show_again()

    def _show_again(self) -> None:
        """Replace it, wherever it is shown, by what it shows now."""
        if _shell() is not None and self in SHOWN:
            _publish(self._repr_mimebundle_(), self._display_id, update=True)

    def close(self) -> None:
        """Stop background work and let go of the widgets. `data()` and `to_html()` still work."""
        self._closed = True
        for task in self._tasks.values():
            task.cancel()
        if self._root is not None:
            _close_tree(self._root)
            self._root = None

    # for subclasses

    def _guard(self, action: Callable[[], None]) -> None:
        """Run a callback; what it raises is shown in the panel, and raised again when headless."""
        self.set_trait("error", "")
        self._show_alert("")
        try:
            with self._lock:
                action()
        except Exception as error:
            self._fail(error)
            if not live():
                raise

    def _work(
        self,
        compute: Callable[[Task], T],
        then: Callable[[T], None],
        doing: str = "",
        slot: str = "",
    ) -> None:
        """Compute in a thread, then hand the result to `then` under the lock; the newest one wins.

        Args:
            compute: gets the task, to `say` how far it is and to see whether it is `cancelled`.
            then: called with the result, unless something newer was started in the same slot.
            doing: shown while it runs, as `Searching`; empty for work that nobody waits for.
            slot: what it works for; work of different slots goes on side by side.
        """
        with self._lock:
            if (older := self._tasks.get(slot)) is not None:
                older.cancel()
            task = self._tasks[slot] = Task(self._say)
            self.set_trait("busy", True)
            if doing:
                self._say(f"{doing} …")
        if live():
            threading.Thread(target=self._run, args=(task, compute, then), daemon=True).start()
        else:
            self._run(task, compute, then)

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait for work under way; False when it is still not done."""
        return all(task.done.wait(timeout_seconds) for task in list(self._tasks.values()))

    def _run(self, task: Task, compute: Callable[[Task], T], then: Callable[[T], None]) -> None:
        try:
            result = compute(task)
            with self._lock, self._holding():
                if not task.cancelled:
                    then(result)
        except Exception as error:
            if not task.cancelled:
                self._fail(error)
                if not live():
                    raise
        finally:
            with self._lock:
                if all(each is task or each.done.is_set() for each in self._tasks.values()):
                    self._say("")
                    self.set_trait("busy", False)
                task.done.set()

    def _say(self, line: str) -> None:
        if self._root is not None:
            self._status.value = (
                f'<div class="rk rk-busy"><p class="rk-note" role="status">{text(line)}</p></div>'
                if line
                else ""
            )

    def _fail(self, error: Exception) -> None:
        told = str(error) if isinstance(error, RftkitError) else api_message(error)
        known = told is not None
        self.set_trait("error", told or f"{type(error).__name__}: {error}")
        self._show_alert("" if known else "".join(traceback.format_exception(error)))

    def _show_alert(self, trace: str) -> None:
        if self._root is None:
            return
        folded = f"<details><summary>Where</summary><pre>{text(trace)}</pre></details>"
        self._alert.value = self.error and (
            '<div class="rk"><div class="rk-alert" role="alert">'
            f"<strong>! {text(self.error)}</strong>"
            f"{folded if trace else ''}</div></div>"
        )

    def _acts_channel(self) -> ipywidgets.Text:
        """Where buttons inside the panel's own markup arrive (`markup.remote`): `_act_<verb>`."""
        channel = ipywidgets.Text(layout=ipywidgets.Layout(display="none"))
        channel.add_class("rk-acts")

        def act() -> None:
            verb, _, rest = channel.value.partition(" ")
            getattr(self, f"_act_{verb}")(rest.rpartition(" ")[0])

        channel.observe(lambda _: self._guard(act), names="value")
        return channel

    def _html(self, value: str = "", **layout: str) -> ipywidgets.HTML:
        """A place for markup inside the widget."""
        return ipywidgets.HTML(value, layout=ipywidgets.Layout(min_width="0", **layout))

    def _button(
        self, label: str, action: Callable[[], None], tooltip: str = "", **options: Any
    ) -> ipywidgets.Button:
        """A button whose errors are shown in the panel."""
        options.setdefault("layout", ipywidgets.Layout(width="auto", align_self="flex-start"))
        button = ipywidgets.Button(description=label, tooltip=tooltip or label, **options)
        button.on_click(lambda _: self._guard(action))
        return button

    def _bind(self, name: str, widget: ipywidgets.Widget, to: str = "value") -> None:
        """Keep a trait of the panel and one of a widget the same, both ways."""
        link((self, name), (widget, to))


SHOWN: weakref.WeakSet[Panel] = weakref.WeakSet()
"""Panels that were displayed."""
_IN_CELL: dict[str, tuple[str, list[weakref.ref[Panel]]]] = {}
"""Cell id -> the request that executed it last, and the panels that it displayed."""


def _replace_panels_of_this_cell(panel: Panel) -> None:
    """A cell that is run again closes what its last run left, or pollers and rows would pile up."""
    parent: dict[str, Any] = getattr(_shell(), "get_parent", dict)() or {}
    cell = (parent.get("metadata") or {}).get("cellId")
    request = (parent.get("header") or {}).get("msg_id", "")
    if not cell:
        return
    last, panels = _IN_CELL.get(cell, ("", []))
    if last != request:
        for old in filter(None, (reference() for reference in panels)):
            if old is not panel:
                old.close()
        panels = []
    _IN_CELL[cell] = (request, [*panels, weakref.ref(panel)])


def _close_tree(widget: ipywidgets.Widget) -> None:
    for child in (*getattr(widget, "children", ()), widget.layout, getattr(widget, "style", None)):
        if child is not None:
            _close_tree(child) if hasattr(child, "layout") else child.close()
    widget.close()


def _publish(bundle: dict[str, Any], display_id: str, *, update: bool) -> None:
    from IPython.display import display

    display(bundle, raw=True, display_id=display_id, update=update)


def _shell() -> Any:
    """IPython's shell if this is one; asking does not import it."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None
