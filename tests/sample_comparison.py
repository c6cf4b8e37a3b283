"""A comparison made up for tests: five validations of a job, 60 rows, three samples each.

`samples()` and `comparison()` need no server and no file. Rows are of three kinds (key `topic`):
*backups* get better with every step, *visitors* stay as they are, *retention* gets worse at the
end. A few grades failed, a few answers were cut off. Nothing here depends on the time.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from rftkit.evals.comparison import Comparison
from rftkit.evals.samples import Run, Samples, row_key

JOB = "ftjob-sample"
STEPS = (0, 6, 12, 18, 24)
TOPICS = ("backups", "visitors", "retention")
LABELS = ("yes", "no", "needs review")
SKILL = {
    "backups": (0.3, 0.5, 0.75, 0.85, 0.9),
    "visitors": (0.5, 0.5, 0.55, 0.5, 0.5),
    "retention": (0.6, 0.65, 0.6, 0.45, 0.3),
}
PROBE = "<script>document.title='broken'</script><img src=x onerror=alert(1)>"


def item(number: int) -> dict[str, Any]:
    topic = TOPICS[number % 3]
    question = f"Do you have a written rule for {topic}, section {number}?"
    return {
        "messages": [
            {"role": "system", "content": "Answer from the policy only, as JSON."},
            {"role": "user", "content": question + (f" {PROBE}" if number == 3 else "")},
        ],
        "topic": topic,
        "compliant": LABELS[number % 3],
        "difficulty": number % 5,
    }


def samples(num_rows: int = 60, num_samples: int = 3, steps: tuple[int, ...] = STEPS) -> Samples:
    """The frame; `steps` may leave validations out."""
    rng = np.random.default_rng(7)
    luck = rng.normal(0, 0.15, num_rows)
    lines = [
        _line(rng, step, number, sample, luck[number])
        for step in STEPS
        for number in range(num_rows)
        for sample in range(num_samples)
    ]
    frame = pd.DataFrame(lines)
    frame = frame[frame["step"].isin(steps)].reset_index(drop=True)
    frame["passed"] = frame["passed"].astype("boolean")
    items = {row_key(item(number)): item(number) for number in range(num_rows)}
    runs = tuple(
        Run(f"Step {step}", f"evalrun_{step}", step, f"ft:tiny:local::x:ckpt-step-{step}", JOB)
        for step in steps
    )
    return Samples(runs, frame, items, {key: n for n, key in enumerate(items)})


def comparison(**options: Any) -> Comparison:
    """`rftkit.evals.compare` on it, with two slices and a margin."""
    from rftkit.evals.compare import compare

    return compare(samples(), **{"slices": ["topic", "difficulty"], "margin": 0.05, **options})


def _line(rng: Any, step: int, number: int, sample: int, luck: float) -> dict[str, Any]:
    row = item(number)
    skill = SKILL[row["topic"]][STEPS.index(step)] + luck
    label_right = float(rng.random() < skill)
    explanation = float(np.clip(rng.normal(skill, 0.15), 0, 1).round(3))
    failed = number == 7 and step == 12
    cut_off = rng.random() < (0.08 if step == 0 else 0.01)
    said = row["compliant"] if label_right else LABELS[(number + 1) % 3]
    words = "The policy sets a rule and we follow it " + "in every way " * (step // 6)
    reward = 0.0 if cut_off else 0.5 * label_right + 0.5 * explanation
    outcome = "failed" if failed else "unscorable" if cut_off else "graded"
    text = json.dumps({"compliant": said, "explanation": f"{words}({explanation})."})
    return {
        "run": f"Step {step}",
        "step": step,
        "row": row_key(row),
        "sample": sample,
        "reward": np.nan if failed else reward,
        "passed": None if failed else not cut_off and label_right > 0 and explanation >= 0.5,
        "outcome": outcome,
        "truncated": bool(cut_off),
        "tokens": float(len(words) // 4 + 12),
        "answer": text[:40] if cut_off else text,
        "error": "ZeroDivisionError in grade()" if failed else None,
        "judge": None if failed else f"names the rule → {'right' if label_right else 'wrong'}",
        "score/compliant": np.nan if failed or cut_off else label_right,
        "score/explanation": np.nan if failed or cut_off else explanation,
    }
