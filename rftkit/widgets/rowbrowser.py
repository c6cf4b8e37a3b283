"""RowBrowser: page, search, filter and sort the rows of a dataset, and read one in full.

The rows stay in the kernel, and the browser gets only the page that is shown. So a million rows
open as quickly as ten. `rowsource` finds rows, `views.rows` shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets
from traitlets import Bool, Int, Unicode

from rftkit import datasets
from rftkit.datasets import Check, Dataset, Finding, Rows
from rftkit.datasets.findings import Place
from rftkit.datasets.forms import KEYS
from rftkit.errors import InputError
from rftkit.graders import CompiledGrader, Sample, compile_grader, validate
from rftkit.views.listing import table
from rftkit.views.markup import Html, join, note
from rftkit.views.rows import REFUSED, cells, has_hit, row_in_full, row_page
from rftkit.widgets.conditions import column_texts, parse_conditions
from rftkit.widgets.neighbours import nearest, prompt_text
from rftkit.widgets.panel import Panel
from rftkit.widgets.rowmaker import RowMaker
from rftkit.widgets.rowsource import FileSource, Numbers, RowSource, dataset_of, source_of
from rftkit.widgets.task import Task
from rftkit.wording import counted, cut

if TYPE_CHECKING:
    import pandas as pd

    from rftkit.evals.samples import Samples

__all__ = ["RowBrowser"]

STATIC_ROWS = 500
"""Maximum number of rows in a static copy."""
MAX_COLUMNS = 8
LEARNT = ("prompt", "answer to learn", "preferred", "not preferred")
"""Columns that `views.rows.cells` makes of the messages."""


class RowBrowser(Panel):
    """Browse the rows of a dataset, and read one of them in full.

    Every control is an attribute: `browser.query = "invoice"`, `browser.where = "label=no"`,
    `browser.sort = "label"`, `browser.row = 12`. `browser.data()` returns the rows
    of the page, and `browser.found()` all rows that match, both as a DataFrame.

    Args:
        source: a DataFrame, a file (JSONL, also packed, CSV, Parquet), a `datasets.Dataset`,
            opened `datasets.Rows`, or a list of rows. Files may be larger than the memory.
        grader: grades the reference answer of the open row; default the grader of a `Dataset`.
        response_format: as in the job; default that of a `Dataset`.
        check: from `datasets.check`; its findings become filters. Without it, a button runs it.
        runs: samples of eval runs (`rftkit.evals`): what each checkpoint answered to the row.
        columns: keys to show, in order; default the first eight.
        state: any of `query`, `where`, `finding`, `sort`, `descending`, `page`, `page_size`, `row`.
    """

    query = Unicode("", help="Text that the rows contain; case is ignored.")
    where = Unicode("", help='Conditions, such as `label=no topic~"data export" words>20`.')
    finding = Unicode("", help="Code of a finding of the dataset check; shows only its rows.")
    sort = Unicode("", help="Key to sort by; empty for file order.")
    descending = Bool(False, help="Sort in descending order.")
    page = Int(0, min=0, help="Page shown, from 0.")
    page_size = Int(15, min=1, max=200, help="Rows on a page.")
    row = Int(
        None,
        allow_none=True,
        help="Number of the row shown in full, from 0 (the panel shows 1); None: none.",
    )

    def __init__(
        self,
        source: Any,
        *,
        grader: Mapping[str, Any] | None = None,
        response_format: Mapping[str, Any] | None = None,
        check: Check | None = None,
        runs: Samples | None = None,
        columns: Sequence[str] | None = None,
        **state: Any,
    ) -> None:
        self._tools = None
        if (found := dataset_of(source)) is not None:
            source, grader = found, grader or found.grader
            response_format = response_format or found.response_format
            self._tools = found.tools
        self._source: RowSource = source_of(source)
        self._checked = source.train if isinstance(source, Dataset) else source
        self._spec = grader and validate(grader)
        self._format = response_format
        self._check, self._runs = check, runs
        self._columns = list(columns) if columns is not None else None
        self._grader: CompiledGrader | None = None
        self._numbers: Numbers | None = None
        self._details: dict[str, Any] = {}
        self._maker = self._maker_of(source)
        super().__init__(**state)

    def _maker_of(self, source: Any) -> RowMaker | None:
        """A form that makes rows of a table; None for what has rows, or no text to make them of."""
        keys = list(self._source.keys())
        if isinstance(source, list | tuple) or not keys or "messages" in keys:
            return None
        given = source.train if isinstance(source, Dataset) else source
        maker = RowMaker(given.name if isinstance(given, Rows) else given, written=self._take_rows)
        return maker if maker.prompt else None

    def _take_rows(self, path: Path) -> None:
        """Browse the rows that were made of the table."""
        words = self._maker.split_words if self._maker else ""
        self._source, self._checked, self._maker = source_of(path), path, None
        self._check, self._numbers, self._columns = None, None, None
        self.set(query="", where="", finding="", sort="", page=0, row=None)
        if self._root is not None:
            self._fold.selected_index = None
            self._fold.set_title(0, f"The rows of {path.name}{words}")
            self._sorts.options = [("file order", ""), *((k, k) for k in self._all_keys())]
            self._findings.options = self._finding_options()
            self._start_indexing()
            self._numbers = None  # those drawn above were counted before all rows were known
            self._draw()

    # what it shows, for Python

    def data(self) -> pd.DataFrame:
        """The rows of the page that is shown."""
        return self._source.frame(self._on_page())

    def found(self) -> pd.DataFrame:
        """Every row that matches, in order; this may be large."""
        return self._source.frame(self.numbers())

    def numbers(self) -> Numbers:
        """Numbers of the rows that match, in order, from 0."""
        if self._numbers is None:
            self._source.wait()
            self._numbers = self._find(Task(self._show_progress))
        return self._numbers

    def to_html(self, *, max_bytes: int = 300_000) -> Html:
        """The first rows that match, as a table with a filter, and the open row."""
        numbers = self.numbers()
        first = [int(number) for number in numbers[:STATIC_ROWS]]
        shown = cells(self._source.items(first))
        lines = [{"row": at + 1, **line} for at, line in zip(first, shown, strict=True)]
        columns = ["row", *self._shown_columns(shown)]
        listed = table(lines, columns, total=len(numbers), page=15, max_bytes=max_bytes)
        parts = [note(self._row_count()), listed]
        if self._maker is not None and isinstance(self._source, FileSource):
            parts.insert(0, self._maker.to_html())
        if self.row is not None:
            parts.append(self._row_html())
        text = "\n".join(
            "  ".join(f"{str(line.get(key, ''))[:60]!s:<12}" for key in columns).rstrip()
            for line in lines[:10]
        )
        plain = (
            f"{self._row_count()}\n{'  '.join(f'{key:<12}' for key in columns).rstrip()}\n{text}"
        )
        if self._maker is not None and isinstance(self._source, FileSource):
            plain = f"{parts[0].plain}\n\n{plain}"
        return join(parts, plain if self.row is None else f"{plain}\n\n{parts[-1].plain}")

    # the live panel

    def _build(self) -> Sequence[ipywidgets.Widget]:
        wide = ipywidgets.Layout(flex="1 1 16rem", width="auto", min_width="12rem")
        self._search = ipywidgets.Text(
            placeholder="Search all keys",
            description="Search",
            continuous_update=False,
            layout=wide,
        )
        self._filter = ipywidgets.Text(
            placeholder='label=no topic~"data export" words>20',
            description="Where",
            continuous_update=False,
            layout=wide,
        )
        self._findings = ipywidgets.Dropdown(description="Findings", layout=wide)
        self._run_check = self._button(
            "Check the rows", self._start_check, "Check the rows; the findings become filters"
        )
        self._sorts = ipywidgets.Dropdown(description="Sort by", layout=wide)
        self._down = ipywidgets.ToggleButton(
            description="descending",
            tooltip="Sort in descending order",
            layout=ipywidgets.Layout(width="auto"),
        )
        self._back = self._button("‹ Previous", self._go_back, "Previous page")
        self._next = self._button("Next ›", self._go_on, "Next page")
        self._count, self._view, self._full = self._html(), self._html(), self._html()
        self._bind("query", self._search)
        self._bind("where", self._filter)
        self._bind("descending", self._down)
        self._sorts.options = [("file order", ""), *((k, k) for k in self._all_keys())]
        self._bind("sort", self._sorts)
        self._findings.options = self._finding_options()
        self._bind("finding", self._findings)
        self._start_indexing()
        self._work(self._source.warm, lambda _: None, slot="warm")
        row = ipywidgets.Layout(flex_flow="row wrap", align_items="center")
        return [
            *self._making(),
            ipywidgets.HBox([self._search, self._filter], layout=row),
            ipywidgets.HBox(
                [self._sorts, self._down, self._findings, self._run_check, self._status], layout=row
            ),
            self._view,
            ipywidgets.HBox([self._back, self._next, self._count], layout=row),
            self._full,
        ]

    def _making(self) -> list[ipywidgets.Widget]:
        """The form that makes rows of a table, open; nothing for what has rows."""
        if self._maker is None:
            return []
        title = "These records are not rows yet: choose the columns of the prompt and the answer"
        self._fold = ipywidgets.Accordion([self._maker.widget()], titles=(title,), selected_index=0)
        return [self._fold]

    def _changed(self, names: Any) -> None:
        if names & {"query", "where", "finding", "sort", "descending"}:
            self._numbers = None
            self.page = 0
        if "row" in names:
            self._details = {}

    def _draw(self) -> None:
        if self._numbers is None and self._is_plain():
            self._numbers = range(len(self._source))
        if self._numbers is None:
            self._work(self._find, self._show_found, "Searching", slot="find")
        else:
            self._draw_page()
        self._draw_row()

    def _show_found(self, numbers: Numbers) -> None:
        self._numbers = numbers
        if self._root is not None:
            self._draw_page()

    def _draw_page(self) -> None:
        numbers = [int(number) for number in self._on_page()]
        lines = cells(self._source.items(numbers), self.query.strip())
        shown = row_page(
            lines,
            self._shown_columns(lines),
            numbers=numbers,
            sort=self.sort,
            descending=self.descending,
            opened=self.row,
            hit=self.query.strip(),
        )
        is_empty = not numbers and len(self._source) > 0
        self._view.value = note("No row matches. Clear the filters.") if is_empty else shown
        self._count.value = note(f"{self._pages()}{self._row_count()}")
        self._back.disabled = self.page == 0
        self._next.disabled = (self.page + 1) * self.page_size >= len(self.numbers())
        self._run_check.layout.display = "none" if self._check else ""

    def _draw_row(self) -> None:
        if self.row is None:
            self._full.value = ""
            return
        self._full.value = self._row_html()
        if not self._details:
            self._work(self._load_details, self._show_details, "Loading details", slot="row")

    def _show_details(self, details: dict[str, Any]) -> None:
        self._details = details
        if self._root is not None and self.row is not None:
            self._full.value = self._row_html()

    def _act_open(self, number: str) -> None:
        self.row = None if self.row == int(number) else int(number)

    def _act_sort(self, key: str) -> None:
        if key not in self._all_keys():
            raise InputError(f"cannot sort by {key!r}: only this list has that column")
        self.set(sort=key, descending=self.sort == key and not self.descending)

    def _go_back(self) -> None:
        self.page = max(0, self.page - 1)

    def _go_on(self) -> None:
        self.page += 1

    # finding

    def _is_plain(self) -> bool:
        return not (self.query or self.where or self.finding or self.sort)

    def _find(self, task: Task) -> Numbers:
        """Find the rows that match the text, the conditions and the finding, in order."""
        import numpy as np

        query, where, finding = self.query.strip(), self.where, self.finding
        numbers: Any = np.arange(len(self._source))
        if finding:
            numbers = np.array(self._rows_of(finding), dtype=int)
        if query:
            matches = np.zeros(len(self._source), dtype=bool)
            matches[np.asarray(self._source.search(query, task), dtype=int)] = True
            numbers = numbers[matches[numbers]]
        for condition in parse_conditions(where):
            matches = condition.holds(self._source.column(condition.key, task))
            numbers = numbers[matches[numbers]]
        return self._sorted(numbers, task)

    def _sorted(self, numbers: Any, task: Task) -> Numbers:
        if not self.sort:
            return numbers
        column = self._source.column(self.sort, task).iloc[numbers]
        key: Callable[..., Any] | None = None
        if column.dtype == object:  # values of mixed types are compared as text
            key = _as_text
        ordered = column.reset_index(drop=True).sort_values(
            ascending=not self.descending, kind="stable", key=key, na_position="last"
        )
        return numbers[ordered.index.to_numpy()]

    def _on_page(self) -> Numbers:
        first = self.page * self.page_size
        return self.numbers()[first : first + self.page_size]

    def _start_indexing(self) -> None:
        """Count the rows in the background, and show them when all are known."""
        if not self._source.is_complete:
            self._work(self._index, self._show_indexed, "Opening", slot="index")

    def _index(self, task: Task) -> None:
        """Wait until every row of a file is indexed, and report the progress."""
        while not self._source.is_complete and task.pause(0.2):
            task.report(f"Counting the rows: {len(self._source):,} so far …")

    def _show_indexed(self, _: None) -> None:
        if self._is_plain():
            self._numbers = None
        if self._root is not None:
            self._draw()

    # findings

    def _start_check(self) -> None:
        def run(task: Task) -> Check:
            def progress(done: int, total: int) -> None:
                task.report(f"Checking the rows: {done / max(total, 1):.0%} …")

            return datasets.check(
                self._checked,
                grader=self._spec,
                response_format=self._format,
                tools=self._tools,
                progress=progress,
            )

        self._work(run, self._show_check, "Checking the rows", slot="check")

    def _show_check(self, found: Check) -> None:
        self._check = found
        if self._root is not None:
            self._findings.options = self._finding_options()
            self._draw()

    def _finding_options(self) -> list[tuple[str, str]]:
        if self._check is None:
            return [("not checked: click Check the rows", "")]
        labels: dict[str, str] = {}
        for each in self._findings_here():
            labels.setdefault(each.code, f"{each.severity}: {_brief(each)}")
        everything = (f"all rows ({counted(len(labels), 'kind')} of findings)", "")
        return [everything, *((label, code) for code, label in labels.items())]

    def _findings_here(self) -> list[Finding]:
        """The findings that name rows of this source."""
        return [
            each
            for each in (self._check.findings if self._check else ())
            if any(self._is_here(place) for place in each.places)
        ]

    def _rows_of(self, code: str) -> list[int]:
        known = sorted({each.code for each in self._findings_here()})
        if code not in known:
            raise InputError(
                f"no finding {code!r}; there are {', '.join(known)}"
                if self._check
                else f"no finding {code!r}: pass check=datasets.check(…), or click Check the rows"
            )
        return sorted({
            place.number
            for each in self._findings_here()
            if each.code == code
            for place in each.places
            if self._is_here(place)
        })  # fmt: skip

    def _is_here(self, place: Place) -> bool:
        return Path(place.file).name == Path(self._source.name).name

    # one row

    def _load_details(self, task: Task) -> dict[str, Any]:
        """The details of the open row that take longer: its grade and similar rows."""
        number = self.row
        if number is None:
            return {}
        item = self._source.items([number])[0]
        details: dict[str, Any] = {"number": number, "neighbours": []}
        answer = self._answer(item)
        if answer is not None and self._spec is not None:
            details["grade"] = asdict(self._compiled().grade(self._sample(answer), item))
        alike = nearest(self._source, number, task)
        prompts = self._source.items([each for each, _ in alike])
        details["neighbours"] = [
            {"row": each, "alike": percent, "prompt": prompt_text(prompt)}
            for (each, percent), prompt in zip(alike, prompts, strict=True)
        ]
        return details

    def _row_html(self) -> Html:
        number = self.row
        if number is None or not 0 <= number < len(self._source):
            raise InputError(
                f"there is no row {number}; there are 0 to {len(self._source) - 1:,}, shown from 1"
            )
        item = self._source.items([number])[0]
        if not self._details and self._root is None:
            self._details = self._load_details(Task(self._show_progress))
        return row_in_full(
            item,
            place=self._source.place(number),
            answer=self._answer(item),
            grade=self._details.get("grade"),
            findings=[
                each.message
                for each in self._findings_here()
                if any(p.number == number and self._is_here(p) for p in each.places)
            ],
            neighbours=self._details.get("neighbours"),
            history=self._history(item),
            live=self._root is not None,
        )

    def _answer(self, item: Mapping[str, Any]) -> str | None:
        if REFUSED in item:
            return None
        return datasets.reference_answer(item, self._format, grader=self._spec)

    def _sample(self, answer: str) -> Sample:
        return Sample.from_text(answer, response_format=self._format)

    def _compiled(self) -> CompiledGrader:
        if self._grader is None:
            from rftkit.client import judge_call

            self._grader = compile_grader(self._spec or {}, complete=judge_call(), workers=1)
        return self._grader

    def _history(self, item: Mapping[str, Any]) -> Any:
        if self._runs is None:
            return None
        from rftkit.evals.samples import row_key

        return self._runs.answers(row_key(item))

    def close(self) -> None:
        """Stop background work; end the processes of a python grader."""
        super().close()
        if self._grader is not None:
            self._grader.close(now=True)
            self._grader = None

    # words

    def _all_keys(self) -> list[str]:
        keys = self._source.keys()
        own = KEYS["preference" if "preferred_output" in keys else "reinforcement"]
        return [key for key in keys if key not in own]

    def _shown_columns(self, lines: Sequence[Mapping[str, Any]]) -> list[str]:
        if self._columns is not None:
            return self._columns
        known = dict.fromkeys(key for line in lines for key in line)
        own = [key for key in LEARNT if key in known and self._maker is None]
        keys = list(dict.fromkeys([*own, *self._all_keys()]))
        hit = self.query.strip()
        with_hit = [key for key in keys if any(has_hit(line.get(key), hit) for line in lines)]
        return list(dict.fromkeys([*keys[:MAX_COLUMNS], *with_hit]))

    def _row_count(self) -> str:
        """How many rows there are, how many match, and how they are sorted."""
        found, total = len(self.numbers()), len(self._source)
        so_far = "" if self._source.is_complete else " so far"
        words = counted(total, "row") + so_far
        if found < total:
            words = f"{found:,} of {words}"
        order = " descending" if self.descending else ""
        return f"{words}, sorted by {self.sort}{order}" if self.sort else words

    def _pages(self) -> str:
        first = self.page * self.page_size
        last = min(first + self.page_size, len(self.numbers()))
        return f"{first + 1:,} to {last:,} of " if last > first else ""


def _brief(finding: Finding) -> str:
    more = f", the first {len(finding.places)}" if finding.count > len(finding.places) else ""
    rows = counted(max(finding.count, len(finding.places)), "row")
    return f"{cut(finding.message, 70)} ({rows}{more})"


def _as_text(column: Any) -> Any:
    return type(column)(column_texts(column), index=column.index)
