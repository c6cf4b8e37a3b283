"""The base of every panel: one object that is data, HTML and, in a live notebook, controls.

A panel has *state*: traits, which are plain attributes that you can read and set. `data()` returns
what it shows as a table, and `to_html()` returns the same as markup that needs no kernel. Only
`widget()` builds core ipywidgets, and they keep no state of their own: a control sets a trait, and
a trait redraws the panel. So code can do whatever a click can do, and headless runs show the same.

Three rules for authors of panels. Slow work goes through `_work`, which runs it in a thread,
because some kernels run a callback in a thread and others in the middle of the user's cell. From
there, set only `.value` and traits: do not print, and do not plot with pyplot. Every callback goes
through `_guard`, because Jupyter drops the exceptions of callbacks.

`freezing` turns panels into static copies.
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
from rftkit.views.markup import Html, charts_script, html, join, note, style
from rftkit.views.stills import stilled
from rftkit.widgets.task import Task

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SHOWN", "Panel", "live"]

T = TypeVar("T")
WIDGET = "application/vnd.jupyter.widget-view+json"
_ON_LOAD = """const panel = this.closest('.rk-panel');
if (panel && !panel.rkKeys) {
  panel.rkKeys = true;
  const keep = e => e.target.setAttribute('data-lm-suppress-shortcuts', 'true');
  panel.addEventListener('focusin', keep);
  const mine = e => e.target.closest('.rk-panel') === panel;
  const send = act => {
    const acts = panel.querySelector('.rk-acts input');
    acts.value = act + ' ' + Date.now();
    acts.dispatchEvent(new Event('change', {bubbles: true}));
  };
  panel.addEventListener('click', e => {
    const act = e.target.closest('[data-act]')?.dataset.act;
    if (act && mine(e)) send(act);
  });
  panel.addEventListener('keydown', e => {
    if (!mine(e)) return;
    if (e.key === 'Enter' && e.target.matches('.rk-pt[data-act]')) send(e.target.dataset.act);
    const keys = panel.querySelector('[data-rk-keys]')?.dataset.rkKeys.split(' ');
    const field = panel.querySelector('.rk-entry input');
    const typing = e.target.matches('input, textarea');
    if (!keys || e.ctrlKey || e.metaKey || e.altKey) return;
    if (typing && (e.target !== field || field.value)) return;
    if (!keys.includes(e.key)) {
      if (!typing && /^[0-9.,-]$/.test(e.key)) field?.focus();
      return;
    }
    e.preventDefault();
    send('key ' + e.key);
  }, true);
}"""
STORED_BYTES = 30_000
"""Maximum size of the HTML that is stored in the .ipynb beside a live widget."""
STORED_NOTE = (
    "This is the panel as it was when its cell ran. To print or share what it shows now, freeze it."
)


KEYS = html('<style onload="{}">.rk-keys {{}}</style>', _ON_LOAD + charts_script())
"""What a panel does in the browser. A style element reports that it was loaded; a script in a
widget does not run.

An element of its markup with `data-act="verb argument"` tells the panel when it is clicked: the
words go into a hidden text field, which is a core widget, so that no code but Jupyter's own runs
between the browser and the kernel. Points of charts do the same on Enter. Of a panel in another
one, such as the list of jobs in a monitor, only the inner one hears of it.

The keys of a panel are kept from JupyterLab, which reads letters as commands: `r` makes a raw cell.

Where the markup has `data-rk-keys`, such a key acts wherever the focus is, but in a field with
text; a digit goes to the first field. They are heard on their way down, because ipywidgets stops a
key that is pressed in a text field.
"""


def live() -> bool:
    """Whether a person uses the notebook, in contrast to a headless run.

    `RFTKIT_MODE` decides if it is set; otherwise the kernel does. Tools that execute a notebook
    without a person (papermill, nbclient, nbconvert) tell the kernel not to allow `input()`.
    """
    if (mode := settings.mode()) is not None:
        return mode == "live"
    kernel = getattr(_shell(), "kernel", None)
    answers = getattr(kernel, "_allow_stdin", None)  # private, so a later version may not have it
    return kernel is not None and (
        settings.jupyter_session() is not None if answers is None else bool(answers)
    )


class Panel(HasTraits):
    """The base class of all panels.

    A subclass declares its state as traits, implements `data` and `to_html`, and for live notebooks
    `_build` (creates the widgets, once) and `_draw` (shows the current state in them).
    """

    busy = Bool(False, read_only=True, help="Whether slow work is running; see `wait`.")
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

    # what a subclass implements

    def data(self) -> pd.DataFrame:
        """What the panel currently shows, as a table."""
        raise NotImplementedError

    def to_html(self, *, max_bytes: int = 300_000) -> Html:
        """What the panel currently shows, as markup that needs no kernel and no network.

        Args:
            max_bytes: approximate maximum size; the markup states what was left out.
        """
        raise NotImplementedError

    def _build(self) -> Sequence[ipywidgets.Widget]:
        """The widgets from top to bottom; called once, when the panel is first shown live.

        Progress is shown in `_status`: beside the buttons that start slow work if they hold it, or
        else at the bottom.
        """
        raise NotImplementedError

    def _draw(self) -> None:
        """Show the current state in the widgets; called under the lock, after `_build`."""
        raise NotImplementedError

    def _changed(self, names: Set[str]) -> None:
        """Called with the `names` of changed traits before drawing; does nothing by default."""

    # state

    @property
    def state(self) -> dict[str, Any]:
        """The state of every control, by name; `set(**panel.state)` restores it."""
        own = [name for name in self.trait_names() if name not in ("busy", "error")]
        return {name: getattr(self, name) for name in sorted(own) if not name.startswith("_")}

    def set(self, **values: Any) -> None:
        """Set several parts of the state at once; the panel is redrawn once.

        Raises:
            InputError: a name is not part of the state, or a value is invalid.
        """
        before = self.state
        with self._holding():
            self._assign(values)
        changed = {name for name, value in self.state.items() if value is not before[name]}
        if changed:
            self._redraw(changed)

    def _set_typed(self, name: str, value: Any) -> None:
        """Set a part of the state to what was typed, if that has changed."""
        if getattr(self, name) != value:
            self.set(**{name: value})

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
        """Do not redraw when this thread sets state within the block."""
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
                acts = self._actions_field()
                children = self._build()
                below = () if _holds(children, self._status) else (self._status,)
                self._root = ipywidgets.VBox(
                    [self._html(style() + KEYS), acts, self._alert, *children, *below],
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
            html = self._stored()
            return {WIDGET: view, "text/html": stilled(html), "text/plain": html.plain}
        html = self.to_html()
        return html._repr_mimebundle_()

    def _stored(self) -> Html:
        """What the notebook keeps beside the live panel, to print or to show without a kernel."""
        shown = self.to_html(max_bytes=STORED_BYTES)
        return join([style(), shown, note(STORED_NOTE)], plain=shown.plain)

    def _ipython_display_(self) -> None:
        """Show the bundle with a display id, so that it can be replaced later."""
        SHOWN.add(self)
        _replace_panels_of_this_cell(self)
        _publish(self._repr_mimebundle_(), self._display_id, update=False)

    def freeze(self) -> None:
        """Replace the live panel, wherever it is shown, with its current HTML, and close it.

        The saved notebook then contains HTML and needs no kernel, no widget state and no trust.
        """
        self.close()
        self._show_again()

    def _show_again(self) -> None:
        """Replace it, wherever it is shown, with its current output."""
        if _shell() is not None and self in SHOWN:
            _publish(self._repr_mimebundle_(), self._display_id, update=True)

    def close(self) -> None:
        """Stop background work and close the widgets. `data()` and `to_html()` still work."""
        self._closed = True
        for task in self._tasks.values():
            task.cancel()
        if self._root is not None:
            _close_tree(self._root)
            self._root = None

    # for subclasses

    def _guard(self, action: Callable[[], None]) -> None:
        """Run a callback and show its exception in the panel; in a headless run, raise it again."""
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
        """Compute in a thread, then pass the result to `then` under the lock; the newest work wins.

        Args:
            compute: gets the task, to report progress and to see whether it is `cancelled`.
            then: called with the result, unless something newer was started in the same slot.
            doing: shown while it runs, such as `Searching`; empty for work in the background.
            slot: kind of work; work in different slots runs in parallel.
        """
        with self._lock:
            if (older := self._tasks.get(slot)) is not None:
                older.cancel()
            task = self._tasks[slot] = Task(self._show_progress)
            self.set_trait("busy", True)
            if doing:
                self._show_progress(f"{doing} …")
        if live():
            threading.Thread(target=self._run, args=(task, compute, then), daemon=True).start()
        else:
            self._run(task, compute, then)

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait for running work. Returns False when it is still not done."""
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
            task.end()
            with self._lock:
                if all(each is task or each.done.is_set() for each in self._tasks.values()):
                    self._show_progress("")
                    self.set_trait("busy", False)
                task.done.set()

    def _show_progress(self, line: str) -> None:
        if self._root is not None:
            self._status.value = (
                html('<div class="rk rk-busy"><p class="rk-note" role="status">{}</p></div>', line)
                if line
                else Html()
            )

    def _fail(self, error: Exception) -> None:
        message = str(error) if isinstance(error, RftkitError) else api_message(error)
        known = message is not None
        self.set_trait("error", message or f"{type(error).__name__}: {error}")
        self._show_alert("" if known else "".join(traceback.format_exception(error)))

    def _show_alert(self, trace: str) -> None:
        if self._root is None:
            return
        folded = html("<details><summary>Traceback</summary><pre>{}</pre></details>", trace)
        self._alert.value = self.error and (
            html(
                '<div class="rk"><div class="rk-alert" role="alert">'
                "<strong>! {}</strong>{}</div></div>",
                self.error,
                folded if trace else Html(),
            )
        )

    def _actions_field(self) -> ipywidgets.Text:
        """A hidden field that receives clicks in the panel's markup and calls `_act_<verb>`."""
        channel = ipywidgets.Text(layout=ipywidgets.Layout(display="none"))
        channel.add_class("rk-acts")

        def act() -> None:
            verb, _, rest = channel.value.partition(" ")
            getattr(self, f"_act_{verb}")(rest.rpartition(" ")[0])

        channel.observe(lambda _: self._guard(act), names="value")
        return channel

    def _html(self, value: str = "", **layout: str) -> ipywidgets.HTML:
        """An HTML widget for markup."""
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
    """Close the panels of the cell's previous run, or their threads and rows would pile up."""
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


def _holds(widgets: Sequence[ipywidgets.Widget], wanted: ipywidgets.Widget) -> bool:
    return any(each is wanted or _holds(getattr(each, "children", ()), wanted) for each in widgets)


def _close_tree(widget: ipywidgets.Widget) -> None:
    for child in (*getattr(widget, "children", ()), widget.layout, getattr(widget, "style", None)):
        if child is not None:
            _close_tree(child) if hasattr(child, "layout") else child.close()
    widget.close()


def _publish(bundle: dict[str, Any], display_id: str, *, update: bool) -> None:
    from IPython.display import display

    display(bundle, raw=True, display_id=display_id, update=update)


def _shell() -> Any:
    """IPython's shell, or None; this does not import IPython."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None
