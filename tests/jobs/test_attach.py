"""Attach to a job at any time: the newest events first, the older ones after, then only news."""

from __future__ import annotations

import openai
import pytest
from conftest import Served

from rftkit.jobs import Follow, latest


def messages(follow: Follow) -> list[str]:
    return [event["message"] for event in follow.events]


def grow(served: Served, job_id: str, start: int, stop: int) -> None:
    for number in range(start, stop):
        served.platform.store.add_event(job_id, f"event {number}")


def test_a_long_history_comes_newest_first_and_whole_in_the_end(served: Served) -> None:
    job = served.create_job()
    grow(served, job.id, 0, 350)
    follow = Follow(served.client, job.id)

    assert messages(follow) == [f"event {number}" for number in range(250, 350)]
    assert not follow.has_all_events
    while follow.fetch_older():
        pass
    assert messages(follow)[1:] == [f"event {number}" for number in range(350)]
    assert follow.has_all_events


def test_a_look_brings_only_what_is_new_however_much_it_is(served: Served) -> None:
    job = served.create_job()
    follow = Follow(served.client, job.id)
    assert follow.has_all_events
    assert not follow.poll()
    for start, stop in ((0, 1), (1, 20), (20, 40), (40, 150)):
        grow(served, job.id, start, stop)
        assert follow.poll()
        assert messages(follow)[1:] == [f"event {number}" for number in range(stop)]


def test_a_look_notices_a_new_status(served: Served) -> None:
    job = served.create_job()
    follow = Follow(served.client, job.id)
    served.platform.store.update_job(job.id, status="failed", error={"code": "x", "message": "y"})
    assert follow.poll()
    assert follow.has_ended


def test_misses_are_counted_and_what_was_known_stays(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = served.create_job()
    follow = Follow(served.client, job.id)
    seen = follow.polled_at
    with monkeypatch.context() as patch:
        patch.setattr(served.http, "send", refuse)
        for count in (1, 2):
            with pytest.raises(openai.APIConnectionError):
                follow.poll()
            assert (follow.failed_polls, follow.polled_at) == (count, seen)
    assert len(follow.events) == 1
    follow.poll()
    assert (follow.failed_polls, follow.last_error) == (0, "")


def refuse(*_: object, **__: object) -> None:
    import httpx2

    raise httpx2.ConnectError("unplugged")


def test_no_job_is_no_job(served: Served) -> None:
    assert latest(served.client) is None
    with pytest.raises(openai.NotFoundError):
        Follow(served.client, "ftjob-none")
    assert latest(served.client) is None
    served.create_job(metadata={"probe": "true"})
    assert latest(served.client) is None
    job = served.create_job()
    assert latest(served.client) == job.id
