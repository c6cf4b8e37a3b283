"""Save a hosted account into a folder: read the lists, show them, fetch, report what is missing.

One object is one unit of work and has one folder; units run in threads and share nothing but the
ledger. An object that was saved whole, has reached its last status and looks the same in its list
is not fetched again. Not here: pages, retries, and the meaning of a dump.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rftkit.errors import InputError
from rftkit.importer.dump import LAYOUT, Dump
from rftkit.importer.overview import overview
from rftkit.importer.pages import Lists
from rftkit.importer.remote import Remote, Stopped
from rftkit.importer.saving import HARMLESS, SAVERS, SaveContext, save_grader
from rftkit.importer.survey import KINDS, Listed, Survey, account_of, survey

__all__ = ["Summary", "import_account"]

BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} objects [{elapsed}{postfix}]"


@dataclass(frozen=True, slots=True)
class Summary:
    """What one import did."""

    counts: dict[str, int]
    """The number of objects in the dump, by kind."""
    seen: dict[str, int]
    """The number of objects in the account's lists, for the selected kinds."""
    num_due: int
    """Objects that had to be fetched; all others were complete."""
    num_requests: int
    missing: dict[str, dict[str, Any]]
    """What this import could not fetch -> `kind`, `reason`, `time`, `status`, `code`."""
    since: str | None = None
    """Objects created before this time were left out."""
    unlisted: tuple[str, ...] = ()
    """Kinds that were requested but that the service does not list."""

    @property
    def is_complete(self) -> bool:
        """Nothing was refused and nothing failed."""
        return all(each["kind"] in HARMLESS for each in self.missing.values())


def import_account(
    remote: Remote,
    folder: str | Path,
    *,
    only: Iterable[str] = KINDS,
    since: datetime | None = None,
    dry_run: bool = False,
    workers: int = 8,
    on_progress: Callable[[str], None] = print,
) -> Summary:
    """Save what the account holds into `folder`, or resume an earlier import.

    Args:
        remote: The account.
        folder: New, empty, or a dump of the same account.
        only: Kinds out of `survey.KINDS`. Jobs bring their result files.
        since: Leave out what was created earlier.
        dry_run: Read and show the lists, write nothing.
        workers: Objects fetched at a time.
        on_progress: Gets the lines for the user.

    Raises:
        InputError: The key, the URL or the folder is wrong; nothing was written.
        RftkitError: The disk is full or the connection is lost; everything saved so far is kept.
    """
    started = _now()
    dump = Dump(folder)
    dump.ledger.refuse_others()
    account = account_of(remote)
    _check_same_account(dump, account)
    if not dry_run:
        dump.ledger.open(account)
    context = SaveContext(remote, Lists(remote), dump, is_dry=dry_run)
    finished = None
    try:
        with ThreadPoolExecutor(workers) as pool, _stopping(remote, pool):
            found = _read_lists(context, set(only), since, pool)
            damaged = dump.damaged()
            due = [
                each
                for each in found.objects
                if each.key in damaged or not _is_complete(dump, each)
            ]
            on_progress(overview(found, account, len(due)))
            if not dry_run:
                dump.write("README.txt", LAYOUT.encode())
                _fetch(context, due, pool)
                for digest, grader in found.graders.items():
                    save_grader(context, digest, grader)
        finished = {
            "started": started,
            "finished": _now(),
            "rftkit": version("rftkit"),
            "only": sorted(set(only)),
            "since": since.isoformat() if since else None,
            "unlisted": found.unlisted,
            "requests": remote.num_requests,
        }
    finally:
        dump.ledger.close(finished)
    return Summary(
        dump.ledger.counts(), found.counts(), len(due), remote.num_requests, context.missing,
        since.isoformat() if since else None, tuple(found.unlisted),
    )  # fmt: skip


def _check_same_account(dump: Dump, account: dict[str, str]) -> None:
    """Refuse a folder that holds another account; what either side does not know is no reason."""
    for name, saved in dump.ledger.account.items():
        if account.get(name, saved) != saved:
            raise InputError(
                f"{dump.folder} holds another account: its {name} is {saved}, the key given "
                f"belongs to {account[name]}; name a new folder"
            )


def _read_lists(
    context: SaveContext, only: set[str], since: datetime | None, pool: ThreadPoolExecutor
) -> Survey:
    return survey(
        context.lists,
        only=only,
        since=since.timestamp() if since else None,
        dump=None if context.is_dry else context.dump,
        recording=context.recording,
        pool=pool,
    )


def _is_complete(dump: Dump, listed: Listed) -> bool:
    entry = dump.ledger.objects.get(listed.key)
    return entry is not None and entry["final"] and entry["listed"] == listed.digest


def _fetch(context: SaveContext, due: list[Listed], pool: ThreadPoolExecutor) -> None:
    """Save every object that is due; the first error that ends the import is raised."""
    from tqdm import tqdm

    with tqdm(total=len(due), bar_format=BAR, disable=None) as bar:
        lock, num_entries, shown_at = threading.Lock(), 0, 0.0

        def count(num_new: int) -> None:
            nonlocal num_entries, shown_at
            with lock:
                num_entries += num_new
                bar.set_postfix_str(f"{num_entries:,} events and items", refresh=False)
                if time.monotonic() > shown_at + 0.2:
                    shown_at = time.monotonic()
                    bar.refresh()

        def save(listed: Listed) -> None:
            entry = SAVERS[listed.kind](context, listed)
            if entry is not None and entry != context.dump.ledger.objects.get(listed.key):
                context.dump.ledger.append({"object": listed.key, "entry": entry})
            with lock:
                bar.update()

        context.lists.count = count
        done, _ = wait([pool.submit(save, each) for each in due], return_when=FIRST_EXCEPTION)
        for error in (each.exception() for each in done):
            if error is not None and not isinstance(error, Stopped):
                raise error


@contextmanager
def _stopping(remote: Remote, pool: ThreadPoolExecutor) -> Iterator[None]:
    """On an error, or Ctrl-C, end the waiting and the queued work too."""
    try:
        yield
    except BaseException:
        remote.stop()
        pool.shutdown(cancel_futures=True)
        raise


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
