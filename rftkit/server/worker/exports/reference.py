"""What the platform says: its own answers to the rows, and their log-probs.

Answers are greedy and unconstrained, since no response format travels with the weights. The
log-probs of the same tokens under the base model show how much training changed. Not here: the
other tool (`tools`), and the comparison (`check`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rftkit.server.engine.prompts import closing
from rftkit.server.engine.values import SampleRequest, TrainGroup
from rftkit.server.worker.exports.held_out import HeldOut
from rftkit.server.worker.exports.source import Source

__all__ = ["Answer", "Reference", "answer_text", "platform_answers"]


@dataclass(frozen=True)
class Answer:
    """The platform's greedy answer to one row."""

    prompt: list[int]
    tokens: list[int]
    """The end token is the last one when it ended."""
    ended: bool
    """False: it was cut at the most tokens."""
    text: str
    logprobs: list[float]
    base_logprobs: list[float]
    """The log-probs of the same tokens under the base model."""


@dataclass(frozen=True)
class Reference:
    """All answers of the platform, and the dtype that it computed with."""

    answers: list[Answer]
    dtype: str
    """float32, bfloat16 …"""


def platform_answers(source: Source, rows: HeldOut) -> Reference:
    """Answer every row as a chat with temperature 0 would, without a response format."""
    import torch

    from rftkit.server.engine.torch.engine import TorchEngine

    engine = TorchEngine(source.base_folder, name=source.base.name)
    prompts = [engine.encode(row.messages, row.tools, source.thinking) for row in rows.rows]
    requests = [
        SampleRequest(
            prompt, [(0,)], min(rows.max_tokens, engine.context_tokens - len(prompt)), 0.0
        )
        for prompt in prompts
    ]
    completions = [group[0] for group in engine.sample(requests, source.saved)]
    groups = [
        TrainGroup(prompt, [each.tokens], [[0.0] * len(each.tokens)], [1.0])
        for prompt, each in zip(prompts, completions, strict=True)
    ]

    def logprobs(adapter: Path | None) -> list[list[float]]:
        with torch.no_grad(), engine.computing(adapter):
            return [engine.logprobs([group]).tolist() for group in groups]

    tuned, base = logprobs(source.saved), logprobs(None)
    answers = [
        Answer(
            prompt,
            each.tokens,
            each.stop_reason == "stop",
            answer_text(engine.tokenizer, each.tokens, source.thinking),
            tuned[index],
            base[index],
        )
        for index, (prompt, each) in enumerate(zip(prompts, completions, strict=True))
    ]
    dtype = str(engine.facts["dtype"])
    engine.close()
    return Reference(answers, dtype)


def answer_text(tokenizer: object, tokens: list[int], thinking: str | None) -> str:
    """The text that a grader reads: without control tokens, and without reasoning."""
    text = str(tokenizer.decode(tokens, skip_special_tokens=True))  # type: ignore[attr-defined]
    if thinking is None:
        return text
    return text.partition(closing(thinking))[2].lstrip()
