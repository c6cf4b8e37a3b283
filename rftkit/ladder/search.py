"""The prompt rung: a better system text and few-shot examples, without training.

1. Candidates: system texts by reflection, if a reflection model is given, and sets of examples from
   the training rows' references, on top of the best system text.
2. All of them answer the same training rows; the best few continue.
3. Those answer the validation rows, and the one with the highest mean is chosen. Staying with the
   prompt that the rows have is one of the candidates.

Every candidate keeps its mean and its paired difference from the start, with intervals that are
corrected for the number of candidates (`rftkit.evals`). Not here: training (`climb`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rftkit import evals
from rftkit.errors import InputError
from rftkit.evals import Comparison, Estimate, PairSummary, Samples
from rftkit.evals.samples import row_key
from rftkit.graders import validate
from rftkit.ladder.asking import Task
from rftkit.ladder.reflection import Reflect, rewritten
from rftkit.ladder.shots import answered_rows, draw_shots
from rftkit.prompts import Prompt, own_system, write_prompt
from rftkit.rows import Row

__all__ = ["Budget", "Candidate", "PromptSearch", "optimize_prompt"]

START = "as it is"
"""The label of the prompt that the rows have already."""
OnProgress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Budget:
    """How much a search may try."""

    candidates: int = 8
    """Sets of examples."""
    train_rows: int = 32
    """Training rows that every candidate answers."""
    finalists: int = 3
    """Candidates that answer the validation rows, the start not counted."""
    valid_rows: int = 200
    """Validation rows, at most."""
    reflection_answers: int = 400
    """Answers to training rows while system texts are rewritten."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One prompt that was tried, with what it earned."""

    label: str
    prompt: Prompt
    train: Estimate | None
    """Mean reward on the training rows that every candidate answered; None if there was none."""
    train_difference: Estimate | None
    """Paired difference from the start on them, corrected for all candidates."""
    valid: Estimate | None
    """Mean reward on the validation rows; None for one that did not get so far."""
    valid_difference: Estimate | None
    """Paired difference from the start on them, corrected for all finalists."""
    verdict: str | None
    """better, worse or unclear, from the validation rows; None without them."""

    def to_dict(self) -> dict[str, Any]:
        """The candidate as plain data, for the prompt file."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class PromptSearch:
    """The prompt that was found, and everything that was tried."""

    prompt: Prompt
    chosen: str
    """The label of the chosen candidate."""
    candidates: tuple[Candidate, ...]
    """The start first, then in the order they were tried."""
    valid: Comparison
    """The finalists on the validation rows."""
    seconds: float
    tokens: int
    """Read and written by the model."""
    seed: int

    @property
    def sentence(self) -> str:
        """What was chosen and how certain the gain is."""
        if self.chosen == START:
            return (
                f"No prompt of {len(self.candidates) - 1} earns more on the validation rows than "
                "the one that the rows have; it is kept."
            )
        return f"{self.chosen} ({self.prompt}) is chosen. {self.valid.pair(self.chosen).sentence}"

    def write(self, path: str | Path, **about: Any) -> None:
        """Write the prompt file with every candidate in it; `about` is written with them."""
        search = {
            "chosen": self.chosen,
            "sentence": self.sentence,
            "candidates": [each.to_dict() for each in self.candidates],
            "seconds": self.seconds,
            "tokens": self.tokens,
            "seed": self.seed,
            **about,
        }
        write_prompt(path, self.prompt, search=search)

    def records(self) -> list[dict[str, Any]]:
        """A line for each candidate, for a table."""
        return [_record(each, each.label == self.chosen) for each in self.candidates]


def optimize_prompt(
    task: Task,
    model: str,
    train: Sequence[Row],
    valid: Sequence[Row],
    *,
    start: Prompt | None = None,
    reflect: Reflect | None = None,
    budget: Budget = Budget(),
    seed: int = 1,
    on_progress: OnProgress = lambda line: None,
) -> PromptSearch:
    """Search for a prompt that earns a higher reward.

    Args:
        task: What the model is asked to do, and how its answers are graded.
        model: The model whose prompt is searched.
        train: The training rows.
        valid: The validation rows; they choose, and nothing else is made of them.
        start: The prompt to start from; default the rows' own.
        reflect: Asks a reflection model (`reflect_with`); None for examples alone.
        budget: How much to try.
        seed: Of the draws.
        on_progress: Called with each line of progress.

    Raises:
        InputError: There are too few rows, or nothing to try.
        MissingExtraError: With `reflect`, the package `gepa` is not installed.
    """
    train, valid = _distinct(train), _distinct(valid)[: budget.valid_rows]
    if len(train) < 2 or len(valid) < 2:
        raise InputError(
            f"a search needs at least two training rows and two validation rows, found "
            f"{len(train)} and {len(valid)}"
        )
    before = (task.cost.seconds, task.cost.tokens)
    start = start or _start_of(train)
    rng = random.Random(seed)
    measured = rng.sample(train, min(budget.train_rows, max(1, len(train) // 2)))
    rest = [row for row in train if row not in measured]
    prompts = {START: start}
    if reflect is not None:
        on_progress("Rewriting the system text …")
        texts = rewritten(
            task, model, rest, measured, start, reflect,
            max_answers=budget.reflection_answers, seed=seed,
        )  # fmt: skip
        prompts |= {f"system text {at}": each for at, each in enumerate(texts, 1)}
    best_text = next((each for label, each in prompts.items() if label != START), start)
    spec = validate(task.grader)
    for at, shots in enumerate(
        draw_shots(answered_rows(rest, spec, task.response_format), budget.candidates, seed=seed), 1
    ):
        prompts[f"examples {at}"] = Prompt(best_text.system, shots.messages, start.replaces)
    if len(prompts) == 1:
        raise InputError(
            "there is nothing to try: no training row has a reference answer to make examples of; "
            "give a reflection model (--reflection-model), or rows with a `reference_answer`"
        )
    on_progress(f"{len(prompts)} prompts on {len(measured)} training rows …")
    first = _compared(task, model, measured, prompts)
    finalists = _best(first, list(prompts), budget.finalists)
    on_progress(f"{len(finalists)} of them on {len(valid)} validation rows …")
    final = _compared(task, model, valid, {label: prompts[label] for label in finalists})
    chosen = max(finalists, key=lambda label: (_mean(final, label), label == START))
    return PromptSearch(
        prompt=prompts[chosen],
        chosen=chosen,
        candidates=tuple(_candidate(label, prompts[label], first, final) for label in prompts),
        valid=final,
        seconds=task.cost.seconds - before[0],
        tokens=task.cost.tokens - before[1],
        seed=seed,
    )


def _distinct(rows: Sequence[Row]) -> list[Row]:
    """The rows without repetitions."""
    return list({row_key(row.item): row for row in rows}.values())


def _start_of(rows: Sequence[Row]) -> Prompt:
    """The system text that all rows have, which a search may rewrite; else an empty prompt."""
    texts = {own_system(row.messages) for row in rows}
    text = texts.pop() if len(texts) == 1 else None
    return Prompt(text, (), text) if text else Prompt()


def _compared(
    task: Task, model: str, rows: Sequence[Row], prompts: Mapping[str, Prompt]
) -> Comparison:
    runs: list[Samples] = [
        task.run(model, rows, name=label, prompt=prompt) for label, prompt in prompts.items()
    ]
    return evals.compare(evals.together(*runs), baseline=START)


def _best(comparison: Comparison, labels: Sequence[str], count: int) -> list[str]:
    """The start, and the candidates with the highest means."""
    others = [label for label in labels if label != START]
    return [START, *sorted(others, key=lambda label: -_mean(comparison, label))[:count]]


def _mean(comparison: Comparison, label: str) -> float:
    value = comparison.summary(label).reward.value
    return float("-inf") if value is None else value


def _candidate(label: str, prompt: Prompt, first: Comparison, final: Comparison) -> Candidate:
    pair = _pair(final, label)
    earlier = _pair(first, label)
    return Candidate(
        label=label,
        prompt=prompt,
        train=first.summary(label).reward,
        train_difference=earlier.difference if earlier else None,
        valid=final.summary(label).reward if label in final.samples.labels else None,
        valid_difference=pair.difference if pair else None,
        verdict=pair.verdict if pair else None,
    )


def _pair(comparison: Comparison, label: str) -> PairSummary | None:
    return next((pair for pair in comparison.pairs if pair.after == label), None)


def _record(each: Candidate, is_chosen: bool) -> dict[str, Any]:
    difference = each.valid_difference
    return {
        "": "→" if is_chosen else "",
        "prompt": each.label,
        "what": str(each.prompt),
        "train": each.train and each.train.value,
        "valid": each.valid and each.valid.value,
        "difference": difference and difference.value,
        "low": difference and difference.low,
        "high": difference and difference.high,
        "verdict": each.verdict or "",
    }
