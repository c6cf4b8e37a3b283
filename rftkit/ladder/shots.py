"""Few-shot examples from the training rows: sets of rows with their reference answers.

A set is drawn at random, as evenly as it can be over the values of what takes few values in the
answers, such as a verdict: examples of one verdict alone teach a model to always give it. Not here:
measuring the sets (`search`).
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rftkit.graders import reference_answer
from rftkit.jsontext import parse_json
from rftkit.prompts import own_system
from rftkit.rows import Row

__all__ = ["Shots", "answered_rows", "draw_shots"]

SIZES = (3, 6, 2, 4)
"""Examples of the sets, in turn."""
MAX_VALUES = 12
"""A key of the answers with more values is free text."""
MAX_CHARS = 8_000
"""Most characters of all examples of a set together: about 2,000 tokens."""


@dataclass(frozen=True, slots=True)
class Shots:
    """A set of examples."""

    messages: tuple[dict[str, Any], ...]
    """Prompt and answer of each example in turn, without system messages."""
    lines: tuple[int, ...]
    """The lines of the examples in the training file."""


def answered_rows(
    rows: Sequence[Row],
    grader: Mapping[str, Any],
    response_format: Mapping[str, Any] | None,
) -> list[tuple[Row, str]]:
    """The rows that can be examples, with their reference answers; `grader` is normalised."""
    found = [
        (row, reference_answer(row.item, response_format, grader=grader))
        for row in rows
        if not row.tools
    ]
    return [(row, answer) for row, answer in found if answer is not None]


def draw_shots(answered: Sequence[tuple[Row, str]], count: int, *, seed: int) -> list[Shots]:
    """`count` different sets of examples; fewer if there are not enough rows."""
    rng = random.Random(seed)
    sets: dict[tuple[int, ...], Shots] = {}
    for attempt in range(4 * count):
        if len(sets) == count or not answered:
            break
        chosen = _fitting(_in_turn(answered, rng), SIZES[attempt % len(SIZES)])
        lines = tuple(row.line for row, _ in chosen)
        if chosen and lines not in sets:
            messages = [message for row, answer in chosen for message in _example(row, answer)]
            sets[lines] = Shots(tuple(messages), lines)
    return list(sets.values())


def _in_turn(answered: Sequence[tuple[Row, str]], rng: random.Random) -> Iterator[tuple[Row, str]]:
    """All rows in random order, the labels taking turns."""
    labels = _labels([answer for _, answer in answered])
    groups: dict[str, list[tuple[Row, str]]] = defaultdict(list)
    for pair, label in zip(answered, labels, strict=True):
        groups[label].append(pair)
    queues = [rng.sample(group, len(group)) for group in groups.values()]
    rng.shuffle(queues)
    while queues := [queue for queue in queues if queue]:
        yield from (queue.pop() for queue in queues)


def _fitting(rows: Iterator[tuple[Row, str]], size: int) -> list[tuple[Row, str]]:
    """The first rows, as many as there should be and as have room."""
    chosen, room = list[tuple[Row, str]](), MAX_CHARS
    for row, answer in rows:
        length = sum(len(str(message["content"])) for message in _example(row, answer))
        if length <= room:
            chosen.append((row, answer))
            room -= length
        if len(chosen) == size:
            break
    return chosen


def _example(row: Row, answer: str) -> list[dict[str, Any]]:
    has_system = own_system(row.messages) is not None
    prompt = row.messages[1:] if has_system else row.messages
    return [*prompt, {"role": "assistant", "content": answer}]


def _labels(answers: Sequence[str]) -> list[str]:
    """For each answer, the values of those fields that take few values over all answers."""
    values = [_object_of(answer) for answer in answers]
    keys = dict.fromkeys(key for value in values for key in value)
    most = min(MAX_VALUES, len(values) // 2)
    few = [key for key in keys if 1 < len({json.dumps(value.get(key)) for value in values}) <= most]
    return [json.dumps([value.get(key) for key in few]) for value in values]


def _object_of(answer: str) -> dict[str, Any]:
    """The answer as an object; plain text is the value of one key."""
    try:
        value = parse_json(answer)
    except ValueError:
        value = answer
    return value if isinstance(value, dict) else {"": value}
