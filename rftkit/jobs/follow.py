"""A local copy of a job and its events, refreshed by fetching only new events.

You can create a `Follow` at any time in a job's life. The first poll fetches the newest events,
`fetch_older` the older ones page by page, and each later poll the events since. `polled_at` is the
time of the last successful poll, so that a view can show how old its data is.
"""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Any

from rftkit.client import api_message
from rftkit.errors import InputError, NotFoundError
from rftkit.jobs.jobs import TERMINAL, Event

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["Follow", "find", "latest"]

PAGE = 100
"""Events per page; every service accepts this size."""
NEWS = 20
"""Events per page when few are new; longer pages cost the service more."""


PREFIX = "ftjob-"
WHOLE = 20
"""Characters after its prefix from which on an id is taken to be complete."""
MOST = 1000
"""Jobs among which a shortened id is looked for."""


def latest(client: OpenAI) -> str | None:
    """The id of the newest job, or None if there is none."""
    newest = client.fine_tuning.jobs.list(limit=1).data
    return newest[0].id if newest else None


def find(client: OpenAI, name: str = "") -> str:
    """The id of the job that is meant: the newest one, or that whose id or suffix begins so.

    Raises:
        NotFoundError: There is no job yet, or none of that name.
        InputError: Several jobs begin so.
    """
    if not name:
        if (newest := latest(client)) is None:
            raise NotFoundError("there is no job yet; to start one, type: rftkit job create --help")
        return newest
    begin = name.removeprefix(PREFIX)
    if len(begin) >= WHOLE or (begin != name and _exists(client, name)):
        return name
    jobs = list(islice(client.fine_tuning.jobs.list(limit=100), MOST))
    suffixes = {job.id: str(getattr(job, "user_provided_suffix", None) or "") for job in jobs}
    if name in suffixes:
        return name
    if found := [job_id for job_id, suffix in suffixes.items() if suffix == name]:
        return found[0]  # the newest of that name
    found = [job_id for job_id in suffixes if job_id.removeprefix(PREFIX).startswith(begin)]
    if not found and name.startswith(PREFIX):
        return name  # the service will report that there is no such job
    if not found:
        raise NotFoundError(f"there is no job {name}; list them: rftkit job list")
    if len(found) > 1:
        raise InputError(f"{len(found)} jobs begin with {name}: {', '.join(found[:5])}; type more")
    return found[0]


def _exists(client: OpenAI, job_id: str) -> bool:
    from openai import NotFoundError as NoSuchJobError

    try:
        client.fine_tuning.jobs.retrieve(job_id)
    except NoSuchJobError:
        return False
    return True


class Follow:
    """A job, its events, and the state of polling. Its lists are replaced, not changed."""

    def __init__(self, client: OpenAI, job_id: str) -> None:
        """Poll once.

        Raises:
            openai.NotFoundError: There is no such job.
        """
        self.job: dict[str, Any] = {}
        """The job as on the wire."""
        self.events: list[Event] = []
        """The newest ones, oldest first, without a gap."""
        self.has_all_events = False
        """Whether they start with the job's first event."""
        self.polled_at = 0.0
        """Unix seconds of the last successful poll."""
        self.failed_polls = 0
        """Polls in a row that failed."""
        self.last_error = ""
        """Why the last poll failed; empty when it succeeded."""
        self._client, self._id = client, job_id
        self.poll()

    @property
    def has_ended(self) -> bool:
        """Whether the job has ended, so that no new events can come."""
        return self.job["status"] in TERMINAL

    def poll(self) -> bool:
        """Fetch the job and its new events. Returns whether anything changed.

        Raises:
            openai.OpenAIError: The service does not answer; `failed_polls` counts it.
        """
        from openai import OpenAIError

        try:
            job = self._client.fine_tuning.jobs.retrieve(self._id).to_dict(warnings=False)
            new = self._news()
        except OpenAIError as error:
            self.failed_polls, self.last_error = (
                self.failed_polls + 1,
                api_message(error) or str(error),
            )
            raise
        changed = job != self.job or bool(new)
        self.job, self.events = job, [*self.events, *new]
        self.polled_at, self.failed_polls, self.last_error = time.time(), 0, ""
        return changed

    def fetch_older(self) -> bool:
        """Fetch one page of older events. Returns whether there are more."""
        if not self.has_all_events:
            older, more = self._page(PAGE, after=self.events[0]["id"] if self.events else None)
            self.events = [*reversed(older), *self.events]
            self.has_all_events = not more
        return not self.has_all_events

    def _news(self) -> list[Event]:
        """Events that are newer than the known ones, oldest first."""
        known = {event["id"] for event in self.events[-NEWS:]}
        new: list[Event] = []
        while True:
            size = NEWS if known else PAGE
            page, more = self._page(size, after=new[-1]["id"] if new else None)
            fresh = [event for event in page if event["id"] not in known]
            new += fresh
            if not known:  # the first poll: `fetch_older` fetches the others
                self.has_all_events = not more
                break
            if len(fresh) < len(page) or not more:
                break
        return new[::-1]

    def _page(self, limit: int, after: str | None) -> tuple[list[Event], bool]:
        """Events, newest first, and whether older ones follow.

        This reads plain JSON, because the client's objects take ten times as long for a long job.
        """
        query: dict[str, Any] = {"limit": limit} | ({"after": after} if after else {})
        page: Any = self._client.get(
            f"/fine_tuning/jobs/{self._id}/events", cast_to=object, options={"params": query}
        )
        return page["data"], bool(page.get("has_more"))
