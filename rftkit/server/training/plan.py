"""What a reinforcement job will do, with every `auto` resolved and every knob named. Pure.

The protocol leaves `auto` and several numbers open; the decisions are here, and the job's first
event states them: completions per prompt = clamp(round(8 × compute_multiplier), 2, 64); training
samples at temperature 1; validation takes the most likely token when `eval_samples` is 1 and
samples at temperature 1 when it is more, at every step alike; the learning rate is the multiplier
times 0.001 for adapters and times 0.0001 where every weight learns (`tuning` = full). Plans of the
other methods are in `offline_plan`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rftkit.errors import RequestError, RftkitError
from rftkit.rows import Row
from rftkit.server.engine.base import LoraConfig, Thinking, TrainSettings
from rftkit.server.engine.prompts import closing
from rftkit.server.store.records import Job
from rftkit.server.training.knobs import Knobs
from rftkit.server.training.references import have_references, resolve_key

__all__ = [
    "EFFORTS", "VERSION", "CommonPlan", "NewerPlanError", "Plan", "full_ignores", "make_plan",
    "plan_from", "reasons", "resolved_value",
]  # fmt: skip

P = TypeVar("P", bound="CommonPlan")

VERSION = 2
"""Of what a plan means; raise it when an older rftkit would follow a newer plan wrongly."""
BASE_LEARNING_RATES = {"lora": 1e-3, "full": 1e-4}
"""By what learns, in models up to `BASE_WIDTH`; see `base_rate`."""
BASE_WIDTH, WIDTH_EXPONENT = 576, 0.781
AUTO_STEPS = 24

AUTO_BATCH = {"none": 8, "references": 32}
"""Prompts a step, by guidance: an answer that is right needs no large group to be told from others,
so that a step has more prompts and fewer completions of each."""
AUTO_SAMPLES = 64
"""Completions a step where references guide, if that is from 2 to 8 a prompt."""
GUIDED_RATE = 3.0
"""Multiplier of the learning rate for a full batch where references guide."""
AUTO_VALIDATIONS = 4
KEPT_CHECKPOINTS = 3
ADVANTAGE_NAMES = ("mean", "std", "per_grader", "maxrl")
PER_GRADER_NAMES = ("per_grader", "maxrl")
"""Those that look at each sub-grader on its own."""
CREDIT_NAMES = ("answer", "fields")
SCHEDULE_NAMES = ("constant", "linear", "cosine")
GUIDANCE_NAMES = ("none", "references")
# What these are when nothing is asked for; the study is `tests/benchmarks/learning.py`.
ADVANTAGE, CREDIT, STRATIFY, GUIDANCE = "per_grader", "fields", "auto", "references"
SCHEDULE, WARMUP_STEPS = "cosine", 2
OF_ANSWERS = (
    "eval_samples", "eval_temperature", "max_completion_tokens", "error_budget", "floor_reward",
    "thinking_tokens",
)  # fmt: skip
"""Settings without a meaning where no answer is sampled and graded."""
EFFORTS = {
    "none": 0.0, "minimal": 0.125, "low": 0.25, "default": 0.5, "medium": 0.5, "high": 0.75,
    "xhigh": 0.875, "max": 0.875,
}  # fmt: skip
"""Share of a completion's most tokens that its thoughts may take; an answer needs the rest."""


class NewerPlanError(RftkitError):
    """A job's plan has settings that this version does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonPlan:
    """What the plans of all methods have."""

    batch_size: int
    """Rows a step."""
    n_epochs: int
    total_steps: int
    learning_rate: float
    """The highest of all steps: see `schedule` and `warmup_steps`."""
    eval_interval: int
    """Steps from one whole validation to the next."""
    eval_samples: int
    eval_temperature: float
    max_completion_tokens: int
    """A longer answer is cut, and cannot be scored."""
    lora_rank: int
    lora_alpha: float
    error_budget: float
    """Share of failed grades above which the job pauses, 0 to 1."""
    floor_reward: float | None
    """Reward of an unscorable answer; None: the grader's own lowest."""
    seed: int
    memory_bytes: int | None = None
    """What the engine may take for the keys of a wave of completions, or for what a backward pass
    keeps; measured once. With the rows it decides which completions decode together."""
    engine: str = "torch"
    """Where the job trains: torch is this machine, tinker the operator's server."""
    width: int | None = None
    """Numbers in a hidden state of the model, which `base_rate` goes by; None: not known."""
    thinking: str | None = None
    """The mark that opens the model's thoughts; None: it answers at once."""
    thinking_tokens: int = 0
    """Most tokens of thoughts."""
    tuning: str = "lora"
    """What learns: lora is adapters on a frozen base, full is every weight."""
    schedule: str = "constant"
    """A name in `schedule.SCHEDULES`: how the learning rate falls after the warm-up."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises."""
    context_tokens: int | None = None
    """What the model reads, prompt and answer together: answers end there at the latest. None: an
    older rftkit began the job and let answers go beyond it."""
    max_core_seconds: float | None = None
    """Seconds of sampling, grading, training and validation after which the job pauses, once."""
    ignored: dict[str, str] = field(default_factory=dict)
    """Settings without effect here, and why."""

    @property
    def lora(self) -> LoraConfig | None:
        """Shape of the adapters; None: every weight learns."""
        return None if self.tuning == "full" else LoraConfig(self.lora_rank, self.lora_alpha)

    @property
    def thoughts(self) -> Thinking | None:
        """How a completion begins, where the context has room for the longest."""
        return thoughts(self.thinking, self.thinking_tokens)

    def most_tokens(self, prompt_tokens: int) -> int:
        """Most tokens of an answer to a prompt of so many: what the context leaves, if less."""
        if self.context_tokens is None:
            return self.max_completion_tokens
        return min(self.max_completion_tokens, self.context_tokens - prompt_tokens)

    def thoughts_after(self, prompt_tokens: int) -> Thinking | None:
        """How a completion begins after a prompt of so many; thoughts keep their share of it."""
        share = self.most_tokens(prompt_tokens) / self.max_completion_tokens
        return thoughts(self.thinking, int(self.thinking_tokens * share))

    def validates(self, step: int) -> bool:
        """Whether a whole validation follows this step; step 0 is the baseline."""
        return step % self.eval_interval == 0 or step == self.total_steps

    def to_dict(self) -> dict[str, Any]:
        """All settings, as the job's folder keeps them."""
        return dataclasses.asdict(self)

    def shown(self, *, is_graded: bool) -> dict[str, Any]:
        """The settings that matter, for the job's first event."""
        hidden = () if is_graded else OF_ANSWERS
        return {name: value for name, value in self.to_dict().items() if name not in hidden}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(CommonPlan):
    """A reinforcement job's settings.

    Written to its folder once, so that a restart follows the same plan.
    """

    completions_per_prompt: int
    temperature: float
    loss: str
    clip_low: float
    clip_high: float
    kl_coef: float
    max_staleness: int = 0
    """Updates that may come between the sampling of a step's completions and its own; 1 lets the
    next step sample while graders work."""
    advantage: str = "mean"
    """A name in `advantages.ADVANTAGES`."""
    advantage_floor: float = 0.1
    """Least number that an advantage divides by, as a share of the range of rewards."""
    credit: str = "answer"
    """Which tokens have a sub-grader's advantage: answer, all of them; fields, those up to the end
    of the fields of a JSON answer that it reads."""
    stratify: str | None = None
    """Key of the rows whose values every batch has in the mix of the file; "auto": still to be
    found in the grader and the rows; None: batches are shuffled."""
    guidance: str = "none"
    """references: the row's reference answer joins a group that does not reach a sub-grader's
    top; none: completions are sampled only."""
    refill: int = 0
    """Most further prompts a step, one for each group that is flat in a sub-grader."""
    updates_per_batch: int = 1
    """Optimizer updates with the same rollouts; from the second on, ratios leave 1 and are
    clipped."""
    entropy_floor: float = 0.0
    """Nats a token; with less among its samples, a step's rate is smaller in proportion."""

    def train_settings(self, learning_rate: float) -> TrainSettings:
        """Settings of an update at this rate."""
        return TrainSettings(
            learning_rate=learning_rate,
            temperature=self.temperature,
            loss=self.loss,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            kl_coef=self.kl_coef,
        )


def plan_from(known: dict[str, Any], kind: type[P]) -> P:
    """The plan that `to_dict` and `VERSION` were written of, perhaps by an older rftkit.

    Raises:
        NewerPlanError: by a newer one.
    """
    version = known.get("version", 1)
    settings = {name: value for name, value in known.items() if name != "version"}
    unknown = set(settings) - {field.name for field in dataclasses.fields(kind)}
    if version > VERSION or unknown:
        raise NewerPlanError(
            f"a newer rftkit began this job: its plan has version {version}"
            + "".join(f" and the setting {name}" for name in sorted(unknown))
            + f", and this rftkit knows version {VERSION}. Upgrade rftkit, then resume the job"
        )
    return kind(**settings)


def thoughts(mark: str | None, tokens: int) -> Thinking | None:
    """Thoughts that this mark opens, at most so many tokens of them; None without a mark."""
    return None if mark is None else Thinking(closing(mark), tokens)


def thinking_tokens(effort: str | None, max_tokens: int) -> int:
    """How many of so many tokens an effort gives to thoughts."""
    return int(EFFORTS[effort or "default"] * max_tokens)


def make_plan(
    job: Job,
    num_rows: int,
    thinking: str | None = None,
    engine: str = "torch",
    memory_bytes: int | None = None,
    rows: Sequence[Row] = (),
    width: int | None = None,
) -> Plan:
    """Resolve a job's hyperparameters against its training rows.

    Args:
        job: with its method and metadata.
        num_rows: of the training file.
        thinking: the mark that opens the model's thoughts, if its chat template has one; metadata
            `thinking` overrules it, "none" turns thoughts off.
        engine: where the job trains.
        memory_bytes: the engine's budget.
        rows: of the training file; without them `stratify` stays as it was asked for, and
            `guidance` is what it would be with reference answers.
        width: numbers in a hidden state of the model; None: not known yet.

    Raises:
        RequestError: for metadata that is meant for the trainer and cannot be read.
    """
    given = job.hyperparameters
    value = functools.partial(resolved_value, given)
    knobs = Knobs(job.metadata or {})
    mark = knobs.mark("thinking", thinking)
    guidance = _guidance(knobs, mark, engine, job, rows)
    batch_size = min(value("batch_size", AUTO_BATCH[guidance]), num_rows)
    n_epochs = value("n_epochs", min(50, math.ceil(AUTO_STEPS * batch_size / num_rows)))
    total_steps = max(1, num_rows * n_epochs // batch_size)
    if given.get("n_epochs", "auto") == "auto":
        total_steps = min(total_steps, AUTO_STEPS)
    eval_samples = value("eval_samples", 1)
    max_tokens = knobs.integer("max_completion_tokens", 256, 1, 100_000)
    tuning = knobs.word("tuning", "lora", tuple(BASE_LEARNING_RATES))
    stratify = knobs.key("stratify", STRATIFY)
    if rows:
        stratify = resolve_key(stratify, job.method["reinforcement"]["grader"], rows)
    advantage = knobs.word("advantage", ADVANTAGE, ADVANTAGE_NAMES)
    effort = given.get("reasoning_effort", "default")
    ignored = full_ignores(tuning, job.metadata or {})
    if effort != "default" and mark is None:
        ignored["reasoning_effort"] = (
            "the model does not think before it answers (metadata `thinking` makes it)"
        )
    return Plan(
        batch_size=batch_size,
        n_epochs=n_epochs,
        total_steps=total_steps,
        learning_rate=base_rate(tuning, width)
        * value("learning_rate_multiplier", _auto_rate(guidance, batch_size)),
        completions_per_prompt=min(
            64, max(2, round(8 * value("compute_multiplier", _auto_compute(guidance, batch_size))))
        ),
        eval_interval=value("eval_interval", math.ceil(total_steps / AUTO_VALIDATIONS)),
        eval_samples=eval_samples,
        eval_temperature=0.0 if eval_samples == 1 else 1.0,
        max_completion_tokens=max_tokens,
        temperature=1.0,
        loss=knobs.word("loss", "clipped", ("clipped", "importance_sampling", "reinforce")),
        clip_low=knobs.number("clip_low", 0.2, 0.0, 1.0),
        clip_high=knobs.number("clip_high", 0.2, 0.0, 100.0),
        kl_coef=knobs.number("kl_coef", 0.0, 0.0, 100.0),
        lora_rank=knobs.integer("lora_rank", 16, 1, 1024),
        lora_alpha=knobs.number("lora_alpha", 32.0, 1e-3, 1e5),
        error_budget=knobs.number("error_budget", 0.05, 0.0, 1.0),
        floor_reward=knobs.optional_number("floor_reward"),
        seed=job.seed,
        memory_bytes=memory_bytes,
        engine=engine,
        width=width,
        thinking=mark,
        thinking_tokens=0 if mark is None else thinking_tokens(effort, max_tokens),
        max_staleness=knobs.integer("max_staleness", 0, 0, 1),
        tuning=tuning,
        advantage=advantage,
        credit=_credit(knobs, advantage),
        advantage_floor=knobs.number("advantage_floor", 0.1, 1e-3, 1.0),
        stratify=stratify,
        guidance=guidance,
        refill=knobs.integer("refill", 0, 0, 1024),
        schedule=knobs.word("schedule", SCHEDULE, SCHEDULE_NAMES),
        warmup_steps=knobs.integer("warmup_steps", WARMUP_STEPS, 0, 10_000),
        updates_per_batch=knobs.integer("updates_per_batch", 1, 1, 16),
        entropy_floor=knobs.number("entropy_floor", 0.0, 0.0, 20.0),
        max_core_seconds=knobs.positive("max_core_seconds"),
        ignored=ignored,
    )


def resolved_value(given: Mapping[str, Any], name: str, auto: Any) -> Any:
    """A hyperparameter as it was given, or what `auto` means."""
    return auto if given.get(name, "auto") in ("auto", None) else given[name]


def full_ignores(tuning: str, metadata: Mapping[str, str]) -> dict[str, str]:
    """Settings of adapters that were given where there are none."""
    why = "every weight learns, there are no adapters"
    names = ("lora_rank", "lora_alpha") if tuning == "full" else ()
    return {name: why for name in names if name in metadata}


def base_rate(tuning: str, width: int | None) -> float:
    """The learning rate that a multiplier of 1 stands for.

    Wider models need smaller steps: the rate falls with their width to the power that Thinking
    Machines found for LoRA on models of Llama's form ("LoRA without regret", 2025, and
    `hyperparam_utils` of tinker-cookbook). Narrower models have the rate of `BASE_WIDTH`.
    """
    share: float = (BASE_WIDTH / (width or BASE_WIDTH)) ** WIDTH_EXPONENT
    return BASE_LEARNING_RATES[tuning] * min(1.0, share)


def _auto_rate(guidance: str, batch_size: int) -> float:
    """Multiplier of the learning rate: with guidance by the root of the batch, from 1 to 3.

    The root is what keeps Adam's noise the same (Malladi et al. 2022, arXiv:2205.10287).
    """
    if guidance == "none":
        return 1.0
    return max(1.0, GUIDED_RATE * min(1.0, math.sqrt(batch_size / AUTO_BATCH[guidance])))


def _auto_compute(guidance: str, batch_size: int) -> float:
    """Multiplier of eight completions a prompt."""
    if guidance == "none":
        return 1.0
    return min(8, max(2, AUTO_SAMPLES // batch_size)) / 8


def reasons(plan: Plan) -> dict[str, str]:
    """What `auto` means for each hyperparameter, in this plan, and why."""
    size = plan.batch_size
    why = ", since reference answers guide" if plan.guidance != "none" else ""
    return {
        "batch_size": (
            f"{AUTO_BATCH[plan.guidance]} prompts a step, or every row when there are fewer{why}"
        ),
        "n_epochs": f"as many passes as {AUTO_STEPS} steps need; the job ends there",
        "learning_rate_multiplier": (
            f"{_auto_rate(plan.guidance, size):.3g} times "
            f"{base_rate(plan.tuning, plan.width):.3g}{why}"
            + ("" if plan.width else f"; less in models wider than {BASE_WIDTH}")
        ),
        "compute_multiplier": (
            f"{_auto_compute(plan.guidance, size):g}: eight times that many completions a prompt, "
            f"so that a group can differ{why}"
        ),
        "eval_interval": f"a quarter of the {plan.total_steps} steps, and once before and after",
        "eval_samples": "1: the most likely answer, the same at every validation",
        "reasoning_effort": "half of max_completion_tokens for thoughts, if the model thinks",
    }


def _guidance(knobs: Knobs, mark: str | None, engine: str, job: Job, rows: Sequence[Row]) -> str:
    """Guidance as asked for; by default where it can be given.

    Raises:
        RequestError: it was asked for and cannot be given.
    """
    name = "guidance"
    why = None
    if engine == "tinker":
        why = "the Tinker protocol has no update with completions that it did not sample"
    elif mark is not None:
        why = "the model thinks before it answers, and references have no thoughts"
    elif rows:
        asked = job.method["reinforcement"]
        if not have_references(rows, asked["grader"], asked.get("response_format")):
            why = "neither the grader nor a key `reference_answer` says what a right answer is"
    found = knobs.word(name, "none" if why else GUIDANCE, GUIDANCE_NAMES)
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
    found = knobs.word("credit", CREDIT if is_own else "answer", CREDIT_NAMES)
    if found == "fields" and not is_own:
        raise RequestError(
            f"metadata `credit` is 'fields', which needs an advantage of each sub-grader, and "
            f"`advantage` is {advantage!r}; make that {' or '.join(PER_GRADER_NAMES)}, or leave "
            "`credit` = answer",
            param="metadata.credit",
        )
    return found
