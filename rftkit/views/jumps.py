"""Links from a number to the rows behind it.

The rows themselves are in `compare_rows`. A click filters the list of rows on the page (`views.js`)
or sends an action to the surrounding panel (`data-act`, see `rftkit.widgets.panel`). A page may
have fewer rows than a number counts; the link then states how many, and where to find all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rftkit.views.markup import Html, html, text

__all__ = ["ROWS_ID", "STEPS_ID", "Jumps", "StepJumps"]

ROWS_ID = "rk-rows"
"""Element id of the list of rows."""
STEPS_ID = "rk-steps"
"""Element id of the list of training steps."""


@dataclass(frozen=True, slots=True)
class Jumps:
    """The rows that a page holds."""

    numbers: Mapping[str, int] = field(default_factory=dict)
    """Key of each row on the page -> its number in the dataset."""
    total: int = 0
    """Rows of the comparison; 0 on a page that shows no rows."""
    elsewhere: str = ""
    """Where to find all rows, as the end of a sentence."""
    in_panel: bool = False
    """Whether the links are inside a panel, which has every row and handles the clicks."""
    links: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Description of each linked set of rows -> the keys of the rows."""

    def link(self, rows: Iterable[str], description: str, *, shown: str | None = None) -> Html:
        """A number that links to its rows.

        Args:
            rows: keys of the rows behind it.
            description: what they have in common, such as "fixed at Step 12".
            shown: label of the link; default their count.
        """
        keys = list(rows)
        label = shown if shown is not None else f"{len(keys):,}"
        self.links[description] = tuple(keys)
        if not keys or not self.lead:
            return text(label)
        if self.in_panel:
            return html(
                '<button type="button" class="rk-link" {} data-lm-suppress-shortcuts="true">{}'
                "</button>",
                self.attributes(keys, description),
                label,
                plain=label,
            )
        num_here = sum(key in self.numbers for key in keys)
        few = html(" <small>{:,} here</small>", num_here) if num_here < len(keys) else Html()
        attributes = self.attributes(keys, description)
        return html('<a class="rk-jump" {}>{}</a>{}', attributes, label, few, plain=label)

    def attributes(self, rows: Iterable[str], description: str) -> Html:
        """Attributes of an element whose click shows rows; arguments as of `link`."""
        keys = list(rows)
        self.links[description] = tuple(keys)
        if self.in_panel:
            return html('data-act="jump {}"', description)
        here = [str(self.numbers[key]) for key in keys if key in self.numbers]
        away = f"{len(here):,} of these {len(keys):,} rows are on this page{self.elsewhere}"
        title = html(' title="{}"', away) if len(here) < len(keys) else Html()
        return html(
            'href="#{}" data-rows="{}" data-said="{}" data-all="{}"{}',
            ROWS_ID,
            " ".join(here),
            description,
            len(keys),
            title,
        )

    @property
    def lead(self) -> bool:
        """Whether there are rows that a click can show."""
        return self.in_panel or bool(self.numbers)

    @property
    def note(self) -> str:
        """A note about rows that are not on this page; empty when all are."""
        if self.in_panel or len(self.numbers) == self.total:
            return ""
        return (
            f"This page has {len(self.numbers):,} of {self.total:,} rows; a link to more rows "
            f"states how many are here{self.elsewhere}."
        )


@dataclass(frozen=True, slots=True)
class StepJumps:
    """The steps whose rows a page holds (`steps`), or that a panel can show."""

    steps: frozenset[int]
    list_id: str = STEPS_ID
    """Element id of the list of steps on the page."""
    act: str = ""
    """The verb of the action in a panel."""

    def attributes(self, *steps: int) -> Html:
        """Attributes of an element whose click shows the rows of these steps; empty for none."""
        here = [step for step in steps if step in self.steps]
        if not here:
            return Html()
        if self.act:
            return html('data-act="{} {}"', self.act, here[-1])
        said = f"number {here[0]}" if len(steps) == 1 else f"from {steps[0]} to {steps[-1]}"
        return html(
            'href="#{}" data-rows="{}" data-said="{}" data-all="{}"',
            self.list_id,
            " ".join(map(str, here)),
            said,
            len(steps),
        )
