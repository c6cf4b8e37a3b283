"""Grade stored samples again with another grader, and report what that changes for training.

It reports how the ranks agree and which rows flip between pass and fail. A job learns from
*differences within a row's samples*, so it also reports which advantages change their sign and
which prompts gain or lose their signal. Not here: sampling new answers.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rftkit.errors import InputError
from rftkit.evals import saved_runs, stats
from rftkit.evals.cells import Array, make_cells
from rftkit.evals.comparison import Estimate
from rftkit.evals.correlation import correlation_over_rows, spearman
from rftkit.evals.grading import grade_again
from rftkit.evals.samples import Samples
from rftkit.wording import counted

__all__ = ["Regrade", "RegradedRun", "regrade"]

Place = tuple[str, str, int]
"""Row, run, sample."""


@dataclass(frozen=True, slots=True)
class RegradedRun:
    """One run under both graders."""

    label: str
    """The label of the old run."""
    new_label: str
    """Label of the new run."""
    step: int | None
    """Optimizer step, when it is a job's validation."""
    before: Estimate
    """Mean reward under the old grader."""
    after: Estimate
    """Mean reward under the new grader."""
    rank_correlation: float | None
    """Spearman, over samples that both graded; None when either never varies."""
    num_failed: int
    """Samples that the new grader could not grade."""


@dataclass(frozen=True, slots=True, eq=False)
class Regrade:
    """What an edited grader changes."""

    grader: str
    """Name of the new grader."""
    runs: tuple[RegradedRun, ...]
    """One entry for each run that was graded again, in order."""
    samples: Samples
    """Old and new runs side by side: `compare` takes it."""
    rank_correlation: Estimate
    """Spearman over all samples that both graders scored."""
    flipped_to_pass: tuple[tuple[str, str, int], ...]
    """(row, run, sample) that failed and now pass."""
    flipped_to_fail: tuple[tuple[str, str, int], ...]
    """(row, run, sample) that passed and now fail."""
    num_advantages: int
    """Samples in groups (a row's samples in one run) of two or more graded by both."""
    flipped_advantages: tuple[tuple[str, str, int], ...]
    """(row, run, sample) whose advantage changes its sign: training would push the other way."""
    gained_signal: tuple[tuple[str, str], ...]
    """(row, run) whose rewards were all equal and now differ."""
    lost_signal: tuple[tuple[str, str], ...]
    """(row, run) whose rewards differed and are now all equal."""
    reordered: bool | None
    """Whether another run is best under the new grader; None with one run."""
    notes: tuple[str, ...] = ()
    """Notes, one sentence each."""
    sentence: str = ""
    """The result as a sentence."""


def regrade(
    samples: Samples,
    grader: Mapping[str, Any],
    *,
    name: str | None = None,
    labels: Sequence[str] | None = None,
    keep_runs: bool = True,
    level: float = 0.95,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> Regrade:
    """Grade stored samples with another grader, and compare it with the one they had.

    Args:
        samples: The samples with their rewards.
        grader: The spec of the new grader.
        name: What to call it; default the grader's own name.
        labels: Runs to grade; default all.
        keep_runs: Keep each as a new run in the home, beside the old one (`rftkit eval list`).
        level: Of intervals.
        seed: Of resampling.
        progress: Show a bar.
        options: Options of `rftkit.graders.compile_grader`; `complete=` calls the judge.

    Raises:
        GraderSpecError: The spec is malformed.
        InputError: There is no sample to grade.
        NotFoundError: No run has that label.
    """
    old = samples.select(labels) if labels is not None else samples
    if not len(old.frame):
        raise InputError("there are no samples to grade again")
    title = name or str(grader.get("name") or grader.get("type") or "new grader")
    graded = grade_again(old, grader, progress=progress, **options)
    new = _relabelled(graded, title)
    if keep_runs:
        for label in new.labels:
            saved_runs.save(saved_runs.record_of(new, label))
    return _report(old, new, title, level, seed)


def _relabelled(samples: Samples, title: str) -> Samples:
    """The runs as new ones, named after the grader."""
    runs = [
        replace(
            run,
            label=f"{run.label} · {title}",
            id=f"{saved_runs.LOCAL_PREFIX}{uuid.uuid4().hex[:16]}",
            source="home",
            grader=title,
        )
        for run in samples.runs
    ]
    names = {old.label: new.label for old, new in zip(samples.runs, runs, strict=True)}
    frame = samples.frame.assign(run=samples.frame["run"].map(names))
    return replace(samples, runs=tuple(runs), frame=frame)


def _report(old: Samples, new: Samples, title: str, level: float, seed: int) -> Regrade:
    import numpy as np

    before = old.frame["reward"].to_numpy(float)
    after = new.frame["reward"].to_numpy(float)
    both = np.isfinite(before) & np.isfinite(after)
    where = (old.frame[name].tolist() for name in ("row", "run", "sample"))
    places: list[Place] = list(zip(*where, strict=True))
    passed = old.frame["passed"].eq(True).fillna(False).to_numpy(bool)
    passes = new.frame["passed"].eq(True).fillna(False).to_numpy(bool)
    said = old.frame["passed"].notna().to_numpy(bool) & both
    runs = _runs(old, new, before, after, level)
    groups = _groups(old, before, after, both)
    found = Regrade(
        grader=title,
        runs=runs,
        samples=_side_by_side(old, new),
        rank_correlation=_rank_correlation(old, before, after, both, level, seed),
        flipped_to_pass=_chosen(places, said & ~passed & passes),
        flipped_to_fail=_chosen(places, said & passed & ~passes),
        num_advantages=int(groups.member.sum()),
        flipped_advantages=_chosen(places, groups.flipped),
        gained_signal=groups.gained,
        lost_signal=groups.lost,
        reordered=_reordered(runs),
        notes=_notes(new, before, after),
    )
    return replace(found, sentence=_sentence(found))


@dataclass(frozen=True, slots=True)
class _Groups:
    """How the new rewards change groups: a group is a row's samples in one run."""

    member: Any
    """Whether a sample is in a group of two or more graded by both, (samples,) bool."""
    flipped: Any
    """Whether its advantage changes its sign, (samples,) bool."""
    gained: tuple[tuple[str, str], ...]
    lost: tuple[tuple[str, str], ...]


def _groups(old: Samples, before: Array, after: Array, both: Any) -> _Groups:
    import numpy as np

    cells = make_cells(old)
    size = cells.count(both)
    advantages = []
    spreads = []
    for rewards in (before, after):
        known = np.where(both, rewards, np.nan)
        off = known - cells.mean(known)[cells.row, cells.run]
        off[np.abs(off) < 1e-9] = 0.0
        advantages.append(off)
        spreads.append(cells.count(np.nan_to_num(np.abs(off))) > 0)  # whether the group differs
    member = both & (size[cells.row, cells.run] > 1)

    def named(chosen: Any) -> tuple[tuple[str, str], ...]:
        return tuple((cells.keys[row], cells.labels[run]) for row, run in np.argwhere(chosen))

    group = size > 1
    return _Groups(
        member,
        member & (advantages[0] * advantages[1] < 0),
        named(group & ~spreads[0] & spreads[1]),
        named(group & spreads[0] & ~spreads[1]),
    )


def _runs(
    old: Samples, new: Samples, before: Array, after: Array, level: float
) -> tuple[RegradedRun, ...]:
    import numpy as np

    old_cells, new_cells = make_cells(old), make_cells(new)
    old_means, new_means = old_cells.mean(before), new_cells.mean(after)
    failed = new.frame["outcome"].to_numpy() == "failed"
    found = []
    for at, (was, run) in enumerate(zip(old.runs, new.runs, strict=True)):
        here = (old.frame["run"] == was.label).to_numpy(bool)
        both = here & np.isfinite(before) & np.isfinite(after)
        found.append(
            RegradedRun(
                label=was.label,
                new_label=run.label,
                step=was.step,
                before=stats.mean_interval(
                    old_means[:, at], level=level, bounds=stats.bounds_of(before)
                ),
                after=stats.mean_interval(
                    new_means[:, at], level=level, bounds=stats.bounds_of(after)
                ),
                rank_correlation=spearman(before[both], after[both]),
                num_failed=int((failed & here).sum()),
            )
        )
    return tuple(found)


def _rank_correlation(
    samples: Samples, before: Array, after: Array, chosen: Any, level: float, seed: int
) -> Estimate:
    rows = samples.frame["row"].to_numpy()[chosen]
    return correlation_over_rows(
        rows, before[chosen], after[chosen], level=level, num_resamples=200, seed=seed
    )


def _side_by_side(old: Samples, new: Samples) -> Samples:
    import pandas as pd

    frame = pd.concat([old.frame, new.frame], ignore_index=True)
    return replace(old, runs=(*old.runs, *new.runs), frame=frame)


def _reordered(runs: Sequence[RegradedRun]) -> bool | None:
    """Runs that tie for the best are all best, as a grader that pays each the same has it."""
    known = [
        (run.before.value, run.after.value)
        for run in runs
        if run.before.value is not None and run.after.value is not None
    ]
    if len(known) < 2:
        return None
    most = [max(values) for values in zip(*known, strict=True)]
    return not any(
        math.isclose(before, most[0]) and math.isclose(after, most[1]) for before, after in known
    )


def _chosen(places: Sequence[Place], chosen: Any) -> tuple[Place, ...]:
    return tuple(
        (str(places[at][0]), str(places[at][1]), int(places[at][2])) for at in chosen.nonzero()[0]
    )


def _notes(new: Samples, before: Array, after: Array) -> tuple[str, ...]:
    import numpy as np

    notes = []
    failed = int((~np.isfinite(after)).sum())
    if failed:
        why = new.frame["error"][~np.isfinite(after)].dropna()
        reason = f", the first because: {str(why.iloc[0])[:200]}" if len(why) else ""
        notes.append(
            f"{failed:,} of {counted(len(after), 'sample')} could not be graded again{reason}. "
            "They are left out."
        )
    never = int((~np.isfinite(before)).sum())
    if never:
        notes.append(f"{counted(never, 'sample')} had no grade before and cannot be compared.")
    return tuple(notes)


def _sentence(found: Regrade) -> str:
    said = []
    if found.rank_correlation.value is not None:
        said.append(f"rank correlation {found.rank_correlation.value:.2f}")
    flips = len(found.flipped_to_pass) + len(found.flipped_to_fail)
    said.append(
        f"{counted(flips, 'sample')} change verdict ({len(found.flipped_to_pass)} now pass, "
        f"{len(found.flipped_to_fail)} now fail)"
    )
    if found.num_advantages:
        share = len(found.flipped_advantages) / found.num_advantages
        said.append(f"{share:.0%} of advantages change their sign")
        said.append(
            f"{counted(len(found.gained_signal), 'group')} gain a signal, "
            f"{len(found.lost_signal)} lose it"
        )
    else:
        said.append("with one sample a row there are no advantages to compare")
    best = " Another run is best under it." if found.reordered else ""
    return f"Under {found.grader}: {'; '.join(said)}.{best}"
