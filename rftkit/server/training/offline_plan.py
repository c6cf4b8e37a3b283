"""Makes the plan of a supervised or dpo job, which learns from given answers. Pure.

`auto` for the number of epochs and the batch follows what the hosted service is known to choose;
its base learning rates are not published, so those are ours. A dpo job has a tenth of a supervised
job's rate. The rest of an epoch that does not fill a batch is a short batch of its own.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from rftkit.hyperparameters import DPO_SHARE
from rftkit.server.engine.values import TrainSettings
from rftkit.server.store.records import Job
from rftkit.server.training.knobs import Knobs
from rftkit.server.training.plan import (
    LOCAL,
    CommonPlan,
    EngineFacts,
    base_rate,
    resolved_value,
    shared_settings,
)

__all__ = ["OfflinePlan", "make_offline_plan", "offline_reasons"]

BETA = 0.1
RATES = {"supervised": 1.0, "dpo": DPO_SHARE}
"""Times the base learning rate of what learns."""
ROW_RATE = 0.25
"""What `auto` multiplies the rate by for each row of a step: epochs move the weights as far in few
large steps as in many small ones (Goyal et al. 2017, arXiv:1706.02677)."""
MOST_RATE = {"supervised": 3.0, "dpo": 1.0}
"""The largest factor; the study of `tests/benchmarks/learning.py` found 3 for a step of 16 rows."""
VALID_STEPS = 10
"""Most steps from one validation batch to the next; a job measures at least ten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflinePlan(CommonPlan):
    """A supervised or dpo job's settings; a whole validation follows each epoch."""

    method: str
    beta: float | None = None
    """Weight of the log-ratios in dpo; None for supervised."""
    valid_interval: int = VALID_STEPS
    """Steps from one validation batch to the next."""

    @property
    def multiplier(self) -> float:
        """What the base learning rate was multiplied by."""
        base = base_rate(self.tuning, self.width) * RATES[self.method]
        return float(f"{self.learning_rate / base:.6g}")

    @property
    def multipliers(self) -> dict[str, float]:
        """See `multiplier`."""
        return {"learning_rate_multiplier": self.multiplier}

    def train_settings(self, learning_rate: float) -> TrainSettings:
        """Settings of an update at this rate."""
        return TrainSettings(learning_rate=learning_rate)


def make_offline_plan(job: Job, num_rows: int, engine: EngineFacts = LOCAL) -> OfflinePlan:
    """Resolve a job's hyperparameters against the number of its training rows.

    Args:
        job: with its method and metadata.
        num_rows: of the training file.
        engine: where the job trains.

    Raises:
        RequestError: for metadata that is meant for the trainer and cannot be read.
    """
    value = functools.partial(resolved_value, job.hyperparameters)
    knobs, method = Knobs(job.metadata or {}), job.method_type
    shared = shared_settings(job, engine)
    batch_size = min(value("batch_size", _auto_batch(num_rows)), num_rows)
    n_epochs = value("n_epochs", _auto_epochs(num_rows))
    epoch = math.ceil(num_rows / batch_size)
    total_steps = epoch * n_epochs
    multiplier = value("learning_rate_multiplier", _auto_rate(method, batch_size))
    return OfflinePlan(
        method=method,
        batch_size=batch_size,
        n_epochs=n_epochs,
        total_steps=total_steps,
        learning_rate=base_rate(shared["tuning"], engine.width) * RATES[method] * multiplier,
        beta=float(value("beta", BETA)) if method == "dpo" else None,
        eval_interval=epoch,
        valid_interval=min(VALID_STEPS, max(1, total_steps // 10)),
        eval_samples=1,
        eval_temperature=0.0,
        schedule=knobs.word("schedule", "linear"),
        warmup_steps=knobs.integer("warmup_steps", min(100, max(2, total_steps // 20))),
        **shared,
    )


def _auto_epochs(num_rows: int) -> int:
    """Three; more of few rows, fewer of very many: the service's rule."""
    if 3 * num_rows < 100:
        return max(1, min(25, 100 // num_rows))
    if 3 * num_rows > 25_000:
        return max(1, 25_000 // num_rows)
    return 3


def _auto_batch(num_rows: int) -> int:
    """0.2 % of the rows, from 1 to 256: the service's rule."""
    return min(256, max(1, round(0.002 * num_rows)))


def _auto_rate(method: str, batch_size: int) -> float:
    """Multiplier of the learning rate, by the rows of a step."""
    return min(MOST_RATE[method], ROW_RATE * batch_size)


def offline_reasons(plan: OfflinePlan) -> dict[str, str]:
    """What `auto` means for each hyperparameter, in this plan, and why."""
    base = base_rate(plan.tuning, plan.width) * RATES[plan.method]
    reasons = {
        "batch_size": "0.2 % of the rows, from 1 to 256",
        "n_epochs": "3; more with fewer than 34 rows, fewer with more than 8,333",
        "learning_rate_multiplier": (
            f"{_auto_rate(plan.method, plan.batch_size):g} times {base:.3g}: {ROW_RATE:g} for each "
            f"row of a step, at most {MOST_RATE[plan.method]:g}"
        ),
    }
    if plan.beta is not None:
        reasons["beta"] = f"{BETA:g}: higher stays closer to the model that the job starts from"
    return reasons
