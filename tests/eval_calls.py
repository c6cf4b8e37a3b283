"""Evals and runs as tests make them, through the real client."""

from __future__ import annotations

import time
from typing import Any

from conftest import GRADER, Served

MODEL = "rftkit-tiny"
SIMILAR = {
    "type": "text_similarity", "name": "alike-enough", "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}", "evaluation_metric": "fuzzy_match", "pass_threshold": 0.9,
}  # fmt: skip
ITEM_SCHEMA = {
    "type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"],
}  # fmt: skip
BROKEN = {"type": "python", "name": "broken", "source": "def grade(sample, item):\n    return 1/0"}


def make_eval(served: Served, *criteria: Any, **more: Any) -> Any:
    return served.client.evals.create(
        name="mine",
        data_source_config={"type": "custom", "item_schema": ITEM_SCHEMA},
        testing_criteria=list(criteria) or [GRADER, SIMILAR],  # type: ignore[list-item]
        **more,
    )


def content(*answers: str, **rest: Any) -> Any:
    return {"type": "file_content", "content": [{"item": {"answer": a}, **rest} for a in answers]}


def finished(served: Served, run: Any) -> Any:
    deadline = time.monotonic() + 30
    while run.status in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
        run = served.client.evals.runs.retrieve(run.id, eval_id=run.eval_id)
    return run


def asking(served: Served, **more: Any) -> Any:
    """A run that asks the model, of rows with one answer each."""
    source = {
        "type": "completions", "model": MODEL, "source": content("hello"),
        "input_messages": {"type": "template", "template": [{"role": "user", "content": "hi"}]},
        **more,
    }  # fmt: skip
    return served.client.evals.runs.create(make_eval(served).id, data_source=source)  # type: ignore[arg-type]
