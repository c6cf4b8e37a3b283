"""The criteria of a rubric as one line of fields each, or the place in the row that has them.

Not here: the other fields of a grader (`graderform`), and what makes criteria valid
(`rftkit.graders.rubric`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import ipywidgets

from rftkit.graders.types import Criterion

__all__ = ["CriteriaForm"]

CHECKS = get_args(Criterion.model_fields["check"].annotation)
FRESH = {"text": "Answers the question", "weight": 1.0, "required": False, "check": CHECKS[0]}

Json = dict[str, Any]


class CriteriaForm:
    """Edits a list of criteria; `changed` gets the new list, or the template as text."""

    def __init__(
        self, value: list[Json] | str, changed: Callable[[list[Json] | str], None]
    ) -> None:
        self._changed = changed
        self._lines: list[Json] = []
        self.box = ipywidgets.VBox(layout=ipywidgets.Layout(width="100%"))
        self._add = ipywidgets.Button(
            description="Add a criterion", icon="plus", layout=ipywidgets.Layout(width="auto")
        )
        self._add.on_click(lambda _: self._put([*self._lines, dict(FRESH)], draw=True))
        self._draw(value)

    def _draw(self, value: list[Json] | str) -> None:
        if isinstance(value, str):
            field = ipywidgets.Text(
                value,
                description="criteria",
                continuous_update=False,
                tooltip="The place in each row that holds its criteria",
                layout=ipywidgets.Layout(width="100%", max_width="100%"),
            )
            field.observe(lambda change: self._changed(change["new"]), "value")
            self.box.children = [field]
            return
        self._lines = [FRESH | ({"text": e} if isinstance(e, str) else e) for e in value]
        rows = [self._line(place, each) for place, each in enumerate(self._lines)]
        self.box.children = [*rows, self._add]

    def _line(self, place: int, given: Json) -> ipywidgets.Widget:
        words = ipywidgets.Text(
            str(given["text"]),
            description=f"Criterion {place + 1}",
            continuous_update=False,
            layout=ipywidgets.Layout(flex="1 1 100%", min_width="0", width="auto"),
        )
        weight = ipywidgets.FloatText(
            float(given["weight"]),
            description="weight",
            tooltip="Its part of the reward; below 0 for a mistake",
            style={"description_width": "3.5rem"},
            layout=ipywidgets.Layout(width="8rem"),
        )
        required = ipywidgets.Checkbox(
            bool(given["required"]),
            description="required",
            indent=False,
            tooltip="Without it the reward is 0",
            layout=ipywidgets.Layout(width="6rem"),
        )
        check = ipywidgets.Dropdown(
            options=CHECKS,
            value=given["check"],
            description="judged by",
            tooltip="presence: said at all; correctness: said and right",
            style={"description_width": "4.5rem"},
            layout=ipywidgets.Layout(width="12.5rem"),
        )
        remove = ipywidgets.Button(
            icon="trash",
            tooltip=f"Remove criterion {place + 1}",
            disabled=len(self._lines) < 2,
            layout=ipywidgets.Layout(width="2.5rem"),
        )
        for name, field in zip(FRESH, (words, weight, required, check), strict=True):
            field.observe(lambda change, name=name: self._edit(place, name, change["new"]), "value")
        remove.on_click(
            lambda _: self._put(self._lines[:place] + self._lines[place + 1 :], draw=True)
        )
        return ipywidgets.HBox(
            [words, weight, required, check, remove],
            layout=ipywidgets.Layout(flex_flow="row wrap", width="100%"),
        )

    def _edit(self, place: int, name: str, value: Any) -> None:
        lines = [*self._lines]
        lines[place] = lines[place] | {name: value}
        self._put(lines, draw=False)

    def _put(self, lines: list[Json], *, draw: bool) -> None:
        self._lines = lines
        if draw:
            self._draw(lines)
        self._changed(lines)
