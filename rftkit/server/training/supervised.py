"""Supervised fine-tuning on the answers of the rows, token by token.

The loss is the mean −log-prob over all trained tokens of a step's rows: the answers with weight 1
and the tokens that end them, no others. This is the `Method` of `loop.train`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rftkit.server.engine.values import TextStats, TrainSettings
from rftkit.server.training import offline
from rftkit.server.training.batches import epoch_rows
from rftkit.server.training.context import OfflineRun
from rftkit.server.training.encoding import Encoded
from rftkit.server.training.offline import (
    Measured,
    Valid,
    begin,
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

COLUMNS = {
    "step": "step",
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_mean_token_accuracy",
    "full_valid_loss": "full_valid_loss",
    "full_valid_mean_token_accuracy": "full_valid_mean_token_accuracy",
    "full_valid_mean_reward": "full_valid_mean_reward",
}
"""Columns of the result file; the first five are the hosted service's."""


def gather(run: OfflineRun, step: int) -> list[Encoded]:
    """The rows of a step; the journal has their lines."""
    run.clock.start()
    examples = epoch_rows(run.examples, run.plan, step)
    if run.journal.record("steps", step) is None:
        run.journal.write_record("steps", step, {"lines": [each.line for each in examples]})
    return examples


def update(run: OfflineRun, step: int, batch: Sequence[Encoded]) -> Measured:
    """One optimizer update, on every answer of the rows."""
    lines = [each.line for each in batch for _ in each.texts]
    return offline.updated(run, step, batch, lines, lambda how: _measure(run, batch, how))


def validate(run: OfflineRun, step: int) -> Valid | None:
    """Losses on validation rows, and graded answers to them."""
    return offline.validated(run, step, lambda rows: _measure(run, rows))


def baseline(run: OfflineRun) -> None:
    """Step 0 of a probe."""
    offline.baseline(run, lambda rows: _measure(run, rows))


def result_csv(steps: Sequence[dict[str, Any]]) -> bytes:
    """The result file, with the hosted service's columns first."""
    return offline.csv_of(steps, COLUMNS)


def _measure(
    run: OfflineRun, rows: Sequence[Encoded], settings: TrainSettings | None = None
) -> Measured:
    texts = [text for row in rows for text in row.texts]
    stats: TextStats = run.engine.imitate(texts, settings, on_tick=run.on_tick)
    figures = {"loss": stats.loss}
    if stats.accuracy is not None:
        figures["mean_token_accuracy"] = stats.accuracy
    return Measured(figures, {}, stats.grad_norm, stats.num_tokens)
