"""The playground calls the tools of a job, as a rollout does."""

from __future__ import annotations

import json
from typing import Any

from conftest import GRADER, Served
from fake_tools import definition

from rftkit import tools
from rftkit.widgets import Playground

ROW = {
    "messages": [{"role": "user", "content": "Which colour?"}],
    "tools": [definition("look", "at")],
    "answer": "found-door",
}


def look(at: str) -> str:
    """Look at something.

    Args:
        at: what.
    """
    return f"found-{at}"


def says(request: dict[str, Any]) -> Any:
    """A call, then what it brought."""
    last = request["messages"][-1]
    if last["role"] == "tool":
        return last["content"]
    function = {"name": "look", "arguments": json.dumps({"at": "door"})}
    call = {"id": "call_1", "type": "function", "function": function}
    return {"text": "", "tool_calls": [call]}


def test_an_answer_goes_on_with_what_its_calls_brought(served: Served) -> None:
    served.link.say = says
    server = tools.serve([look])
    try:
        file = served.upload(json.dumps(ROW).encode())
        inner = {"grader": GRADER, "tools": server.entries, "max_episode_steps": 4}
        job = served.create_job(
            training_file=file,
            validation_file=file,
            method={"type": "reinforcement", "reinforcement": inner},
        )
        play = Playground(job.id, client=served.client, chosen=["base"])
        play.ask(row=0)
    finally:
        server.close()
    [answer] = play.data().to_dict("records")
    assert answer["error"] is None or answer["error"] != answer["error"], answer["error"]
    assert answer["text"] == "found-door"
    assert answer["reward"] == 1
    assert [call["function"]["name"] for call in answer["tool_calls"]] == ["look"]
    assert "look(" in play.to_html()


def test_a_tool_that_is_gone_is_an_error_of_the_answer(served: Served) -> None:
    served.link.say = says
    server = tools.serve([look])
    file = served.upload(json.dumps(ROW).encode())
    inner = {"grader": GRADER, "tools": server.entries}
    job = served.create_job(
        training_file=file,
        validation_file=file,
        method={"type": "reinforcement", "reinforcement": inner},
    )
    server.close()
    play = Playground(job.id, client=served.client, chosen=["base"])
    play.ask(row=0)
    [answer] = play.data().to_dict("records")
    assert "look" in answer["error"]
    assert answer["reward"] is None or answer["reward"] != answer["reward"]
