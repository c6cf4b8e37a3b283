"""A finished job as the routes show it, made up for the tests of views and reports.

`events()`, `checkpoints()`, `job()` are wire objects; `answers()` is the file of before and after
answers; `serving(...)` puts them on a loopback port, so that a notebook can read them with the
`openai` client. Nothing here is random: golden files are made from it.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

JOB = "ftjob-sample"
CREATED = 1_790_000_000
STEPS, EVERY = 24, 6
PROBE = "<script>document.title='broken'</script><img src=x onerror=alert(1)>"

GRADER = {
    "type": "multi",
    "name": "review",
    "graders": {
        "compliant": {
            "type": "string_check",
            "name": "compliant",
            "operation": "eq",
            "input": "{{ sample.output_json.compliant }}",
            "reference": "{{ item.compliant }}",
        },
        "explanation": {
            "type": "python",
            "name": "explanation",
            "source": "def grade(sample, item):\n    # share of the words found\n"
            '    return 1.0 if "<b>" in item["note"] else 0.5\n',
        },
    },
    "calculate_output": "0.5 * compliant + 0.5 * explanation",
}


def wave(step: int, start: float, end: float) -> float:
    """A curve from `start` to `end` that wobbles a little."""
    rise = 1 - math.exp(-3 * step / STEPS)
    return round(start + (end - start) * rise + 0.02 * math.sin(2.4 * step), 4)


def metric_event(step: int) -> dict[str, Any]:
    validated = step % EVERY == 0
    graders = []
    for name, kind, start in (("compliant", "string_check", 0.4), ("explanation", "python", 0.25)):
        scores: dict[str, Any] = {"name": name, "type": kind}
        if step:
            scores["train_reward_mean"] = wave(step, start, 0.85)
        if validated:
            scores["valid_reward_mean"] = wave(step, start - 0.03, 0.8)
        graders.append(scores)
    scores = {"graders": graders}
    if step:
        scores["train_reward_mean"] = None if step == 9 else wave(step, 0.33, 0.85)
    if validated:
        scores["valid_reward_mean"] = None if step == 12 else wave(step, 0.3, 0.8)
    data: dict[str, Any] = {"step": step, "total_steps": STEPS, "scores": scores}
    data["timing"] = {"step": {"eval": 6.1 if validated else None, "full_iteration": 6.4}}
    if step:
        data["timing"]["step"] |= {"sampling": 4.2 + 0.3 * (step % 3), "training": 3.6}
        data["timing"]["step"]["full_iteration"] = (14.5 if validated else 8.3) + 0.3 * (step % 3)
        data["completion_tokens_mean"] = 41.0 - 0.5 * step
        data["mean_unresponsive_rewards"] = 0.02 if step < 4 else 0.0
        data["errors"] = {
            "graders": [
                {
                    "name": "explanation",
                    "type": "python",
                    "train_python_grader_runtime_error_mean": 0.03 if step == 9 else 0.0,
                    "train_python_grader_runtime_error_count": 2 if step == 9 else 0,
                }
            ]
        }
        data["learning"] = {
            "flat_groups": round(0.1 + 0.02 * step, 3),
            "entropy": round(1.4 * math.exp(-step / 20), 4),
            "kl": round(0.002 * step, 4),
            "clip_fraction": 0.004,
            "grad_norm": round(0.9 + 0.1 * math.sin(step), 3),
            "truncated_share": 0.01 if step < 6 else 0.0,
            "tokens_per_second": 410 + 4 * (step % 5),
            "failed_grades": 2 if step == 9 else 0,
            "learning_rate": 0.0003,
        }
    return data


def events() -> list[dict[str, Any]]:
    """Oldest first, as `rftkit.jobs.events` gives them."""
    resolved = {"batch_size": 8, "n_epochs": 1, "learning_rate_multiplier": 1.0, "eval_interval": 6}
    said: list[tuple[str, str, str, dict[str, Any] | None]] = [
        ("info", "message", "Created fine-tuning job", {"hyperparameters": resolved}),
        ("warn", "message", f"reasoning_effort has no effect {PROBE}", None),
    ]
    said += [
        ("info", "metrics", f"Step {step}/{STEPS}", metric_event(step)) for step in range(STEPS + 1)
    ]
    said.append(("info", "message", "The job has successfully completed", None))
    return [
        {
            "id": f"ftevent-{index:03}",
            "object": "fine_tuning.job.event",
            "created_at": CREATED + 10 * index,
            "level": level,
            "type": kind,
            "message": message,
            "data": data,
        }
        for index, (level, kind, message, data) in enumerate(said)
    ]


def checkpoints() -> list[dict[str, Any]]:
    return [
        {
            "id": f"ftckpt_{step}",
            "object": "fine_tuning.job.checkpoint",
            "created_at": CREATED + 10 * step,
            "fine_tuning_job_id": JOB,
            "step_number": step,
            "fine_tuned_model_checkpoint": _model(step),
            "metrics": {
                "step": step,
                "train_mean_reward": wave(step, 0.33, 0.85),
                "full_valid_mean_reward": wave(step, 0.3, 0.8),
            },
        }
        for step in (24, 18, 6)
    ]


def job(**changes: Any) -> dict[str, Any]:
    auto = dict.fromkeys(("n_epochs", "learning_rate_multiplier", "eval_interval"), "auto")
    return {
        "id": JOB,
        "object": "fine_tuning.job",
        "created_at": CREATED,
        "finished_at": CREATED + 300,
        "estimated_finish": None,
        "model": "smollm2-135m-instruct",
        "fine_tuned_model": _model(STEPS),
        "organization_id": "org-local",
        "status": "succeeded",
        "training_file": "file-train",
        "validation_file": "file-valid",
        "result_files": [],
        "trained_tokens": 51_200,
        "seed": 42,
        "error": {},
        "integrations": [],
        "metadata": {"made_for": "tests"},
        "user_provided_suffix": "review",
        "method": {
            "type": "reinforcement",
            "reinforcement": {
                "grader": GRADER,
                "hyperparameters": {"batch_size": 8, **auto, "reasoning_effort": "default"},
                "response_format": {"type": "json_schema", "json_schema": {"name": "review"}},
            },
        },
    } | changes


def answers(count: int = 24) -> dict[str, Any]:
    """Rows of every kind: better, worse, the same, unscorable before, a grader that failed."""
    return {
        "dataset": "security_review",
        "rows": [_row(index) for index in range(count)],
        "constant": {"answer": {"compliant": "no", "explanation": "Not allowed."}, "reward": 0.31},
        "seconds": {"check": 0.4, "train": 212.0, "answers": 9.5},
    }


TOPICS = ("backups", "password length", "visitor badges", "log retention", "laptop encryption")
LABELS = ("yes", "no", "needs review")


def _row(index: int) -> dict[str, Any]:
    topic, label = TOPICS[index % 5], LABELS[index % 3]
    prompt = (
        f"Policy: Section {index + 3} covers {topic}. Staff must follow it within {index + 2} days "
        f"and report any exception to the security team in writing.\n\nQuestion: Do you have a "
        f"written rule for {topic}, and is it followed within {index + 5} days?"
    )
    note = f"The policy sets {index + 2} days for {topic}, the answer says {index + 5}."
    if index == 3:
        prompt += f" {PROBE}"
    item = {
        "messages": [
            {"role": "system", "content": "Answer from the policy only, as JSON."},
            {"role": "user", "content": prompt},
        ],
        "compliant": label,
        "reference_explanation": note,
    }
    wrong = _answer("yes", "Yes, we comply with the policy.", 0.5 * (label == "yes") + 0.1)
    right = _answer(label, note[: 30 + 2 * index], min(1.0, 0.7 + 0.012 * index))
    given = {
        "base": {"model": "smollm2-135m-instruct", **wrong},
        "best": {"model": _model(18), **right},
        "final": {"model": _model(24), **right},
    }
    if index % 7 == 2:
        given["final"] = {"model": _model(24), **wrong}
    if index % 11 == 5:
        given["final"] = {"model": _model(24), **_answer("no", "No.", 0.05)}
    if index % 12 == 4:
        broken = '{"compliant": "yes", "explanation": "Yes we do and'
        grade = {"reward": 0.0, "outcome": "unscorable", "sub_rewards": {}}
        flags = {"sample_parse_error": True}
        given["base"] |= {"text": broken, "grade": grade | {"errors": flags}}
    if index == 7:
        flags = {"python_grader_runtime_error": True, "python_grader_server_error": False}
        given["final"] |= {"grade": {"reward": None, "outcome": "failed", "errors": flags}}
    return {"item": item, "answers": given}


def _answer(compliant: str, explanation: str, reward: float) -> dict[str, Any]:
    sub = {"compliant": 1.0 if reward >= 0.5 else 0.0, "explanation": round(reward % 0.5 * 2, 3)}
    return {
        "text": json.dumps({"compliant": compliant, "explanation": explanation}),
        "grade": {"reward": reward, "outcome": "graded", "sub_rewards": sub, "errors": {}},
    }


def _model(step: int) -> str:
    name = "ft:smollm2-135m-instruct:local:review:sample"
    return name if step == STEPS else f"{name}:ckpt-step-{step}"


@contextmanager
def serving(**routes: Any) -> Iterator[str]:
    """A base URL that answers `GET` for this job; `routes` replaces job, events or checkpoints."""

    def page(data: list[dict[str, Any]]) -> dict[str, Any]:
        return {"object": "list", "data": data, "has_more": False}

    base = f"/v1/fine_tuning/jobs/{JOB}"
    known = {
        base: routes.get("job", job()),
        f"{base}/events": page(list(reversed(routes.get("events", events())))),
        f"{base}/checkpoints": page(routes.get("checkpoints", checkpoints())),
        "/v1/files/file-train": _file("file-train", "train.jsonl"),
        "/v1/files/file-valid": _file("file-valid", "valid.jsonl"),
    }

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = known.get(self.path.partition("?")[0])
            missing = {"error": {"message": "no such object", "type": "invalid_request_error"}}
            content = json.dumps(body or missing).encode()
            self.send_response(200 if body else 404)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _file(identity: str, name: str) -> dict[str, Any]:
    return {
        "id": identity,
        "object": "file",
        "bytes": 81_234,
        "created_at": CREATED,
        "filename": name,
        "purpose": "fine-tune",
        "status": "processed",
        "sha256": "9f" * 32,
    }
