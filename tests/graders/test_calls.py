"""Calls that hang, and services that say how long to wait."""

from __future__ import annotations

import threading
import time
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import pytest

from rftkit import graders
from rftkit.backoff import retry_after
from rftkit.graders import judge, posting
from rftkit.graders.calls import Abandoned, Calls, Work, if_abandoned

JUDGE = {
    "type": "score_model",
    "model": "m",
    "input": [{"role": "user", "content": "{{sample.output_text}}"}],
}
ENDPOINT = {"type": "endpoint", "url": "http://127.0.0.1:9/"}


class Busy(Exception):
    status_code = 429

    def __init__(self, headers: dict[str, str]) -> None:
        super().__init__("busy")
        self.response = SimpleNamespace(headers=headers)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(Calls, "pause", lambda self, seconds: found.append(seconds))
    return found


ABSURD = (
    "nan", "inf", "1e400", "-inf", "", " ", "7 seconds", "0", "Wed, 21 Oct 1999 07:28:00 GMT",
    "Mon, 01 Jan 0001 00:00:00 -0000", "Wed, 21 Oct 99999 07:28:00 GMT", "99 Foo 2030 25:61:61 GMT",
)  # fmt: skip


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "1e3"}, 1000.0),
        *(({"Retry-After": each}, None) for each in ABSURD),
        ({"retry-after": "7.5"}, 7.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_retry_after(headers: dict[str, str] | None, seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_may_be_a_date() -> None:
    asked = retry_after({"retry-after": formatdate(time.time() + 60, usegmt=True)})
    assert asked is not None
    assert 50 < asked <= 60


def test_a_judge_is_asked_again_when_it_says(pauses: list[float]) -> None:
    answers: list[Any] = [Busy({"retry-after": "20"}), Busy({}), judge.Completion('{"result": 1}')]

    def complete(**_: Any) -> judge.Completion:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert graders.grade(JUDGE, "x", {}, complete=complete).reward == 1.0
    assert pauses[0] == 20.0
    assert pauses[1] < 2.0


def test_an_endpoint_is_asked_again_when_it_says(pauses: list[float]) -> None:
    answers: list[Any] = [(503, b"", {"Retry-After": "20"}), (429, b""), (200, b'{"score": 1}', {})]
    grade = graders.grade(ENDPOINT, "x", {}, http=lambda *_: answers.pop(0))
    assert grade.reward == 1.0
    assert pauses[0] == 20.0
    assert pauses[1] < 2.0


def test_whoever_asks_for_more_than_a_grade_may_take_is_not_waited_for(
    pauses: list[float],
) -> None:
    def complete(**_: Any) -> judge.Completion:
        raise Busy({"retry-after": "86400"})

    assert graders.grade(JUDGE, "x", {}, complete=complete).outcome == "failed"
    busy = lambda *_: (429, b"", {"retry-after": "86400"})  # noqa: E731
    assert graders.grade(ENDPOINT, "x", {}, http=busy).outcome == "failed"
    assert pauses == []


def test_a_call_has_an_end_whoever_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(posting, "TIMEOUT_SECONDS", 0.05)
    end = threading.Event()
    hang: Any = lambda *_, **__: end.wait(60)  # noqa: E731
    asked = graders.grade(JUDGE, "x", {}, complete=hang)
    posted = graders.grade(ENDPOINT, "x", {}, http=hang)
    assert "no answer within" in str(asked.errors["model_grader_server_error_details"])
    assert "no answer within" in str(posted.errors["endpoint_grader_server_error_details"])
    end.set()


@pytest.mark.parametrize("spec", [JUDGE, ENDPOINT])
def test_closing_now_abandons_the_calls_under_way_and_those_that_wait(spec: Any) -> None:
    end, called = threading.Event(), threading.Semaphore(0)

    def hang(*_: Any, **__: Any) -> Any:
        called.release()
        end.wait(60)

    grader = graders.compile_grader(spec, complete=hang, http=hang, concurrency=2)
    found: list[graders.Grade] = []
    sample = graders.Sample.from_text("x")
    threads = [
        threading.Thread(target=lambda: found.append(grader.grade(sample, {}))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    assert called.acquire(timeout=60)
    assert called.acquire(timeout=60)
    grader.close(now=True)
    for thread in threads:
        thread.join(60)
    assert [grade.outcome for grade in found] == ["failed"] * 5
    assert not called.acquire(blocking=False)
    assert not end.is_set()
    end.set()


def test_work_that_is_abandoned_ends_the_calls_within_it() -> None:
    work, ended, begun = Work(), threading.Event(), threading.Event()

    def inner() -> None:
        with if_abandoned(ended.set):
            begun.set()
            assert ended.wait(60)

    def outer() -> None:
        with work.here(), pytest.raises(Abandoned):
            Calls().run(inner, 60)

    thread = threading.Thread(target=outer)
    thread.start()
    assert begun.wait(60)
    work.abandon()
    thread.join(60)
    assert ended.wait(60)
