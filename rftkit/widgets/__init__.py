"""Panels: what a notebook shows and lets you do, one class a task.

    RowBrowser      page, sort, search and filter rows; one row in full
    RowMaker        make rows of a table: which columns are the prompt, and which the answer
    GraderLab       write a grader, run it on rows, see every step of the grade
    JobLauncher     set up a job, check it, estimate it, start it
    JobMonitor      watch a job from any kernel: curves, rollouts, events; pause, resume, cancel
    Playground      ask base, checkpoints and final side by side
    RunCompare      eval runs side by side; from any number to the rows behind it
    Labeller        label samples by hand: one text field, Enter moves on
    freeze          the last cell of a notebook: panels become static copies, fit for sharing

A panel is data, HTML and, where somebody can click, core ipywidgets; the shape of all of them is
in `panel`. Names load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rftkit.lazy import lazily

if TYPE_CHECKING:
    from rftkit.widgets.compare import RunCompare
    from rftkit.widgets.freezing import freeze
    from rftkit.widgets.graderlab import GraderLab
    from rftkit.widgets.labels import Labeller
    from rftkit.widgets.launcher import JobLauncher
    from rftkit.widgets.monitor import JobMonitor
    from rftkit.widgets.panel import Panel, live
    from rftkit.widgets.playground import Playground
    from rftkit.widgets.rowbrowser import RowBrowser
    from rftkit.widgets.rowmaker import RowMaker

__all__ = [
    "GraderLab",
    "JobLauncher",
    "JobMonitor",
    "Labeller",
    "Panel",
    "Playground",
    "RowBrowser",
    "RowMaker",
    "RunCompare",
    "freeze",
    "live",
]

_HOMES = {
    "graderlab": ("GraderLab",),
    "rowbrowser": ("RowBrowser",),
    "rowmaker": ("RowMaker",),
    "launcher": ("JobLauncher",),
    "monitor": ("JobMonitor",),
    "playground": ("Playground",),
    "compare": ("RunCompare",),
    "labels": ("Labeller",),
    "panel": ("Panel", "live"),
    "freezing": ("freeze",),
}
__getattr__, __dir__ = lazily(__name__, _HOMES)
