"""A scripted judge: your own function behind the routes of an OpenAI-compatible service.

For trying rubrics, relative graders and their jobs offline, in notebooks and tests: what it says is
known, so everything after it can be checked. It reads only prompts that rubric and relative graders
write with their usual `input`, and those of a score_model whose last message is the answer. Not a
model, and no substitute for one.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["ScriptedJudge"]

Opinion = Callable[[str, str, str], float]
"""(task, answer, criterion) -> how good from 0 to 1; the criterion is empty for a whole answer."""


class ScriptedJudge:
    """A service at `base_url` whose only model has one opinion; a context manager."""

    def __init__(self, opinion: Opinion) -> None:
        """Start to serve, on a free port of loopback, until `close` or the end of the process."""
        self._opinion = opinion
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self._reply))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"
        """The address for `RFTKIT_JUDGE_BASE_URL`."""

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> ScriptedJudge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reply(self, asked: dict[str, Any]) -> dict[str, Any]:
        texts = [str(message["content"]) for message in asked["messages"]]
        return {"steps": [], "result": self._result(texts)}

    def _result(self, texts: list[str]) -> Any:
        last, task = texts[-1], texts[-2] if len(texts) > 1 else ""
        if criteria := re.findall(r"^c(\d+) \(\w+\): (.*)$", last, re.MULTILINE):
            task, answer = _task_and_answer(task)
            return {
                f"c{number}": _verdict(self._opinion(task, answer, text))
                for number, text in criteria
            }
        if answers := re.findall(r"<answer_(\d+)>\n(.*?)\n</answer_\1>", last, re.DOTALL):
            return {
                f"answer_{number}": {"reason": "scripted", "score": self._opinion(task, text, "")}
                for number, text in answers
            }
        return self._opinion(task, last, "")


def _verdict(share: float) -> dict[str, str]:
    return {"reason": f"scripted: {share:.2f}", "verdict": "met" if share >= 0.5 else "not_met"}


def _task_and_answer(text: str) -> tuple[str, str]:
    task, _, rest = text.partition("<answer>\n")
    return task, rest.rpartition("\n</answer>")[0]


def _handler(reply: Callable[[dict[str, Any]], dict[str, Any]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            message = {"role": "assistant", "content": json.dumps(reply(asked)), "refusal": None}
            body = json.dumps({
                "id": "chatcmpl-scripted", "object": "chat.completion", "created": 0,
                "model": asked["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
            }).encode()  # fmt: skip
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Write nothing."""

    return Handler
