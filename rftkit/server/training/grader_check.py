"""Before the first step: does the job's grader recognise the reference answers of its rows?

A job whose grader pays no right answer would train for hours on nothing. It is not refused, since a
row's `answer` may be something else than the answer; the verdict is a warning in its events. Not
here: the rule (`rftkit.graders.recognition`), and rows without what the grader reads (`worker`).
"""

from __future__ import annotations

import functools

from rftkit.graders import recognise
from rftkit.server.training.context import RftRun
from rftkit.server.training.sampling import while_idle

__all__ = ["warn_of_grader"]


def warn_of_grader(run: RftRun) -> None:
    """Add a warning event when the grader recognises no right answer; before the first step."""
    if run.compile is None or run.journal.record("valid", run.plan.branch_step) is not None:
        return
    items = [row.item for row in run.rows]
    with run.compile(run.grader.spec) as grader:
        ask = functools.partial(recognise, grader, items, response_format=run.response_format)
        found = while_idle(run, grader, ask)
    if found is not None:
        sentence = str(found)
        run.store.add_event(
            run.job.id,
            f"{sentence[:1].upper()}{sentence[1:]}. What to do: {found.advice}.",
            level="warn",
            data={"grader_verdict": found.to_dict()},
            key="grader-verdict",
        )
