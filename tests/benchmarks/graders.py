"""How fast graders are, as ratios measured in one run: `python tests/benchmarks/graders.py`.

Prints one line per figure with what it must reach. Ratios compare with a bare loop over the same
package in the same process. What runs in this process is timed by its own processor time, so that
a busy machine changes it little; what runs in several processes is timed by the clock.
"""

from __future__ import annotations

import random
import resource
import string
import time
from collections.abc import Callable

from rapidfuzz.fuzz import ratio

from rftkit.graders import Limits, Sample, compile_grader, grade_many

STRING = {
    "type": "string_check",
    "operation": "eq",
    "input": "{{sample.output_json.label}}",
    "reference": "{{item.label}}",
}
FUZZY = {
    "type": "text_similarity",
    "evaluation_metric": "fuzzy_match",
    "input": "{{sample.output_text}}",
    "reference": "{{item.reference}}",
}
MULTI = {
    "type": "multi",
    "graders": {"label": STRING, "why": STRING | {"operation": "like"}},
    "calculate_output": "0.5 * label + 0.5 * why",
}
PYTHON = {"type": "python", "source": "def grade(sample, item):\n    return 0.5\n"}
HANGING = {
    "type": "python",
    "source": "def grade(sample, item):\n    while item['hang']: pass\n    return 1.0\n",
}


def text(length: int) -> str:
    return "".join(random.choices(string.ascii_lowercase + " ", k=length))


def best(
    work: Callable[[], object], rounds: int = 5, clock: Callable[[], float] = time.process_time
) -> float:
    """Seconds of the fastest round; by default of one core's time, whoever else uses it."""
    times = []
    for _ in range(rounds):
        start = clock()
        work()
        times.append(clock() - start)
    return min(times)


def report(what: str, value: float, target: str) -> None:
    print(f"{what:<58} {value:>12,.2f}   must: {target}", flush=True)


def rate(spec: dict, pairs: list) -> float:
    with compile_grader(spec) as grader:
        grader.grade_many(pairs[:10])
        return len(pairs) / best(lambda: grader.grade_many(pairs))


def pure() -> None:
    sample = Sample.from_text('{"label": "yes"}')
    pairs = [(sample, {"label": "yes"})] * 100_000
    report("string_check, grades/s", rate(STRING, pairs), ">= 100,000")
    report("multi of two string_checks, grades/s", rate(MULTI, pairs), ">= 100,000")
    for length, count in ((100, 100_000), (2000, 3000)):
        texts = [(text(length), text(length)) for _ in range(count)]
        pairs = [(Sample(answer), {"reference": reference}) for answer, reference in texts]
        graded = rate(FUZZY, pairs)
        bare = count / best(lambda texts=texts: [ratio(a, b) / 100 for a, b in texts])
        target = ">= 150,000" if length == 100 else "-"
        report(f"fuzzy_match at {length} characters, grades/s", graded, target)
        report("  bare rapidfuzz loop takes 1, grader takes", bare / graded, "<= 2 at 2,000")


def python() -> None:
    pairs = [(Sample(text(200)), {"reference": text(200)})] * 20_000
    with compile_grader(PYTHON, workers=2) as grader:
        grader.grade_many(pairs[:10])
        report(
            "python grader, grades/s",
            20_000 / best(lambda: grader.grade_many(pairs), 3, time.perf_counter),
            ">= 3,000",
        )
        seconds = sorted(grader.grade(*pairs[0]).seconds for _ in range(5000))
        report("python grader, p50 of one warm grade, ms", seconds[2500] * 1000, "-")
        report("python grader, p99 of one warm grade, ms", seconds[4950] * 1000, "< 5")
    with compile_grader(PYTHON | {"isolation": "per_grade"}, workers=2) as grader:
        grader.grade_many(pairs[:10])
        seconds = sorted(grader.grade(*pairs[0]).seconds for _ in range(200))
        report("python grader, isolation per_grade, p50 of one grade, ms", seconds[100] * 1000, "-")
        several = best(lambda: grader.grade_many(pairs[:500]), 3, time.perf_counter)
        report("python grader, isolation per_grade, grades/s", 500 / several, ">= 50")
    with compile_grader(HANGING, workers=2, limits=Limits(seconds=2)) as grader:
        done: list[float] = []
        start = time.perf_counter()
        grader.grade_many(
            [(Sample("x"), {"hang": index == 5}) for index in range(2000)],
            progress=lambda index, grade: done.append(time.perf_counter() - start),
        )
        report("one hangs for 2 s: seconds until the other 1,999 are done", done[-2], "< 2")
        report("  and until it is killed", done[-1], "about 2")


def memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pairs = [(Sample.from_text('{"label": "yes"}'), {"label": text(100)}) for _ in range(100_000)]
    table = grade_many(MULTI, pairs)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report(f"{len(table):,} samples into a table, peak MB", after / 1024, "< 1,000")
    report("  of which before", before / 1024, "-")


if __name__ == "__main__":
    random.seed(0)
    pure()
    python()
    memory()
