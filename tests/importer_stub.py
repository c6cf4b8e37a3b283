"""A hosted account to import from: real sockets, the routes and quirks of the service, faults.

Lists, cursors, page limits and error bodies behave as the live service's do; bodies are spaced
like its bodies, so that "byte for byte" means something. Run as a program it serves a large
account from a process of its own.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

KEY = "sk-stub-0123456789abcdefghij"
ORGANIZATION = "acme-research"
ORGANIZATION_ID = "org-acme"
NEWEST_FIRST = ("jobs", "events", "checkpoints")
LIMITS = {"files": 10_000, "events": 1000}


@dataclass
class Fault:
    """What happens to the next `times` requests whose path contains `where`."""

    where: str
    kind: str
    """`status`, `drop` (the connection dies in the middle of the body), `hang`, `garbage`."""
    status: int = 500
    times: float = 1
    headers: dict[str, str] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=dict)
    skip: int = 0
    """Matching requests that are answered before the first fault."""


@dataclass
class Account:
    """What the stub serves; lists are kept oldest first."""

    objects: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Route of a list -> its objects."""
    contents: dict[str, bytes] = field(default_factory=dict)
    """File id -> content."""
    faults: list[Fault] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    """Largest page by kind of list, where it differs from `LIMITS` or 100."""
    before: Callable[[str, dict[str, str]], None] | None = None
    """Called with path and query before a list answers: lists can grow while they are read."""
    headers: dict[str, str] = field(
        default_factory=lambda: {"openai-organization": ORGANIZATION, "openai-project": "proj_1"}
    )
    requests: list[str] = field(default_factory=list)
    """Paths with their queries, in order."""
    bodies: dict[str, bytes] = field(default_factory=dict)
    """The last good body sent for each of `requests`."""
    seen_headers: list[dict[str, str]] = field(default_factory=list)
    _texts: dict[int, tuple[dict[str, Any], str]] = field(default_factory=dict)

    def add(self, route: str, *objects: dict[str, Any]) -> None:
        self.objects.setdefault(route, []).extend(objects)

    def text(self, entry: dict[str, Any]) -> str:
        """JSON as the service spaces it; rendered once."""
        if id(entry) not in self._texts:  # the entry is kept too: its id stays its own
            self._texts[id(entry)] = (entry, json.dumps(entry, indent=2, ensure_ascii=False))
        return self._texts[id(entry)][1]

    def page(self, route: str, query: dict[str, str]) -> tuple[int, str]:
        kind = route.rsplit("/", 1)[-1]
        most = self.limits.get(kind, LIMITS.get(kind, 100))
        limit = int(query.get("limit", 20))
        if limit > most:
            return 400, _error(
                f"Invalid 'limit': integer above maximum value. Expected a value <= {most}, "
                f"but got {limit} instead.",
                param="limit",
            )
        entries = list(self.objects.get(route, []))
        if kind in NEWEST_FIRST or query.get("order") == "desc":
            entries.reverse()
        start = 0
        if "after" in query:
            ids = [entry["id"] for entry in entries]
            if query["after"] not in ids:
                return 404, _error(f"No such cursor: {query['after']}", param="after")
            start = ids.index(query["after"]) + 1
        shown = entries[start : start + limit]
        data = ",\n".join(self.text(entry) for entry in shown)
        has_more = json.dumps(start + limit < len(entries))
        return 200, f'{{\n  "object": "list",\n  "data": [{data}],\n  "has_more": {has_more}\n}}'

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, bytes, str]:
        """Status, body and content type for a GET."""
        parent, _, name = path.rpartition("/")
        if name == "content":
            content = self.contents.get(parent.rpartition("/")[2])
            if content is None:
                return 404, _error("No such File object").encode(), "application/json"
            return 200, content, "application/octet-stream"
        if path in self.objects or name in ("events", "checkpoints", "runs", "output_items"):
            status, text = self.page(path, query)
            return status, text.encode(), "application/json"
        for entry in self.objects.get(parent, []):
            if entry["id"] == unquote(name):
                return 200, (self.text(entry) + "\n").encode(), "application/json"
        return 404, _error(f"No such object: {path}").encode(), "application/json"


class Stub:
    """Serves an `Account` on a free port until the `with` block ends."""

    def __init__(self, account: Account, *, port: int = 0) -> None:
        self.account = account
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(account))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Stub:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def small_account() -> Account:
    """Two files, a result file, three jobs, two evals with runs: every quirk named once."""
    account = Account()
    rows = b"".join(b'{"messages": [{"role": "user", "content": "%d"}]}\n' % n for n in range(5))
    for number, (file_id, purpose, name, content) in enumerate(
        [
            ("file-train", "fine-tune", "train.jsonl", rows),
            ("file-valid", "fine-tune", "valid.jsonl", rows * 2000),
            ("file-result", "fine-tune-results", "step_metrics.csv", RESULT_CSV.encode()),
        ]
    ):
        account.add("/files", file_object(file_id, purpose, name, len(content), 1000 + number))
        account.contents[file_id] = content
    account.add(
        "/fine_tuning/jobs",
        job("ftjob-old", "supervised", "failed", created_at=900, organization_id=ORGANIZATION_ID),
        job("ftjob-rft", "reinforcement", "succeeded", result_files=["file-result"]),
        job("ftjob-now", "reinforcement", "running", error=None, created_at=2000),
    )
    numbers = {"ftjob-old": range(100, 103), "ftjob-rft": range(30), "ftjob-now": range(200, 204)}
    for name, events in numbers.items():
        account.add(f"/fine_tuning/jobs/{name}/events", *map(event, events))
    account.add(
        "/fine_tuning/jobs/ftjob-rft/checkpoints",
        checkpoint(5, {"train_mean_reward": 0.4, "full_valid_mean_reward": 0.5}),
        checkpoint(10, {"train_reward_mean": 0.6, "valid_reward_mean": 0.7}),
    )
    account.add("/evals", eval_object("eval_auto"), eval_object("eval_own", grader="label"))
    add_run(account, "eval_auto", "evalrun_0", 3)
    add_run(account, "eval_auto", "evalrun_5", 130)
    add_run(account, "eval_own", "evalrun_x", 1, status="in_progress")
    return account


def large_account(num_items: int, num_events: int) -> Account:
    """One run with many output items and one job with many events."""
    account = Account(limits={"events": 1000})
    account.add("/files")
    account.add("/fine_tuning/jobs", job("ftjob-big", "reinforcement", "succeeded"))
    account.add("/fine_tuning/jobs/ftjob-big/events", *map(event, range(num_events)))
    account.add("/evals", eval_object("eval_big"))
    add_run(account, "eval_big", "evalrun_big", num_items, filler=2000)
    return account


def file_object(
    file_id: str, purpose: str, filename: str, num_bytes: int, created_at: int = 1000
) -> dict[str, Any]:
    return {
        "object": "file", "id": file_id, "purpose": purpose, "filename": filename,
        "bytes": num_bytes, "created_at": created_at, "expires_at": None,
        "status": "processed", "status_details": None,
    }  # fmt: skip


def job(job_id: str, method: str, status: str, **changes: Any) -> dict[str, Any]:
    grader = {
        "type": "multi",
        "name": "both",
        "graders": {"a": {"type": "endpoint", "name": "remote", "url": "https://x.invalid",
                          "headers": {"authorization": "*******"}}},
        "calculate_output": "a",
    }  # fmt: skip
    settings: dict[str, Any] = {"hyperparameters": {"n_epochs": 3, "batch_size": "auto"}}
    if method == "reinforcement":
        settings |= {"grader": grader, "response_format": None}
    return {
        "object": "fine_tuning.job", "id": job_id, "model": "o4-mini-2025-04-16",
        "created_at": 1500, "finished_at": 1800, "status": status, "error": {},
        "fine_tuned_model": f"ft:o4-mini:acme::{job_id}" if status == "succeeded" else None,
        "organization_id": ORGANIZATION_ID, "result_files": [], "training_file": "file-train",
        "validation_file": "file-valid", "trained_tokens": 12, "seed": 7,
        "method": {"type": method, method: settings},
        "eval_id": "eval_auto", "user_provided_suffix": None, "shared_with_openai": False,
        "future_field": {"kept": 1.50},
    } | changes  # fmt: skip


def event(number: int) -> dict[str, Any]:
    data: dict[str, Any] = {"step": number, "total_steps": 100}
    if number % 2:
        data |= {"train_mean_reward": number / 100, "full_valid_mean_reward": number / 50}
    else:
        data["scores"] = {"train_reward_mean": number / 100, "valid_reward_mean": number / 50}
    return {
        "object": "fine_tuning.job.event", "id": f"ftevent-{number:06}", "type": "metrics",
        "created_at": 1600 + number, "level": "info", "message": f"Step {number}/100 – reward",
        "data": data,
    }  # fmt: skip


def checkpoint(step: int, metrics: dict[str, float]) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job.checkpoint", "id": f"ftckpt_{step}", "created_at": 1700 + step,
        "fine_tuned_model_checkpoint": f"ft:o4-mini:acme::rft:ckpt-step-{step}",
        "fine_tuning_job_id": "ftjob-rft", "step_number": step, "metrics": metrics,
    }  # fmt: skip


def eval_object(eval_id: str, grader: str = "exact-match") -> dict[str, Any]:
    criterion = {
        "id": f"{grader}-{UUID}", "grdr_id": "grdr_1", "inactive_at": None,
        "type": "string_check", "name": grader, "operation": "eq",
        "input": "{{sample.output_text}}", "reference": "{{item.answer}}",
    }  # fmt: skip
    return {
        "object": "eval", "id": eval_id, "name": f"The {eval_id}", "created_at": 1500,
        "data_source_config": {"type": "custom", "schema": {}}, "metadata": {},
        "testing_criteria": [criterion],
    }  # fmt: skip


def add_run(
    account: Account, eval_id: str, run_id: str, num_items: int, *,
    status: str = "completed", filler: int = 0,
) -> None:  # fmt: skip
    counts = {"total": num_items, "errored": 0, "failed": 0, "passed": num_items}
    run = {
        "object": "eval.run", "id": run_id, "eval_id": eval_id, "status": status,
        "model": "ft:o4-mini:acme::rft", "name": "Step 0", "created_at": 1600,
        "result_counts": counts, "report_url": "https://x.invalid", "error": None,
        "data_source": {"type": "completions"}, "shared_with_openai": False,
    }  # fmt: skip
    account.add(f"/evals/{eval_id}/runs", run)
    items = [output_item(eval_id, run_id, number, filler) for number in range(num_items)]
    account.add(f"/evals/{eval_id}/runs/{run_id}/output_items", *items)


def output_item(eval_id: str, run_id: str, number: int, filler: int) -> dict[str, Any]:
    return {
        "object": "eval.run.output_item", "id": f"outputitem_{run_id}_{number:06}",
        "run_id": run_id, "eval_id": eval_id, "created_at": 1700, "status": "pass",
        "datasource_item_id": number,
        "datasource_item": {"messages": [{"role": "user", "content": "x" * filler}], "answer": "a"},
        "results": [{"name": f"exact-match-{UUID}", "score": 0.5, "passed": True}],
        "sample": {"output": [{"role": "assistant", "content": f"answer {number}"}],
                   "input": [], "finish_reason": "stop", "model": "o4-mini",
                   "usage": {"total_tokens": 12, "completion_tokens": 5, "prompt_tokens": 7},
                   "error": {}},
    }  # fmt: skip


UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
RESULT_CSV = (
    "step,train_mean_reward,full_valid_mean_reward,scores/graders/multi/both/train_reward_mean\n"
    "1,0.25,,0.25\n2,0.5,0.75,0.5\n"
)


def _error(message: str, **more: Any) -> str:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return json.dumps({"error": error | more}, indent=2)


def _handler(account: Account) -> type[BaseHTTPRequestHandler]:
    lock = threading.Lock()

    def next_fault(path: str) -> Fault | None:
        with lock:
            for fault in account.faults:
                if fault.where in path and fault.times > 0:
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            path = "/" + parts.path.split("/v1/", 1)[-1]
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            account.requests.append(f"{path}?{parts.query}")
            account.seen_headers.append({k.lower(): v for k, v in self.headers.items()})
            sent = self.headers.get("api-key") or self.headers.get("authorization") or ""
            if sent.removeprefix("Bearer ") != KEY:
                error = _error(f"Incorrect API key provided: {sent}.", code="invalid_api_key")
                return self.reply(401, error.encode())
            fault = next_fault(f"{path}?{parts.query}")
            if fault and fault.kind == "status":
                error = _error(**({"message": f"stub fault {fault.status}"} | fault.error))
                return self.reply(fault.status, error.encode(), more=fault.headers)
            if fault and fault.kind == "hang":
                time.sleep(fault.status / 1000)  # milliseconds
            if account.before:
                with lock:
                    account.before(path, query)
            status, body, content_type = account.answer(path, query)
            if fault and fault.kind == "garbage":
                body, content_type = b"<html>a proxy says hello</html>", "text/html"
            if fault and fault.kind == "drop":
                return self.reply(status, body, content_type, cut=len(body) // 2)
            if status == 200:
                account.bodies[f"{path}?{parts.query}"] = body
            return self.reply(status, body, content_type)

        def reply(
            self, status: int, body: bytes, content_type: str = "application/json", *,
            more: dict[str, str] | None = None, cut: int | None = None,
        ) -> None:  # fmt: skip
            self.send_response(status)
            headers = {"content-type": content_type, "content-length": str(len(body))}
            for name, value in {**headers, **account.headers, **(more or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body if cut is None else body[:cut])
            if cut is not None:
                self.close_connection = True

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (ConnectionError, TimeoutError):
                self.close_connection = True

        def log_message(self, *_: object) -> None: ...

    return Handler


def main() -> None:
    """Serve a large account; prints the base URL on one line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--delay-ms", type=float, default=0, help="latency of each answer")
    given = parser.parse_args()
    account = large_account(given.items, given.events)
    if given.delay_ms:
        account.before = None
        account.faults = [Fault("", "hang", status=int(given.delay_ms), times=float("inf"))]
    with Stub(account) as stub:
        print(stub.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
