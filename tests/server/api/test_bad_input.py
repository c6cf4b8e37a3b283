"""Bad input: one clear message each, in the OpenAI error shape, and nothing half-made left."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from conftest import GRADER, Served


def reinforcement(**changes: Any) -> dict[str, Any]:
    return {"type": "reinforcement", "reinforcement": {"grader": GRADER, **changes}}


def hyper(**changes: Any) -> dict[str, Any]:
    return {"method": reinforcement(hyperparameters=changes)}


def supervised(**hyperparameters: Any) -> dict[str, Any]:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


def dpo(**hyperparameters: Any) -> dict[str, Any]:
    return {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}


HYPER = "method.reinforcement.hyperparameters"

JOBS = [
    ({"model": "no-such-model"}, "model", "'no-such-model' does not exist"),
    ({"model": "no/such/\0name"}, "model", "does not exist"),
    ({"model": 5}, "model", "found 5"),
    ({"training_file": "file-none"}, "training_file", "No such File object: file-none"),
    ({"training_file": "ftjob-1"}, "training_file", "No such File object: ftjob-1"),
    ({"validation_file": None}, "validation_file", "required"),
    ({"suffix": ""}, "suffix", "at least 1 character"),
    ({"suffix": "x" * 65}, "suffix", "at most 64 characters"),
    ({"suffix": "a:b"}, "suffix", "a suffix cannot contain"),
    ({"seed": -1}, "seed", "found -1"),
    ({"seed": 2**31}, "seed", "2147483647"),
    ({"seed": "7"}, "seed", "found '7'"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "at most 16 pairs"),
    ({"metadata": {"k" * 65: "v"}}, "metadata", "longer than 64"),
    ({"metadata": {"k": "v" * 513}}, "metadata", "'k' is longer than 512"),
    ({"metadata": {"k": 1}}, "metadata.k", "string"),
    ({"integrations": [{"type": "none"}]}, "integrations[0].type", "must be one of wandb"),
    ({"integrations": [{"type": "wandb", "wandb": {"dir": "/"}}]}, "integrations[0].wandb.dir",
     "has no 'dir'"),
    ({"integrations": [{"type": "wandb", "wandb": {"tags": "a"}}]}, "integrations[0].wandb.tags",
     "a list of texts"),
    ({"integrations": [{"type": "tensorboard", "tensorboard": {"folder": "/etc"}}]},
     "integrations[0].tensorboard.folder", "has no 'folder'"),
    ({"method": openai.omit, "extra_body": {"hyperparameters": {"n_epochs": 51}}},
     "method.supervised.hyperparameters.n_epochs", "from 1 to 50, found 51"),
    ({"method": {"type": "dpo"}, "extra_body": {"hyperparameters": {"n_epochs": 3}}},
     "hyperparameters", "put them in `method.dpo"),
    ({"method": dpo(beta=0)}, "method.dpo.hyperparameters.beta", "to 2, found 0"),
    ({"method": dpo(beta=2.1)}, "method.dpo.hyperparameters.beta", "found 2.1"),
    ({"method": supervised(batch_size="8")},
     "method.supervised.hyperparameters.batch_size", "found '8'"),
    ({"method": supervised(n_epochs=2), "extra_body": {"hyperparameters": {"n_epochs": 3}}},
     "hyperparameters", "is 3 and `method.supervised.hyperparameters.n_epochs` is 2"),
    ({"method": supervised(), "metadata": {"grader": "{"}}, "metadata.grader", "not valid JSON"),
    ({"method": supervised(), "metadata": {"grader": "file-none"}}, "metadata.grader", "No such"),
    ({"method": supervised(), "metadata": {"grader": '{"type": "oracle"}'}},
     "metadata.grader.type", "oracle"),
    ({"method": supervised(), "metadata": {"grader": json.dumps(GRADER)},
      "validation_file": None}, "metadata.grader", "grader_rows"),
    ({"method": {"type": "reinforcement"}}, "method.reinforcement", "Missing required"),
    ({"method": {"type": "magic"}}, "method.type", "'magic'"),
    ({"method": {"type": "reinforcement", "reinforcement": {}}},
     "method.reinforcement.grader", "Missing required"),
    ({"method": reinforcement(grader={"type": "oracle"})},
     "method.reinforcement.grader.type", "oracle"),
    ({"method": reinforcement(grader={**GRADER, "input": "{{ sampel.text }}"})},
     "method.reinforcement.grader.input", "sampel"),
    ({"method": reinforcement(grader={**GRADER, "input": {}})},
     "method.reinforcement.grader.input", ""),
    ({"method": reinforcement(response_format={"type": "xml"})},
     "method.reinforcement.response_format.type", "'xml'"),
    ({"method": reinforcement(response_format={"type": "json_schema"})},
     "method.reinforcement.response_format.json_schema", "found null"),
    ({"method": reinforcement(tools=[{"name": "t", "server_url": "file:///x"}])},
     "method.reinforcement.tools[0].server_url", "http"),
    ({"method": reinforcement(hyperparameters=[])}, HYPER, "found a list"),
    (hyper(batch_size=0), f"{HYPER}.batch_size", "from 1 to 256, found 0"),
    (hyper(batch_size=257), f"{HYPER}.batch_size", "found 257"),
    (hyper(batch_size=True), f"{HYPER}.batch_size", "found True"),
    (hyper(batch_size=1.5), f"{HYPER}.batch_size", "a whole number"),
    (hyper(n_epochs="many"), f"{HYPER}.n_epochs", "found 'many'"),
    (hyper(compute_multiplier=11), f"{HYPER}.compute_multiplier", "to 10, found 11"),
    (hyper(compute_multiplier=0), f"{HYPER}.compute_multiplier", "found 0"),
    (hyper(learning_rate_multiplier=-1), f"{HYPER}.learning_rate_multiplier", "found -1"),
    (hyper(eval_interval=0), f"{HYPER}.eval_interval", "found 0"),
    (hyper(reasoning_effort="max"), f"{HYPER}.reasoning_effort", "found 'max'"),
    ({"extra_body": {"hyperparameters": {"n_epochs": 3}}}, "hyperparameters", "put them in"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "param", "words"), JOBS)
def test_a_job_that_cannot_be(served: Served, changes: Any, param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        served.create_job(**changes)
    error = caught.value
    assert error.param == param
    assert words in error.message
    assert error.type == "invalid_request_error"
    assert served.client.fine_tuning.jobs.list().data == []
    assert served.link.wakes == 0


def test_a_file_for_another_purpose_cannot_be_trained_on(served: Served) -> None:
    file = served.client.files.create(file=("a.jsonl", b"{}"), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="has purpose 'batch'"):
        served.create_job(validation_file=file.id)


UPLOADS = [
    ({"file": ("rows.csv", b"x"), "purpose": "fine-tune"}, "file", "*.jsonl, found 'rows.csv'"),
    ({"file": ("a.jsonl", b""), "purpose": "fine-tune"}, "file", "is empty"),
    ({"file": ("a.jsonl", b"x"), "purpose": "fun"}, "purpose", "found 'fun'"),
    ({"file": ("a.jsonl", b"x"), "purpose": "fine-tune",
      "expires_after": {"anchor": "created_at", "seconds": 60}},
     "expires_after[seconds]", "from 3600 to 2592000, found 60"),
    ({"file": ("a.jsonl", b"x"), "purpose": "fine-tune",
      "expires_after": {"anchor": "now", "seconds": 3600}},
     "expires_after[anchor]", "found 'now'"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param", "words"), UPLOADS)
def test_an_upload_that_cannot_be(served: Served, body: Any, param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        served.client.files.create(**body)
    assert caught.value.param == param
    assert words in caught.value.message
    assert served.client.files.list().data == []


USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CHATS = [
    ({"messages": []}, "messages", "is empty"),
    ({"messages": "hi"}, "messages", "found 'hi'"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "'robot'"),
    ({"messages": [*USER, {"role": "user"}]}, "messages[1].content", "found null"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
     "messages[0].content", "text only"),
    ({"messages": [{"role": "assistant", "tool_calls": "look"}, *USER]},
     "messages[0].tool_calls", "found 'look'"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}, *USER]},
     "messages[0].tool_calls[0]", "function: {name, arguments}"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"type": "custom", "custom": {}}]}, *USER]},
     "messages[0].tool_calls[0]", "call functions only"),
    ({"temperature": 3}, "temperature", "found 3"),
    ({"temperature": "hot"}, "temperature", "found 'hot'"),
    ({"top_p": -1}, "top_p", "found -1"),
    ({"n": 0}, "n", "found 0"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "found 0"),
    ({"top_logprobs": 3}, "top_logprobs", "needs `logprobs`"),
    ({"stop": [""]}, "stop", "none of them empty"),
    ({"frequency_penalty": 0.5}, "frequency_penalty", "not supported"),
    ({"logit_bias": {"1": 5}}, "logit_bias", "not supported"),
    ({"tool_choice": "required"}, "tool_choice", "no `tools`"),
    ({"tool_choice": "any", "tools": [TOOL]}, "tool_choice", "found 'any'"),
    ({"tool_choice": {"type": "function", "function": {"name": "x"}}, "tools": [TOOL]},
     "tool_choice", "'x'; `tools` has look"),
    ({"tool_choice": {"type": "web_search"}, "tools": [TOOL]}, "tool_choice", "'web_search'"),
    ({"tool_choice": {"type": "function"}, "tools": [TOOL]}, "tool_choice", "`name`"),
    ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "all", "tools": []}},
      "tools": [TOOL]}, "tool_choice", "auto or required"),
    ({"tools": [{"type": "function", "function": {"name": "x", "parameters": [1]}}]},
     "tools[0].function.parameters", "a list"),
    ({"tools": [{"type": "web_search"}]}, "tools[0]", "function"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
     "response_format.json_schema.schema", "found null"),
    ({"extra_body": {"best_of": 3}}, "best_of", "Unrecognized request argument"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "param", "words"), CHATS)
def test_a_chat_that_cannot_be(served: Served, changes: Any, param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        served.client.chat.completions.create(
            **{"model": "rftkit-tiny", "messages": USER, **changes}
        )
    assert caught.value.param == param
    assert words in caught.value.message
    assert served.link.requests == []


def test_a_chat_with_an_unknown_model(served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        served.client.chat.completions.create(model="gpt-9", messages=USER)  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


LISTS = [
    (lambda c: c.fine_tuning.jobs.list(limit=0), "limit"),
    (lambda c: c.fine_tuning.jobs.list(limit=10**9), "limit"),
    (lambda c: c.fine_tuning.jobs.list(after="file-1"), "after"),
    (lambda c: c.files.list(order="sideways"), "order"),
    (lambda c: c.files.list(after="nothing"), "after"),
]


@pytest.mark.parametrize(("call", "param"), LISTS)
def test_a_page_that_cannot_be(app_client: openai.OpenAI, call: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        call(app_client)
    assert caught.value.param == param


UNKNOWN = [
    lambda c: c.files.retrieve("file-none"),
    lambda c: c.files.delete("file-none"),
    lambda c: c.files.content("ftjob-1"),
    lambda c: c.fine_tuning.jobs.retrieve("file-1"),
    lambda c: c.fine_tuning.jobs.cancel("ftjob-none"),
    lambda c: c.fine_tuning.jobs.pause("ftjob-none"),
    lambda c: c.fine_tuning.jobs.list_events("ftjob-none"),
    lambda c: c.fine_tuning.jobs.checkpoints.list("ftjob-none"),
    lambda c: c.models.retrieve("ft:none"),
    lambda c: c.models.delete("none"),
    lambda c: c.post("/nowhere", cast_to=object),
]


@pytest.mark.parametrize("call", UNKNOWN)
def test_what_does_not_exist_is_404_with_a_request_id(app_client: Any, call: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        call(app_client)
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert caught.value.request_id.startswith("req_")


BODIES = [
    (b"{", "not valid JSON"),
    (b"[]", "found a list"),
    (b'{"model": NaN}', "not valid JSON"),
    (b'{"model": 1e999}', "not valid JSON"),
    (b'{"model": "\\ud800"}', "surrogate"),
    (b'{"a":' * 100_000, "nested more than 100 levels deep"),
    (b"\xff\xfe", "not valid JSON"),
    (b"", "Missing required parameter"),
]


@pytest.mark.parametrize(("body", "words"), BODIES)
def test_a_body_that_is_no_request(served: Served, body: bytes, words: str) -> None:
    headers = {"content-type": "application/json"}
    response = served.http.post("/v1/fine_tuning/jobs", content=body, headers=headers)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


def test_a_huge_body_is_refused_before_it_is_read(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rftkit.server.http.app.MAX_JSON_BYTES", 1000)
    for content in (b"x" * 1001, iter([b"x" * 600, b"x" * 600])):  # with and without a length
        response = served.http.post(
            "/v1/fine_tuning/jobs", content=content, headers={"content-type": "application/json"}
        )
        assert response.status_code == 413
        assert "larger than" in response.json()["error"]["message"]


def test_a_fault_of_ours_is_a_500_in_shape(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.platform.store, "models", lambda: 1 / 0)
    with pytest.raises(openai.InternalServerError) as caught:
        served.client.models.list()
    assert caught.value.type == "server_error"
    assert caught.value.request_id in caught.value.message


def test_web_pages_and_other_names_are_kept_out(served: Served) -> None:
    for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}):
        response = served.http.get("/v1/models", headers=headers)
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers
    own = served.http.get("/v1/models", headers={"origin": "http://localhost"})
    assert own.status_code == 200


def test_a_key_is_wanted_when_the_server_listens_elsewhere(served: Served) -> None:
    served.platform.needs_key = True
    served.platform.store.set_api_key("right")
    with pytest.raises(openai.AuthenticationError) as caught:
        served.client.models.list()
    assert caught.value.code == "invalid_api_key"
    assert served.client.with_options(api_key="right").models.list().data
    assert served.http.get("/health").json()["status"] == "ok"


def test_a_full_disk_leaves_nothing_behind(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rftkit.server.store.files.os.fsync", full)
    with pytest.raises(openai.InternalServerError, match="No space left on device"):
        served.upload()
    monkeypatch.undo()
    assert served.client.files.list().data == []
    root = served.platform.store._root
    assert [path for path in root.rglob("*") if path.is_file()] == []


def test_errors_are_ascii_json_whatever_was_sent(served: Served) -> None:
    response = served.http.get("/v1/models/%F0%9F%98%80%00")
    assert response.status_code == 404
    assert json.loads(response.content.decode("ascii"))["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "testserver"},
        {"origin": "http://["},
        {"origin": "null"},
        {"origin": ""},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
    ],
)
def test_what_other_pages_send_is_refused(served: Served, headers: dict[str, str]) -> None:
    response = served.http.get("/v1/models", headers=headers)
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "forbidden"


def test_a_link_can_be_clicked_and_a_form_cannot_be_sent(served: Served) -> None:
    click = {"sec-fetch-site": "same-site", "sec-fetch-mode": "navigate",
             "sec-fetch-dest": "document"}  # fmt: skip
    assert served.http.get("/v1/models", headers=click).status_code == 200
    assert served.http.post("/v1/evals", headers=click).status_code == 403
    own = {"sec-fetch-site": "same-origin"}
    assert served.http.get("/v1/models", headers=own).status_code == 200


def test_no_get_changes_anything() -> None:
    from rftkit.server.api import weights

    methods = [route.methods for route in weights.router.routes]  # type: ignore[attr-defined]
    assert methods == [{"POST"}]


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "text/plain", "", "application/octet-stream"]
)
def test_a_body_by_another_name_is_read_as_json(served: Served, kind: str) -> None:
    body = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'
    for path in ("/v1/chat/completions", "/v1/fine_tuning/jobs", "/v1/evals", "/v1/responses",
                 "/v1/embeddings", "/v1/fine_tuning/alpha/graders/run"):  # fmt: skip
        response = served.http.post(path, content=body, headers={"content-type": kind})
        assert response.status_code < 500, path
        response = served.http.post(path, content=b"a=b", headers={"content-type": kind})
        assert response.status_code == 400, path
        response = served.http.post(path, files={"file": b"x"})
        assert response.status_code in (400, 415), path
        assert response.json()["error"]["message"]


def test_guessing_keys_is_slowed_down(served: Served) -> None:
    served.platform.needs_key = True
    served.platform.store.set_api_key("right")
    answers = [
        served.http.get("/v1/models", headers={"authorization": f"Bearer wrong-{n}"})
        for n in range(12)
    ]
    assert [each.status_code for each in answers] == [401] * 10 + [429] * 2
    assert 0 < int(answers[-1].headers["retry-after"]) <= 60
    assert served.http.get("/health").status_code == 200
