"""A list of jobs to choose from: a line each, with status, reward and what it trained on what."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rftkit.jobs.runs import Run
from rftkit.views.markup import Html, html, join, number, text, wrap
from rftkit.views.rows import sort_heading
from rftkit.views.watch import SIGNS, TONES

__all__ = ["RUN_COLUMNS", "run_table"]

RUN_COLUMNS = {
    "job": "name",
    "status": "status",
    "reward": "reward",
    "when": "created_at",
    "model": "model",
    "data": "dataset",
    "method": "method",
}
"""Heading -> the attribute of a `Run` that it shows and sorts by."""


def run_table(
    runs: Sequence[Run],
    *,
    sort: str = "",
    descending: bool = False,
    watched: str = "",
    live: bool = False,
) -> Html:
    """A line a job; in a panel headings sort, and a job's name chooses it.

    Args:
        runs: in the order of the lines.
        sort: the heading that they are sorted by; empty for newest first.
        descending: whether they are sorted in descending order.
        watched: id of the job that is shown elsewhere in the panel.
        live: whether there is a panel that receives clicks.
    """
    head = join(
        sort_heading(each, each == "reward", sort, descending)
        if live
        else html('<th scope="col">{}</th>', each)
        for each in RUN_COLUMNS
    )
    body = join(_line(run, run.id == watched, live) for run in runs)
    table = html(
        '<div class="rk-scroll rk-runs" tabindex="0"><table class="rk-rows rk-tight"><thead>'
        "<tr>{}</tr></thead><tbody>{}</tbody></table></div>",
        head,
        body,
    )
    plain = "\n".join(
        f"{run.id}  {run.status:<10}  {number(run.reward)}  {_when(run)}  {run.model}  {run.suffix}"
        for run in runs
    )
    return wrap(table, plain=plain)


def _line(run: Run, is_watched: bool, live: bool) -> Html:
    state = Html(' class="rk-opened" aria-current="true"') if is_watched else Html()
    sign = SIGNS.get(run.status, run.status)
    return html(
        '<tr{}><td title="{}">{}</td><td class="{}">{}</td>'
        '<td class="rk-number">{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>',
        state,
        run.id,
        _name(run, live),
        TONES.get(run.status, ""),
        sign,
        _measured(run),
        _when(run),
        run.model,
        run.dataset,
        run.method,
    )


def _name(run: Run, live: bool) -> Html:
    shown = text(run.name if run.suffix else f"{run.id[:14]}…")
    if not live:
        return shown
    return html(
        '<button type="button" class="rk-link" data-act="choose {}" '
        'data-lm-suppress-shortcuts="true" title="Watch {}">{}</button>',
        run.id,
        run.id,
        shown,
    )


def _measured(run: Run) -> str:
    if run.reward is None and run.loss is not None:
        return f"loss {number(run.loss)}"
    return number(run.reward)


def _when(run: Run) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(run.created_at))
