"""One server process at work: the socket, the application, its worker, and how both end.

`python -m rftkit.server` reads the command line and locks the home before this module, with all
that it imports, is loaded. It never imports torch; the worker does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from rftkit import privacy, settings
from rftkit.errors import PlatformError
from rftkit.graders import cgroups, processes
from rftkit.server.http.app import VERSION, create_app
from rftkit.server.inference.platform import Platform
from rftkit.server.inference.worker_process import STOPPING, WorkerProcess
from rftkit.server.store.store import Store
from rftkit.server.training.final_checks import read_checks
from rftkit.wholefile import write_whole

__all__ = ["WORKER", "serve"]

log = logging.getLogger("rftkit.server")

PORTS_TRIED = 50
WORKER = (sys.executable, "-m", "rftkit.server.worker")
IDLE_CHECK_SECONDS = 5.0
POLL_SECONDS = 0.2
"""How often the server checks whether it must stop, and whether `server.json` is intact."""
WAITING_CONNECTIONS = 512
"""Connections that the system keeps until they are accepted."""
ACCEPTED_AT_ONCE = 16
"""The number of connections to accept at once. When there are no file descriptors, asyncio tries
this often, logs each attempt, and schedules as many further rounds: with uvicorn's 2,048 the server
hung for seconds and wrote 20 MB of log."""
QUIET_SECONDS = 60.0
"""Seconds between two log lines about that."""
KEEP_ALIVE_SECONDS = 75  # longer than clients wait between two polls of a job


def serve(home: Path, options: argparse.Namespace) -> None:
    """Serve a home that this process has locked, until it is stopped, or idle for long.

    Raises:
        PlatformError: it cannot start.
        OSError: a file of the home cannot be read or written; `sqlite3.Error` likewise.
    """
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
    cgroups.take_over()
    shutil.rmtree(home / "exports", ignore_errors=True)  # left by a server that was killed
    processes.sweep()
    read_checks(home)  # fail now rather than at the end of a job
    private_tools = _is_loopback(options.host) or settings.private_tools_allowed()
    worker = WorkerProcess(
        [*WORKER, "--home", str(home)],
        home / "logs" / "worker.log",
        environment=settings.child_environment(
            {"RFTKIT_PRIVATE_TOOLS": "1" if private_tools else "0"}
        ),
    )
    is_kept = _is_stderr(home / "logs" / "server.log")
    platform = Platform(
        store=store, worker=worker, home=home, needs_key=needs_key, private_tools=private_tools,
        log_place="logs/server.log" if is_kept else "what `rftkit serve` wrote to stderr",
    )  # fmt: skip
    worker.on_death, platform.worker_trouble = platform.worker_died, worker.trouble
    app = create_app(platform)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, backlog=ACCEPTED_AT_ONCE,
        timeout_graceful_shutdown=3, timeout_keep_alive=KEEP_ALIVE_SECONDS,
        proxy_headers=False,  # anyone on this machine could send them
    )  # fmt: skip
    server = uvicorn.Server(config)
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn shuts down, then raises it again
    record = home / "server.json"
    address = _address(listener)
    announcement = _announcement(address)
    write_whole(record, announcement)
    print(f"rftkit serves {address}/v1 from {home} (Ctrl-C to stop)", flush=True)
    if not is_kept:
        print("Errors are logged here, to stderr. Those of models: logs/worker.log", flush=True)
    for weakness in processes.weaknesses():
        print(weakness, flush=True)
    if not needs_key and privacy.has_other_users():
        print(
            "Other users of this machine can use it too. Set RFTKIT_API_KEY to require a key.",
            flush=True,
        )
    try:
        keep = partial(_keep_announced, record, announcement)
        asyncio.run(_run(server, listener, platform, options.idle_minutes, keep))
    except KeyboardInterrupt:
        pass
    finally:
        record.unlink(
            missing_ok=True
        )  # before the database is closed, because then it no longer answers
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
            with contextlib.suppress(sqlite3.Error):  # locked or full: check again later
                # another program may have locked the database: other requests must not wait
                if await asyncio.to_thread(platform.idle_seconds) > minutes * 60:
                    server.should_exit = True

    async def watch() -> None:
        while not server.started and not server.should_exit:
            await asyncio.sleep(POLL_SECONDS)
        listener.listen(WAITING_CONNECTIONS)  # uvicorn has set it to its backlog
        while not server.should_exit:
            await asyncio.sleep(POLL_SECONDS)
            keep_announced()
        platform.worker.end_chats(STOPPING)
        platform.grading.close()

    asyncio.get_running_loop().set_exception_handler(_loop_errors())
    tasks = [asyncio.create_task(watch_idle()), asyncio.create_task(watch())]
    await server.serve(sockets=[listener])
    for task in tasks:
        task.cancel()


def _loop_errors() -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """Return the event loop's handler of errors that nobody awaits."""
    quiet_until = 0.0

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal quiet_until
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            loop.default_exception_handler(context)
        elif time.monotonic() > quiet_until:
            quiet_until = time.monotonic() + QUIET_SECONDS
            log.error(
                "Too many files are open (%s), so new connections wait; raise the limit with "
                "`ulimit -n 4096`",
                error.strerror,
            )

    return handle


def _keep_announced(record: Path, announcement: str) -> None:
    """Restore `server.json` if it was removed or changed: clients find the server by it."""
    with contextlib.suppress(OSError):
        if not record.is_file() or record.read_text(errors="replace") != announcement:
            write_whole(record, announcement)


def _is_stderr(path: Path) -> bool:
    """Whether this process logs to that file, as a server does that a client started."""
    try:
        return os.path.samestat(os.fstat(sys.stderr.fileno()), path.stat())
    except (OSError, ValueError):  # no such file, or no such stream
        return False


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
    """Return a listening socket; without a port, on the default one or the next that is free.

    Raises:
        PlatformError: when no port can be used.
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
    """Return a socket declared as TCP: only then asyncio turns off Nagle's algorithm (40 ms)."""
    family, kind, proto, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
    )[0]
    listener = socket.socket(family, kind, proto)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(WAITING_CONNECTIONS)
    except BaseException:
        listener.close()
        raise
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"


def _announcement(address: str) -> str:
    """Return the content of `server.json`."""
    body = {
        "address": address, "pid": os.getpid(), "started_at": int(time.time()), "version": VERSION,
    }  # fmt: skip
    return json.dumps(body)
