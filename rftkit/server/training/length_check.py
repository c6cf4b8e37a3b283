"""Before the first step: does every prompt leave room for an answer in the model's context?

A prompt that fills the context is refused with its line. One that leaves less than the plan's
longest answer is allowed, and the job says so: an answer may go beyond the context.
"""

from __future__ import annotations

from collections.abc import Sequence

from rftkit.errors import RowError
from rftkit.rows import Row
from rftkit.server.engine.base import Engine
from rftkit.server.training.plan import CommonPlan

__all__ = ["check_lengths"]


def check_lengths(engine: Engine, plan: CommonPlan, rows: Sequence[Row], path: str) -> str | None:
    """A warning about prompts that leave little room; None when there is no such prompt.

    Raises:
        RowError: a prompt leaves no room, or the model's chat template does not take it.
    """
    short = []
    for row in rows:
        try:
            prompt = engine.encode(row.messages, row.tools, plan.thinking)
        except Exception as error:  # a chat template is a program of its own
            raise RowError(
                f"the model's chat template cannot take these messages: {error}",
                path=path, line=row.line, param="messages",
            ) from error  # fmt: skip
        if len(prompt) >= engine.context_tokens:
            raise RowError(
                f"the prompt has {len(prompt):,} tokens; the model's context holds "
                f"{engine.context_tokens:,}, the answer included. Shorten the row or leave it out",
                path=path, line=row.line, param="messages",
            )  # fmt: skip
        if engine.context_tokens - len(prompt) < plan.max_completion_tokens:
            short.append(row.line)
    if not short:
        return None
    return (
        f"{len(short):,} prompts of {path} leave less than max_completion_tokens="
        f"{plan.max_completion_tokens:,} of the model's context of {engine.context_tokens:,} "
        f"tokens, the first in line {short[0]}: longer answers to them go beyond it."
    )
