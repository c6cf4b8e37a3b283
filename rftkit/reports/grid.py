"""The settings of a sweep, read from YAML.

    seed: [1, 2, 3]          a list: one run for each value, and for each combination of lists
    level: 0.5               another value: the same in every run

or a list of such mappings, without combinations. With `job:` each combination is a job to train:

    job: {model: rftkit-tiny, train: train.jsonl, valid: valid.jsonl, grader: grader.json}
    learning_rate_multiplier: [0.3, 1, 3]
    seed: [1, 2]

Not here: running any of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit.errors import InputError
from rftkit.yamltext import parse_yaml

__all__ = ["MAX_RUNS", "Grid", "read_grid"]

MAX_RUNS = 1000
"""A larger grid is treated as a mistake."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Grid:
    """The settings of each run."""

    settings: tuple[Json, ...]
    """One mapping for each run."""
    job: Json | None = None
    """The settings that all jobs share, if each run trains a job."""


def read_grid(grid: str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Grid:
    """The runs of a grid.

    Args:
        grid: Path of a YAML file, or its content.

    Raises:
        InputError: The grid cannot be read, or it has no runs or too many.
    """
    if isinstance(grid, str | Path):
        return _grid(_loaded(Path(grid)), str(grid))
    return _grid(grid, "the grid")


def _loaded(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def _grid(content: Any, name: str) -> Grid:
    job = None
    if isinstance(content, Mapping):
        content = dict(content)
        job = content.pop("job") if isinstance(content.get("job"), Mapping) else None
        lists = {key: each if isinstance(each, list) else [each] for key, each in content.items()}
        _check_number(math.prod(map(len, lists.values())), name)  # before any is made
        settings = [
            dict(zip(lists, each, strict=True)) for each in itertools.product(*lists.values())
        ]
    elif isinstance(content, Sequence) and all(isinstance(each, Mapping) for each in content):
        settings = [dict(each) for each in content]
    else:
        raise InputError(
            f"{name} must map parameters to lists of values, such as `seed: [1, 2, 3]`; found "
            f"{type(content).__name__}"
        )
    _check_number(len(settings), name)
    if not all(isinstance(key, str) for each in settings for key in each):
        raise InputError(f"{name}: the names of parameters must be text")
    return Grid(tuple(settings), dict(job) if job is not None else None)


def _check_number(runs: int, name: str) -> None:
    if not 0 < runs <= MAX_RUNS:
        raise InputError(f"{name} gives {runs:,} runs; between 1 and {MAX_RUNS} can be run")
