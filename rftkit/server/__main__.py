"""`python -m rftkit.server`: the command line of one server for one home folder.

It locks the home before anything else, so that a second server ends at once and says who runs.
The server itself is loaded afterwards (`http/serving.py`), because that takes seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import filelock

from rftkit import privacy, settings
from rftkit.errors import PlatformError
from rftkit.hyperparameters import ENGINES
from rftkit.jsontext import parse_json
from rftkit.safetext import printable, redacted
from rftkit.server.engine.tinker.remote import Remote, forget_remote, keep_remote, remote_of
from rftkit.wholefile import temporary_problem, unwritable, write_whole

__all__ = ["main"]

LOCK_SECONDS = 0.2
FILES = 8_192
"""How many files may be open, if the machine allows it: connections, and pipes of graders."""


class _PrintableLines(logging.Formatter):
    """Makes log lines safe to print: names and paths may contain terminal escapes or keys."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(printable(super().format(record)), settings.keys())


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve; return exit status 0 after an orderly stop, 1 if the server could not start."""
    options = _options(arguments)
    os.umask(privacy.UMASK)
    _allow_files()
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableLines("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    home: Path = options.home.expanduser().resolve()
    try:
        with _only_one(home):
            _choose_engine(home, options)
            from rftkit.server.http.serving import serve

            serve(home, options)
    except PlatformError as error:
        print(f"rftkit.server: {error}", file=sys.stderr)
        return 1
    except (OSError, sqlite3.Error) as error:  # while it starts or stops
        if temporary_problem(error) is None:  # a full disk needs no traceback
            logging.getLogger("rftkit.server").exception("the server stops")
        print(f"rftkit.server: {unwritable(home, error)}", file=sys.stderr)
        return 1
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m rftkit.server", description="rftkit platform")
    parser.add_argument(
        "--home", type=Path, default=settings.home(), help="home folder of the platform"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; default 127.0.0.1"
    )
    parser.add_argument(
        "--port",
        type=int,
        help=f"port to listen on; default {settings.DEFAULT_PORT} or the next free one, 0 any",
    )
    parser.add_argument(
        "--api-key",
        help="key that clients must send; stored hashed in the home. Other users can see it in the "
        "list of processes, so RFTKIT_API_KEY is better",
    )
    parser.add_argument(
        "--idle-minutes", type=float, help="stop after this many minutes without use"
    )
    parser.add_argument("--engine", choices=ENGINES, help="where jobs train; stored in the home")
    parser.add_argument("--tinker-url", help="address of a Tinker server")
    parser.add_argument("--tinker-model", help="the server's name of the model to train")
    parser.add_argument("--tinker-tokenizer", help="folder with the model's tokenizer and config")
    return parser.parse_args(arguments)


@contextlib.contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Lock the home for this process, and write there who it is; the address follows later.

    Raises:
        PlatformError: when another server uses it (with its process), or it cannot be written.
    """
    lock = filelock.FileLock(home / "server.lock", timeout=LOCK_SECONDS)
    record = home / "server.json"
    try:
        privacy.make_home(home)
        lock.acquire()
        write_whole(record, json.dumps({"pid": os.getpid(), "started_at": int(time.time())}))
        if warning := privacy.tighten(home):
            print(f"rftkit.server: {warning}", file=sys.stderr)
    except filelock.Timeout:
        raise PlatformError(
            f"another server uses the home folder {home}: {_who(home)}. "
            "Stop it with `rftkit serve --stop`, or set RFTKIT_HOME to another folder"
        ) from None
    except OSError as error:
        lock.release()
        raise unwritable(home, error) from error
    try:
        yield
    finally:
        record.unlink(missing_ok=True)
        lock.release()


def _allow_files() -> None:
    """Raise the limit of open files for this process and its worker."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _choose_engine(home: Path, options: argparse.Namespace) -> None:
    """Store in the home where jobs train.

    Raises:
        PlatformError: when the address or the model of the Tinker server is missing.
    """
    if options.engine == "torch":
        forget_remote(home)
    if options.engine != "tinker":
        return
    url, model = options.tinker_url, options.tinker_model
    if url and model:
        keep_remote(home, Remote(url, model, options.tinker_tokenizer or model))
    elif url or model or remote_of(home) is None:
        raise PlatformError("--engine tinker needs --tinker-url URL and --tinker-model NAME")
    else:
        known = remote_of(home)
        assert known is not None
        keep_remote(home, dataclasses.replace(known, is_default=True))


def _who(home: Path) -> str:
    """Which server uses a home, from the record that it wrote when it had locked it."""
    try:
        record = parse_json((home / "server.json").read_bytes())
        process = f"process {int(record['pid'])}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its process is not known yet"
    address = record.get("address")
    return f"{process}, at {address}" if address else f"{process}, which is starting"


if __name__ == "__main__":
    sys.exit(main())
