"""Graders: score the answers of a model, with the same result everywhere.

`compile_grader(spec)` checks a spec in the wire's form and returns a `CompiledGrader`, whose
`grade(sample, item)` returns a `Grade`. Nothing here depends on a client, a server or a model:
what a grader needs from outside (a judge, embeddings, an HTTP call, a cache) is an argument. Names
load on first use, so that importing this package is fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rftkit.lazy import lazily

if TYPE_CHECKING:
    from rftkit.graders.auditing import Audit, audit
    from rftkit.graders.cache import JudgeCache
    from rftkit.graders.calibrations import (
        Calibration,
        CalibrationStatus,
        calibration_statuses,
        judges,
        read_calibration,
    )
    from rftkit.graders.closed import AnswerField, answer_fields
    from rftkit.graders.cluster import ClusterGrader, cluster_grader
    from rftkit.graders.embeddings import EmbeddingCall, embedding_call
    from rftkit.graders.endpoint import mask_secrets
    from rftkit.graders.engine import CompiledGrader, Leaf, compile_grader, grade
    from rftkit.graders.frames import grade_many
    from rftkit.graders.given import given_sample
    from rftkit.graders.judge import Completion, CompletionCall, completion_call
    from rftkit.graders.needs import check_item_paths, reads_sample, validate, variables
    from rftkit.graders.outcome import Grade, Sample
    from rftkit.graders.posting import HttpCall
    from rftkit.graders.recognition import Verdict, recognise
    from rftkit.graders.references import reference_answer
    from rftkit.graders.sandbox import Limits
    from rftkit.graders.scripted import ScriptedJudge
    from rftkit.graders.types import parts, pass_threshold

__all__ = [
    "AnswerField",
    "Audit",
    "Calibration",
    "CalibrationStatus",
    "ClusterGrader",
    "CompiledGrader",
    "Completion",
    "CompletionCall",
    "EmbeddingCall",
    "Grade",
    "HttpCall",
    "JudgeCache",
    "Leaf",
    "Limits",
    "Sample",
    "ScriptedJudge",
    "Verdict",
    "answer_fields",
    "audit",
    "calibration_statuses",
    "check_item_paths",
    "cluster_grader",
    "compile_grader",
    "completion_call",
    "embedding_call",
    "given_sample",
    "grade",
    "grade_many",
    "judges",
    "mask_secrets",
    "parts",
    "pass_threshold",
    "read_calibration",
    "reads_sample",
    "recognise",
    "reference_answer",
    "validate",
    "variables",
]

_HOMES = {
    "auditing": ("Audit", "audit"),
    "cache": ("JudgeCache",),
    "calibrations": (
        "Calibration",
        "CalibrationStatus",
        "calibration_statuses",
        "judges",
        "read_calibration",
    ),
    "closed": ("AnswerField", "answer_fields"),
    "cluster": ("ClusterGrader", "cluster_grader"),
    "embeddings": ("EmbeddingCall", "embedding_call"),
    "endpoint": ("mask_secrets",),
    "posting": ("HttpCall",),
    "engine": ("CompiledGrader", "Leaf", "compile_grader", "grade"),
    "frames": ("grade_many",),
    "given": ("given_sample",),
    "judge": ("Completion", "CompletionCall", "completion_call"),
    "needs": ("check_item_paths", "reads_sample", "validate", "variables"),
    "outcome": ("Grade", "Sample"),
    "recognition": ("Verdict", "recognise"),
    "references": ("reference_answer",),
    "sandbox": ("Limits",),
    "scripted": ("ScriptedJudge",),
    "types": ("parts", "pass_threshold"),
}
__getattr__, __dir__ = lazily(__name__, _HOMES)
