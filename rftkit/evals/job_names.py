"""What runs and jobs are called, so that people need no id to tell them apart.

A validation of one job is `Step 12`; of several jobs it is `Step 12 · lr ×5, seed 1`, and every
validation of a job has the same name behind its step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rftkit.evals.samples import Run
from rftkit.lineage import BRANCH_FROM

__all__ = ["first_runs", "job_names", "named_jobs", "settings_and_seeds", "unique_labels"]

MOST_FACTS = 3
"""Settings in the name of a job."""


def unique_labels(runs: Sequence[Run]) -> list[str]:
    """The labels; those of several jobs have their job's name, and equal ones a suffix."""
    first = first_runs(runs)
    names = dict(zip(first, job_names(list(first.values())), strict=True)) if len(first) > 1 else {}
    labels = [
        f"{run.label} · {names[run.job_id]}"
        if run.job_id in names and run.step is not None and " · " not in run.label
        else run.label
        for run in runs
    ]
    places: dict[str, list[int]] = {}
    for at, label in enumerate(labels):
        places.setdefault(label, []).append(at)
    for label, clash in places.items():
        if len(clash) > 1:
            for at, tail in zip(clash, _tails([runs[at] for at in clash]), strict=True):
                labels[at] = f"{label} · {tail}"
    return labels


def first_runs(runs: Sequence[Run]) -> dict[str, Run]:
    """Job -> its first validation among these runs."""
    found: dict[str, Run] = {}
    for run in runs:
        if run.job_id and run.step is not None:
            found.setdefault(run.job_id, run)
    return found


def job_names(runs: Sequence[Run]) -> list[str]:
    """A name for the job of each run, as people would call it; each run is of another job.

    The suffixes, if all differ; else the settings in which the jobs differ, as `lr ×5, seed 1`;
    else letters in the order of the runs.
    """
    facts = [dict(run.job_facts or {}) for run in runs]
    suffixes = [str(each.pop("suffix", "")) for each in facts]
    if all(suffixes) and len(set(suffixes)) == len(runs):
        return suffixes
    names = [_settings(each, _differing(facts)) for each in facts]
    if all(run.job_facts for run in runs) and len(set(names)) == len(runs):
        return names
    return [_letters(at) for at in range(len(runs))]


def named_jobs(runs: Sequence[Run]) -> dict[str, str]:
    """Name of each job of these runs -> its id; empty for fewer than two jobs."""
    first = first_runs(runs)
    if len(first) < 2:
        return {}
    return dict(zip(job_names(list(first.values())), first, strict=True))


def settings_and_seeds(runs: Sequence[Run]) -> list[tuple[str, Any]]:
    """The setting and seed of each run's job; jobs that differ only in the seed share a setting.

    Where nothing but the seed differs, the setting is "". A job that nothing distinguishes from
    another is a setting of its own.
    """
    facts = [{**(run.job_facts or {})} for run in runs]
    seeds = [each.pop("seed", None) for each in facts]
    for each in facts:
        each.pop("suffix", None)
    settings = [_settings(each, _differing(facts)) for each in facts]
    found = list(zip(settings, seeds, strict=True))
    if len(set(found)) == len(runs):
        return found
    return [(name, None) for name in job_names(runs)]


def _differing(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = list(dict.fromkeys(key for each in facts for key in each))
    return [key for key in keys if len({str(each.get(key, "auto")) for each in facts}) > 1]


def _settings(facts: Mapping[str, Any], keys: Sequence[str]) -> str:
    return ", ".join(_said(key, facts) for key in keys[:MOST_FACTS])


def _tails(runs: Sequence[Run]) -> list[str]:
    """The job, model or id of each run, whichever differs between all; else their numbers."""
    jobs = [run.job_id for run in runs]
    if all(jobs) and len(set(jobs)) == len(jobs):
        return job_names(runs)
    tails = [str(run.model or "–")[-24:] for run in runs]
    return tails if len(set(tails)) == len(tails) else [_letters(at) for at in range(len(runs))]


def _said(key: str, facts: Mapping[str, Any]) -> str:
    if key == BRANCH_FROM:
        job, _, step = str(facts.get(key, "")).rpartition("@")
        return f"branch of {job[-8:]}@{step}" if job else "no branch"
    value = facts.get(key, "auto")
    if value == "auto":
        key = key.removesuffix(" ×")
        return f"{key} auto"
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{key}{shown}" if key.endswith("×") else f"{key} {shown}"


def _letters(at: int) -> str:
    """A, B, …, Z, AA, AB, …"""
    return (_letters(at // 26 - 1) if at >= 26 else "") + chr(ord("A") + at % 26)
