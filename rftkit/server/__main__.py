"""`python -m rftkit.server`: one server process for one home folder, and its worker.

Takes the home's lock, binds a port, says where it is in `server.json`, serves until it is told to
stop or has been idle for long enough. Never imports torch: the worker does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import ipaddress
import json
import logging
import os
import shutil
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import filelock
import uvicorn

from rftkit import privacy, settings
from rftkit.errors import PlatformError
from rftkit.graders import processes
from rftkit.safetext import printable, redacted
from rftkit.server.engine.tinker.remote import KINDS, Remote, forget_remote, keep_remote, remote_of
from rftkit.server.http.app import VERSION, create_app
from rftkit.server.inference.platform import Platform
from rftkit.server.inference.worker_process import WorkerLink
from rftkit.server.store.store import Store
from rftkit.server.training.final_checks import read_checks
from rftkit.wholefile import unwritable, write_whole

__all__ = ["main"]

PORTS_TRIED = 50
WORKER = (sys.executable, "-m", "rftkit.server.worker")
LOCK_SECONDS = 0.2
FILES = 8_192
"""How many files may be open, where the machine allows it: connections, pipes of graders."""
IDLE_CHECK_SECONDS = 5.0
LOOK_SECONDS = 0.2
"""Between looks at whether the server is to stop, and at what it has written about itself."""
KEEP_ALIVE_SECONDS = 75  # more than anybody waits between two looks at a job


class _PrintableLines(logging.Formatter):
    """Paths and names in a log are of others and do not steer the terminal that shows it."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(printable(super().format(record)), settings.keys())


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve; the exit status is 0 after an orderly stop, 1 when it could not start."""
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
            _serve(home, options)
    except PlatformError as error:
        print(f"rftkit.server: {error}", file=sys.stderr)
        return 1
    except (OSError, sqlite3.Error) as error:  # while it started or ended
        logging.getLogger("rftkit.server").exception("the server ends")
        print(f"rftkit.server: {unwritable(home, error)}", file=sys.stderr)
        return 1
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m rftkit.server", description="rftkit platform")
    parser.add_argument("--home", type=Path, default=settings.home(), help="where things are kept")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument(
        "--port",
        type=int,
        help=f"port to listen on; default {settings.DEFAULT_PORT} or the next free one, 0 any",
    )
    parser.add_argument(
        "--api-key",
        help="key that clients must send; kept hashed in the home. Other users can read it in the "
        "list of processes, so RFTKIT_API_KEY is better",
    )
    parser.add_argument("--idle-minutes", type=float, help="stop after so long without use")
    parser.add_argument("--engine", choices=KINDS, help="where jobs train; kept in the home")
    parser.add_argument("--tinker-url", help="address of a Tinker server")
    parser.add_argument("--tinker-model", help="the model it trains, by its name there")
    parser.add_argument("--tinker-tokenizer", help="folder with tokenizer and config of the model")
    return parser.parse_args(arguments)


@contextlib.contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Hold the home for this process.

    Raises:
        PlatformError: when another server has it (with its address), or it cannot be written.
    """
    lock = filelock.FileLock(home / "server.lock", timeout=LOCK_SECONDS)
    try:
        if warning := privacy.tighten(home):
            print(f"rftkit.server: {warning}", file=sys.stderr)
        lock.acquire()
    except filelock.Timeout:
        raise PlatformError(
            f"another server has the home folder {home}: it answers at {_address_in(home)}; "
            "stop it with `rftkit serve --stop`, or set RFTKIT_HOME to another folder"
        ) from None
    except OSError as error:
        raise unwritable(home, error) from error
    try:
        yield
    finally:
        lock.release()


def _allow_files() -> None:
    """Let this process and its worker have as many files open as the machine allows them."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _choose_engine(home: Path, options: argparse.Namespace) -> None:
    """Keep in the home where jobs train.

    Raises:
        PlatformError: when the Tinker server is not fully named.
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


def _address_in(home: Path) -> str:
    try:
        return str(json.loads((home / "server.json").read_text())["address"])
    except (OSError, ValueError, KeyError, TypeError):
        return "an address that it has not written yet"


def _serve(home: Path, options: argparse.Namespace) -> None:
    store = Store.open(home)
    needs_key = _needs_key(store, home, options)
    listener = _bind(options.host, options.port)
    store.sweep()
    for found in store.unlisted_contents():
        print(
            f"rftkit.server: {found}; platform.sqlite may be new or older than the rest of {home}. "
            "Nothing of it is deleted; restore the newest copy of platform.sqlite to see it again",
            file=sys.stderr,
        )
    shutil.rmtree(home / "exports", ignore_errors=True)  # of a server that was killed
    processes.sweep()  # likewise
    read_checks(home)  # better now than at the end of a job
    link = WorkerLink(
        [*WORKER, "--home", str(home)],
        home / "logs" / "worker.log",
        environment=settings.child_environment(),
    )
    platform = Platform(store=store, link=link, home=home, needs_key=needs_key)
    link.on_death, platform.worker_trouble = platform.worker_died, link.trouble
    app = create_app(platform)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False,
        timeout_graceful_shutdown=3, timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )  # fmt: skip
    server = uvicorn.Server(config)
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn ends in order, then raises it again
    record = home / "server.json"
    address = _address(listener)
    announcement = _announcement(address)
    write_whole(record, announcement)
    print(f"rftkit serves {address}/v1 from {home} (Ctrl-C to stop)", flush=True)
    for weakness in processes.weaknesses():
        print(weakness, flush=True)
    if not needs_key and privacy.has_other_users():
        print(
            "Other users of this machine can use it too. Set RFTKIT_API_KEY to ask for a key.",
            flush=True,
        )
    try:
        keep = partial(_keep_announced, record, announcement)
        asyncio.run(_run(server, listener, platform, options.idle_minutes, keep))
    except KeyboardInterrupt:
        pass
    finally:
        record.unlink(missing_ok=True)
        store.close()


async def _run(
    server: uvicorn.Server,
    listener: socket.socket,
    platform: Platform,
    minutes: float | None,
    keep_announced: Callable[[], None],
) -> None:
    async def watch_idle() -> None:
        while minutes is not None:
            await asyncio.sleep(min(IDLE_CHECK_SECONDS, minutes * 30))
            with contextlib.suppress(sqlite3.Error):  # locked or full: look again
                if platform.idle_seconds() > minutes * 60:
                    server.should_exit = True

    async def watch() -> None:
        while not server.should_exit:
            await asyncio.sleep(LOOK_SECONDS)
            keep_announced()
        platform.link.end_chats("the server is stopping; ask again when it runs")

    tasks = [asyncio.create_task(watch_idle()), asyncio.create_task(watch())]
    await server.serve(sockets=[listener])
    for task in tasks:
        task.cancel()


def _keep_announced(record: Path, announcement: str) -> None:
    """Write again what somebody removed or changed: clients find the server by it."""
    with contextlib.suppress(OSError):
        if not record.is_file() or record.read_text(errors="replace") != announcement:
            write_whole(record, announcement)


def _needs_key(store: Store, home: Path, options: argparse.Namespace) -> bool:
    key = options.api_key or settings.server_api_key() or privacy.kept_api_key(home)
    if key:
        store.set_api_key(key)
    if _is_loopback(options.host):
        return bool(key)
    if not store.has_api_key():
        raise PlatformError(
            f"listening on {options.host} lets other machines in, so it needs an API key: set "
            "RFTKIT_API_KEY or pass --api-key"
        )
    return True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bind(host: str, port: int | None) -> socket.socket:
    """A listening socket; without a port, the default one or the next that is free.

    Raises:
        PlatformError: when there is none.
    """
    ports = range(settings.DEFAULT_PORT, settings.DEFAULT_PORT + PORTS_TRIED)
    problem: OSError | None = None
    for candidate in ports if port is None else [port]:
        try:
            return _listener(host, candidate)
        except (OSError, OverflowError) as error:
            problem = error if isinstance(error, OSError) else OSError(str(error))
    wanted = f"port {port}" if port is not None else f"every port from {ports[0]} to {ports[-1]}"
    raise PlatformError(
        f"{wanted} on {host} cannot be used ({problem.strerror or problem if problem else ''}); "
        "choose a free one with --port"
    )


def _listener(host: str, port: int) -> socket.socket:
    """A socket that says it is TCP: asyncio turns the 40 ms of Nagle's algorithm off only then."""
    family, kind, proto, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
    )[0]
    listener = socket.socket(family, kind, proto)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(512)
    except BaseException:
        listener.close()
        raise
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"


def _announcement(address: str) -> str:
    """The content of `server.json`."""
    body = {
        "address": address, "pid": os.getpid(), "started_at": int(time.time()), "version": VERSION,
    }  # fmt: skip
    return json.dumps(body)


if __name__ == "__main__":
    sys.exit(main())
