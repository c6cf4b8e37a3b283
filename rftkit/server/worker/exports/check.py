"""Whether an export is the model: its answers in the user's tool, compared with the platform's.

The check compares the tokens of the prompts (chat template and tokenizer), the greedy answers,
whether they end, and the log-probs of the platform's answers. Rounding and quantization move
log-probs by a little, and flip an answer where two tokens are about as likely; more than that is an
error. An export that is nearer to the base model than to the trained one has lost the training,
however small the differences are. Not here: rewards (`rewards`), and what a person reads (`card`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rftkit.chattemplates import plain_message
from rftkit.server.worker.exports.held_out import HeldOut
from rftkit.server.worker.exports.reference import Answer, Reference
from rftkit.server.worker.exports.tools import Tool

__all__ = ["Comparison", "compare", "limit_of"]

LIMITS = {
    "float32": 0.005, "float16": 0.02, "bfloat16": 0.06, "f32": 0.06, "f16": 0.06, "bf16": 0.06,
    "q8_0": 0.1, "q6_k": 0.15, "q5_k_m": 0.25, "q5_k_s": 0.25, "q5_1": 0.25, "q5_0": 0.25,
    "q4_k_m": 0.5, "q4_k_s": 0.5, "q4_1": 0.5, "q4_0": 0.5,
}  # fmt: skip
"""Largest mean |log-prob difference| that rounding or quantization explains, in nats a token. The
platform computes in bfloat16 where the hardware does, so f32 files have bfloat16's limit too."""
TIE = 5.0
"""Times the limit: tokens whose log-probs are nearer than this may change places."""
NEARER = 2.0
"""An export that is so many times nearer to the base model has lost the training."""


@dataclass(frozen=True)
class Comparison:
    """The comparison of an export in one tool with the platform."""

    tool: str
    prompts: int
    """Rows whose chat the tool rendered itself."""
    same_prompts: int
    answers: int
    same_answers: int
    near_ties: int
    """Answers that part where two tokens are about as likely."""
    ended: int
    """Answers that ended on the platform."""
    same_ends: int
    """How many of these answers the tool ended, too."""
    logprob_gap_mean: float
    """Mean |tool − platform| over all tokens of the platform's answers, in nats."""
    logprob_gap_max: float
    logprob_gap_limit: float
    training_changed: float
    """Mean |trained − base| over the same tokens on the platform, in nats."""
    problems: list[str] = field(default_factory=list)
    """Differences that are more than rounding; none if the export is the model."""
    tokens: list[list[int]] = field(default_factory=list, repr=False)
    """The tool's answers."""

    def to_dict(self) -> dict[str, Any]:
        """The comparison for the report, without the tokens."""
        return {name: value for name, value in asdict(self).items() if name != "tokens"}


def limit_of(reference: Reference, quantization: str | None) -> float:
    """The gap that rounding explains, by what the file holds or what the platform computes with."""
    return max(LIMITS[reference.dtype], LIMITS[quantization] if quantization else 0.0)


def compare(
    rows: HeldOut, reference: Reference, tool: Tool, limit: float, *, is_templated: bool
) -> Comparison:
    """Compare a loaded export with the platform.

    Args:
        rows: that were answered.
        reference: the platform's answers to them.
        tool: with the export.
        limit: see `limit_of`.
        is_templated: whether the platform's prompts are what the template alone makes of a chat;
            not where it opens the reasoning. Rows with tools are never compared: where a template
            has no place for them, the platform writes them as text.
    """
    chats = [
        (row, answer)
        for row, answer in zip(rows.rows, reference.answers, strict=True)
        if is_templated and not row.tools
    ]
    encoded = [
        (tool.encode([plain_message(message) for message in row.messages]), answer.prompt)
        for row, answer in chats
    ]
    rendered = [(found, wanted) for found, wanted in encoded if found is not None]
    tokens = tool.answers([each.prompt for each in reference.answers], rows.max_tokens)
    scores = [tool.scores(each.prompt, each.tokens) for each in reference.answers]
    given = [each[0] for each in scores]
    tuned = [each.logprobs for each in reference.answers]
    base = [each.base_logprobs for each in reference.answers]
    kinds = [
        _kind(answer, found, score, TIE * limit)
        for answer, found, score in zip(reference.answers, tokens, scores, strict=True)
    ]
    ended = [
        (answer, found)
        for answer, found, kind in zip(reference.answers, tokens, kinds, strict=True)
        if answer.ended and kind == "same"
    ]
    gaps = _gaps(given, tuned)
    result = Comparison(
        tool=tool.name,
        prompts=len(rendered),
        same_prompts=sum(found == wanted for found, wanted in rendered),
        answers=len(tokens),
        same_answers=kinds.count("same"),
        near_ties=kinds.count("near tie"),
        ended=len(ended),
        same_ends=sum(len(found) == len(answer.tokens) for answer, found in ended),
        logprob_gap_mean=_mean(gaps),
        logprob_gap_max=max(gaps, default=0.0),
        logprob_gap_limit=limit,
        training_changed=_mean(_gaps(tuned, base)),
        tokens=tokens,
    )
    result.problems.extend(_problems(result, _mean(_gaps(given, base))))
    return result


def _kind(
    answer: Answer, found: list[int], scores: tuple[list[float], list[float]], tie: float
) -> str:
    """same, near tie or different: where the answers part, how sure the tool is of its own."""
    wanted = answer.tokens
    pairs = zip(wanted, found, strict=False)
    parts_at = next((at for at, (a, b) in enumerate(pairs) if a != b), None)
    if parts_at is None:
        return "same" if len(found) >= len(wanted) else "different"
    given, best = scores
    return "near tie" if best[parts_at] - given[parts_at] <= tie else "different"


def _problems(found: Comparison, gap_to_base: float) -> list[str]:
    problems = []
    if found.same_prompts < found.prompts:
        problems.append(
            f"{found.prompts - found.same_prompts} of {found.prompts} prompts have other tokens "
            "than on the platform: the chat template or the tokenizer is not the model's"
        )
    if not found.logprob_gap_mean <= found.logprob_gap_limit:  # written so that NaN does not pass
        problems.append(
            f"log-probs differ by {found.logprob_gap_mean:.2g} nats a token on average, where "
            f"rounding explains {found.logprob_gap_limit:.2g}"
        )
    if found.training_changed and found.logprob_gap_mean > NEARER * gap_to_base:
        problems.append(
            f"it answers like the base model: log-probs are {gap_to_base:.2g} nats from the base "
            f"and {found.logprob_gap_mean:.2g} from the trained model"
        )
    different = found.answers - found.same_answers - found.near_ties
    if different:
        problems.append(
            f"{different} of {found.answers} answers differ where the tool is sure of another "
            "token, or stop early"
        )
    if found.same_ends < found.ended:
        problems.append(
            f"{found.ended - found.same_ends} of {found.ended} answers do not stop where they stop "
            "on the platform: an end token is missing"
        )
    return problems


def _gaps(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> list[float]:
    return [
        abs(x - y)
        for left, right in zip(a, b, strict=True)
        for x, y in zip(left, right, strict=True)
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
