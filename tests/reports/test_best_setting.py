"""The first sentence of a sweep's index: which setting won, by how much, do the seeds agree."""

from __future__ import annotations

from typing import Any

import pytest

from rftkit.evals.job_names import job_names
from rftkit.evals.samples import Run
from rftkit.reports.index import best_setting, index_page


def run(final: float | None, **settings: Any) -> dict[str, Any]:
    figures = {"valid": {"final": final}} if final is not None else None
    return {
        "settings": settings,
        "figures": figures,
        "status": "done",
        "page": "a.html",
        "seconds": 1.0,
        "error": None,
    }


GRID = [run(0.5, lr=1, seed=1), run(0.6, lr=1, seed=2), run(0.8, lr=3, seed=1)]


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (
            [*GRID, run(0.7, lr=3, seed=2)],
            "lr 3 is best: final validation reward 0.750, 0.200 above lr 1; all seeds agree.",
        ),
        (
            [*GRID, run(0.4, lr=3, seed=2)],
            "lr 3 is best: final validation reward 0.600, 0.050 above lr 1; 1 of 2 seeds agree.",
        ),
        ([run(0.5, seed=1), run(0.7, seed=2)],
         "Final validation reward: 0.600, 0.500 to 0.700 over the seeds."),
        ([run(None, lr=1)], ""),
        ([run(0.5, lr=1), run(None, lr=2)], ""),
    ],
)  # fmt: skip
def test_the_best_setting_of_a_sweep(runs: list[dict[str, Any]], said: str) -> None:
    assert best_setting(runs) == said
    assert said in index_page("t", runs, None)


def facts(**given: Any) -> Run:
    return Run("Step 12", "evalrun_1", 12, job_id="ftjob-" + "0" * 24, job_facts=given or None)


@pytest.mark.parametrize(
    ("runs", "names"),
    [
        ([facts(suffix="a", seed=1), facts(suffix="b", seed=1)], ["a", "b"]),
        ([facts(seed=1, model="m"), facts(seed=2, model="m")], ["seed 1", "seed 2"]),
        (
            [facts(**{"lr ×": 5.0, "seed": 1}), facts(**{"lr ×": 1.0, "seed": 1})],
            ["lr ×5", "lr ×1"],
        ),
        ([facts(seed=1), facts(**{"seed": 1, "lr ×": 3})], ["lr auto", "lr ×3"]),
        ([facts(seed=1), facts(seed=1)], ["A", "B"]),
        ([facts(), facts()], ["A", "B"]),
    ],
)
def test_a_job_is_called_by_what_tells_it_apart(runs: list[Run], names: list[str]) -> None:
    assert job_names(runs) == names
