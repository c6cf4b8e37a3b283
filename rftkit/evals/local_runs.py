"""Local runs: run a model on every row of a dataset, grade its answers and save them as a run.

`run` needs only chat completions. So base models, checkpoints and models of other services can be
compared even after a service's evals are gone. `publish` uploads stored samples to a service that
has eval runs, as a run over given answers. Not here: comparing runs.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rftkit import graders
from rftkit.errors import InputError
from rftkit.evals import saved_runs
from rftkit.evals.answers import Answer, ask
from rftkit.evals.grading import digest_of, fill_grades
from rftkit.evals.samples import Run, Samples, row_key
from rftkit.prompts import Prompt
from rftkit.rows import Row
from rftkit.tools import ToolFailed, check_tools, open_tools

if TYPE_CHECKING:
    import pandas as pd
    from openai import OpenAI

    from rftkit.tools import Tools

__all__ = ["graded_run", "publish", "run", "ungraded_run"]

INLINE_BYTES = 8 * 1024 * 1024
"""Rows up to this size are sent in the request; services limit it, so larger ones are uploaded as a
file."""


def run(
    client: OpenAI,
    model: str,
    rows: Sequence[Row],
    grader: Mapping[str, Any],
    *,
    samples: int = 1,
    name: str | None = None,
    response_format: Mapping[str, Any] | None = None,
    prompt: Prompt | None = None,
    keep_run: bool = True,
    concurrency: int = 32,
    grading: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    on_answer: Callable[[int, Answer], None] | None = None,
    **options: Any,
) -> Samples:
    """Run a model on every row, grade the answers, and save them in the home folder.

    Args:
        client: From `rftkit.connect()`, or any `openai.OpenAI`.
        model: A base model, a checkpoint or a fine-tuned model.
        rows: The dataset rows, from `rftkit.datasets.read`.
        grader: The spec of the grader.
        samples: Answers per row.
        name: The label of the run; default the model.
        response_format: Constrains the answers, as it did in training.
        prompt: Put before each row's messages. Rows keep their keys, so that runs with and
            without it are compared row by row.
        keep_run: Save it in the home folder (`rftkit eval list`).
        concurrency: Requests under way at the same time.
        grading: Options of `rftkit.graders.compile_grader`; `complete` calls the judge.
        tools: Where the calls of the rows' functions go, as the `tools` of a job; they are made
            from here. Without them a call is the answer.
        on_answer: Called with (number of the answer, answer) as each comes, one at a time.
        options: Other arguments of `chat.completions.create`, such as `temperature`.

    Raises:
        GraderSpecError: The spec is malformed.
        InputError: There is no row, `samples` is below one, a function has no server, or a server
            cannot be reached.
    """
    if not rows or samples < 1:
        raise InputError("a run needs at least one row and one sample per row (samples=1)")
    asked = [row for row in rows for _ in range(samples)]
    with _opened(tools) as found_tools:
        if found_tools is not None:
            found_tools.check_rows(rows)
        answers = ask(client, model, asked, response_format=response_format, prompt=prompt,
                      concurrency=concurrency, tools=found_tools, on_answer=on_answer,
                      **options)  # fmt: skip
    found = graded_run(
        asked, answers, grader, name=name or model, model=model, response_format=response_format,
        prompt=prompt, grading=grading,
    )  # fmt: skip
    if keep_run:
        saved_runs.save(saved_runs.record_of(found, name or model))
    return found


@contextlib.contextmanager
def _opened(tools: Sequence[Mapping[str, Any]] | None) -> Iterator[Tools | None]:
    """The tools of a run while it lasts; None without tools.

    Raises:
        InputError: an entry is malformed, or its server cannot be reached.
    """
    if not tools:
        yield None
        return
    try:
        found = open_tools(check_tools(list(tools), "tools"))
    except ToolFailed as error:
        raise InputError(str(error)) from None
    with contextlib.closing(found):
        yield found


def graded_run(
    rows: Sequence[Row],
    answers: Sequence[Answer],
    grader: Mapping[str, Any],
    *,
    name: str,
    model: str,
    response_format: Mapping[str, Any] | None = None,
    prompt: Prompt | None = None,
    grading: Mapping[str, Any] | None = None,
) -> Samples:
    """Grade answers that were given already, as a run; it is not saved.

    Args:
        rows: The row of each answer; a row with several answers occurs several times.
        answers: From `ask`.
        grader: The spec of the grader.
        name: The label of the run.
        model: The model that answered.
        response_format: What the answers were constrained to.
        prompt: What was put before each row's messages.
        grading: Options of `rftkit.graders.compile_grader`.
    """
    from rftkit.graders.frames import grade_many

    made = ungraded_run(
        rows, answers, name=name, model=model, response_format=response_format,
        grader=str(grader.get("name") or grader.get("type")),
    )  # fmt: skip
    runs = tuple(replace(run, grader_digest=digest_of(grader)) for run in made.runs)
    frame = made.frame
    came = frame["error"].isna().to_numpy(bool)
    pairs = [
        (answer.sample, row.item)
        for answer, row in zip(answers, rows, strict=True)
        if answer.sample is not None
    ]
    options = {"purpose": "eval", **(grading or {})}  # answers that were cut off are graded too
    fill_grades(frame, came, grade_many(grader, pairs, **options), grader)
    notes = (f"{name} was asked with a prompt file: {prompt}.",) if prompt else ()
    return replace(made, notes=notes, runs=runs)


def ungraded_run(
    rows: Sequence[Row],
    answers: Sequence[Answer],
    *,
    name: str,
    model: str | None = None,
    response_format: Mapping[str, Any] | None = None,
    grader: str | None = None,
) -> Samples:
    """Answers as a run whose samples have no grade yet; arguments as of `graded_run`."""
    made = Run(
        label=name,
        id=f"{saved_runs.LOCAL_PREFIX}{uuid.uuid4().hex[:16]}",
        model=model,
        created_at=int(time.time()),
        source="home",
        grader=grader,
    )
    items = {row_key(row.item): row.item for row in rows}
    numbers = {row_key(row.item): at for at, row in reversed(list(enumerate(rows, 1)))}
    frame = _frame(made, rows, answers)
    return Samples((made,), frame, items, numbers, response_format=response_format)


def publish(
    client: OpenAI, samples: Samples, label: str, grader: Mapping[str, Any], *, name: str
) -> str:
    """Upload a run to a service that has eval runs; the service grades the answers itself.

    Args:
        client: From `rftkit.connect()`, or any `openai.OpenAI`.
        samples: The samples.
        label: The run to upload.
        grader: The spec; a multi becomes one criterion per part, since evals have no multi.
        name: The name of the eval and its run.

    Returns:
        `eval_…/evalrun_…`, for `fetch` once the run has completed.

    Raises:
        NotFoundError: No run has that label.
    """
    chosen = samples.select([label]).frame
    columns = ["row", "answer", "error", "truncated"]
    content = [
        {
            "item": dict(samples.items.get(row) or {}),
            "sample": {"output_text": answer, **({"finish_reason": "length"} if cut else {})},
        }
        for row, answer, error, cut in chosen[columns].itertuples(index=False)
        if answer or (answer == "" and not isinstance(error, str))
    ]
    criteria: Any = list(graders.parts(grader).values())
    config: Any = {
        "type": "custom",
        "item_schema": {"type": "object"},
        "include_sample_schema": True,
    }
    made = client.evals.create(name=name, data_source_config=config, testing_criteria=criteria)
    source: Any = {"type": "jsonl", "source": _source(client, content)}
    run = client.evals.runs.create(made.id, name=name, data_source=source)
    return f"{made.id}/{run.id}"


def _source(client: OpenAI, content: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows of an eval run: within the request, or as a file where that would be too large."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content).encode()
    if len(lines) <= INLINE_BYTES:
        return {"type": "file_content", "content": content}
    file = client.files.create(file=("answers.jsonl", lines), purpose="evals")
    return {"type": "file_id", "id": file.id}


def _frame(made: Run, asked: Sequence[Row], answers: Sequence[Answer]) -> pd.DataFrame:
    """Samples without grades yet."""
    import pandas as pd

    seen: dict[str, int] = {}
    lines = []
    for row, answer in zip(asked, answers, strict=True):
        key = row_key(row.item)
        seen[key] = seen.get(key, -1) + 1
        lines.append({
            "run": made.label,
            "step": pd.NA,
            "row": key,
            "sample": seen[key],
            "reward": float("nan"),
            "passed": pd.NA,
            "outcome": "failed",
            "truncated": answer.truncated,
            "tokens": float("nan") if answer.tokens is None else float(answer.tokens),
            "answer": answer.text,
            "error": answer.error,
            "judge": None,
        })  # fmt: skip
    return pd.DataFrame(lines).astype({"step": "Int64", "passed": "boolean", "error": object})
