"""Reinforcement jobs from the client's side: create, follow, measure.

`events(client, job_id)` is the one download; the frames are made of its list.
"""

from rftkit.jobs.checkpoints import Checkpoint, best, checkpoints
from rftkit.jobs.jobs import TERMINAL, Event, Update, create, error_of, events, wait, watch
from rftkit.jobs.metrics import (
    error_frame,
    events_from_csv,
    grader_frame,
    step_frame,
    step_metrics,
    timing_frame,
)
from rftkit.jobs.progress import Progress

__all__ = [
    "TERMINAL",
    "Checkpoint",
    "Event",
    "Progress",
    "Update",
    "best",
    "checkpoints",
    "create",
    "error_frame",
    "error_of",
    "events",
    "events_from_csv",
    "grader_frame",
    "step_frame",
    "step_metrics",
    "timing_frame",
    "wait",
    "watch",
]
