"""The same `grade_many` on many machines: actors of a Ray cluster, each with its compiled grader.

For slow graders (python over large samples, slow judges) and for more rows than one machine can
grade in time. On one machine `compile_grader` is faster, because nothing is sent. The grades are
the same numbers. Not here: starting the cluster (`ray start`, or Ray's own tools).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rftkit.errors import MissingExtraError, PlatformError
from rftkit.graders.engine import CompiledGrader, Leaf, compile_grader
from rftkit.graders.outcome import Grade, Sample

__all__ = ["ClusterGrader", "cluster_grader"]

BATCH = 64
"""Pairs per message; a message costs about a millisecond."""
IN_FLIGHT = 2
"""Messages queued at each worker, so that none is idle during transfers."""
RETRIES = 2
"""How often a message is sent again when its machine is lost."""


class ClusterGrader:
    """A grader compiled on every worker. A context manager, made by `cluster_grader`."""

    def __init__(self, workers: Sequence[Any], leaves: Sequence[Leaf], floor_reward: float) -> None:
        self.leaves = list(leaves)
        self.floor_reward = floor_reward
        """The reward of an unscorable sample."""
        self._workers = list(workers)

    def grade(self, sample: Sample, item: Any) -> Grade:
        """Grade one."""
        return self.grade_many([(sample, item)])[0]

    def grade_many(
        self,
        pairs: Iterable[tuple[Sample, Any]],
        *,
        progress: Callable[[int, Grade], None] | None = None,
    ) -> list[Grade]:
        """Grade many and keep the order; `progress` gets each (index, grade) as it arrives.

        Raises:
            PlatformError: when workers die repeatedly, or the cluster is lost.
        """
        import ray

        grades: dict[int, Grade] = {}
        todo, starts = iter(pairs), itertools.count(0, BATCH)
        under_way: dict[Any, tuple[int, Any]] = {}

        def send(worker: Any) -> None:
            if batch := list(itertools.islice(todo, BATCH)):
                under_way[worker.grade_many.remote(batch)] = (next(starts), worker)

        try:
            for worker in [*self._workers] * IN_FLIGHT:
                send(worker)
            while under_way:
                [message], _ = ray.wait(list(under_way), num_returns=1)
                start, worker = under_way.pop(message)
                send(worker)
                for index, grade in enumerate(ray.get(message), start):
                    grades[index] = grade
                    if progress:
                        progress(index, grade)
        except ray.exceptions.RayError as error:
            raise PlatformError(
                f"the Ray cluster could not grade: {str(error)[:500]}; look at it with: ray status"
            ) from error
        return [grades[index] for index in range(len(grades))]

    def close(self) -> None:
        """Stop the workers; the cluster keeps running."""
        import ray

        for worker in self._workers:
            ray.kill(worker)
        self._workers = []

    def __enter__(self) -> ClusterGrader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def cluster_grader(
    spec: Mapping[str, Any],
    *,
    address: str | None = None,
    num_workers: int | None = None,
    options: Callable[[], Mapping[str, Any]] = dict,
) -> ClusterGrader:
    """Check a spec here and compile it on the workers of a Ray cluster.

    Args:
        spec: a grader in the wire's form.
        address: of the cluster; None uses the one this process has joined, or the machine's own,
            or starts one here.
        num_workers: actors, one processor core each; None for every core of the cluster.
        options: called on each worker for the options of `compile_grader`, because a judge's client
            cannot be sent: `lambda: {"complete": rftkit.client.judge_call()}`.

    Example:
        with cluster_grader(spec, address="ray://head:10001") as grader:
            grades = grader.grade_many(pairs)

    Raises:
        MissingExtraError: without Ray.
        GraderSpecError: `param` names the field.
        PlatformError: when there is no such cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "ray") from error
    with compile_grader(spec, **options()) as here:
        leaves, floor_reward = here.leaves, here.floor_reward
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise PlatformError(f"no Ray cluster at {address}: {error}") from error
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    count = num_workers or max(1, int(resources.get("CPU", 1)))
    make = ray.remote(num_cpus=1, max_restarts=RETRIES, max_task_retries=RETRIES)(_Worker)
    workers = [make.remote(dict(spec), options) for _ in range(count)]
    return ClusterGrader(workers, leaves, floor_reward)


class _Worker:
    """One process of the cluster."""

    def __init__(self, spec: Mapping[str, Any], options: Callable[[], Mapping[str, Any]]) -> None:
        self._grader: CompiledGrader = compile_grader(spec, **options())

    def grade_many(self, pairs: Sequence[tuple[Sample, Any]]) -> list[Grade]:
        return self._grader.grade_many(pairs)
