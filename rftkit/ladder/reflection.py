"""System texts by reflection: a model reads graded answers and rewrites the instructions.

The search is that of the package `gepa` (Agrawal et al. 2025, arXiv:2507.19457): candidates are
rewritten from feedback on a few training rows, and kept while they are the best on some of the
tracked rows. Here are its adapter and the call of the reflection model. Not here: the choice on
validation rows (`search`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rftkit.errors import MissingExtraError
from rftkit.evals.samples import SCORE, prompt_of, row_key
from rftkit.graders import reference_answer
from rftkit.ladder.asking import Task
from rftkit.ladder.kept import Kept
from rftkit.prompts import Prompt
from rftkit.rows import Row

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["Reflect", "reflect_with", "rewritten"]

SYSTEM = "system"
SEED_TEXT = "Answer the user's request."
"""The text that rewriting starts from when the rows have no system text."""
MINIBATCH = 4
"""Training rows whose answers the reflection model reads at a time."""

Reflect = Callable[[str], str]
"""A function from a request in words to the reflection model's answer."""


def reflect_with(client: OpenAI, model: str) -> Reflect:
    """Ask a model of any OpenAI-compatible service for rewritten instructions."""

    def reflect(request: Any) -> str:
        messages: Any = request
        if isinstance(request, str):
            messages = [{"role": "user", "content": request}]
        reply = client.chat.completions.create(model=model, messages=messages)
        return reply.choices[0].message.content or ""

    return reflect


def rewritten(
    task: Task,
    model: str,
    rows: Sequence[Row],
    tracked: Sequence[Row],
    start: Prompt,
    reflect: Reflect,
    *,
    max_answers: int,
    seed: int,
) -> list[Prompt]:
    """Prompts with rewritten system texts, the best on the tracked rows first.

    Args:
        task: What the model is asked to do.
        model: The model whose prompt is searched.
        rows: Training rows that give feedback.
        tracked: Other training rows, on which candidates are compared during the search.
        start: The prompt to start from.
        reflect: Asks the reflection model.
        max_answers: Answers to sample in all.
        seed: Of the search.

    Raises:
        MissingExtraError: The package `gepa` is not installed.
        InputError: Not one answer could be graded.
    """
    try:
        gepa = importlib.import_module("gepa")
    except ImportError:
        raise MissingExtraError("gepa", "prompt") from None

    adapter = _adapter(task, model, start)
    found: Any = gepa.optimize(
        seed_candidate={SYSTEM: start.system or SEED_TEXT},
        trainset=list(rows),
        valset=list(tracked),
        adapter=adapter,
        reflection_lm=reflect if task.kept is None else _keeping(reflect, task.kept),
        reflection_minibatch_size=min(MINIBATCH, len(rows)),
        max_metric_calls=max_answers,
        seed=seed,
        logger=_Quiet(),
    )
    order = sorted(range(len(found.candidates)), key=lambda at: -found.val_aggregate_scores[at])
    texts = dict.fromkeys(str(found.candidates[at][SYSTEM]) for at in order)
    return [Prompt(text, start.examples, start.replaces) for text in texts if text != start.system]


def _keeping(reflect: Reflect, kept: Kept) -> Reflect:
    """The same function, but a stored answer is not requested again."""

    def recall(request: Any) -> str:
        key = kept.key(["reflection", request])
        if kept.find(key) is None:
            kept.add(key, reflect(request))
        return str(kept.find(key))

    return recall


class _Quiet:
    """A logger for gepa that drops everything."""

    def log(self, *_: Any, **__: Any) -> None: ...


def _adapter(task: Task, model: str, start: Prompt) -> Any:
    """The object through which gepa evaluates a candidate."""
    evaluation_batch = importlib.import_module("gepa.core.adapter").EvaluationBatch

    class Adapter:
        propose_new_texts = None

        def evaluate(
            self, batch: list[Row], candidate: dict[str, str], capture_traces: bool = False
        ) -> Any:
            prompt = Prompt(candidate[SYSTEM], start.examples, start.replaces)
            frame = task.run(model, batch, name="candidate", prompt=prompt).frame
            lines = frame.set_index("row").to_dict("index")
            found = [lines[row_key(row.item)] for row in batch]
            scores = _scores([line["reward"] for line in found])
            traces = [{"row": row, "line": line} for row, line in zip(batch, found, strict=True)]
            return evaluation_batch(
                outputs=[line["answer"] for line in found],
                scores=scores,
                trajectories=traces if capture_traces else None,
            )

        def make_reflective_dataset(
            self, candidate: dict[str, str], eval_batch: Any, components_to_update: list[str]
        ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
            lessons = [_lesson(task, **trace) for trace in eval_batch.trajectories or []]
            return dict.fromkeys(components_to_update, lessons)

    return Adapter()


def _scores(rewards: Sequence[float]) -> list[float]:
    """Rewards for gepa, which wants a number for each row.

    An answer without a grade gets the mean of the others, so that it counts neither as good nor as
    bad.
    """
    mean = fmean(reward for reward in rewards if reward == reward)
    return [float(reward) if reward == reward else mean for reward in rewards]


def _lesson(task: Task, row: Row, line: Mapping[str, Any]) -> dict[str, str]:
    """What the reflection model reads about one answer."""
    scores = [
        f"{name.removeprefix(SCORE)} {value:.2f}"
        for name, value in line.items()
        if name.startswith(SCORE) and value == value
    ]
    reward = line["reward"]
    said = f"reward {reward:.2f}" if reward == reward else f"not graded: {line['error']}"
    reference = reference_answer(row.item, task.response_format, grader=task.grader)
    feedback = [", ".join([said, *scores])]
    feedback += [f"the grader says: {line['judge']}"] if line.get("judge") else []
    feedback += [f"a right answer is: {reference}"] if reference else []
    return {
        "Inputs": prompt_of(row.item),
        "Generated Outputs": str(line["answer"]),
        "Feedback": "; ".join(feedback),
    }
