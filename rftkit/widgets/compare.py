"""RunCompare: eval runs side by side; from any number to the rows behind it.

The statistics come from `rftkit.evals.compare`, the markup from `rftkit.views`. The panel keeps the
comparison in the kernel and sends one page of rows at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets
from traitlets import Enum, Int, Unicode

from rftkit import evals, views
from rftkit.errors import InputError
from rftkit.evals import Comparison, JudgeNoise, Samples
from rftkit.views.compare_rows import ALONE, SORTS, row_cards, row_verdicts
from rftkit.views.jumps import Jumps
from rftkit.views.markup import Html, html, join, note, scrolled_to, wrap
from rftkit.widgets.panel import STORED_BYTES, Panel

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RunCompare"]

SECTIONS = {
    "runs": "Runs",
    "curves": "Curves",
    "slices": "Slices",
    "pair": "Compared with the baseline",
}
PAGE = 8
"""Rows on a page."""


class RunCompare(Panel):
    """Compare runs: the recommendation, every run with intervals, slices, and the rows.

    `panel.comparison` has every number; `panel.data()` returns the rows that match.

    Args:
        samples: from `evals.fetch` or a similar function, or an existing `Comparison`.
        slices: keys, or names with functions, that group the rows.
        margin: smaller differences count as negligible.
        noise: of the judge, drawn as a band; from `evals.judge_noise`.
        state: `section` (runs, curves, slices, pair), `after` (label compared with the baseline),
            `only` (words of a number whose rows are shown, as `fixed at Step 12`), `kind` (fixed,
            broken, better, worse, same, not graded), `query`, `sort`, `page`.
    """

    section = Enum(list(SECTIONS), default_value="runs", help="What is shown above the rows.")
    after = Unicode("", help="Label that is compared with the baseline.")
    only = Unicode("", help="Words of the number whose rows are shown; empty for all rows.")
    kind = Unicode("", help="Verdict of the rows: fixed, broken, better, …; empty for all.")
    query = Unicode("", help="Text that the prompts contain; case is ignored.")
    sort = Enum(list(SORTS), default_value="-change", help="Order of the rows.")
    page = Int(0, min=0, help="Page shown, from 0.")

    def __init__(
        self,
        samples: Samples | Comparison,
        *,
        slices: Sequence[str] | Mapping[str, Any] = (),
        margin: float | None = None,
        noise: JudgeNoise | None = None,
        **state: Any,
    ) -> None:
        """Compare at once, so that an error is raised here and not in the panel."""
        self._slices, self._margin, self._noise = slices, margin, noise
        self._jumped = 0
        self.comparison: Comparison
        """The comparison with all numbers of the panel."""
        if isinstance(samples, Comparison):
            self._take(samples)
        else:
            self._take(self._compare(samples, state.get("after") or None))
        sort = "-change" if self.comparison.pairs else "final"
        super().__init__(**{"after": self.comparison.focus or "", "sort": sort, **state})

    # what it shows

    def data(self) -> pd.DataFrame:
        """The rows that match, in the order shown: `comparison.rows` and a `kind`."""
        rows = self.comparison.rows
        rows = rows.assign(kind=[self._verdicts[key][0] for key in rows["row"]])
        if self.only:
            rows = rows[rows["row"].isin(self._rows_behind(self.only))]
        if self.kind:
            rows = rows[rows["kind"] == self.kind]
        if self.query.strip():
            rows = rows[rows["prompt"].str.contains(self.query.strip(), case=False, regex=False)]
        return self._sorted(rows)

    def to_html(self, *, max_bytes: int = 300_000) -> Html:
        """Every section; for a small `max_bytes`, only the recommendation and the runs."""
        head = [views.compare_headline(self.comparison)]
        if max_bytes <= STORED_BYTES:
            return join([*head, self._part("runs", Jumps())], plain=head[0].plain)
        jumps = views.jumps_for(self.comparison, max(10, min(200, max_bytes // 10_000)))
        for name, title in SECTIONS.items():
            head += [wrap(html("<h3>{}</h3>", title)), self._part(name, jumps)]
        rows = views.compare_rows(self.comparison, jumps=jumps, max_bytes=max_bytes)
        return join([*head, wrap(Html("<h3>Rows</h3>")), rows], plain=head[0].plain)

    def _part(self, name: str, jumps: Jumps) -> Html:
        found = self.comparison
        if name == "runs":
            shown = [views.compare_runs(found, jumps=jumps)]
            shown += [views.grader_means(found)] if found.samples.graders else []
        elif name == "curves":
            shown = [views.reward_curve(found, self._noise, jumps=jumps)]
            shown.append(views.difference_chart(found, jumps=jumps))
            shown.append(views.row_paths(found, jumps=jumps))
        elif name == "slices":
            shown = [
                part
                for each in found.slices
                for part in (views.slice_chart(each, jumps=jumps), views.slice_lines(each, jumps))
            ] or [note('No slices. Name them: RunCompare(samples, slices=["topic"]).')]
        elif found.pairs:
            shown = [views.pair_facts(found.pair(self.after), jumps)]
        else:
            shown = [note("There is only one run, so there is nothing to compare it with.")]
        return join(shown, plain=shown[0].plain)

    # state

    def _compare(self, samples: Samples, after: str | None) -> Comparison:
        return evals.compare(samples, after=after, slices=self._slices, margin=self._margin)

    def _take(self, comparison: Comparison) -> None:
        self.comparison = comparison
        rows = comparison.rows
        self._jumps = Jumps({}, len(rows), in_panel=True)
        self._verdicts = row_verdicts(comparison)

    def _rows_behind(self, words: str) -> Sequence[str]:
        if words not in self._jumps.links:
            for name in ("runs", "slices", "pair"):  # the number has not been shown yet
                self._part(name, self._jumps)
        if words not in self._jumps.links:
            known = ", ".join(list(self._jumps.links)[:6])
            raise InputError(
                f"this comparison has no number {words!r}; it has, for example, {known}"
            )
        return self._jumps.links[words]

    def _sorted(self, rows: pd.DataFrame) -> pd.DataFrame:
        key = self.sort.removeprefix("-")
        last = self.comparison.focus or self.comparison.baseline
        column = f"reward/{last}" if key == "final" else key
        if column not in rows:
            return rows
        down = self.sort.startswith("-")
        return rows.sort_values(column, ascending=not down, kind="stable", na_position="last")

    def _changed(self, names: Any) -> None:
        if names & {"only", "kind", "query", "sort"} and "page" not in names:
            self.page = 0
        if "only" in names and self.only:
            wanted, self.only = self.only, ""
            self._rows_behind(wanted)
            self.only = wanted
        if "after" in names and self.after != self.comparison.focus:
            self._work(
                lambda task: self._compare(self.comparison.samples, self.after),
                self._show_compared,
                "Comparing",
            )

    def _show_compared(self, comparison: Comparison) -> None:
        self._take(comparison)
        self.set(only="", page=0)
        if self._root is not None:
            self._draw()

    # widgets

    def _build(self) -> Sequence[ipywidgets.Widget]:
        wide = ipywidgets.Layout(width="15rem", max_width="100%")
        short = {
            "layout": ipywidgets.Layout(width="17rem", max_width="100%"),
            "style": {"description_width": "3rem"},
        }
        labels = [
            each for each in self.comparison.samples.labels if each != self.comparison.baseline
        ]
        self._tabs = ipywidgets.ToggleButtons(
            options=[(v, k) for k, v in SECTIONS.items()], style={"button_width": "auto"}
        )
        self._afters = ipywidgets.Dropdown(
            options=labels or [""],
            description="Compare with",
            style={"description_width": "6rem"},
            layout=ipywidgets.Layout(width="20rem", max_width="100%"),
        )
        self._search = ipywidgets.Text(
            placeholder="Search the prompts", continuous_update=False, layout=wide
        )
        self._sorts = ipywidgets.Dropdown(
            options=[(v, k) for k, v in SORTS.items() if labels or k in ALONE],
            description="Order",
            **short,
        )
        self._kinds = ipywidgets.Dropdown(description="Rows", **short)
        self._all = self._button("Show all rows", lambda: self.set(only=""), "Clear the selection")
        self._back = self._button("‹ Previous", lambda: self.set(page=max(0, self.page - 1)))
        self._next = self._button("Next ›", lambda: self.set(page=self.page + 1))
        self._head, self._above = self._html(), self._html()
        self._selection, self._rows, self._count = self._html(), self._html(), self._html()
        kinds = sorted({verdict for verdict, _ in self._verdicts.values()})
        self._kinds.options = [("all rows", ""), *((each, each) for each in kinds)]
        for name, widget in (("section", self._tabs), ("query", self._search),
                             ("sort", self._sorts), ("kind", self._kinds)):  # fmt: skip
            self._bind(name, widget)
        if labels:
            self._bind("after", self._afters)
        else:
            self._afters.layout.display = "none"
        row = ipywidgets.Layout(flex_flow="row wrap", align_items="center")
        return [
            self._head,
            ipywidgets.HBox([self._tabs, self._afters], layout=row),
            self._above,
            ipywidgets.HBox([self._search, self._kinds, self._sorts], layout=row),
            ipywidgets.HBox([self._selection, self._all], layout=row),
            self._rows,
            ipywidgets.HBox([self._back, self._next, self._count], layout=row),
        ]

    def _draw(self) -> None:
        self._head.value = views.compare_headline(self.comparison)
        shown = (self.section, id(self.comparison))
        if getattr(self, "_drawn", None) != shown:  # plots are drawn again only when they change
            self._drawn = shown
            self._above.value = self._part(self.section, self._jumps)
        found = self.data()
        first = min(self.page, max(0, (len(found) - 1) // PAGE)) * PAGE
        keys = list(found["row"].iloc[first : first + PAGE])
        cards = join(row_cards(self.comparison, keys, max_bytes=400000)) if keys else Html()
        self._rows.value = wrap(cards) if cards else note("No rows match. Clear the filter.")
        last = first + len(keys)
        self._count.value = note(f"{first + 1 if keys else 0} to {last} of {len(found):,} rows")
        one = len(self._jumps.links.get(self.only, ())) == 1
        chosen = note(f"{'Row' if one else 'Rows'} {self.only}") + self._scrolling
        self._selection.value = chosen if self.only else Html()
        self._all.layout.display = "" if self.only else "none"
        self._back.disabled, self._next.disabled = first == 0, last >= len(found)

    def _act_jump(self, words: str) -> None:
        self._jumped += 1
        self.only = words
        self._draw()  # a second click on the same number scrolls again

    @property
    def _scrolling(self) -> Html:
        """Markup that scrolls to the rows when a number was clicked, once for each click."""
        return scrolled_to(self._jumped) if self._jumped else Html()
