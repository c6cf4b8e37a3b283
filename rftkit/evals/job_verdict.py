"""Several jobs compared as settings: which setting won, by how much, and whether the seeds agree.

Each job counts with its last validation, which nobody chose after seeing the rewards. Jobs that
differ only in their seed are repeats of one setting. Not here: steps against Step 0 (`compare`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rftkit.evals import multiple_comparisons
from rftkit.evals.cells import make_cells
from rftkit.evals.comparison import Estimate, JobVerdict, PairSummary
from rftkit.evals.job_names import first_runs, settings_and_seeds
from rftkit.evals.samples import Run, Samples
from rftkit.evals.sentences import decimals
from rftkit.evals.table import Table
from rftkit.wording import counted, listed

__all__ = ["job_verdict", "with_one_base"]

BASE = "Step 0"
LEVEL = 3
"""Decimals in which two settings must differ for one to be called ahead."""


def with_one_base(samples: Samples) -> Samples:
    """The same samples with one Step 0 for all jobs that start from one model.

    Its samples are those of all these jobs, as repeats of the rows: a base model is one model, and
    to count it once for each job would compare it with itself.
    """
    models: dict[Any, list[Run]] = {}
    for run in samples.runs:
        if run.step == 0 and run.job_id:
            key = ((run.job_facts or {}).get("model"), run.grader, run.grader_digest)
            models.setdefault(key, []).append(run)
    shared = [runs for (model, *_), runs in models.items() if model and len(runs) > 1]
    if not shared or all(run.step == 0 for run in samples.runs):
        return samples
    names: dict[str, str] = {}
    for runs in shared:
        label = BASE if len(shared) == 1 else f"{BASE} · {_name_of_base(runs[0], shared)}"
        names |= {run.label: label for run in runs}
    firsts = [runs[0] for runs in shared]
    bases = [replace(run, label=names[run.label], job_id=None) for run in firsts]
    others = [run for run in samples.runs if run.label not in names]
    return _renamed(samples, names, [*bases, *others])


def _name_of_base(run: Run, shared: Sequence[Sequence[Run]]) -> str:
    """What distinguishes this base model from others: its name, or its grader, or the first job."""
    models = [(runs[0].job_facts or {})["model"] for runs in shared]
    if len(set(models)) == len(models):
        return str((run.job_facts or {})["model"])
    graders = [runs[0].grader for runs in shared]
    if len(set(graders)) == len(graders):
        return f"grader {run.grader}"
    return run.label.partition(" · ")[2] or str(run.job_id)


def _renamed(samples: Samples, labels: Mapping[str, str], runs: Sequence[Run]) -> Samples:
    """Samples under other labels; those of runs that become one are numbered through."""
    frame = samples.frame[samples.frame["run"].isin([*labels, *(run.label for run in runs)])]
    frame = frame.assign(run=frame["run"].replace(dict(labels)))
    frame["sample"] = frame.groupby(["run", "row"]).cumcount()
    return replace(samples, runs=tuple(runs), frame=frame.reset_index(drop=True))


def job_verdict(samples: Samples, level: float, seed: int) -> JobVerdict | None:
    """Compare the last validations of several jobs; None with fewer than two jobs.

    Args:
        samples: Validations of the jobs, with one Step 0 (`with_one_base`).
        level: Confidence level.
        seed: Of the resampling.
    """
    first = first_runs(samples.runs)
    last = {job: _last(samples.runs, job) for job in first}
    if len(first) < 2 or any(run.step == 0 for run in last.values()):
        return None
    if len({run.grader_digest for run in last.values() if run.grader_digest}) > 1:
        return None  # settings that are measured differently cannot be ranked
    found = dict(zip(first, settings_and_seeds(list(first.values())), strict=True))
    pooled = _pooled(samples, {last[job].label: setting for job, (setting, _) in found.items()})
    means = _means(pooled, list(dict.fromkeys(setting for setting, _ in found.values())))
    if not means:
        return None
    rewards = {job: _mean(samples, run.label) for job, run in last.items()}
    seeds = [(setting, seed, rewards[job]) for job, (setting, seed) in found.items()]
    lead, is_sure = _lead(pooled, list(means), level, seed)
    if lead is None and len(means) > 1:
        return None  # the settings share no graded row
    gain, gains = _gain(pooled, next(iter(means)), level, seed)
    return JobVerdict(
        means=means,
        lead=lead,
        is_sure=is_sure,
        gain=gain,
        sentence=_sentence(means, lead, gain, seeds, is_sure=is_sure, gains=gains),
    )


def _last(runs: Sequence[Run], job: str) -> Run:
    own = [run for run in runs if run.job_id == job and run.step is not None]
    finished = [run for run in own if run.status == "completed"] or own
    return max(finished, key=lambda run: run.step or 0)


def _pooled(samples: Samples, settings: Mapping[str, str]) -> Samples:
    """The base and one run for each setting, whose seeds are repeats of the rows."""
    base = [run for run in samples.runs if run.label == BASE]
    names = dict.fromkeys(settings.values())
    runs = [*base, *(Run(name, name) for name in names)]
    kept = samples.frame["run"].isin([*settings, BASE])
    return _renamed(replace(samples, frame=samples.frame[kept]), settings, runs)


def _means(pooled: Samples, settings: Sequence[str]) -> dict[str, float]:
    """The mean of each setting, the highest first; a setting does not gain by missing hard rows."""
    import numpy as np

    cells = make_cells(pooled.select(settings))
    rewards = cells.mean(pooled.select(settings).frame["reward"])
    known: Any = np.isfinite(rewards)
    rewards = rewards[known.any(axis=1)][:, known.any(axis=0)]
    if not rewards.size:
        return {}
    names = [settings[int(at)] for at in np.flatnonzero(known.any(axis=0))]
    means = dict(zip(names, multiple_comparisons.run_means(rewards)[0].tolist(), strict=True))
    return dict(sorted(means.items(), key=lambda pair: -pair[1]))


def _mean(samples: Samples, label: str) -> float | None:
    frame = samples.frame[samples.frame["run"] == label].dropna(subset="reward")
    return float(frame.groupby("row")["reward"].mean().mean()) if len(frame) else None


def _lead(
    pooled: Samples, settings: Sequence[str], level: float, seed: int
) -> tuple[Estimate | None, bool]:
    if len(settings) < 2:
        return None, False
    chosen = pooled.select(settings)
    pair = _pair(chosen, settings[0], settings[1], level, seed)
    behind = pair.difference
    if behind.value is None:
        return None, False
    low, high = behind.low, behind.high
    lead = Estimate(-behind.value, None, None, behind.num_rows)
    if low is not None and high is not None:
        lead = replace(lead, low=-high, high=-low)
    return lead, pair.verdict == "worse"


def _gain(
    pooled: Samples, best: str, level: float, seed: int
) -> tuple[Estimate | None, str | None]:
    if BASE not in pooled.labels:
        return None, None
    pair = _pair(pooled, BASE, best, level, seed)
    return (pair.difference, pair.verdict) if pair.difference.value is not None else (None, None)


def _pair(samples: Samples, before: str, after: str, level: float, seed: int) -> PairSummary:
    """Two runs, corrected for the number of runs that are compared with the first."""
    others = [label for label in samples.labels if label != before]
    pairs = Table(samples, make_cells(samples), level, None, seed).pairs(before, others)
    return next(pair for pair in pairs if pair.after == after)


def _sentence(
    means: Mapping[str, float],
    lead: Estimate | None,
    gain: Estimate | None,
    seeds: Sequence[tuple[str, Any, float | None]],
    *,
    is_sure: bool,
    gains: str | None,
) -> str:
    best, *others = means
    if lead is None:
        values = [mean for _, _, mean in seeds if mean is not None]
        said = (
            f"{counted(len(seeds), 'seed')} of one setting end at a reward of {means[best]:.3f} "
            f"({min(values):.3f} to {max(values):.3f})"
        )
    elif round(means[best], LEVEL) == round(means[others[0]], LEVEL):
        level = [name for name in means if round(means[name], LEVEL) == round(means[best], LEVEL)]
        each = "both" if len(level) == 2 else "all"
        said = f"No setting is ahead: {listed(level)} {each} end at a reward of {means[best]:.3f}"
    else:
        second = others[0]
        rewards = f"{means[best]:.3f} against {means[second]:.3f} at the last step"
        start = f"{best} won" if is_sure else f"No setting is shown to win. {best} is ahead"
        said = f"{start}: {rewards}, {_with_ends(lead)} above {second}"
        said += _agreement(seeds, best, second)
    if gain is not None:
        shown = {"better": "gains", "worse": "loses"}.get(gains or "")
        who = best if others else "The setting"
        words = f"{shown or 'shows no clear change:'} {_with_ends(gain)}"
        if gain.value == 0 and gain.low is None:
            words = "shows no change"
        said += f". {who} {words} against the base model"
    return f"{said}."


def _agreement(seeds: Sequence[tuple[str, Any, float | None]], best: str, second: str) -> str:
    """Whether the seeds that both settings have agree on which is better."""
    first, other = (
        {seed: mean for name, seed, mean in seeds if name == setting and mean is not None}
        for setting in (best, second)
    )
    shared = [seed for seed in first if seed in other and seed is not None]
    if len(shared) < 2:
        return ""
    against = [str(seed) for seed in shared if first[seed] <= other[seed]]
    if not against:
        return f"; {'both' if len(shared) == 2 else f'all {len(shared)}'} seeds agree"
    which = f"not {'seed' if len(against) == 1 else 'seeds'} {listed(against)}"
    return f"; {len(shared) - len(against)} of {len(shared)} seeds agree ({which})"


def _with_ends(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:+.3f}"
    digits = decimals(estimate.value, estimate.low, estimate.high)
    value, low, high = (
        f"{each:+.{digits}f}".replace("-", "−")
        for each in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} ({low} to {high})"
