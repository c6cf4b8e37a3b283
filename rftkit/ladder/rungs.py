"""The rungs of a ladder, and the settings that all of them share.

Not here: doing them (`climb`), and what was done (`state`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rftkit.datasets.io import Complete
from rftkit.datasets.writing import sha256
from rftkit.errors import InputError, nearest_name
from rftkit.hyperparameters import check_names
from rftkit.jobs import Method
from rftkit.ladder.search import Budget

__all__ = ["CHOICES", "LABELS", "METHODS", "Plan", "key_of", "parent_of", "rungs_for"]

LABELS = {
    "base": "base",
    "prompt": "prompt",
    "supervised": "supervised",
    "dpo": "dpo",
    "reinforcement": "RFT from base",
    "supervised_reinforcement": "RFT from supervised",
}
"""Rung -> its label on the page, from the bottom up."""
CHOICES = ("prompt", "supervised", "dpo", "reinforcement")
"""What `--rungs` takes; with both supervised and reinforcement there is RFT from supervised too."""
METHODS: dict[str, Method] = {
    "supervised": "supervised",
    "dpo": "dpo",
    "reinforcement": "reinforcement",
    "supervised_reinforcement": "reinforcement",
}
"""Rung -> the method of its job; the others have no job."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All settings that decide the results of a ladder, besides the data."""

    model: str
    """The base model."""
    seed: int = 1
    """The seed of the jobs and of the prompt search."""
    temperature: float = 0.0
    """The temperature of the answers to test rows."""
    max_completion_tokens: int = 256
    """Longest answer, in training and after it."""
    samples: int = 1
    """Answers to each test row."""
    hyperparameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Rung -> hyperparameters of its job; unset ones are `"auto"`."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Stored with every job."""
    budget: Budget = field(default_factory=Budget)
    """The budget of the prompt search."""
    pair_rows: int = 200
    """Training rows whose answers make the pairs of dpo, at most."""
    pair_samples: int = 4
    """Answers to each of them, at temperature 1."""
    reflection_model: str | None = None
    """Rewrites the system text in the prompt search; None for examples alone."""

    def __post_init__(self) -> None:
        """Refuse settings that a rung's job would refuse, before any rung has taken its time.

        Raises:
            InputError: names the rung and the setting.
        """
        for rung, given in {**{each: {} for each in METHODS}, **self.hyperparameters}.items():
            if rung not in METHODS:
                raise InputError(
                    f"there are no hyperparameters of {rung!r}; {nearest_name(rung, METHODS)}"
                )
            try:
                check_names(given, self.metadata, METHODS[rung])
            except InputError as error:
                raise InputError(f"{rung}: {error}", param=error.param) from None

    def settings_of(self, rung: str) -> Mapping[str, Any] | None:
        """The hyperparameters of a rung's job; RFT from supervised has those of RFT by default."""
        own = self.hyperparameters.get(rung)
        if own is None and rung == "supervised_reinforcement":
            return self.hyperparameters.get("reinforcement")
        return own


def rungs_for(chosen: Sequence[str] = CHOICES) -> tuple[str, ...]:
    """The rungs of a choice, in order, with the base and with RFT from supervised.

    Raises:
        InputError: One of them is no rung.
    """
    if unknown := [each for each in chosen if each not in CHOICES]:
        raise InputError(f"there is no rung {unknown[0]!r}; there are {', '.join(CHOICES)}")
    wanted = {"base", *chosen}
    if {"supervised", "reinforcement"} <= wanted:
        wanted.add("supervised_reinforcement")
    return tuple(rung for rung in LABELS if rung in wanted)


def parent_of(rung: str, rungs: Sequence[str]) -> str:
    """The rung whose model a rung starts from: for dpo and the last one supervised, if it is there.

    A model that has seen right answers gives better pairs, and its updates stay small.
    """
    is_after = rung in ("dpo", "supervised_reinforcement")
    return "supervised" if is_after and "supervised" in rungs else "base"


def key_of(rung: str, rungs: Sequence[str], plan: Plan, data: Complete) -> str:
    """Sixteen letters that change with everything that decides the result of a rung."""
    settings = asdict(plan)
    relevant = {
        name: settings[name]
        for name in ("model", "seed", "temperature", "max_completion_tokens", "samples")
    }
    if rung == "prompt":
        relevant |= {name: settings[name] for name in ("budget", "reflection_model")}
    if rung in METHODS:
        relevant |= {"hyperparameters": plan.settings_of(rung), "metadata": plan.metadata}
    if rung == "dpo":
        relevant |= {name: settings[name] for name in ("pair_rows", "pair_samples")}
    if (parent := parent_of(rung, rungs)) != "base":
        relevant["parent"] = key_of(parent, rungs, plan, data)
    files = [sha256(path) for path in (data.train, data.valid, data.test)]
    content = [rung, relevant, files, data.grader, data.response_format]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[
        :16
    ]
