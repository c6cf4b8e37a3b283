"""RowMaker: make rows of a table, by saying which columns are the prompt and which the answer.

The form of `rftkit dataset convert --prompt … --answer …`: it starts with a guess, shows the first
row that would be made, and writes the file on request. Not here: what makes rows
(`datasets.columns`), and looking at them (`RowBrowser`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets
from traitlets import List, Unicode

from rftkit import datasets
from rftkit.datasets import Columns, Conversion, Split
from rftkit.datasets.proposals import (
    convert_command,
    guess_columns,
    records_of,
    split_command,
    target_for,
)
from rftkit.datasets.split import SHARES
from rftkit.datasets.writing import refuse_existing
from rftkit.errors import InputError
from rftkit.views.markup import Html, html, join, wrap
from rftkit.views.rows import row_in_full
from rftkit.widgets.launchform import wide
from rftkit.widgets.panel import Panel

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RowMaker"]

SHOWN = 20
"""Rows of `data()`."""


class RowMaker(Panel):
    """Make dataset rows of a table such as a CSV file.

    Every control is an attribute: `maker.prompt = "Ticket: {ticket}"`, `maker.answer =
    ["category", "reason"]`, `maker.system = "…"`, `maker.target = "rows.jsonl"`. `maker.data()`
    returns the first rows as they would be, and `maker.write()` writes all of them to the file.
    With `maker.folder = "tickets"` they are also split into train, valid and test rows there.

    Args:
        source: a CSV, TSV, Parquet or JSONL file, or a DataFrame.
        written: called with the path of the rows once they are written.
        state: any of `prompt`, `answer`, `system`, `target`, `folder`.
    """

    prompt = Unicode("", help="The user's message, with columns in braces.")
    answer = List(Unicode(), help="The columns that hold the right answer.")
    system = Unicode("", help="Instructions to the model; empty for none.")
    target = Unicode("", help="The .jsonl file to write.")
    folder = Unicode("", help="Folder for train, valid and test rows as well; empty for no split.")

    def __init__(
        self, source: Any, *, written: Callable[[Path], None] | None = None, **state: Any
    ) -> None:
        self._source, self._written = source, written
        with datasets.open(source) as rows:
            self._name, self._records = rows.name, records_of(rows)
        guess = guess_columns(self._records) or Columns("")
        given = {"prompt": guess.prompt, "answer": list(guess.answer)}
        super().__init__(**{**given, "target": target_for(self._name), **state})
        self._made: Conversion | None = None
        self._split: Split | None = None

    @property
    def columns(self) -> Columns:
        """The choices of the user.

        Raises:
            InputError: the prompt is empty, or names a column that is not there.
        """
        chosen = Columns(self.prompt, tuple(self.answer), self.system)
        chosen.check(self._names(), self._name)
        return chosen

    @property
    def command(self) -> str:
        """The command that writes the same files."""
        chosen = Columns(self.prompt, tuple(self.answer), self.system)
        convert = convert_command(self._name, chosen, self.target)
        return f"{convert} && {split_command(self.target, self.folder)}" if self.folder else convert

    @property
    def split_words(self) -> str:
        """What was split and where, to end a sentence with; empty when nothing was."""
        if not self._split:
            return ""
        counts = (f"{count:,} {part}" for part, count in self._split.num_rows.items())
        return f", split in {self.folder}: {', '.join(counts)}"

    def data(self) -> pd.DataFrame:
        """The first rows as they would be."""
        import pandas as pd

        return pd.DataFrame([self.columns.row(each) for each in self._records[:SHOWN]])

    def write(self) -> Path:
        """Write the rows; the path of the file.

        Raises:
            InputError: the columns do not fit, no row could be made, or a file exists already.
        """
        for part in SHARES if self.folder else ():
            refuse_existing(Path(self.folder) / f"{part}.jsonl")
        made = datasets.convert(self._source, self.target, columns=self.columns)
        if made.target is None:
            why = (*made.refused, "there are no records")[0]
            raise InputError(f"no row could be made: {why}")
        self._made, path = made, Path(made.target)
        self._split = datasets.split(path, self.folder) if self.folder else None
        if self._written is not None:
            self._written(path)
        if self._root is not None:
            self._draw()
        return path

    def to_html(self, *, max_bytes: int = 300_000) -> Html:
        """The first row that would be made, and the command that makes all of them."""
        command = wrap(
            html(
                "<p>{} has no prompts ("
                "<code>messages</code>) yet. To make rows of it, type:</p><pre>{}</pre>",
                self._name,
                self.command,
            ),
            plain=f"to make rows of {self._name}, type: {self.command}",
        )
        return join([command, self._first()], plain=command.plain)

    def _first(self) -> Html:
        """The first row, or why there is none."""
        try:
            item = self.columns.row(self._records[0])
        except InputError as error:
            return wrap(html('<p class="rk-warn" role="status">! {}</p>', error), plain=str(error))
        return row_in_full(item, place="The first row", answer=item.get("reference_answer"))

    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for record in self._records for name in record))

    # the live panel

    def _build(self) -> Sequence[ipywidgets.Widget]:
        names = self._names()
        self._prompt = ipywidgets.Textarea(
            description="Prompt", continuous_update=False, rows=3, **wide("6rem")
        )
        self._answers = ipywidgets.SelectMultiple(
            options=names, description="Answer", rows=min(8, len(names)), **wide("6rem")
        )
        self._system = ipywidgets.Textarea(
            description="Instructions", continuous_update=False, rows=2, **wide("6rem")
        )
        self._path = ipywidgets.Text(description="File", continuous_update=False, **wide("6rem"))
        self._folder = ipywidgets.Text(
            description="Split into",
            placeholder="a folder for train, valid and test rows; empty for none",
            continuous_update=False,
            **wide("6rem"),
        )
        self._go = self._button("Write the rows", self._press_write, button_style="primary")
        self._top, self._view, self._done = self._html(), self._html(), self._html()
        self._bind("prompt", self._prompt)
        self._bind("system", self._system)
        self._bind("target", self._path)
        self._bind("folder", self._folder)
        self._answers.observe(
            lambda change: self._guard(lambda: self.set(answer=list(change["new"]))), "value"
        )
        self._top.value = wrap(
            html(
                "<p>{} has no prompts yet. Write the prompt around its columns ({}), and "
                "choose the columns that say what is right.</p>",
                self._name,
                ", ".join(f"{{{name}}}" for name in names),
            )
        )
        fields = [self._prompt, self._answers, self._system, self._path, self._folder, self._go]
        return [self._top, *fields, self._done, self._view]

    def _press_write(self) -> None:
        self.write()

    def _draw(self) -> None:
        self._answers.value = [name for name in self.answer if name in self._names()]
        self._view.value = self._first()
        made = self._made
        said = f"✓ {made.num_rows:,} rows are in {made.target}" if made else ""
        if made and made.refused:
            said += f"; {made.num_refused:,} left out: {made.refused[0]}"
        said += self.split_words
        self._done.value = wrap(html('<p class="rk-good" role="status">{}</p>', said))
