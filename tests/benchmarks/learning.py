"""What makes a job learn faster: tasks × seeds × settings, by the reward of validation rows.

    python tests/benchmarks/learning.py --out learning.jsonl                  # all of it: hours
    python tests/benchmarks/learning.py --out learning.jsonl --tasks unit_conversion --seeds 1 \\
        --settings defaults no_guidance
    python tests/benchmarks/learning.py --out learning.jsonl --table          # only what is there

Each setting changes one thing of the defaults; `before` is what jobs did without any of them. A run
is a job of the local platform, as anybody would start it; one that the file has is not run again.
Rewards, label shares and the choice of settings are of training and validation rows. `--test` asks
the final models the test rows, once, when the settings are chosen. Two tasks are bundled datasets;
`unit_conversion` is made here, with a python grader that is right or wrong. Not here: speed.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rftkit
from rftkit import datasets, evals, jobs
from rftkit.graders import compile_grader

BEFORE = {
    "advantage": "mean", "stratify": "none", "guidance": "none", "schedule": "constant",
    "warmup_steps": "0", "minibatch_size": "256",
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "before": {"metadata": BEFORE, "batch_size": 8, "compute_multiplier": 1.0},
    "before_slow": {
        "metadata": BEFORE, "batch_size": 8, "compute_multiplier": 1.0,
        "learning_rate_multiplier": 0.3,
    },
    "no_guidance": {"metadata": {"guidance": "none"}},
    "mean": {"metadata": {"advantage": "mean"}},
    "std": {"metadata": {"advantage": "std"}},
    "maxrl": {"metadata": {"advantage": "maxrl"}},
    "shuffled": {"metadata": {"stratify": "none"}},
    "constant_rate": {"metadata": {"schedule": "constant"}},
    "linear": {"metadata": {"schedule": "linear"}},
    "no_warmup": {"metadata": {"warmup_steps": "0"}},
    "half_rate": {"learning_rate_multiplier": 1.0},
    "whole_credit": {"metadata": {"credit": "answer"}},
    "more_completions": {"batch_size": 8, "compute_multiplier": 1.0},
    "refill": {"metadata": {"refill": "8"}},
    "two_updates": {"metadata": {"updates_per_batch": "2", "clip_high": "0.28"}},
    "whole_batch": {"metadata": {"minibatch_size": "32"}},
    "updates_of_4": {"metadata": {"minibatch_size": "4"}, "learning_rate_multiplier": 2.0},
    "entropy_guard": {"metadata": {"entropy_floor": "0.3"}},
}  # fmt: skip
"""Name -> hyperparameters and metadata that differ from the defaults."""

MODEL = "smollm2-135m-instruct"
TOKENS = {"security_review": "64", "contract_facts": "96", "unit_conversion": "24"}


class Task(NamedTuple):
    """A dataset as a job needs it."""

    train: Path
    valid: Path
    test: Path
    grader: dict[str, Any]
    response_format: dict[str, Any]


UNITS = (
    ("kilometres", "metres", 1000.0), ("metres", "centimetres", 100.0), ("hours", "minutes", 60.0),
    ("kilograms", "grams", 1000.0), ("minutes", "seconds", 60.0), ("days", "hours", 24.0),
    ("litres", "millilitres", 1000.0), ("dozens", "pieces", 12.0), ("weeks", "days", 7.0),
)  # fmt: skip
TOLERANCE = '''
def grade(sample, item):
    """1 within one percent of the right number; else 0."""
    try:
        value = float((sample.get("output_json") or {}).get("value"))
    except (TypeError, ValueError, AttributeError):
        return 0.0
    return float(abs(value - item["value"]) <= 0.01 * item["value"])
'''


def unit_conversion(folder: Path) -> Task:
    """240 training, 60 validation and 60 test rows, no question twice."""
    questions = [
        (f"Convert {amount:g} {unit} to {other}.", round(amount * factor, 6))
        for unit, other, factor in UNITS
        for amount in (n / 2 for n in range(2, 42))
    ]
    random.Random(1).shuffle(questions)
    rows = [
        {"messages": [{"role": "user", "content": f"{text} Give the number."}], "value": value}
        for text, value in questions[:360]
    ]
    parts = {"train": rows[:240], "valid": rows[240:300], "test": rows[300:]}
    for name, part in parts.items():
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(lines)
    schema = {
        "type": "object", "additionalProperties": False, "required": ["value"],
        "properties": {"value": {"type": "number"}},
    }  # fmt: skip
    return Task(
        *(folder / f"{name}.jsonl" for name in ("train", "valid", "test")),
        grader={"type": "python", "name": "conversion", "source": TOLERANCE},
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "number", "strict": True, "schema": schema},
        },
    )  # fmt: skip


def task(name: str, folder: Path) -> Task:
    """A task by its name; files that are made go into the folder."""
    if name == "unit_conversion":
        return unit_conversion(folder)
    data = datasets.bundled(name)
    assert data.response_format is not None
    return Task(data.train, data.valid, data.test, data.grader, data.response_format)


def run(name: str, data: Task, seed: int, setting: str) -> dict[str, Any]:
    """Train one job and measure it."""
    client = rftkit.connect()
    given = dict(SETTINGS[setting])
    metadata = {"max_completion_tokens": TOKENS[name], **given.pop("metadata", {})}
    files = [datasets.upload(client, path).id for path in (data.train, data.valid)]
    job = jobs.create(
        client, model=MODEL, training_file=files[0], validation_file=files[1],
        grader=data.grader, response_format=data.response_format, metadata=metadata, seed=seed,
        hyperparameters={"eval_interval": 8, **given}, suffix=setting.replace("_", "-"),
    )  # fmt: skip
    job = jobs.wait(client, job.id)
    steps = [each["data"] for each in jobs.events(client, job.id) if each["type"] == "metrics"]
    steps.sort(key=lambda step: step["step"])
    seconds = {
        part: sum(step["timing"]["step"][part] for step in steps)
        for part in ("sampling", "training", "eval")
    }
    return {
        "task": name, "seed": seed, "setting": setting, "job": job.id, "status": job.status,
        "model": job.fine_tuned_model, "seconds": seconds,
        "train": [step["train_mean_reward"] for step in steps if "train_mean_reward" in step],
        "valid": {step["step"]: step["full_valid_mean_reward"] for step in steps
                  if step.get("full_valid_mean_reward") is not None},
        "parts": {each["name"]: each.get("valid_reward_mean")
                  for each in steps[-1]["scores"]["graders"]},
        "guided": [step["learning"].get("guided") for step in steps if step["step"]],
        "labels_seen_by_step_6": labels(client, job.id, data),
    }  # fmt: skip


def labels(client: Any, job_id: str, data: Task) -> dict[str, int]:
    """How often each value of the response format's first enum was sampled in steps 1 to 6."""
    properties = data.response_format["json_schema"]["schema"]["properties"]
    key = next((name for name, each in properties.items() if "enum" in each), None)
    if key is None:
        return {}
    counts = Counter(dict.fromkeys(properties[key]["enum"], 0))
    for step in range(1, 7):
        found = jobs.rollouts(client, job_id, step) or {"groups": []}
        for group in found["groups"]:
            counts.update(filter(None, (_value(each["text"], key) for each in group["rollouts"])))
    return dict(counts)


def _value(text: str, key: str) -> str | None:
    try:
        return str(json.loads(text)[key])
    except (ValueError, KeyError, TypeError):
        return None


def ask_test_rows(done: dict[str, Any], data: Task) -> dict[str, Any]:
    """The final model's means on the test rows."""
    client = rftkit.connect()
    rows = datasets.read(data.test)
    answers = evals.ask(
        client, done["model"], rows, response_format=data.response_format,
        max_completion_tokens=int(TOKENS[done["task"]]), temperature=0,
    )  # fmt: skip
    with compile_grader(data.grader) as grader:
        return dict(evals.score(evals.grade(grader, answers, rows)))


def table(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """One line for each task and setting: means over seeds, and the curve of each seed."""
    yield "| task | setting | seeds | validation reward | last parts | test | curves |"
    yield "|---|---|---|---|---|---|---|"
    names = list(dict.fromkeys((each["task"], each["setting"]) for each in results))
    for name, setting in names:
        some = [each for each in results if (each["task"], each["setting"]) == (name, setting)]
        ends = [list(each["valid"].values()) for each in some]
        gain = f"{_mean(e[0] for e in ends):.2f} → {_mean(e[-1] for e in ends):.2f}"
        parts = ", ".join(
            f"{part} {_mean(each['parts'][part] for each in some):.2f}" for part in some[0]["parts"]
        )
        tests = [
            "/".join(f"{v:.2f}" for v in each["test"].values()) for each in some if "test" in each
        ]
        curves = "; ".join(" ".join(f"{value:.2f}" for value in curve) for curve in ends)
        seeds = ", ".join(str(each["seed"]) for each in some)
        yield f"| {name} | {setting} | {seeds} | {gain} | {parts} | {', '.join(tests)} | {curves} |"


def _mean(values: Any) -> float:
    return statistics.fmean(values)


def main() -> None:
    """Run what the file does not have, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="results, one JSON object a line")
    parser.add_argument("--tasks", nargs="+", default=list(TOKENS), choices=list(TOKENS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--test", action="store_true", help="ask the final models the test rows")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    known = options.out.read_text().splitlines() if options.out.is_file() else []
    results = [json.loads(line) for line in known]
    with tempfile.TemporaryDirectory() as scratch:
        for name in () if options.table else options.tasks:
            data = task(name, Path(scratch))
            for setting in options.settings:
                for seed in options.seeds:
                    key = (name, setting, seed)
                    if key in {(e["task"], e["setting"], e["seed"]) for e in results}:
                        continue
                    started = time.monotonic()
                    results.append(run(name, data, seed, setting))
                    print(*key, f"{time.monotonic() - started:.0f} s", flush=True)
                    _write(options.out, results)
            for done in results:
                if options.test and done["task"] == name and "test" not in done:
                    done["test"] = ask_test_rows(done, data)
                    _write(options.out, results)
    print("\n".join(table(results)))


def _write(path: Path, results: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(each) + "\n" for each in results))


if __name__ == "__main__":
    main()
