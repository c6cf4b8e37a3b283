"""Sources and figures for report notebooks on eval runs.

Not here: statistics (`rftkit.evals`) and their presentation (`rftkit.views`).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from rftkit.evals.job_names import named_jobs

if TYPE_CHECKING:
    from openai import OpenAI

    from rftkit.evals import Comparison, Samples

__all__ = ["comparison_figures", "comparison_sources", "grader_of"]

Json = dict[str, Any]


def comparison_sources(samples: Samples, client: OpenAI | None = None) -> Json:
    """The sources of a comparison, for `reports.made_from`.

    Args:
        samples: The compared samples.
        client: Reads the graders of the jobs; None for samples that are not on a service.
    """
    rows = hashlib.sha256("\n".join(sorted(samples.items)).encode()).hexdigest()
    found: Json = {
        "rows": {"name": "keys of all rows", "rows": len(samples.items), "sha256": rows},
        "runs": ", ".join(run.id for run in samples.runs),
    }
    jobs = named_jobs(samples.runs)
    if jobs:
        found["jobs"] = ", ".join(f"{name}: {job_id}" for name, job_id in jobs.items())
    names = {job_id: name for name, job_id in jobs.items()}
    for job_id in dict.fromkeys(run.job_id for run in samples.runs if run.job_id):
        if client is not None and (grader := grader_of(client, job_id)):
            found[f"grader of {names.get(job_id, job_id)}"] = grader
    return found


def grader_of(client: OpenAI, job_id: str) -> Json | None:
    """The grader that a job was trained with; None if the service does not report it."""
    from openai import NotFoundError

    try:
        job = client.fine_tuning.jobs.retrieve(job_id).to_dict(warnings=False)
    except NotFoundError:  # the service has deleted the job of this run
        return None
    method: Json = job.get("method") or {}  # type: ignore[assignment]
    return (method.get("reinforcement") or {}).get("grader")


def comparison_figures(comparison: Comparison) -> Json:
    """The main numbers of a comparison, for `reports.publish`."""
    figures: Json = {"runs": len(comparison.runs), "rows": len(comparison.rows)}
    if comparison.jobs is not None:
        figures["sentence"] = comparison.jobs.sentence
    choice = comparison.choice
    if choice is None:
        return figures
    for name, label in (("baseline", choice.baseline), ("best", choice.best)):
        figures[name] = {"run": label, "reward": comparison.summary(label).reward.value}
    pairs = {pair.after: pair for pair in comparison.pairs}
    pair = pairs.get(choice.best)
    return figures | {
        "deploy": choice.deploy,
        "expected_gain": choice.expected_gain,
        "gain": pair and pair.difference.value,
        "verdict": pair and pair.verdict,
    }
