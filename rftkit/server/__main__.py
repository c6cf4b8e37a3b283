"""`python -m rftkit.server`: one server process for one home folder, and its worker.

It locks the home, binds a port, and writes its address to `server.json`. It serves until it is
stopped or idle for the given time. It never imports torch; the worker does.
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
from rftkit.server.inference.worker_process import WorkerProcess
from rftkit.server.store.store import Store
from rftkit.server.training.final_checks import read_checks
from rftkit.wholefile import unwritable, write_whole

__all__ = ["main"]

PORTS_TRIED = 50
WORKER = (sys.executable, "-m", "rftkit.server.worker")
LOCK_SECONDS = 0.2
FILES = 8_192
"""How many files may be open, if the machine allows it: connections, and pipes of graders."""
IDLE_CHECK_SECONDS = 5.0
LOOK_SECONDS = 0.2
"""How often the server checks whether it must stop, and whether `server.json` is intact."""
KEEP_ALIVE_SECONDS = 75  # more than anybody waits between two looks at a job


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
            _serve(home, options)
    except PlatformError as error:
        print(f"rftkit.server: {error}", file=sys.stderr)
        return 1
    except (OSError, sqlite3.Error) as error:  # while it starts or stops
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
    parser.add_argument("--engine", choices=KINDS, help="where jobs train; stored in the home")
    parser.add_argument("--tinker-url", help="address of a Tinker server")
    parser.add_argument("--tinker-model", help="the server's name of the model to train")
    parser.add_argument("--tinker-tokenizer", help="folder with the model's tokenizer and config")
    return parser.parse_args(arguments)


@contextlib.contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Lock the home for this process.

    Raises:
        PlatformError: when another server uses it (with its address), or it cannot be written.
    """
    lock = filelock.FileLock(home / "server.lock", timeout=LOCK_SECONDS)
    try:
        if warning := privacy.tighten(home):
            print(f"rftkit.server: {warning}", file=sys.stderr)
        lock.acquire()
    except filelock.Timeout:
        raise PlatformError(
            f"another server uses the home folder {home}; its address is {_address_in(home)}. "
            "Stop it with `rftkit serve --stop`, or set RFTKIT_HOME to another folder"
        ) from None
    except OSError as error:
        raise unwritable(home, error) from error
    try:
        yield
    finally:
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


def _address_in(home: Path) -> str:
    try:
        return str(json.loads((home / "server.json").read_text())["address"])
    except (OSError, ValueError, KeyError, TypeError):
        return "not known yet"


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
    shutil.rmtree(home / "exports", ignore_errors=True)  # left by a server that was killed
    processes.sweep()
    read_checks(home)  # fail now rather than at the end of a job
    worker = WorkerProcess(
        [*WORKER, "--home", str(home)],
        home / "logs" / "worker.log",
        environment=settings.child_environment(),
    )
    is_kept = _is_stderr(home / "logs" / "server.log")
    platform = Platform(
        store=store, worker=worker, home=home, needs_key=needs_key,
        log_place="logs/server.log" if is_kept else "what `rftkit serve` wrote to stderr",
    )  # fmt: skip
    worker.on_death, platform.worker_trouble = platform.worker_died, worker.trouble
    app = create_app(platform)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False,
        timeout_graceful_shutdown=3, timeout_keep_alive=KEEP_ALIVE_SECONDS,
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
            with contextlib.suppress(sqlite3.Error):  # locked or full: check again later
                if platform.idle_seconds() > minutes * 60:
                    server.should_exit = True

    async def watch() -> None:
        while not server.should_exit:
            await asyncio.sleep(LOOK_SECONDS)
            keep_announced()
        platform.worker.end_chats("the server is stopping; send the request again when it runs")

    tasks = [asyncio.create_task(watch_idle()), asyncio.create_task(watch())]
    await server.serve(sockets=[listener])
    for task in tasks:
        task.cancel()


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
    """Return the content of `server.json`."""
    body = {
        "address": address, "pid": os.getpid(), "started_at": int(time.time()), "version": VERSION,
    }  # fmt: skip
    return json.dumps(body)


if __name__ == "__main__":
    sys.exit(main())
