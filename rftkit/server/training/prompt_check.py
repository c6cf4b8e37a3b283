"""Before the first step: can the model's chat template render every row, and is there room?

A row that the template refuses is refused with its line, and so is a prompt that fills the model's
context. A prompt that leaves less than the plan's longest answer is allowed: answers to it are cut
where the context ends (`Plan.most_tokens`), and an event states that. Not here: the time limit of a
template, which is a program and may hang (the caller's `encode`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rftkit.errors import InputError, RowError
from rftkit.rows import Row
from rftkit.server.training.plan import CommonPlan

__all__ = ["Encode", "check_prompts"]

Encode = Callable[[Row], list[int]]
"""The token ids of a row's prompt."""


def check_prompts(
    rows: Sequence[Row],
    encode: Encode,
    plan: CommonPlan,
    context_tokens: int,
    *,
    path: str,
    param: str | None,
    on_tick: Callable[[], None],
) -> tuple[list[list[int]], str | None]:
    """Render every row.

    Args:
        rows: of the file `path`.
        encode: renders one.
        plan: with the longest answer.
        context_tokens: what the model reads, the answer included.
        path: names the file in errors.
        param: of the request that names the file.
        on_tick: called before each row; may raise.

    Returns:
        One prompt of each length, and a warning about prompts that leave little room; None when
        there is no such prompt.

    Raises:
        RowError: a prompt leaves no room, or the model's chat template does not take it.
    """
    by_length: dict[int, list[int]] = {}
    short: list[int] = []
    for row in rows:
        on_tick()
        prompt = _rendered(row, encode, path, param)
        by_length[len(prompt)] = prompt
        room = context_tokens - len(prompt)
        if room < 1:
            message = (
                f"the prompt has {len(prompt):,} tokens; the model's context holds "
                f"{context_tokens:,}, the answer included. Shorten the row or leave it out"
            )
            raise _refused(message, path, row, param)
        if room < plan.max_completion_tokens:
            short.append(row.line)
    if not short:
        return list(by_length.values()), None
    least = context_tokens - max(by_length)
    return list(by_length.values()), (
        f"{len(short):,} prompts of {path} leave less than max_completion_tokens="
        f"{plan.max_completion_tokens:,} of the model's context of {context_tokens:,} tokens, the "
        f"first in line {short[0]}: answers to them are cut where the context ends, the shortest "
        f"after {least:,} tokens. Shorten these prompts, or lower max_completion_tokens."
    )


def _rendered(row: Row, encode: Encode, path: str, param: str | None) -> list[int]:
    try:
        return encode(row)
    except InputError as error:
        raise _refused(error.message, path, row, param) from None
    except Exception as error:  # a chat template is a program of its own
        message = f"the model's chat template cannot take these messages: {error!r}"
        raise _refused(message, path, row, param) from error


def _refused(message: str, path: str, row: Row, param: str | None) -> RowError:
    return RowError(message, path=path, line=row.line, param=param)
