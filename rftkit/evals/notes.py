"""Notes that a reader needs before the numbers of a comparison, one sentence each.

`Samples.notes` has the notes on the data itself.
"""

from __future__ import annotations

from rftkit.evals.cells import Cells
from rftkit.evals.comparison import PairSummary
from rftkit.evals.samples import Samples
from rftkit.evals.sentences import names
from rftkit.wording import counted, listed

__all__ = ["notes_on"]

FEW = 20
"""With fewer rows than this, a note explains what they can show."""
LEAST = 6
"""With fewer rows than this the sign-flip test cannot find a difference at 95 %."""
MUCH = 0.05
"""A larger share of unscorable samples, or of answers that were cut off, gets a note."""


def notes_on(samples: Samples, cells: Cells, pair: PairSummary | None) -> tuple[str, ...]:
    """The notes of a comparison; `pair` is that of the runs in focus."""
    notes = [*samples.notes]
    if not samples.runs:
        return (*notes, "There is nothing to compare: no run was found.")
    if not len(samples.frame):
        return (*notes, f"There is nothing to compare: {listed(samples.labels)} have no samples.")
    if len(samples.runs) == 1:
        notes.append(f"There is one run, {samples.labels[0]}: there is nothing to compare it with.")
    notes += _unfinished(samples)
    notes += _graders(samples)
    notes += _missing_rows(samples, cells)
    notes += _set_apart(samples, cells)
    notes += _flat(samples)
    if pair is not None:
        notes += _few(pair)
    return tuple(notes)


def _unfinished(samples: Samples) -> list[str]:
    return [
        f"{run.label} is {run.status}: it may lack rows."
        for run in samples.runs
        if run.status != "completed"
    ]


def _graders(samples: Samples) -> list[str]:
    """Rewards of different graders cannot be compared."""
    names = list(dict.fromkeys(run.grader or "their own grader" for run in samples.runs))
    digests = {run.grader_digest for run in samples.runs}
    versions = len(digests - {None})
    if versions < 2 and (len(names) < 2 or None not in digests):
        return []
    which = listed(names) if len(names) > 1 else f"{versions} versions of {names[0]}"
    return [
        f"The runs were graded by {which}: rewards of different graders cannot be compared. Grade "
        "them with the same grader first (evals.grade_again)."
    ]


def _missing_rows(samples: Samples, cells: Cells) -> list[str]:
    has = cells.count() > 0
    notes = [
        f"{label} has no samples." for at, label in enumerate(cells.labels) if not has[:, at].any()
    ]
    everywhere = int(has.all(axis=1).sum())
    if everywhere == len(cells.keys) or len(samples.runs) == 1:
        return notes
    if everywhere == 0:
        notes.append("No row is in every run: runs can only be compared in pairs.")
    else:
        notes.append(
            f"{everywhere:,} of {counted(len(cells.keys), 'row')} are in every run; each pair is "
            "compared on the rows that both have, and the recommendation uses all rows."
        )
    return notes


def _set_apart(samples: Samples, cells: Cells) -> list[str]:
    """Samples without a grade, not scorable or cut off, each counted apart; like runs together."""
    outcome = samples.frame["outcome"].to_numpy()
    is_cut = samples.frame["truncated"].to_numpy(bool)
    totals = cells.count().sum(axis=0)
    notes: dict[str, list[str]] = {}
    for those, least, said in (
        (outcome == "failed", 0.0, "have no grade ({}): they are left out, not counted as zero."),
        (
            outcome == "unscorable",
            MUCH,
            "could not be scored ({}): they count with the floor reward.",
        ),
        (
            is_cut & (outcome == "graded"),
            MUCH,
            "were cut off at the token limit ({}): what they had said by then was graded.",
        ),
    ):
        for at, count in enumerate(cells.count(those).sum(axis=0)):
            total = int(totals[at])
            if count and count / total >= least:
                words = f"{int(count):,} of {counted(total, 'sample')} of {{}} {said}"
                notes.setdefault(words.format("{}", f"{count / total:.1%}"), []).append(
                    cells.labels[at]
                )
    return [
        words.format(f"{'each of ' * (len(labels) > 1)}{names(samples.runs, labels)}")
        for words, labels in notes.items()
    ]


def _flat(samples: Samples) -> list[str]:
    import numpy as np

    rewards = samples.frame["reward"].to_numpy(float)
    rewards = rewards[np.isfinite(rewards)]
    if not len(rewards):
        return ["No sample has a grade: there is no reward to compare."]
    if np.ptp(rewards) == 0:
        return [f"Every sample earned {rewards[0]:g}: these rows cannot tell runs apart."]
    return []


def _few(pair: PairSummary) -> list[str]:
    """What a small number of rows can show and what it cannot."""
    count = pair.num_rows
    if not 0 < count < FEW:
        return []
    only = f"Only {counted(count, 'row')} can be compared"
    if count < LEAST:
        luck = 2 ** (count - 1)
        often = f"in 1 of {luck} cases" if luck > 1 else "always"
        return [
            f"{only}: luck alone moves that many rows in one direction {often}, so they cannot "
            f"show any difference. At least {LEAST} rows are needed, and 100 are better."
        ]
    if pair.detectable is None:
        return [f"{only}: every interval is rough."]
    return [
        f"{only}: a true difference must be about {pair.detectable:.2f} or more to be shown by "
        "so few rows in four of five repetitions."
    ]
