"""Grading on a Ray cluster of this machine: the same numbers, in order, past a dying worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rftkit.errors import GraderSpecError, MissingExtraError
from rftkit.graders import Sample, compile_grader
from rftkit.graders.cluster import ClusterGrader, cluster_grader

SPEC = {
    "type": "multi",
    "graders": {
        "exact": {
            "type": "string_check", "name": "exact", "operation": "eq",
            "input": "{{sample.output_text}}", "reference": "{{item.answer}}",
        },
        "near": {
            "type": "text_similarity", "name": "near", "evaluation_metric": "fuzzy_match",
            "input": "{{sample.output_text}}", "reference": "{{item.answer}}",
        },
    },
    "calculate_output": "0.5 * exact + 0.5 * near",
}  # fmt: skip
PAIRS = [(Sample.from_text(f"answer {i % 7}"), {"answer": f"answer {i % 5}"}) for i in range(500)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two processes of grading, and Ray's own."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


@pytest.fixture
def grader(cluster: Any) -> Iterator[ClusterGrader]:
    """Two workers."""
    with cluster_grader(SPEC, num_workers=2) as made:
        yield made


@pytest.mark.slow
def test_the_same_rewards_in_the_same_order(grader: ClusterGrader) -> None:
    seen: list[int] = []
    grades = grader.grade_many(iter(PAIRS), progress=lambda index, _: seen.append(index))
    with compile_grader(SPEC) as here:
        alone = here.grade_many(PAIRS)
    assert [grade.reward for grade in grades] == [grade.reward for grade in alone]
    assert [grade.sub_rewards for grade in grades] == [grade.sub_rewards for grade in alone]
    assert sorted(seen) == list(range(len(PAIRS)))
    assert [leaf.key for leaf in grader.leaves] == ["exact", "near"]


@pytest.mark.slow
def test_a_killed_worker_costs_no_grade(cluster: Any, tmp_path: Path) -> None:
    flag = str(tmp_path / "died")

    def options() -> dict[str, Any]:
        """The judge of a worker; the first call of all takes its machine down."""

        def embed(model: str, texts: list[str]) -> list[list[float]]:
            try:
                os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return [[1.0, float(len(text))] for text in texts]
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

        return {"embed": embed}

    near = {**SPEC["graders"]["near"], "evaluation_metric": "cosine"}  # type: ignore[index]
    with cluster_grader(near, num_workers=2, options=options) as grader:
        grades = grader.grade_many(PAIRS)
    assert os.path.exists(flag)
    assert all(grade.outcome == "graded" for grade in grades)


@pytest.mark.slow
def test_a_bad_spec_is_refused_here(cluster: Any) -> None:
    with pytest.raises(GraderSpecError):
        cluster_grader({"type": "string_check"})


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"rftkit\[ray\]"):
        cluster_grader(SPEC)
