"""From a number to the rows behind it: which rows a page holds, and links that show only those.

Not here: the rows (`compare_rows`). A click filters the list of rows in the page (`views.js`) or
tells the panel around it (`markup.remote`). A page may hold fewer rows than a number counts: the
link says how many, and where all of them are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rftkit.views.markup import Html, text

__all__ = ["ROWS_ID", "Jumps"]

ROWS_ID = "rk-rows"
"""Where the rows are in a page."""


@dataclass(frozen=True, slots=True)
class Jumps:
    """The rows that a page holds."""

    numbers: Mapping[str, int]
    """Key of each row that is in the page -> its number in the dataset."""
    total: int
    """Rows of the comparison."""
    elsewhere: str = ""
    """Where all rows are, as the end of a sentence."""
    in_panel: bool = False
    """Whether a panel is around the page: it has every row, and is told which ones are wanted."""
    links: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What was linked: the words for the rows -> their keys."""

    def link(self, rows: Iterable[str], said: str, *, shown: str | None = None) -> Html:
        """A number that leads to its rows.

        Args:
            rows: keys of the rows behind it.
            said: what they have in common: "fixed at Step 12".
            shown: instead of their count.
        """
        keys = list(rows)
        label = shown if shown is not None else f"{len(keys):,}"
        self.links[said] = tuple(keys)
        if not keys:
            return Html(text(label))
        if self.in_panel:
            return Html(
                f'<button type="button" class="rk-link" data-act="jump {text(said)}" '
                f'data-lm-suppress-shortcuts="true">{text(label)}</button>',
                plain=label,
            )
        here = [str(self.numbers[key]) for key in keys if key in self.numbers]
        few = f" <small>{len(here):,} here</small>" if len(here) < len(keys) else ""
        away = f"{len(here):,} of these {len(keys):,} rows are in this page{self.elsewhere}"
        return Html(
            f'<a class="rk-jump" href="#{ROWS_ID}" '
            f'data-rows="{" ".join(here)}" data-said="{text(said)}" data-all="{len(keys)}"'
            f"{f' title={chr(34)}{text(away)}{chr(34)}' if few else ''}>{text(label)}</a>{few}",
            plain=label,
        )

    @property
    def note(self) -> str:
        """What to know about the rows of this page; empty when all are here."""
        if self.in_panel or len(self.numbers) == self.total:
            return ""
        return (
            f"{len(self.numbers):,} of {self.total:,} rows are in this page; a number that counts "
            f"others too says how many are here{self.elsewhere}."
        )
