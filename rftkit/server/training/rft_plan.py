"""Makes the plan of a reinforcement job: what every `auto` means. Pure.

The protocol leaves `auto` and several numbers open. They are decided here, and the job's first
event states them: completions per prompt = clamp(round(8 × compute_multiplier), 2, 64); training
samples at temperature 1; a validation takes the most likely token when `eval_samples` is 1, and
samples at temperature 1 when it is more, the same at every step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from rftkit.errors import RequestError
from rftkit.graders.types import compares_group
from rftkit.hyperparameters import COMPLETIONS, EPISODE_STEPS
from rftkit.lineage import BRANCH_FROM, origin_of
from rftkit.rows import Row
from rftkit.server.store.records import Job
from rftkit.server.training.advantages import PER_GRADER_NAMES
from rftkit.server.training.knobs import Knobs
from rftkit.server.training.plan import (
    BASE_WIDTH,
    LOCAL,
    EngineFacts,
    Plan,
    base_rate,
    resolved_value,
    shared_settings,
)
from rftkit.server.training.references import have_references, resolve_key

__all__ = ["make_plan", "reasons"]

AUTO_STEPS = 24
AUTO_BATCH = {"none": 8, "references": 32}
"""Prompts a step, by guidance. Where references guide, a group need not be large to contain a right
answer, so a step has more prompts and fewer completions of each."""
AUTO_SAMPLES = 64
"""Completions a step where references guide, if that is from 2 to 8 a prompt."""
GUIDED_RATE = 2.0
"""Multiplier of the learning rate for updates of 8 prompts where references guide."""
MOST_RATE = 3.0
AUTO_VALIDATIONS = 4
MOST_COMPLETIONS = 64


def make_plan(
    job: Job, num_rows: int, engine: EngineFacts = LOCAL, rows: Sequence[Row] = ()
) -> Plan:
    """Resolve a job's hyperparameters against its training rows.

    Args:
        job: with its method and metadata.
        num_rows: of the training file.
        engine: where the job trains.
        rows: of the training file; without them `stratify` stays as it was asked for, and
            `guidance` is what it would be with reference answers.

    Raises:
        RequestError: for metadata that is meant for the trainer and cannot be read.
    """
    given = job.hyperparameters
    value = functools.partial(resolved_value, given)
    knobs = Knobs(job.metadata or {})
    effort = given.get("reasoning_effort", "default")
    shared = shared_settings(job, engine, effort)
    if effort != "default" and shared["thinking"] is None:
        shared["ignored"]["reasoning_effort"] = (
            "the model does not reason before it answers (to make it reason, set metadata "
            "`thinking` to the tag that opens its reasoning)"
        )
    guidance = _guidance(knobs, shared["thinking"], engine.kind, job, rows)
    batch_size = min(value("batch_size", AUTO_BATCH[guidance]), num_rows)
    n_epochs = value("n_epochs", min(50, math.ceil(AUTO_STEPS * batch_size / num_rows)))
    total_steps = max(1, num_rows * n_epochs // batch_size)
    if given.get("n_epochs", "auto") == "auto":
        total_steps = min(total_steps, AUTO_STEPS)
    minibatch_size = knobs.integer("minibatch_size")
    eval_samples = value("eval_samples", 1)
    compute = value("compute_multiplier", _auto_compute(guidance, batch_size))
    stratify = knobs.key("stratify", "auto")
    if rows:
        stratify = resolve_key(stratify, job.method["reinforcement"]["grader"], rows)
    advantage = knobs.word("advantage")
    return Plan(
        batch_size=batch_size,
        n_epochs=n_epochs,
        total_steps=total_steps,
        learning_rate=base_rate(shared["tuning"], engine.width)
        * value("learning_rate_multiplier", _auto_rate(guidance, min(minibatch_size, batch_size))),
        completions_per_prompt=min(MOST_COMPLETIONS, max(2, round(COMPLETIONS * compute))),
        eval_interval=value("eval_interval", math.ceil(total_steps / AUTO_VALIDATIONS)),
        eval_samples=eval_samples,
        eval_temperature=0.0 if eval_samples == 1 else 1.0,
        temperature=1.0,
        loss=knobs.word("loss"),
        clip_low=knobs.number("clip_low"),
        clip_high=knobs.number("clip_high"),
        kl_coef=knobs.number("kl_coef"),
        unscorable_budget=knobs.number("unscorable_budget"),
        max_staleness=knobs.integer("max_staleness"),
        advantage=advantage,
        credit=_credit(knobs, advantage),
        advantage_floor=knobs.number("advantage_floor"),
        stratify=stratify,
        guidance=guidance,
        refill=knobs.integer("refill"),
        schedule=knobs.word("schedule"),
        warmup_steps=knobs.integer("warmup_steps"),
        updates_per_batch=knobs.integer("updates_per_batch"),
        minibatch_size=minibatch_size,
        entropy_floor=knobs.number("entropy_floor"),
        max_episode_steps=_episode_steps(job),
        on_alarm=knobs.word("on_alarm"),
        alarm_rate=knobs.number("alarm_rate"),
        held_out_samples=knobs.integer("held_out_samples"),
        branch_step=_branch_step(job, total_steps),
        **shared,
    )


def _episode_steps(job: Job) -> int | None:
    """Most turns of an episode; None without tools."""
    given = job.method["reinforcement"]
    if not given.get("tools"):
        return None
    found: int = given.get("max_episode_steps") or EPISODE_STEPS
    return found


def _branch_step(job: Job, total_steps: int) -> int:
    """The step that a branch continues from; 0 for other jobs.

    Raises:
        RequestError: nothing is left to train after it.
    """
    origin = origin_of(job.metadata)
    if origin is None:
        return 0
    if origin.step >= total_steps:
        raise RequestError(
            f"the branch continues from step {origin.step}, and its plan ends after step "
            f"{total_steps}; give more `n_epochs`, or branch from an earlier step",
            param=f"metadata.{BRANCH_FROM}",
        )
    return origin.step


def _auto_rate(guidance: str, num_prompts: int) -> float:
    """Multiplier of the learning rate: with guidance by the root of an update's prompts.

    The root is what keeps Adam's noise the same (Malladi et al. 2022, arXiv:2205.10287).
    """
    if guidance == "none":
        return 1.0
    return min(MOST_RATE, max(1.0, GUIDED_RATE * math.sqrt(num_prompts / 8)))


def _auto_compute(guidance: str, batch_size: int) -> float:
    """Multiplier of the completions per prompt."""
    if guidance == "none":
        return 1.0
    return min(COMPLETIONS, max(2, AUTO_SAMPLES // batch_size)) / COMPLETIONS


def reasons(plan: Plan) -> dict[str, str]:
    """What `auto` means for each hyperparameter, in this plan, and why."""
    size = plan.batch_size
    why = ", since reference answers guide the job" if plan.guidance != "none" else ""
    return {
        "batch_size": (
            f"{AUTO_BATCH[plan.guidance]} prompts a step, or every row when there are fewer{why}"
        ),
        "n_epochs": f"as many passes as {AUTO_STEPS} steps need; the job ends there",
        "learning_rate_multiplier": (
            f"{_auto_rate(plan.guidance, min(plan.minibatch_size or size, size)):.3g} times "
            f"{base_rate(plan.tuning, plan.width):.3g}{why}"
            + ("" if plan.width else f"; less in models wider than {BASE_WIDTH}")
        ),
        "compute_multiplier": (
            f"{_auto_compute(plan.guidance, size):g}: eight times that many completions a prompt, "
            f"so that a group can differ{why}"
        ),
        "eval_interval": f"a quarter of the {plan.total_steps} steps; also before and after them",
        "eval_samples": "1: the most likely answer, the same at every validation",
        "reasoning_effort": "half of max_completion_tokens for reasoning, if the model reasons",
    }


def _guidance(knobs: Knobs, tag: str | None, engine: str, job: Job, rows: Sequence[Row]) -> str:
    """Guidance as asked for; by default where it can be given.

    Raises:
        RequestError: it was asked for and cannot be given.
    """
    name = "guidance"
    why = None
    if engine == "tinker":
        why = "the Tinker protocol has no update with completions that it did not sample"
    elif compares_group(job.method["reinforcement"].get("grader") or {}):
        why = "the grader compares the answers of a group, and a reference answer is not one"
    elif tag is not None:
        why = "the model reasons before it answers, and references have no reasoning"
    elif rows:
        asked = job.method["reinforcement"]
        if not have_references(rows, asked["grader"], asked.get("response_format")):
            why = "neither the grader nor a key `reference_answer` says what a right answer is"
    found = knobs.word(name, "none" if why else None)
    if why and found != "none":
        raise RequestError(
            f"metadata `{name}` is {found!r}, which cannot be done: {why}; leave it none",
            param=f"metadata.{name}",
        )
    return found


def _credit(knobs: Knobs, advantage: str) -> str:
    """Credit as asked for; by default by fields where sub-graders have advantages of their own.

    Raises:
        RequestError: it was asked for and cannot be given.
    """
    is_own = advantage in PER_GRADER_NAMES
    found = knobs.word("credit", None if is_own else "answer")
    if found == "fields" and not is_own:
        raise RequestError(
            f"metadata `credit` is 'fields', which needs an advantage of each sub-grader, and "
            f"`advantage` is {advantage!r}; make that {' or '.join(PER_GRADER_NAMES)}, or leave "
            "`credit` = answer",
            param="metadata.credit",
        )
    return found
