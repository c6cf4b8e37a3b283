"""The client tower's own tests once more, against a service with the habits of hosted ones.

The tests are those of the modules named below; only what they talk to is another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hosted  # by its name: the modules below bring many of their own
import openai
import pytest
from conftest import GRADER, Served, serving
from evals.test_answers import *  # noqa: F403
from evals.test_runs import *  # noqa: F403
from jobs.test_attach import *  # noqa: F403
from jobs.test_follow import *  # noqa: F403

from rftkit import jobs
from rftkit.errors import NotFoundError
from rftkit.jobs.weights import fetch_weights


@pytest.fixture
def served() -> Iterator[Served]:
    with serving(hosted.Hosted, hosted.PATH) as found:
        yield found


def test_the_habits_are_there(served: Served) -> None:
    headers = {"Authorization": "s3cret"}
    endpoint = {"type": "endpoint", "name": "e", "url": "http://127.0.0.1:1/", "headers": headers}
    job = served.create_job(method={"type": "reinforcement", "reinforcement": {"grader": endpoint}})
    assert job.status == "pending"
    assert job.error.to_dict() == {}
    assert job.hyperparameters is None
    assert set(job.method.reinforcement.grader.headers["Authorization"]) == {"*"}
    assert jobs.error_of(job) is None
    system: Any = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    with pytest.raises(openai.BadRequestError, match="developer"):
        served.client.chat.completions.create(model="rftkit-tiny", messages=system)


def test_a_pending_and_then_paused_job_is_waited_for_and_shown(served: Served) -> None:
    job = served.create_job()
    script = iter(["pending", "running", "paused"])

    def move(update: jobs.Update) -> None:
        served.platform.store.update_job(job.id, status=next(script, "paused"))

    assert jobs.wait(served.client, job.id, move, poll_seconds=0).status == "paused"


def test_results_are_found_whatever_uuid_their_names_end_in(served: Served) -> None:
    record = served.client.evals.create(
        data_source_config={"type": "custom", "item_schema": {"type": "object"}},
        testing_criteria=[GRADER],  # type: ignore[list-item]
    )
    [criterion] = record.testing_criteria
    name = criterion.to_dict(warnings=False)["id"]
    assert len(name) == len("exact") + 37


def test_no_hosted_service_hands_out_weights(served: Served, tmp_path: Any) -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.end_headers()
            self.wfile.write(b'{"error": {"message": "Resource not found", "code": "404"}}')

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{server.server_port}/openai/v1", api_key="x"
        )
        with pytest.raises(NotFoundError, match="only an rftkit platform"):
            fetch_weights(client, "ft:o4-mini:org::1", tmp_path / "out")
