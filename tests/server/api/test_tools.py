"""Tools of jobs: what their settings may hold, what is echoed, and trying one before a job."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import GRADER, Served

from rftkit import tools

URL = "http://127.0.0.1:9/tool"
ENTRY = {"name": "search", "server_url": URL}


def search(query: str) -> str:
    """Search."""
    if query == "none":
        raise tools.ToolError("nothing found")
    if query == "broken":
        raise RuntimeError("no index")
    return f"found {query}"


def method(**reinforcement: Any) -> dict[str, Any]:
    return {"type": "reinforcement", "reinforcement": {"grader": GRADER, **reinforcement}}


def test_headers_are_masked_wherever_a_job_is_shown(served: Served) -> None:
    headers = {"Authorization": "Bearer of-the-tool"}
    mcp = {
        "type": "mcp", "server_label": "shop", "server_url": "https://1.1.1.1/mcp?v=secret-part",
        "authorization": "of-the-shop",
    }  # fmt: skip
    given = method(tools=[{**ENTRY, "headers": headers}, mcp], max_episode_steps=4)
    job = served.create_job(method=given)
    shown = [job, served.client.fine_tuning.jobs.retrieve(job.id)]
    shown += served.client.fine_tuning.jobs.list().data
    shown += served.client.fine_tuning.jobs.list_events(job.id).data
    text = json.dumps([each.to_dict(mode="json") for each in shown])
    assert not [key for key in ("of-the-tool", "of-the-shop", "secret-part") if key in text]
    found = job.method.reinforcement.model_extra
    assert found["tools"][0] == {**ENTRY, "headers": {"Authorization": "********"}}
    assert found["max_episode_steps"] == 4
    kept = served.platform.store.job(job.id).method["reinforcement"]["tools"]
    assert kept[0]["headers"] == headers


@pytest.mark.parametrize(
    ("entries", "param", "why"),
    [
        ({}, "", "must be a list"),
        (["search"], "[0]", r"must be \{name, server_url, headers\}"),
        ([{"server_url": URL}], "[0].name", "Missing required parameter"),
        ([{"name": "a b", "server_url": URL}], "[0].name", "1 to 64 letters"),
        ([{"name": "a"}], "[0].server_url", "Missing required parameter"),
        ([{"name": "a", "server_url": "tools.test/x"}], "[0].server_url", "must be a URL such as"),
        ([{"name": "a", "server_url": "ftp://tools.test"}], "[0].server_url", "must be a URL"),
        ([{"name": "a", "server_url": "http://x y/"}], "[0].server_url", "has blanks"),
        ([{"name": "a", "server_url": "http://x:99999/"}], "[0].server_url", "is no URL"),
        ([{"name": "a", "server_url": "http://me:hush@x.test/"}], "[0].server_url", "a password"),
        (
            [{"name": "a", "server_url": "http://x.test/?api_key=hush"}],
            "[0].server_url",
            r"holds a secret in its query \(api_key\)",
        ),
        ([{"name": "a", "server_url": "rftkit://other"}], "[0].server_url", "comes with rftkit"),
        ([{"name": "a", "server_url": "http://169.254.169.254/"}], "[0].server_url", "metadata"),
        ([{**ENTRY, "headers": {"X": 1}}], "[0].headers", "an object of texts"),
        ([{**ENTRY, "headers": {"X": "a\nhush"}}], "[0].headers.X", "line break"),
        ([{**ENTRY, "headers": {"X": "hush\u00e9"}}], "[0].headers.X", "use ASCII"),
        ([{**ENTRY, "headers": {"Host": "hush"}}], "[0].headers.Host", "set by the platform"),
        ([{**ENTRY, "headers": {"X": "********"}}], "[0].headers.X", "is masked"),
        ([ENTRY, ENTRY], "", "two entries with name 'search'"),
        ([{**ENTRY, "type": "web_search"}], "[0].type", "must be mcp"),
        ([{"type": "function", "function": {"name": "a"}}], "[0]", "belongs into `tools` of the"),
        ([{**ENTRY, "headrs": {}}], "[0].headrs", "did you mean headers"),
        ([{"type": "mcp", "server_label": "s", "command": "rm"}], "[0].command", "starts a com"),
        ([{"type": "mcp", "server_label": "s"}], "[0].server_url", "RFTKIT_MCP_SERVERS"),
        (
            [{"type": "mcp", "server_label": "s", "server_url": URL, "require_approval": "always"}],
            "[0].require_approval",
            "must be never",
        ),
        ([{"type": "mcp", "server_url": URL}], "[0].name", "Missing"),
    ],
)
def test_settings_that_are_refused(entries: Any, param: str, why: str, served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match=why) as refused:
        served.create_job(method=method(tools=entries))
    assert refused.value.param == f"method.reinforcement.tools{param}"
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("steps", [0, 1001, 2.5, "4", True])
def test_steps_that_are_refused(steps: Any, served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="whole number from 1 to 1000"):
        served.create_job(method=method(tools=[ENTRY], max_episode_steps=steps))


@pytest.mark.parametrize(
    "url", [URL, "http://localhost/x", "http://[::1]:8/x", "http://10.0.0.1/", "http://2130706433/"]
)
def test_private_addresses_are_for_this_machine_only(url: str, served: Served) -> None:
    entry = {"name": "a", "server_url": url}
    served.create_job(method=method(tools=[entry]))
    served.platform.private_tools = False
    with pytest.raises(openai.BadRequestError, match="listens beyond this machine"):
        served.create_job(method=method(tools=[entry]))
    with pytest.raises(openai.BadRequestError, match="listens beyond this machine"):
        run(served, name="a", arguments="{}", server_url=url)
    served.create_job(method=method(tools=[{**entry, "server_url": "https://1.1.1.1/"}]))


def test_steps_without_tools_are_named_as_ignored(served: Served) -> None:
    job = served.create_job(method=method(max_episode_steps=4))
    events = served.client.fine_tuning.jobs.list_events(job.id).data
    assert any("Ignored method.reinforcement.max_episode_steps" in e.message for e in events)


@pytest.mark.parametrize("shown", [["x"], 5, "x"])
def test_a_row_whose_tools_are_no_functions_is_refused(shown: Any, served: Served) -> None:
    job = served.create_job(method=method(tools=[ENTRY]))
    body = {"name": "search", "item": {"tools": shown}}
    answer = served.http.post(f"/rftkit/jobs/{job.id}/tool", json=body)
    assert answer.status_code == 400
    assert "`item.tools` must be a list" in answer.text


def test_a_call_of_an_mcp_server_without_its_package(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    entry = {"type": "mcp", "server_label": "shop", "server_url": URL}
    job = served.create_job(method=method(tools=[entry]))
    answer = served.http.post(f"/rftkit/jobs/{job.id}/tool", json={"name": "search"})
    assert answer.status_code == 400
    assert "mcp" in answer.text


def run(served: Served, **body: Any) -> Any:
    path = "/fine_tuning/alpha/tool/run"
    return served.client.post(path, cast_to=object, body={"type": "function_call", **body})


def test_a_tool_is_tried(served: Served) -> None:
    with tools.serve([search]) as server:
        [entry] = server.entries
        body = {**entry, "arguments": '{"query": "x"}', "call_id": "call_1", "id": "fc_of_mine"}
        found = run(served, **body, item={}, trace_id="trace_1")
        assert found == {
            "type": "function_call_output", "call_id": "call_1", "id": "fc_of_mine",
            "output": "found x",
        }  # fmt: skip
        with pytest.raises(openai.BadRequestError, match="nothing found"):
            run(served, **{**body, "arguments": {"query": "none"}})
        with pytest.raises(openai.AuthenticationError, match="Authorization"):
            run(served, **{**body, "headers": {"Authorization": "Bearer other"}})


def test_a_tool_that_fails_is_an_error_without_its_headers(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rftkit.graders.posting.FIRST_PAUSE_SECONDS", 0.0)
    with tools.serve([search]) as server:
        [entry] = server.entries
        with pytest.raises(openai.InternalServerError, match="no index") as failed:
            run(served, **entry, arguments={"query": "broken"})
    assert failed.value.status_code == 502
    assert failed.value.code == "tool_failed"
    assert entry["headers"]["Authorization"].split()[1] not in str(failed.value)
    with pytest.raises(openai.InternalServerError, match="nothing answers at"):
        run(served, name="search", server_url="http://127.0.0.1:1/", arguments="{}")


def test_a_tool_that_comes_with_rftkit_is_tried(served: Served) -> None:
    folder = Path(__file__).parents[3] / "datasets" / "policy_lookup"
    row = json.loads((folder / "train.jsonl").read_text().splitlines()[0])
    [tool] = json.loads((folder / "tools.json").read_text())
    question = row["messages"][0]["content"].split("\n")[1]
    found = run(served, name="search_policy", arguments={"query": question}, item=row, tool=tool)
    assert found["output"] == "We sign vendors without any security check; price decides."


def test_what_cannot_be_tried(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="give `server_url`") as refused:
        run(served, name="search", arguments="{}")
    assert refused.value.param == "server_url"
    with pytest.raises(openai.BadRequestError, match="a password") as refused:
        run(served, name="search", arguments="{}", server_url="http://a:b@x.test/")
    assert refused.value.param == "server_url"
