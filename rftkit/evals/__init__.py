"""Evals from the client's side: run models on the same rows, grade, compare row by row.

ask, grade, score           one model over a dataset, here and now
Samples, Run                every sample of some runs, as one tidy frame
compare, pair               runs side by side, with intervals and tests: a `Comparison`
"""

from rftkit.evals.agreement import Agreement, ClassAgreement, Label, Threshold, agree
from rftkit.evals.answers import Answer, ask, grade, side_by_side
from rftkit.evals.calibration import Calibrated, SliceAgreement, calibrate, upload_calibration
from rftkit.evals.compare import compare, pair
from rftkit.evals.comparison import (
    Comparison,
    Estimate,
    PairSummary,
    RunSummary,
    Slice,
    SliceTable,
    StepChoice,
)
from rftkit.evals.drift import Drift, drift, drift_of_jobs
from rftkit.evals.dump_runs import from_dump
from rftkit.evals.grading import grade_again
from rftkit.evals.job_pairs import step_pairs
from rftkit.evals.labels import as_grades, labelled_answers, read_labels
from rftkit.evals.local_runs import graded_run, publish, run
from rftkit.evals.noise import JudgeNoise, judge_noise, noise_of
from rftkit.evals.regrade import Regrade, RegradedRun, regrade
from rftkit.evals.runs import fetch, kept, together
from rftkit.evals.samples import Run, Samples, row_key
from rftkit.evals.scores import best_constant, score

__all__ = [
    "Agreement",
    "Answer",
    "Calibrated",
    "ClassAgreement",
    "Comparison",
    "Drift",
    "Estimate",
    "JudgeNoise",
    "Label",
    "PairSummary",
    "Regrade",
    "RegradedRun",
    "Run",
    "RunSummary",
    "Samples",
    "Slice",
    "SliceAgreement",
    "SliceTable",
    "StepChoice",
    "Threshold",
    "agree",
    "as_grades",
    "ask",
    "best_constant",
    "calibrate",
    "compare",
    "drift",
    "drift_of_jobs",
    "fetch",
    "from_dump",
    "grade",
    "grade_again",
    "graded_run",
    "judge_noise",
    "kept",
    "labelled_answers",
    "noise_of",
    "pair",
    "publish",
    "read_labels",
    "regrade",
    "row_key",
    "run",
    "score",
    "side_by_side",
    "step_pairs",
    "together",
    "upload_calibration",
]
