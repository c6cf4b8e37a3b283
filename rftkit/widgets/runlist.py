"""RunList: the newest jobs as a table that filters and sorts, to choose one from.

It is a part of JobMonitor, and asks the service when `refresh` is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import ipywidgets
from traitlets import Bool, Enum, Unicode

from rftkit import views
from rftkit.jobs.runs import Run, runs
from rftkit.views.markup import Html, join
from rftkit.views.runs import RUN_COLUMNS, run_table
from rftkit.widgets.panel import Panel
from rftkit.wording import counted

if TYPE_CHECKING:
    import pandas as pd
    from openai import OpenAI

__all__ = ["RunList"]

LISTED = 200
"""Jobs in the list, newest first."""


class RunList(Panel):
    """The newest jobs, filtered and sorted.

    Args:
        client: of the service.
        chosen: called with the id of the job that somebody clicks.
        state: any of `query`, `sort`, `descending`, `watched`.
    """

    query = Unicode("", help="Words that a job's id, suffix, status, model or data contain.")
    sort = Enum(["", *RUN_COLUMNS], default_value="", help="Column; empty for newest first.")
    descending = Bool(False, help="Sort in descending order.")
    watched = Unicode("", help="Id of the chosen job.")

    def __init__(
        self, client: OpenAI, chosen: Callable[[str], None] = lambda job_id: None, **state: Any
    ) -> None:
        self._client, self._chosen = client, chosen
        self._runs: list[Run] | None = None
        super().__init__(**state)

    def data(self) -> pd.DataFrame:
        """The jobs that match, in the order shown."""
        import pandas as pd

        return pd.DataFrame([asdict(run) for run in self._shown()], columns=list(Run.__slots__))

    def to_html(self, *, max_bytes: int = 300_000) -> Html:
        """The jobs that match, as a table."""
        return self._table(live=False)

    def refresh(self) -> None:
        """Fetch the jobs again in the background; does nothing while the list is not shown."""

        def show(found: list[Run]) -> None:
            self._runs = found
            if self._root is not None:
                self._draw()

        known = self._runs or []
        if self._root is None:
            self._runs = None
            return
        self._work(lambda task: runs(self._client, limit=LISTED, known=known), show, slot="list")

    def _build(self) -> Sequence[ipywidgets.Widget]:
        self._filter = ipywidgets.Text(
            placeholder="words of its name, status, model or data",
            description="Filter jobs",
            style={"description_width": "5rem"},
            layout=ipywidgets.Layout(width="100%", max_width="30rem"),
        )
        self._bind("query", self._filter)
        self._body = self._html(views.note("Fetching the jobs …"))
        return [self._filter, self._body]

    def _draw(self) -> None:
        if self._runs is not None:
            self._body.value = self._table(live=True)

    def _table(self, *, live: bool) -> Html:
        found = self._shown()
        listed = run_table(
            found, sort=self.sort, descending=self.descending, watched=self.watched, live=live
        )
        total = len(self._runs or [])
        words = counted(total, "job") if len(found) == total else f"{len(found)} of {total} jobs"
        if total == LISTED:
            words += "; older ones are not listed"
        if not found:
            words = "No job matches. Clear the filter." if total else "There is no job yet."
        return join([listed, views.note(words)] if found else [views.note(words)], listed.plain)

    def _shown(self) -> list[Run]:
        if self._runs is None:
            self._runs = runs(self._client, limit=LISTED)
        words = self.query.lower().split()
        found = [run for run in self._runs if all(word in _text_of(run) for word in words)]
        if self.sort:
            name = RUN_COLUMNS[self.sort]
            known = [run for run in found if getattr(run, name) is not None]
            known.sort(key=lambda run: getattr(run, name), reverse=self.descending)
            found = known + [run for run in found if getattr(run, name) is None]
        return found

    def _act_sort(self, key: str) -> None:
        # the first click on a number or a time shows the highest and newest first
        is_first = key in ("reward", "when") if key != self.sort else not self.descending
        self.set(sort=key, descending=is_first)

    def _act_choose(self, job_id: str) -> None:
        self._chosen(job_id)


def _text_of(run: Run) -> str:
    return " ".join((run.id, run.suffix, run.status, run.model, run.dataset, run.method)).lower()
