"""Lists of a hosted service, read page by page to their true end.

Pages are cut by cursor (`after` = the last id seen), so a list that grows at its end is simply
read on. A list that shows the newest first grows in front of the reader: it is read again from
the front until something known comes up, each such *reading* numbered. Duplicates, whatever their
cause, are left out by id. Not here: what the objects mean.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rftkit.importer.dump import Dump, page_number
from rftkit.importer.remote import Answer, Refused, Remote
from rftkit.jsontext import digest_of, parse_json

__all__ = ["KINDS_OF_LIST", "Lists", "items_of", "save_list"]

MOST_READINGS = 50
"""A list that still grows by more than a page while it is read so often is left for next time."""


@dataclass(frozen=True, slots=True)
class KindOfList:
    """How one kind of list is requested."""

    limits: tuple[int, ...]
    """Objects per page: the first the service accepts is kept."""
    order: str | None = None
    """Asked for as `asc`; None: the route knows no order and shows the newest first."""


KINDS_OF_LIST = {
    "files": KindOfList((10_000, 1000, 100, 20), "asc"),
    "jobs": KindOfList((100, 20)),
    "events": KindOfList((1000, 100, 20)),
    "checkpoints": KindOfList((100, 10)),
    "evals": KindOfList((100, 20), "asc"),
    "runs": KindOfList((20,), "asc"),  # a run may carry its whole data set inline
    "output_items": KindOfList((100, 20), "asc"),
    "chats": KindOfList((100, 20), "asc"),
    "messages": KindOfList((100, 20), "asc"),
    "vector_stores": KindOfList((100, 20), "asc"),
    "store_files": KindOfList((100, 20), "asc"),
    "batches": KindOfList((100, 20)),
    "assistants": KindOfList((100, 20), "asc"),
    "agents": KindOfList((100, 20), "asc"),
    "chatkit_threads": KindOfList((100, 20), "asc"),
    "thread_items": KindOfList((100, 20), "asc"),
    "containers": KindOfList((100, 20), "asc"),
    "container_files": KindOfList((100, 20), "asc"),
    "skills": KindOfList((100, 20), "asc"),
    "skill_versions": KindOfList((100, 20), "asc"),
    "videos": KindOfList((100, 20), "asc"),
    "voice_consents": KindOfList((100, 20)),
    "models": KindOfList((100, 20)),  # the service ignores `limit` and returns all
}


class Lists:
    """Reads pages and remembers which page size each kind of list accepts."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self.count: Callable[[int], None] = lambda num_new: None
        """Called with the number of new objects on each page."""
        self._limits = {name: list(kind.limits) for name, kind in KINDS_OF_LIST.items()}

    def page(self, kind: str, route: str, after: str | None) -> Answer:
        """One page of a list, as large as the service allows."""
        order = KINDS_OF_LIST[kind].order
        query = {"after": after} if after is not None else {}
        if order:
            query["order"] = order
        limits = self._limits[kind]
        for limit in tuple(limits):
            try:
                return self.remote.get(route, limit=limit, **query)
            except Refused as refused:
                if refused.status not in (400, 422) or "limit" not in refused.reason.lower():
                    raise
                if limit == KINDS_OF_LIST[kind].limits[-1]:
                    raise
                with contextlib.suppress(ValueError):  # another thread has removed it already
                    limits.remove(limit)
        raise AssertionError("the smallest limit either answers or raises")

    def walk(
        self,
        kind: str,
        route: str,
        *,
        after: str | None = None,
        known: set[str],
        until_known: bool = False,
    ) -> Iterator[Answer]:
        """Pages that hold something new, from `after` to the end; their ids are put in `known`.

        The first page of a list comes even if it is empty. With `until_known` the walk ends at
        the first page that holds something known.
        """
        is_first = not known
        while True:
            answer = self.page(kind, route, after)
            has_more = answer.data.get("has_more")
            ids = [identity(item) for item in items_of(answer.data)]
            new = [each for each in ids if each not in known]
            known.update(new)
            self.count(len(new))
            if new or is_first:
                yield answer
            del answer  # a page can be large: let go of it before the next one comes
            is_first = False
            if not ids or has_more is False or (until_known and len(new) < len(ids)):
                return
            if not new:
                if has_more is None:  # a service without pages, which returns everything each time
                    return
                raise Refused("the service gives the same page of the list again and again")
            after = ids[-1]


def save_list(dump: Dump, lists: Lists, kind: str, route: str, folder: str) -> int:
    """Bring the pages in `folder` up to date and make `<folder>.jsonl` of them.

    Continues after the last saved page. Returns the number of objects.
    """
    newest_first = KINDS_OF_LIST[kind].order is None
    reading, page, after, is_open, known = _where_it_stopped(dump, folder)
    if not known:
        reading, page, after = 1, 0, None
    elif newest_first and not is_open:
        reading, page, after = reading + 1, 0, None
    for _ in range(MOST_READINGS):
        pages = lists.walk(kind, route, after=after, known=known, until_known=reading > 1)
        for answer in pages:
            page += 1
            dump.write(f"{folder}/{reading}-{page:06}.json", answer.body)
            del answer
        if not newest_first or page <= 1:
            break
        reading, page, after = reading + 1, 0, None
    return _distill(dump, folder, newest_first)


def items_of(page: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of a page."""
    data = page.get("data")
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise Refused("the service answers with something that is not a page of a list")
    return data


def identity(item: dict[str, Any]) -> str:
    """The id of an object; its content where it has none."""
    given = item.get("id")
    return given if isinstance(given, str) and given else digest_of(item)


def _where_it_stopped(dump: Dump, folder: str) -> tuple[int, int, str | None, bool, set[str]]:
    """Reading, page, cursor, whether that reading continues, and all ids so far."""
    reading, page, after, is_open = 1, 0, None, True
    known: set[str] = set()
    for path in dump.pages(folder):
        if page_number(path) not in ((reading, page + 1), (reading + 1, 1)):
            return 1, 0, None, True, set()  # a page was lost: read all of it again
        data = parse_json(dump.read(path))
        ids = [identity(item) for item in items_of(data)]
        reading, page = page_number(path)
        reaches_known = reading > 1 and not known.isdisjoint(ids)
        is_open = bool(ids) and data.get("has_more") is not False and not reaches_known
        after = ids[-1] if ids else after
        known.update(ids)
    return reading, page, after, is_open, known


def _distill(dump: Dump, folder: str, newest_first: bool) -> int:
    """Write every object once, one a line, oldest first."""
    paths = dump.pages(folder)
    if newest_first:
        paths.sort(key=lambda path: (page_number(path)[0], -page_number(path)[1]))
    is_large = len(paths) > 1 or any(path != dump.find(path) for path in paths)
    written: set[str] = set()
    with dump.writing(f"{folder}.jsonl.gz" if is_large else f"{folder}.jsonl") as file:
        for path in paths:
            items = items_of(parse_json(dump.read(path)))
            for item in reversed(items) if newest_first else items:
                if (name := identity(item)) not in written:
                    written.add(name)
                    file.write(_line(item))
    return len(written)


def _line(item: dict[str, Any]) -> bytes:
    try:
        return json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate: only JSON escapes can express it
        return json.dumps(item, separators=(",", ":")).encode() + b"\n"
