"""What a job will do: its settings, with every `auto` resolved. Pure.

A plan is written to the job's folder once, so that a restart follows the same plan. Here are the
fields, and what is resolved in the same way for all methods. Plans are made in `rft_plan` and
`offline_plan`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rftkit.errors import RftkitError
from rftkit.hyperparameters import BASE_LEARNING_RATES, COMPLETIONS
from rftkit.server.engine.prompts import closing
from rftkit.server.engine.values import LoraConfig, Thinking, TrainSettings
from rftkit.server.store.records import Job
from rftkit.server.training.knobs import Knobs

__all__ = [
    "EFFORTS",
    "LOCAL",
    "VERSION",
    "CommonPlan",
    "EngineFacts",
    "NewerPlanError",
    "Plan",
    "base_rate",
    "plan_from",
    "reasoning",
    "reasoning_tokens",
    "resolved_value",
    "shared_settings",
]  # fmt: skip

P = TypeVar("P", bound="CommonPlan")

VERSION = 2
"""The version of the meaning of a plan. Raise it if an older rftkit would follow a newer plan
wrongly."""
BASE_WIDTH, WIDTH_EXPONENT = 576, 0.781
"""See `base_rate`."""
OF_ANSWERS = (
    "eval_samples", "eval_temperature", "max_completion_tokens", "error_budget", "floor_reward",
    "thinking_tokens",
)  # fmt: skip
"""Settings without a meaning where no answer is sampled and graded."""
EFFORTS = {
    "none": 0.0, "minimal": 0.125, "low": 0.25, "default": 0.5, "medium": 0.5, "high": 0.75,
    "xhigh": 0.875, "max": 0.875,
}  # fmt: skip
"""Share of a completion's most tokens that reasoning may take; the answer needs the rest."""


class NewerPlanError(RftkitError):
    """A job's plan has settings that this version does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonPlan:
    """The settings that the plans of all methods have."""

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
    """The tag that opens the model's reasoning; None: it answers at once."""
    thinking_tokens: int = 0
    """Most tokens of reasoning in an answer."""
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
    max_episode_steps: int | None = None
    """Most turns of an episode, for a job with tools; None if an answer is one turn and calls are
    not made."""
    ignored: dict[str, str] = field(default_factory=dict)
    """Settings without effect here, and why."""

    @property
    def lora(self) -> LoraConfig | None:
        """Shape of the adapters; None: every weight learns."""
        return None if self.tuning == "full" else LoraConfig(self.lora_rank, self.lora_alpha)

    @property
    def reasoning(self) -> Thinking | None:
        """How a completion begins, where the context has room for the longest one."""
        return reasoning(self.thinking, self.thinking_tokens)

    def most_tokens(self, prompt_tokens: int) -> int:
        """Most tokens of an answer to a prompt of so many tokens: the context may leave less."""
        if self.context_tokens is None:
            return self.max_completion_tokens
        return min(self.max_completion_tokens, self.context_tokens - prompt_tokens)

    def room_after(self, prompt_tokens: int) -> int | None:
        """Most tokens of an episode after its prompt, including results of calls; None without
        episodes.
        """
        if self.max_episode_steps is None or self.context_tokens is None:
            return None
        return self.context_tokens - prompt_tokens

    def reasoning_after(self, prompt_tokens: int) -> Thinking | None:
        """How a completion begins after a prompt of so many tokens.

        Where the context leaves less room, reasoning keeps its share of that room.
        """
        share = self.most_tokens(prompt_tokens) / self.max_completion_tokens
        return reasoning(self.thinking, int(self.thinking_tokens * share))

    def validates(self, step: int) -> bool:
        """Whether a whole validation follows this step; step 0 is the baseline."""
        return step % self.eval_interval == 0 or step == self.total_steps

    @property
    def multipliers(self) -> dict[str, float]:
        """Hyperparameters of the request on which other settings depend, with the values that are
        used.
        """
        return {}

    def to_dict(self) -> dict[str, Any]:
        """All settings, as the job's folder keeps them."""
        settings = dataclasses.asdict(self)
        if self.max_episode_steps is None:  # an older rftkit can continue the job
            del settings["max_episode_steps"]
        return settings

    def shown(self, *, is_graded: bool) -> dict[str, Any]:
        """The settings that matter, for the job's first event."""
        hidden = () if is_graded else OF_ANSWERS
        return {name: value for name, value in self.to_dict().items() if name not in hidden}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(CommonPlan):
    """A reinforcement job's settings."""

    completions_per_prompt: int
    temperature: float
    loss: str
    clip_low: float
    clip_high: float
    kl_coef: float
    unscorable_budget: float = 0.9
    """Share of unscorable answers, of steps that teach nothing, above which the job pauses."""
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
    """Most further prompts in a step; one is added for each group that is flat in a sub-grader."""
    updates_per_batch: int = 1
    """Optimizer updates with the same rollouts; from the second on, ratios leave 1 and are
    clipped."""
    minibatch_size: int = 0
    """Groups of one optimizer update; a step with more of them makes several updates (minibatches
    of Schulman et al. 2017, arXiv:1707.06347). 0: one update has all of the step's groups."""
    entropy_floor: float = 0.0
    """Nats a token; with less among its samples, a step's rate is smaller in proportion."""
    on_alarm: str = "warn"
    """What an alarm does: warn adds an event, pause also pauses the job, once for each alarm."""
    alarm_rate: float = 0.01
    """Share of healthy jobs that may raise an alarm."""
    held_out_samples: int = 32
    """Most completions of a step that the held-out grader grades."""
    branch_step: int = 0
    """The step of another job that this one continues from; 0: it starts from its model."""

    @property
    def multipliers(self) -> dict[str, float]:
        """What the base learning rate and the usual completions per prompt are multiplied by."""
        rate = self.learning_rate / base_rate(self.tuning, self.width)
        return {
            "learning_rate_multiplier": float(f"{rate:.6g}"),
            "compute_multiplier": self.completions_per_prompt / COMPLETIONS,
        }

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
            f"this job was started by a newer rftkit: its plan has version {version}"
            + "".join(f" and the setting {name}" for name in sorted(unknown))
            + f", and this rftkit knows version {VERSION}. Upgrade rftkit, then resume the job"
        )
    return kind(**settings)


def reasoning(tag: str | None, tokens: int) -> Thinking | None:
    """Reasoning that this tag opens, of at most so many tokens; None without a tag."""
    return None if tag is None else Thinking(closing(tag), tokens)


def reasoning_tokens(effort: str | None, max_tokens: int) -> int:
    """How many of these tokens an effort gives to reasoning."""
    return int(EFFORTS[effort or "default"] * max_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What a plan must know about the engine of a job and its model."""

    kind: str = "torch"
    """Where the job trains."""
    thinking: str | None = None
    """The tag that opens the model's reasoning, if its chat template has one. Metadata `thinking`
    overrules it, and "none" turns reasoning off."""
    memory_bytes: int | None = None
    """The engine's budget."""
    width: int | None = None
    """Numbers in a hidden state of the model; None: not known yet."""


LOCAL = EngineFacts()
"""This machine, before a model is loaded."""


def shared_settings(job: Job, engine: EngineFacts, effort: str = "default") -> dict[str, Any]:
    """The settings that a job's method and its rows have no part in, as fields of its plan.

    Args:
        job: with its metadata.
        engine: where the job trains.
        effort: how much of a completion reasoning may take; a name in `EFFORTS`.

    Raises:
        RequestError: for metadata that is meant for the trainer and cannot be read.
    """
    metadata = job.metadata or {}
    knobs = Knobs(metadata)
    tuning, tag = knobs.word("tuning"), knobs.think_tag("thinking", engine.thinking)
    max_tokens = knobs.integer("max_completion_tokens")
    return {
        "seed": job.seed,
        "engine": engine.kind,
        "memory_bytes": engine.memory_bytes,
        "width": engine.width,
        "tuning": tuning,
        "lora_rank": knobs.integer("lora_rank"),
        "lora_alpha": knobs.number("lora_alpha"),
        "max_completion_tokens": max_tokens,
        "thinking": tag,
        "thinking_tokens": 0 if tag is None else reasoning_tokens(effort, max_tokens),
        "error_budget": knobs.number("error_budget"),
        "floor_reward": knobs.optional_number("floor_reward"),
        "max_core_seconds": knobs.positive("max_core_seconds"),
        "ignored": _ignored_in_full(metadata) if tuning == "full" else {},
    }


def _ignored_in_full(metadata: Mapping[str, str]) -> dict[str, str]:
    """Adapter settings that were given although a job that trains every weight has no adapters."""
    why = "every weight is trained, so there are no adapters"
    return {name: why for name in ("lora_rank", "lora_alpha") if name in metadata}


def resolved_value(given: Mapping[str, Any], name: str, auto: Any) -> Any:
    """A hyperparameter as it was given, or what `auto` means."""
    return auto if given.get(name, "auto") in ("auto", None) else given[name]


def base_rate(tuning: str, width: int | None) -> float:
    """The learning rate that a multiplier of 1 stands for.

    Wider models need smaller steps: the rate falls with their width to the power that Thinking
    Machines found for LoRA on models of Llama's form ("LoRA without regret", 2025, and
    `hyperparam_utils` of tinker-cookbook). Narrower models have the rate of `BASE_WIDTH`.
    """
    share: float = (BASE_WIDTH / (width or BASE_WIDTH)) ** WIDTH_EXPONENT
    return BASE_LEARNING_RATES[tuning] * min(1.0, share)
