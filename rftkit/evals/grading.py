"""Grade stored samples again: the same answers with the rewards of another grader.

`regrade` reports what changes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rftkit import graders
from rftkit.errors import GraderSpecError
from rftkit.evals.samples import SCORE, Samples
from rftkit.graders import Sample
from rftkit.graders.calibrations import OF_NO_REWARD
from rftkit.graders.endpoint import mask_secrets
from rftkit.graders.parse import parse

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["digest_of", "fill_grades", "grade_again"]


def grade_again(
    samples: Samples, grader: Mapping[str, Any], *, progress: bool = False, **options: Any
) -> Samples:
    """The same runs with the rewards of another grader; missing answers stay failed.

    As in eval runs, an answer that hit its token limit is graded as it is. Pass `purpose="rft"` for
    the rewards of training, where it gets the floor.
    """
    from rftkit.graders.frames import grade_many

    frame = samples.frame
    models = {run.label: run.model for run in samples.runs}
    came = _came(frame)
    pairs = [
        (
            _sample(line, samples.response_format, models.get(line.run)),
            samples.items.get(line.row) or {},
        )
        for line in frame[came].itertuples()
    ]
    table = grade_many(grader, pairs, progress=progress, **{"purpose": "eval", **options})
    kept = [name for name in frame.columns if not name.startswith(SCORE)]
    new = frame[kept].copy()
    fill_grades(new, came, table, grader)
    name, digest = str(grader.get("name") or grader.get("type")), digest_of(grader)
    runs = tuple(replace(run, grader=name, grader_digest=digest) for run in samples.runs)
    return replace(samples, frame=new, runs=runs)


def digest_of(grader: Mapping[str, Any]) -> str | None:
    """Sixteen letters that are the same for two specs of one grader; None for an unusable one."""
    try:
        parsed = parse(mask_secrets(grader), purpose="eval")
    except GraderSpecError:
        return None
    kept = {key: value for key, value in parsed.items() if key not in OF_NO_REWARD}
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _came(frame: pd.DataFrame) -> Any:
    """Which samples have an answer: a failed one without text has none."""
    return ((frame["outcome"] != "failed") | (frame["answer"].fillna("") != "")).to_numpy(bool)


def _sample(line: Any, response_format: Mapping[str, Any] | None, model: str | None) -> Sample:
    return Sample.from_text(
        line.answer or "",
        response_format=response_format,
        truncated=bool(line.truncated),
        model=model,
    )


def fill_grades(
    frame: pd.DataFrame, came: Any, table: pd.DataFrame, grader: Mapping[str, Any]
) -> None:
    """Put grades into a frame of samples, where answers came; the others are failed.

    Args:
        frame: Columns of `Samples.frame`, changed in place.
        came: Which samples have a grade, (samples,) bool.
        table: Their grades, from `rftkit.graders.grade_many`.
        grader: The spec, for thresholds and names.
    """
    import numpy as np
    import pandas as pd

    def spread(values: Any, empty: Any, kind: Any) -> Any:
        column = np.full(len(frame), empty, dtype=kind)
        column[came] = values
        return column

    outcome = table["outcome"].to_numpy(object)
    passed = np.where(outcome == "failed", None, _passes(table, grader) & (outcome == "graded"))
    frame["reward"] = spread(table["reward"].to_numpy(float, na_value=np.nan), np.nan, float)
    frame["outcome"] = spread(outcome, "failed", object)
    frame["passed"] = pd.array(list(spread(passed, None, object)), dtype="boolean")
    details = [text or None for text in table["details"]]
    frame["error"] = np.where(came, spread(details, None, object), frame["error"])
    frame["judge"] = None
    for key, part in (grader.get("graders") or {}).items():
        scores = _scores(table, key)
        frame[SCORE + str(part.get("name") or key)] = spread(scores, np.nan, float)


def _passes(table: pd.DataFrame, grader: Mapping[str, Any]) -> Any:
    """Which samples pass, as eval runs have it: a multi passes when each of its parts does."""
    import numpy as np

    parts = grader.get("graders")
    if not parts:
        return table["reward"].to_numpy(float, na_value=np.nan) >= graders.pass_threshold(grader)
    each = [_scores(table, key) >= graders.pass_threshold(part) for key, part in parts.items()]
    return np.logical_and.reduce(each)


def _scores(table: pd.DataFrame, key: str) -> Any:
    """Scores of one part of a multi, (samples,); nan where it gave none."""
    import numpy as np

    name = f"reward/{key}"
    if name not in table:
        return np.full(len(table), np.nan)
    return table[name].to_numpy(float, na_value=np.nan)
