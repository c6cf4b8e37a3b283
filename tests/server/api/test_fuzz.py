"""No request makes the platform fail: every route of its OpenAPI schema, fed half-right requests.

Bodies are valid examples with one place replaced by anything; ids are real, of another kind, or
junk. Whatever happens, the answer is not a 5xx and every refusal has the one error shape.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from conftest import GRADER, FakeLink, Served
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MODEL = "rftkit-tiny"
JSON_HEADERS = {"content-type": "application/json"}
METHOD = {"type": "reinforcement", "reinforcement": {"grader": GRADER, "hyperparameters": {}}}
SOURCE = {"type": "file_content", "content": [{"item": {"answer": "a"}}]}
TEMPLATE = {"type": "template", "template": [{"role": "user", "content": "{{item.answer}}"}]}
BODIES: dict[str, Any] = {
    "/fine_tuning/jobs": {
        "model": MODEL, "training_file": "FILE", "validation_file": "FILE", "method": METHOD,
        "metadata": {"a": "b"}, "seed": 1, "suffix": "x",
    },
    "/fine_tuning/alpha/graders/run": {"grader": GRADER, "model_sample": "x", "item": {}},
    "/fine_tuning/alpha/graders/validate": {"grader": GRADER},
    "/fine_tuning/checkpoints/{checkpoint}/permissions": {"project_ids": ["p"]},
    "/chat/completions": {
        "model": MODEL, "messages": [{"role": "user", "content": "x"}], "temperature": 1,
        "stop": ["x"], "n": 1, "response_format": {"type": "text"}, "tools": [], "stream": False,
    },
    "/responses": {
        "model": MODEL, "input": [{"role": "user", "content": "x"}], "text": {"format": None},
        "tools": [], "previous_response_id": None,
    },
    "/evals": {
        "name": "x", "data_source_config": {"type": "custom", "item_schema": {"type": "object"}},
        "testing_criteria": [GRADER],
    },
    "/evals/{eval_id}": {"name": "x", "metadata": {}},
    "/evals/{eval_id}/runs": {
        "data_source": {
            "type": "completions", "model": MODEL, "source": SOURCE, "input_messages": TEMPLATE,
            "sampling_params": {"temperature": 1},
        },
    },
}  # fmt: skip

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats()
    | st.text(max_size=8) | st.sampled_from(["auto", "multi", "python", "{{item.x}}", "{{", "\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner,
                                                                max_size=3),
    max_leaves=5,
)  # fmt: skip
words = st.text(max_size=12) | st.sampled_from(["0", "-1", "1", "999999999999999999999", "asc"])


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place inside a JSON value, itself included."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def replaced(body: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The body with another value at one place."""
    if not path:
        return new
    body = copy.deepcopy(body)
    target = body
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = new
    return body


@st.composite
def requests(draw: st.DrawFn, operations: list[tuple[str, str]], ids: list[str]) -> Any:
    method, path = draw(st.sampled_from(operations))
    body: Any = None
    if method == "post" and path in BODIES:
        body = BODIES[path]
        spot = draw(st.sampled_from(list(places(body))))
        body = replaced(body, spot, draw(anything))
    url = path
    while "{" in url:
        start, end = url.index("{"), url.index("}")
        segment = draw(st.sampled_from(ids) | words.filter(bool))
        url = url[:start] + quote(segment, safe="") + url[end + 1 :]
    names = ["after", "limit", "order", "order_by", "status", "purpose", "metadata", "metadata[a]"]
    query = draw(st.dictionaries(st.sampled_from(names), words, max_size=3))
    return method, url, query, body


@pytest.mark.parametrize(
    "examples", [500, pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_no_request_is_a_500(served: Served, examples: int) -> None:
    served.platform.runner.wake = lambda: None  # type: ignore[method-assign]
    served.platform.worker = FakeLink()
    file_id = served.upload()
    job = served.create_job()
    record = served.platform.store.eval(job.eval_id)
    run = served.platform.store.add_run(record.id, {"type": "jsonl", "source": SOURCE})
    ids = [file_id, job.id, record.id, run.id, MODEL, "ft:none", "../../etc/passwd"]
    paths = served.http.get("/openapi.json").json()["paths"]
    operations = [
        (method, path.removeprefix("/v1"))
        for path, methods in paths.items()
        for method in methods
        if path.startswith("/v1") and path != "/v1/files"
    ]
    assert set(BODIES) <= {path for _, path in operations}
    BODIES["/fine_tuning/jobs"] |= {"training_file": file_id, "validation_file": file_id}

    @settings(
        max_examples=examples, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(request=requests(operations, ids))
    def check(request: Any) -> None:
        method, url, query, body = request
        content = None if body is None else json.dumps(body)
        response = served.http.request(
            method, "/v1" + url, params=query, content=content, headers=JSON_HEADERS
        )
        assert response.status_code < 500, response.text
        if response.status_code >= 400:
            error = response.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["message"]

    check()
