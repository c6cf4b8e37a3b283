"""One job as far as it is known here, refreshed by asking only for what is new.

`Follow` can be made at any time in a job's life: the first look brings the newest events, `fill`
the older ones page by page, and each later look what happened since. It remembers when a look last
succeeded, so that whoever shows it can say how old that is. Not here: threads, and showing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rftkit.client import api_message
from rftkit.jobs.jobs import TERMINAL, Event

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["Follow", "latest"]

PAGE = 100
"""Events asked for at once; what every service gives."""
NEWS = 20
"""Events asked for when few are expected: a page costs the service by its length."""


def latest(client: OpenAI) -> str | None:
    """The id of the newest job, or None if there is none."""
    newest = client.fine_tuning.jobs.list(limit=1).data
    return newest[0].id if newest else None


class Follow:
    """A job, its events, and how fresh they are. Its lists are replaced, never changed."""

    def __init__(self, client: OpenAI, job_id: str) -> None:
        """Take the first look.

        Raises:
            openai.NotFoundError: There is no such job.
        """
        self.job: dict[str, Any] = {}
        """As on the wire."""
        self.events: list[Event] = []
        """The newest ones, oldest first, without a gap."""
        self.is_whole = False
        """Whether they reach back to the first one."""
        self.looked_at = 0.0
        """Unix seconds of the last look that succeeded."""
        self.misses = 0
        """Looks in a row that failed."""
        self.trouble = ""
        """Why the last look failed; empty when it did not."""
        self._client, self._id = client, job_id
        self.look()

    @property
    def has_ended(self) -> bool:
        """Whether nothing new can come."""
        return self.job["status"] in TERMINAL

    def look(self) -> bool:
        """Fetch the job and its new events; whether anything changed.

        Raises:
            openai.OpenAIError: The service does not answer; `misses` counts it.
        """
        from openai import OpenAIError

        try:
            job = self._client.fine_tuning.jobs.retrieve(self._id).to_dict(warnings=False)
            new = self._news()
        except OpenAIError as error:
            self.misses, self.trouble = self.misses + 1, api_message(error) or str(error)
            raise
        changed = job != self.job or bool(new)
        self.job, self.events = job, [*self.events, *new]
        self.looked_at, self.misses, self.trouble = time.time(), 0, ""
        return changed

    def fill(self) -> bool:
        """Fetch one page of older events; whether there are more."""
        if not self.is_whole:
            older, more = self._page(PAGE, after=self.events[0]["id"] if self.events else None)
            self.events = [*reversed(older), *self.events]
            self.is_whole = not more
        return not self.is_whole

    def _news(self) -> list[Event]:
        """Events that are newer than the known ones, oldest first."""
        known = {event["id"] for event in self.events[-NEWS:]}
        new: list[Event] = []
        while True:
            size = NEWS if known else PAGE
            page, more = self._page(size, after=new[-1]["id"] if new else None)
            fresh = [event for event in page if event["id"] not in known]
            new += fresh
            if not known:  # the first look: older ones are `fill`'s
                self.is_whole = not more
                break
            if len(fresh) < len(page) or not more:
                break
        return new[::-1]

    def _page(self, limit: int, after: str | None) -> tuple[list[Event], bool]:
        """Events, newest first, and whether older ones follow.

        Read as plain JSON: the client's objects cost ten times as much for a long job.
        """
        query: dict[str, Any] = {"limit": limit} | ({"after": after} if after else {})
        page: Any = self._client.get(
            f"/fine_tuning/jobs/{self._id}/events", cast_to=object, options={"params": query}
        )
        return page["data"], bool(page.get("has_more"))
