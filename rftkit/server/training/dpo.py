"""Direct preference optimization: of two answers to a prompt, one is made the more likely.

How much more, compared with the model that the job starts from: its log-probs of both answers are
the reference. They are computed once for each row, in its first step, and kept in the journal with
the step. This is the `Method` of `loop.train`; the loss is the engine's
(`rftkit.server.engine.torch.texts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rftkit.server.engine.values import TrainSettings
from rftkit.server.training import offline
from rftkit.server.training.batches import epoch_rows
from rftkit.server.training.context import OfflineRun
from rftkit.server.training.encoding import Encoded, pair_of
from rftkit.server.training.offline import (
    Measured,
    Valid,
    conclude,
    last_metrics,
    report,
    step_message,
)

__all__ = [
    "baseline",
    "begin",
    "conclude",
    "gather",
    "last_metrics",
    "report",
    "result_csv",
    "step_message",
    "update",
    "validate",
]

FIGURES = ("reward_accuracy", "reward_margin", "preferred_reward", "non_preferred_reward")
SIDES = ("train", "valid", "full_valid")
COLUMNS = {
    "step": "step",
    "train_loss": "train_loss",
    "valid_loss": "valid_loss",
    "full_valid_loss": "full_valid_loss",
    **{
        f"preferences/{side}_{figure}": f"preferences.{side}_{figure}"
        for side in SIDES
        for figure in FIGURES
    },
    "full_valid_mean_reward": "full_valid_mean_reward",
}
"""Of the result file. The hosted service's is not published; rewards of pairs are under
`preferences/`, so that nobody takes them for a grader's."""

Reference = tuple[float, float]


def begin(run: OfflineRun, done: int) -> None:
    """Read the references of earlier steps again, then begin like supervised jobs."""
    for step in range(1, min(done, run.plan.eval_interval) + 1):
        record = run.journal.record("steps", step)
        if record is not None:
            _remember(run, record)
    offline.begin(run, done)


def gather(run: OfflineRun, step: int) -> list[Encoded]:
    """The rows of a step; the journal has their lines and references."""
    run.clock.start()
    examples = epoch_rows(run.examples, run.plan, step)
    record = run.journal.record("steps", step)
    if record is None:
        with run.clock.part("training"):
            record = _record_of(run, examples, run.references)
        run.journal.write_record("steps", step, record)
    _remember(run, record)
    return examples


def _record_of(
    run: OfflineRun, examples: Sequence[Encoded], known: dict[int, Reference]
) -> dict[str, Any]:
    """The record of some rows: their lines and reference log-probs; those that are not known are
    computed now.
    """
    new = [each for each in examples if each.line not in known]
    found = dict(known)
    if new:
        computed = run.engine.answer_logprobs(
            [pair_of(each) for each in new], run.start_adapter, on_tick=run.on_tick
        )
        found |= {each.line: sums for each, sums in zip(new, computed, strict=True)}
    lines = [each.line for each in examples]
    return {"lines": lines, "reference": [found[line] for line in lines]}


def _remember(run: OfflineRun, record: dict[str, Any]) -> None:
    for line, (preferred, non_preferred) in zip(record["lines"], record["reference"], strict=True):
        run.references[line] = (preferred, non_preferred)


def update(run: OfflineRun, step: int, batch: Sequence[Encoded]) -> Measured:
    """One optimizer update, on the pairs of the rows."""
    lines = [each.line for each in batch]
    return offline.updated(
        run, step, batch, lines, lambda how: _measure(run, batch, run.references, how)
    )


def validate(run: OfflineRun, step: int) -> Valid | None:
    """Losses and rewards of validation pairs, and graded answers to their prompts."""
    return offline.validated(run, step, lambda rows: _measure_valid(run, rows))


def baseline(run: OfflineRun) -> None:
    """Step 0 of a probe."""
    offline.baseline(run, lambda rows: _measure_valid(run, rows))


def result_csv(steps: Sequence[dict[str, Any]]) -> bytes:
    """The result file."""
    return offline.csv_of(steps, COLUMNS)


def _measure_valid(run: OfflineRun, rows: Sequence[Encoded]) -> Measured:
    record = run.journal.record("reference", 0)
    if record is None:
        record = _record_of(run, run.valid_examples, {})
        run.journal.write_record("reference", 0, record)
    known = {
        line: (pair[0], pair[1])
        for line, pair in zip(record["lines"], record["reference"], strict=True)
    }
    return _measure(run, rows, known)


def _measure(
    run: OfflineRun,
    rows: Sequence[Encoded],
    references: dict[int, Reference],
    settings: TrainSettings | None = None,
) -> Measured:
    assert run.plan.beta is not None
    pairs = [pair_of(row, references[row.line]) for row in rows]
    stats = run.engine.prefer(pairs, run.plan.beta, settings, on_tick=run.on_tick)
    return Measured(
        {"loss": stats.loss, "mean_token_accuracy": stats.accuracy},
        {
            "reward_accuracy": stats.reward_accuracy,
            "reward_margin": stats.margin,
            "preferred_reward": stats.preferred_reward,
            "non_preferred_reward": stats.non_preferred_reward,
        },
        stats.grad_norm,
        stats.num_tokens,
    )
