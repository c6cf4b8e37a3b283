"""What goes into a grader and what comes out: Sample, Grade, Fault. Not here: how a grade is made.

A grade has three outcomes. *Graded*: a number. *Failed*: the grader broke, `reward` is None and
the flags say how; a failure is never a zero. *Unscorable*: the sample broke (cut off at the token
limit, not the JSON that was asked for); `reward` is the floor reward and it is counted apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rftkit.jsontext import parse_json

__all__ = [
    "DETAILS", "FLAGS", "MAX_REWARD", "Fault", "Grade", "Outcome", "Sample", "Scored",
]  # fmt: skip

Outcome = Literal["graded", "failed", "unscorable"]

FLAGS = (
    "formula_parse_error",
    "sample_parse_error",
    "truncated_observation_error",
    "unresponsive_reward_error",
    "invalid_variable_error",
    "other_error",
    "python_grader_server_error",
    "python_grader_runtime_error",
    "model_grader_server_error",
    "model_grader_refusal_error",
    "model_grader_parse_error",
    "model_grader_exceeded_max_tokens_error",
    "endpoint_grader_internal_error",
    "endpoint_grader_server_error",
    "endpoint_grader_safety_check_error",
)
"""Error flags of the wire; each is true or false in a run's `metadata.errors`."""

MAX_REWARD = 1e9
"""Size of a reward, of either sign. Hosted services state no bound and take scales such as 0 to 10;
training computes with 32-bit numbers, whose squares overflow at 1e19, and one such reward would end
a job with a message about its learning rate."""

DETAILS = (
    "python_grader_server_error_type",
    "python_grader_runtime_error_details",
    "model_grader_server_error_details",
    "sample_parse_error_details",
    "invalid_variable_error_details",
    "model_grader_refusal_error_details",
    "model_grader_parse_error_details",
    "endpoint_grader_internal_error_details",
    "endpoint_grader_server_error_details",
)
"""Texts that go with the flags; null when not set. A run may carry further `*_details`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The model's output: the namespace `sample` of templates and python graders."""

    output_text: str
    """The text of the answer."""
    output_json: Any = None
    """The parsed text if it is JSON; otherwise None."""
    output_tools: list[dict[str, Any]] | tuple[()] = ()
    """Tool calls in the shape of chat completions."""
    choices: list[dict[str, Any]] | tuple[()] = ()
    """Chat-completions choices; made from the fields above when empty."""
    truncated: bool = False
    """The answer hit the token limit: it is unscorable."""
    model: str | None = None
    """The model that wrote it; None when unknown."""
    expects_json: bool = False
    """A JSON `response_format` was set: text that does not parse is unscorable."""
    trace_id: str | None = None
    """The id that the tools of its rollout were given, by which an endpoint recognises the rollout.
    """

    @classmethod
    def from_text(
        cls,
        text: str,
        *,
        response_format: Mapping[str, Any] | None = None,
        truncated: bool = False,
        tool_calls: list[dict[str, Any]] | None = None,
        model: str | None = None,
    ) -> Sample:
        """Make a sample from an answer; `output_json` is filled whenever the text parses.

        The service fills `output_json` in training only under a `response_format`, yet always in
        a grader run; here it is always, so that both give the same number.
        """
        kind = (response_format or {}).get("type", "text")
        return cls(
            output_text=text,
            output_json=_parse_json(text),
            output_tools=tool_calls or [],
            truncated=truncated,
            model=model,
            expects_json=kind in ("json_schema", "json_object") and not tool_calls,
        )

    def of_episode(
        self, calls: Sequence[dict[str, Any]], messages: Sequence[dict[str, Any]]
    ) -> Sample:
        """The sample of an episode, of which this one is the last answer.

        Its `output_text` is the last answer. `output_tools`, and `choices[0].message.tool_calls`,
        are all calls of the episode; `choices[0].messages` is all that was said after the prompt.

        Args:
            calls: those of the answers before.
            messages: all that was said after the prompt, with this answer.
        """
        calls = [*calls, *self.output_tools]
        [choice] = self.to_dict()["choices"]
        message = {**choice["message"], **({"tool_calls": calls} if calls else {})}
        choice = {**choice, "message": message, "messages": list(messages)}
        return replace(self, output_tools=calls, choices=[choice])

    def to_dict(self) -> dict[str, Any]:
        """The namespace as a python grader sees it; `model` only when it is known."""
        return {
            **({"model": self.model} if self.model is not None else {}),
            "output_text": self.output_text,
            "output_json": self.output_json,
            "output_tools": list(self.output_tools),
            "choices": list(self.choices) or [self._choice()],
        }

    def _choice(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.output_text}
        if self.output_tools:
            message["tool_calls"] = list(self.output_tools)
        reason = "length" if self.truncated else "tool_calls" if self.output_tools else "stop"
        return {"index": 0, "finish_reason": reason, "message": message}


@dataclass(frozen=True, slots=True)
class Grade:
    """One grade of one sample. `dataclasses.asdict` makes JSON of it, and
    `Grade(**that)` reads it.
    """

    reward: float | None
    """The number; None when the grader failed; the floor reward when unscorable."""
    outcome: Outcome
    """Which of the three outcomes this is."""
    sub_rewards: dict[str, float | None] = field(default_factory=dict)
    """Per key of a multi grader. Of an unscorable answer, a part that could not read it has its
    lowest reward; of a failed grade, a part without a number has None. Else empty."""
    errors: dict[str, bool | str] = field(default_factory=dict)
    """The flags that are set, with their details, by their wire names."""
    seconds: float = 0.0
    """Wall time of the grade."""
    token_usage: dict[str, dict[str, int]] = field(default_factory=dict)
    """Tokens that judges used, per model: prompt, completion, total and cached."""
    sub_errors: dict[str, dict[str, bool | str]] = field(default_factory=dict)
    """Per key of a multi grader, only keys with errors."""
    sub_seconds: dict[str, float] = field(default_factory=dict)
    """Wall time per key of a multi grader."""
    sub_token_usage: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    """Tokens per key of a multi grader, only keys with a judge."""
    judged: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per key (empty for a grader that is not a multi), what a judge said besides the number: the
    `criteria` of a rubric; the `scores`, `positions` and `reasons` of a relative grader."""

    def to_wire(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a `graders/run` response; `spec` is the normalised grader.

        The wire has no word for failure but the flags: the reward is then 0.0, always read both.
        """
        errors: dict[str, Any] = dict.fromkeys(FLAGS, False) | dict.fromkeys(DETAILS)
        counts = ("prompt_tokens", "total_tokens", "completion_tokens", "cached_tokens")
        total = {c: sum(u.get(c, 0) for u in self.token_usage.values()) for c in counts}
        return {
            "reward": 0.0 if self.outcome != "graded" else self.reward,
            "sub_rewards": dict(self.sub_rewards),
            "model_grader_token_usage_per_model": dict(self.token_usage),
            "metadata": {
                "name": spec.get("name"),
                "type": spec.get("type"),
                "execution_time": self.seconds,
                "scores": dict(self.sub_rewards),
                "token_usage": total if self.token_usage else None,
                "sampled_model_name": next(iter(self.token_usage), None),
                "errors": errors | self.errors,
            },
        }


@dataclass(frozen=True, slots=True)
class Scored:
    """A reward, with what the judge said besides."""

    reward: float
    judged: dict[str, Any]
    """See `Grade.judged`."""


class Fault(Exception):
    """Why one grade has no reward. Raised inside a grader, caught by the engine.

    `flag` is the wire name. `unscorable` says that the sample is at fault, not the grader.
    """

    def __init__(
        self,
        flag: str,
        details: str = "",
        *,
        unscorable: bool = False,
        judged: dict[str, Any] | None = None,
    ) -> None:
        """`judged` is what a judge said in spite of it."""
        super().__init__(f"{flag}: {details}")
        self.flag, self.judged = flag, judged
        # lone surrogates cannot be written as UTF-8, and these texts go over HTTP
        self.details = details.encode("utf-8", "backslashreplace").decode("utf-8")
        self.outcome: Outcome = "unscorable" if unscorable else "failed"

    @property
    def errors(self) -> dict[str, bool | str]:
        """The flag and its details, by their wire names."""
        if self.flag == "python_grader_server_error":
            return {self.flag: True, f"{self.flag}_type": self.details}
        return {self.flag: True} | ({f"{self.flag}_details": self.details} if self.details else {})


def _parse_json(text: str) -> Any:
    try:
        return parse_json(text, parse_constant=_refuse)
    except ValueError:
        return None


def _refuse(name: str) -> Any:
    raise ValueError(name)
