"""Samples of eval runs as one tidy frame: each model's answers to each row, with their rewards.

A *run* is one model on every row of a dataset, once or several times; a *row* is one item of
the dataset, the same in every run; a *sample* is one answer. Rows are identified by their content
(a hash of the item), so that runs of different evals, jobs and services are paired automatically.
Not here: reading samples (`runs`) and comparing them (`compare`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "SCORE", "Run", "Samples", "prompt_of", "row_key"]

COLUMNS = {
    "run": "label of the run, as in `Run.label`",
    "step": "optimizer step of the job whose validation this is; missing for other runs",
    "row": "key of the row: the same item has the same key in every run",
    "sample": "number of the answer among those of this run to this row, from 0",
    "reward": "what the grader gave; missing when it failed; the floor when unscorable",
    "passed": "whether the sample passed; missing without a verdict",
    "outcome": "graded, failed (the grader broke) or unscorable (the answer broke)",
    "truncated": "whether the answer hit its token limit",
    "tokens": "completion tokens; missing when they were not counted",
    "answer": "the text of the answer",
    "error": "why there is no reward, or no answer; missing when all is well",
    "judge": "what a model grader gave as its reasons, as text; missing when there is none",
}
"""Columns of `Samples.frame`; each grader adds one more, `score/<its name>`."""

SCORE = "score/"

_NOT_CONTENT = frozenset({"trace"})
"""Keys that a service adds to an item for one sample; they are not the row."""


@dataclass(frozen=True, slots=True)
class Run:
    """One eval run: which model answered, and where it came from."""

    label: str
    """The name in views, unique within one `Samples`: `Step 12`, or the run's name or model."""
    id: str
    """`evalrun_…` on a service, `localrun_…` for a local run."""
    step: int | None = None
    """Optimizer step, when the run is the validation of a job; 0 is the baseline."""
    model: str | None = None
    """The model that answered; a checkpoint's own name if the service reports it."""
    job_id: str | None = None
    """The job whose validation this is."""
    job_facts: Mapping[str, Any] | None = field(default=None, hash=False)
    """What distinguishes that job from others, by short name: suffix, settings, seed, model."""
    eval_id: str | None = None
    """The eval that it belongs to."""
    created_at: int | None = None
    """Unix seconds."""
    source: str | None = None
    """The place it was read from: a base URL, the folder of a dump, or `home`."""
    grader: str | None = None
    """Name of the grader that gave the rewards; None if unknown."""
    grader_digest: str | None = None
    """The same for graders that give equal answers equal rewards (`grading.digest_of`); None if
    unknown."""
    status: str = "completed"
    """completed, failed, canceled, queued or in_progress, as the service reported."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Every sample of some runs, and the rows they answer."""

    runs: tuple[Run, ...]
    """The runs in the order in which they are shown; labels are unique."""
    frame: pd.DataFrame
    """One line per sample; the columns are `COLUMNS` and one `score/<name>` per grader."""
    items: Mapping[str, Mapping[str, Any]]
    """Row key -> the dataset row as its grader saw it."""
    numbers: Mapping[str, int]
    """Row key -> its number in the dataset, from 1, as the first run that has it counts."""
    notes: tuple[str, ...] = ()
    """What a reader must know before believing any number made of this; each a sentence."""
    response_format: Mapping[str, Any] | None = field(default=None)
    """The response format of the answers, if known; needed to grade them again in the same way."""

    def have_one_grader(self, first: str, second: str) -> bool:
        """Whether the rewards of two runs can be compared, as far as their graders are known."""
        one, other = (self.run(label).grader_digest for label in (first, second))
        return one is None or other is None or one == other

    @property
    def labels(self) -> list[str]:
        """Labels of the runs, in order."""
        return [run.label for run in self.runs]

    @property
    def graders(self) -> list[str]:
        """Names of the graders with a score of their own, in order of the frame."""
        return [name.removeprefix(SCORE) for name in self.frame.columns if name.startswith(SCORE)]

    def run(self, label: str) -> Run:
        """The run of a label.

        Raises:
            NotFoundError: there is none; the message lists those there are.
        """
        for run in self.runs:
            if run.label == label:
                return run
        from rftkit.errors import NotFoundError

        raise NotFoundError(f"there is no run {label!r}; there are {', '.join(self.labels)}")

    def answers(self, row: str) -> pd.DataFrame:
        """Every sample of one row, run by run, to follow it through the checkpoints."""
        found = self.frame[self.frame["row"] == row]
        order = {label: place for place, label in enumerate(self.labels)}
        return found.sort_values(
            ["run", "sample"], key=lambda c: c.map(order) if c.name == "run" else c
        )

    def select(self, labels: Sequence[str]) -> Samples:
        """Only these runs, in this order."""
        runs = tuple(self.run(label) for label in labels)
        kept = self.frame[self.frame["run"].isin(list(labels))].reset_index(drop=True)
        return replace(self, runs=runs, frame=kept)

    def prompt(self, row: str) -> str:
        """The last thing the user said in a row; empty when the row holds no messages."""
        return prompt_of(self.items.get(row) or {})


def row_key(item: Mapping[str, Any]) -> str:
    """Sixteen letters that are the same for the same row, whichever service shows it."""
    content = {key: _content(value) for key, value in item.items() if key not in _NOT_CONTENT}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prompt_of(item: Mapping[str, Any]) -> str:
    """The last thing the user said in an item; empty when it holds no messages."""
    messages = item.get("messages")
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                content = "".join(str(part.get("text", "")) for part in content)
            return str(content or "")
    return ""


def _content(value: Any) -> Any:
    """A value without the empty keys that services add to messages."""
    if isinstance(value, dict):
        return {key: _content(each) for key, each in value.items() if each is not None}
    return [_content(each) for each in value] if isinstance(value, list) else value
