"""Fine-tuning jobs from the client's side: create, follow, measure.

`events(client, job_id)` is the one download; the frames are made of its list.
"""

from rftkit.jobs.branches import Branch, branch, family
from rftkit.jobs.checkpoints import Checkpoint, best, checkpoints
from rftkit.jobs.estimate import Estimate, estimate
from rftkit.jobs.follow import Follow, find, latest
from rftkit.jobs.jobs import (
    TERMINAL,
    Event,
    Method,
    Update,
    compact,
    create,
    error_of,
    events,
    wait,
    waits_for,
    watch,
)
from rftkit.jobs.local import (
    PROBE,
    abilities,
    all_rollouts,
    call_tool,
    plan,
    probe,
    rollouts,
    step_rollouts,
)
from rftkit.jobs.metrics import (
    answer_frame,
    error_frame,
    events_from_csv,
    grader_frame,
    judge_frame,
    step_frame,
    step_metrics,
    timing_frame,
)
from rftkit.jobs.preflight import (
    Check,
    check_calibration,
    check_data,
    check_grader,
    check_learnability,
    check_tools,
    require,
)
from rftkit.jobs.progress import Progress

__all__ = [
    "PROBE",
    "TERMINAL",
    "Branch",
    "Check",
    "Checkpoint",
    "Estimate",
    "Event",
    "Follow",
    "Method",
    "Progress",
    "Update",
    "abilities",
    "all_rollouts",
    "answer_frame",
    "best",
    "branch",
    "call_tool",
    "check_calibration",
    "check_data",
    "check_grader",
    "check_learnability",
    "check_tools",
    "checkpoints",
    "compact",
    "create",
    "error_frame",
    "error_of",
    "estimate",
    "events",
    "events_from_csv",
    "family",
    "find",
    "grader_frame",
    "judge_frame",
    "latest",
    "plan",
    "probe",
    "require",
    "rollouts",
    "step_frame",
    "step_metrics",
    "step_rollouts",
    "timing_frame",
    "wait",
    "waits_for",
    "watch",
]
