"""Compare two jobs validation by validation, such as an imported job and its rerun."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rftkit.evals.compare import pair
from rftkit.evals.comparison import PairSummary
from rftkit.evals.runs import fetch

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["step_pairs"]


def step_pairs(client: OpenAI, job_id: str, rerun_id: str) -> list[tuple[int, PairSummary]]:
    """Compare step N of one job with step N of another, over the validation rows that both have.

    Args:
        client: From `rftkit.connect()`.
        job_id: The first job, such as an imported one.
        rerun_id: The other job; a difference is its reward minus the first job's reward.

    Returns:
        For each step at which both jobs were validated: the step and the comparison.

    Raises:
        NotFoundError: A job does not exist or has no validations.
    """
    samples = fetch(client, job_id, rerun_id)
    first, rerun = (
        {run.step: run.label for run in samples.runs if run.job_id == each and run.step is not None}
        for each in (job_id, rerun_id)
    )
    steps = sorted(first.keys() & rerun.keys())
    return [(step, pair(samples, first[step], rerun[step])) for step in steps]
