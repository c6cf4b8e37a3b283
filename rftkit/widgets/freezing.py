"""`freeze()`, the last cell of a notebook: live panels become static copies.

`Panel.freeze` does it for one panel.
"""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets

from rftkit.views.markup import Html, note
from rftkit.widgets.panel import SHOWN, Panel, live

__all__ = ["freeze"]


def freeze(*panels: Panel, now: bool = False) -> Panel | None:
    """Prepare a notebook for sharing: replace every panel that was shown with its HTML.

    Call it in the last cell. In a live notebook it shows a button, so that *Run All* does not
    freeze the panels that you want to use. A headless run, or `now=True`, freezes at once.

    Args:
        panels: the panels to freeze; default every panel that was shown and is not closed.
        now: freeze without showing a button.
    """
    if live() and not now:
        return _FreezeButton(panels)
    for panel in panels or [each for each in list(SHOWN) if not each._closed]:
        panel.freeze()
    return None


class _FreezeButton(Panel):
    """A button, and after the click a sentence."""

    def __init__(self, panels: Sequence[Panel]) -> None:
        super().__init__()
        self._panels = panels

    def to_html(self, *, max_bytes: int = 300_000) -> Html:
        return note(
            "The panels above are static copies. Run their cells again to make them live."
            if self._closed
            else "The panels above are live. Freeze them before you print or share this notebook."
        )

    def _stored(self) -> Html:
        return self.to_html()

    def _build(self) -> Sequence[ipywidgets.Widget]:
        tip = "Replace every live panel with its HTML, so that the saved notebook needs no kernel"
        button = self._button("Freeze the panels for sharing", self._press, tip, icon="camera")
        return [button]

    def _draw(self) -> None: ...

    def _press(self) -> None:
        freeze(*self._panels, *([self] if self._panels else []), now=True)
