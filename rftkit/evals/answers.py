"""Run models on the prompts of a dataset, many at once, and grade their answers.

A failed request, or a tool that failed, stays visible as a missing answer. It is a failed grade and
never a zero. Not here: eval runs on a server, comparisons with intervals.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from rftkit.graders import Grade, Sample
from rftkit.graders.calls import calling
from rftkit.hyperparameters import EPISODE_STEPS
from rftkit.prompts import Prompt
from rftkit.rows import Row
from rftkit.tools import ToolCall, ToolFailed

if TYPE_CHECKING:
    from openai import OpenAI

    from rftkit.graders import CompiledGrader
    from rftkit.tools import Tools

__all__ = ["Answer", "ask", "grade", "of_episode", "side_by_side"]

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer to one row, or the error instead of it."""

    model: str
    sample: Sample | None
    """The answer; None if the request failed."""
    error: str | None = None
    """Why it failed."""
    tokens: int | None = None
    """Completion tokens, as the service counted; None when it did not."""
    prompt_tokens: int | None = None
    """Tokens of the prompt, as the service counted; None when it did not."""

    @property
    def text(self) -> str:
        """The text of the answer; empty when the request failed."""
        return self.sample.output_text if self.sample else ""

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The calls of functions, as chat completions spell them."""
        return list(self.sample.output_tools) if self.sample else []

    @property
    def truncated(self) -> bool:
        """Whether the answer hit its token limit."""
        return self.sample is not None and self.sample.truncated


def ask(
    client: OpenAI,
    model: str,
    rows: Sequence[Row],
    *,
    response_format: Mapping[str, Any] | None = None,
    prompt: Prompt | None = None,
    concurrency: int = 32,
    on_answer: Callable[[int, Answer], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    tools: Tools | None = None,
    max_turns: int = EPISODE_STEPS,
    **options: Any,
) -> list[Answer]:
    """Send every row's prompt once; the answers are in the order of the rows.

    Args:
        client: From `rftkit.connect()`, or any `openai.OpenAI`.
        model: A base model, a checkpoint or a fine-tuned model.
        rows: The dataset rows.
        response_format: Constrains the answers, as it did in training.
        prompt: Put before each row's messages; the grader sees the row without it.
        concurrency: Requests under way at the same time.
        on_answer: Called with (index of the row, answer) as each answer comes, one at a time.
        stop: Once it returns True, no further request is sent.
        tools: Answer the calls of the model, which continues until it makes none; without them a
            call is the answer.
        max_turns: Most requests for one row; calls of the last one are not made.
        options: Other arguments of `chat.completions.create`; `temperature=0` gives the likeliest
            answer.
    """
    if response_format is not None:
        options["response_format"] = response_format

    turn = threading.Lock()

    def one(index: int, row: Row) -> Answer:
        if stop():
            return Answer(model, None, "stopped before it was asked")
        functions = tools.definitions(row.item) if tools else row.tools
        own: Json = {"tools": functions} if functions else {}
        if functions and (parallel := row.item.get("parallel_tool_calls")) is not None:
            own["parallel_tool_calls"] = parallel
        messages = row.messages if prompt is None else prompt.before(row.messages)

        def send(said: Sequence[Json]) -> Answer:
            asked = [*messages, *said]
            return calls.run(lambda: _ask(client, model, asked, {**options, **own}), None)

        if tools and functions:
            item = {**row.item, "tools": functions}
            answer = _episode(send, tools, item, max_turns)
        else:
            answer = send(())
        if on_answer is not None:
            with turn:
                on_answer(index, answer)
        return answer

    with calling(concurrency) as (pool, calls):
        return list(pool.map(one, range(len(rows)), rows))


def of_episode(sample: Sample, before: Sequence[Json]) -> Sample:
    """The sample of an answer with several turns: the last turn, and the messages `before` it."""
    calls = [call for message in before for call in message.get("tool_calls", ())]
    if not calls:
        return sample
    [choice] = sample.to_dict()["choices"]
    return sample.of_episode(calls, [*before, choice["message"]])


def _episode(
    send: Callable[[Sequence[Json]], Answer], tools: Tools, item: Json, max_turns: int
) -> Answer:
    """The model's last answer, after its tool calls were made."""
    trace, said, tokens = f"trace_{uuid.uuid4().hex}", list[Json](), 0
    first = answer = send(said)
    for left in reversed(range(max_turns)):
        tokens += answer.tokens or 0
        calls = answer.tool_calls
        if not calls or not left or answer.truncated:
            break
        try:
            results = _results(tools, calls, trace, item)
        except ToolFailed as error:
            return Answer(answer.model, None, str(error))
        said += [{"role": "assistant", "content": answer.text, "tool_calls": calls}, *results]
        answer = send(said)
    if answer.sample is None:
        return answer
    known = None if answer.tokens is None else tokens
    sample = of_episode(answer.sample, said)
    return replace(answer, sample=sample, tokens=known, prompt_tokens=first.prompt_tokens)


def _results(tools: Tools, calls: Sequence[Json], trace: str, item: Json) -> list[Json]:
    """The messages with the results of one turn's calls, which are made at once."""

    def make(call: Json) -> Json:
        made = ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
        reply = tools.call(made, trace_id=trace, item=item)
        return {"role": "tool", "tool_call_id": call["id"], "content": reply.text}

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(make, calls))


def grade(grader: CompiledGrader, answers: Sequence[Answer], rows: Sequence[Row]) -> list[Grade]:
    """Grade each answer against its row; a missing answer is a failed grade.

    A grader compiled with `purpose="eval"` grades what there is of an answer that was cut off; one
    of a job gives it the floor reward.
    """
    came = [
        (answer.sample, row.item)
        for answer, row in zip(answers, rows, strict=True)
        if answer.sample is not None
    ]
    graded = iter(grader.grade_many(came))
    return [
        next(graded)
        if answer.sample
        else Grade(None, "failed", {}, {"request_error": answer.error or ""})
        for answer in answers
    ]


def side_by_side(
    rows: Sequence[Row],
    answers: Mapping[str, Sequence[Answer]],
    grades: Mapping[str, Sequence[Grade]],
) -> list[dict[str, Any]]:
    """The rows with every model's answer and grade, as plain data for `rftkit.views.answers`.

    Args:
        rows: The dataset rows.
        answers: Label, such as `base` or `final`, to one answer per row.
        grades: The same labels to one grade per row.
    """
    return [
        {
            "item": row.item,
            "line": row.line,
            "answers": {
                label: {
                    "model": given[index].model,
                    "text": given[index].text,
                    "tool_calls": given[index].tool_calls,
                    "truncated": given[index].truncated,
                    "grade": asdict(grades[label][index]),
                }
                for label, given in answers.items()
            },
        }
        for index, row in enumerate(rows)
    ]


def _ask(client: OpenAI, model: str, messages: Any, options: dict[str, Any]) -> Answer:
    from openai import OpenAIError

    try:
        reply = client.chat.completions.create(model=model, messages=messages, **options)
    except OpenAIError as error:
        return Answer(model, None, str(error))
    choice = reply.choices[0]
    sample = Sample.from_text(
        choice.message.content or "",
        response_format=options.get("response_format"),
        truncated=choice.finish_reason == "length",
        tool_calls=[call.to_dict() for call in choice.message.tool_calls or []],
        model=model,
    )
    usage = reply.usage
    return Answer(
        model,
        sample,
        tokens=usage.completion_tokens if usage else None,
        prompt_tokens=usage.prompt_tokens if usage else None,
    )
