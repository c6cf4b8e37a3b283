"""`freeze()`, the last cell of a notebook: live panels become static copies.

Not here: what one panel then shows (`Panel.freeze`).
"""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets

from rftkit.views.markup import Html, note
from rftkit.widgets.panel import SHOWN, Panel, live

__all__ = ["freeze"]


def freeze(*panels: Panel, now: bool = False) -> Panel | None:
    """Make a notebook fit for sharing: every panel that was shown becomes what it shows, as HTML.

    The last cell of a notebook. In a live notebook it gives a button, so that *Run All* does not
    freeze what you came to use; a headless run, or `now=True`, freezes at once.

    Args:
        panels: which ones; default every panel that was shown and is not closed.
        now: do not ask.
    """
    if live() and not now:
        return _FreezeButton(panels)
    for panel in panels or [each for each in list(SHOWN) if not each._closed]:
        panel.freeze()
    return None


class _FreezeButton(Panel):
    """One button, and afterwards one sentence."""

    def __init__(self, panels: Sequence[Panel]) -> None:
        super().__init__()
        self._panels = panels

    def to_html(self, *, max_bytes: int = 300_000) -> Html:
        return note(
            "The panels above are static copies; run their cells again to bring them back."
            if self._closed
            else "The panels above are live. Freeze them before you share this notebook."
        )

    def _build(self) -> Sequence[ipywidgets.Widget]:
        tip = (
            "Replace every live panel by what it shows, so that the saved notebook needs no kernel"
        )
        button = self._button("Freeze the panels for sharing", self._press, tip, icon="camera")
        return [button]

    def _draw(self) -> None: ...

    def _press(self) -> None:
        freeze(*self._panels, *([self] if self._panels else []), now=True)
