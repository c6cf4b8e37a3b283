"""What grading beside sampling saves, and what it costs: seconds of a step's sampling and grading.

    python tests/benchmarks/overlap.py                                  # smollm2, minutes
    python tests/benchmarks/overlap.py --model rftkit-tiny --steps 2    # to try it

The same completions of the same rows, drawn and graded twice in turn by the functions that jobs
use: *apart*, all completions first and then their grades, as after a kill between the two; and
*together*. Graders: a cheap one; python in its sandbox; the model itself as judge, whose grades
begin when sampling has ended either way; and a judge elsewhere, which takes `--delay` seconds a
call, eight calls at once. A figure is the median of the steps; the first step is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rftkit.graders import Completion, compile_grader
from rftkit.rows import read_rows
from rftkit.server.engine.values import LoraConfig
from rftkit.server.inference.judge import judge_call
from rftkit.server.store.records import Job
from rftkit.server.training import sampling
from rftkit.server.training.context import Run
from rftkit.server.training.journal import Journal
from rftkit.server.training.rft_plan import make_plan
from rftkit.server.worker.worker import Worker, WorkerPlatform

DATA = Path(__file__).parents[2] / "datasets" / "security_review"
PYTHON = """
def grade(sample, item):
    words = set((sample["output_text"] or "").split())
    return len(words & set(item["explanation"].split())) / max(1, len(words))
"""


def judged_by(model: str) -> dict[str, Any]:
    """A judge's spec."""
    asked = "Is this a good answer? {{sample.output_text}}"
    return {
        "type": "score_model", "name": "judge", "model": model, "range": [0, 1],
        "input": [{"role": "user", "content": asked}],
        "sampling_params": {"max_completions_tokens": 32, "temperature": 0.0},
    }  # fmt: skip


def measure(worker: Worker, options: argparse.Namespace, spec: Any, complete: Any) -> None:
    """Print one line: seconds a step, apart and together."""
    engine = worker.engines.get(options.model)
    engine.start_policy(LoraConfig(), 1)
    with (DATA / "train.jsonl").open("rb") as lines:
        rows = list(read_rows(lines, path="train.jsonl"))
    reinforcement = {
        "grader": spec, "hyperparameters": {},
        "response_format": json.loads((DATA / "response_format.json").read_text()),
    }  # fmt: skip
    job = Job(
        id="ftjob-1", created_at=0, model=options.model, seed=1, training_file="", method={},
        validation_file="", metadata={"max_completion_tokens": str(options.tokens)},
    )  # fmt: skip
    job.method["reinforcement"] = reinforcement
    took: dict[str, list[float]] = {"sampling": [], "apart": [], "together": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        compile_grader(spec, complete=complete) as grader,
    ):
        run = Run(
            job=job, plan=make_plan(job, len(rows)), store=worker.store, engine=engine,
            compiled_grader=grader, journal=Journal(Path(folder)), rows=rows, valid_rows=[],
            model_base=options.model, on_tick=lambda: (worker.chats.serve(), None)[1],
            idle=lambda: (worker.chats.serve(), None)[1],
        )  # fmt: skip
        for step in range(options.steps + 1):
            ask = sampling.SamplingPlan(rows[8 * step : 8 * step + 8], step, 8, 1.0)
            found = {}
            for way in ("apart", "together"):
                began = time.perf_counter()
                if way == "apart":
                    draft = sampling.ungraded_batch(run, way, step, ask)
                    took["sampling"].append(draft.seconds)
                found[way], _ = sampling.graded(run, way, step, ask)
                took[way].append(time.perf_counter() - began)
            same = [[[(r.completion, r.grade.reward) for r in g.rollouts] for g in found[way]]
                    for way in found]  # fmt: skip
            assert same[0] == same[1], "the order of grading has changed a rollout or a grade"
    sampled, apart, together = (statistics.median(each[1:]) for each in took.values())
    print(
        f"sampling alone {sampled:.2f} s, apart {apart:.2f} s, together {together:.2f} s "
        f"({together / apart:.2f} times as long)",
        flush=True,
    )


def slow(delay: float) -> Callable[..., Completion]:
    """A judge elsewhere."""

    def complete(**_: Any) -> Completion:
        time.sleep(delay)
        return Completion('{"steps": [], "result": 0.5}', "stop", {})

    return complete


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--home", type=Path, help="a platform's home that has the model")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="most of a completion")
    parser.add_argument("--delay", type=float, default=0.2)
    parser.add_argument("--only", help="one of: cheap, python, elsewhere, itself")
    options = parser.parse_args()
    worker = Worker(options.home or Path(tempfile.mkdtemp()), lambda message: None)
    cases = {
        "cheap": (json.loads((DATA / "grader.json").read_text()), None),
        "python": ({"type": "python", "name": "words", "source": PYTHON}, None),
        "itself": (
            judged_by(options.model),
            judge_call(WorkerPlatform(worker.chats, worker.store)),
        ),
        "elsewhere": (judged_by("judge"), slow(options.delay)),
    }
    for name, (spec, complete) in cases.items():
        if options.only in (None, name):
            if name == "elsewhere":
                os.environ["RFTKIT_JUDGE_BASE_URL"] = "http://elsewhere/v1"
            print(f"{name:<10}", end="", flush=True)
            measure(worker, options, spec, complete)


if __name__ == "__main__":
    main()
