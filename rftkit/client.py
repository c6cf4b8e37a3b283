"""`connect()`: an `openai.OpenAI` client; and starting and stopping the local server.

With a base URL (argument or `OPENAI_BASE_URL`) it is the plain client. Without one it finds the
local platform of this home, or starts it as a separate process that outlives the notebook. The
local platform never gets `OPENAI_API_KEY`. This module knows the server only as a command and an
HTTP address.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import ProxyHandler, build_opener

from rftkit import graders, privacy, settings
from rftkit.errors import MissingExtraError, PlatformError
from rftkit.graders import Completion, CompletionCall, EmbeddingCall, completion_call
from rftkit.graders.calls import Calls
from rftkit.graders.embeddings import LOCAL_EMBEDDING_MODEL
from rftkit.jsontext import parse_json
from rftkit.privacy import kept_api_key, make_home
from rftkit.wholefile import has_no_room, unwritable

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = [
    "ServerStatus",
    "api_message",
    "connect",
    "embedding_call",
    "judge_call",
    "judge_client",
    "serve_status",
    "start_server",
    "stop_server",
]

START_SECONDS = 60.0
"""Maximum time until a new server answers."""
STOP_SECONDS = 20.0
ANNOUNCE_SECONDS = 5.0
"""Maximum time until a server that locked the home writes its address."""
PROBE_SECONDS = 2.0
MAX_HEALTH_BYTES = 1 << 20
HEALTH = {"home": str, "pid": int, "version": str, "idle_seconds": int | float, "problems": list}
"""What the local server reports about itself to clients on the same machine. Another program may
answer at that port, too."""
LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND
NEEDED = ("fastapi", "uvicorn", "python_multipart", "torch", "transformers")
"""Packages that the local platform needs; the extra `local` installs them."""


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """The local server of one home, alive when this was made."""

    address: str
    """`http://host:port`, without `/v1`."""
    pid: int
    home: Path
    version: str
    """The version of rftkit that it runs."""
    idle_seconds: float
    """Seconds since its last request; 0 while a job waits or runs."""
    problems: tuple[str, ...] = ()
    """Current problems as sentences, such as a model worker that cannot be started."""

    @property
    def base_url(self) -> str:
        """The address to give the `openai` client."""
        return f"{self.address}/v1"


def connect(base_url: str | None = None, api_key: str | None = None, **options: Any) -> OpenAI:
    """A client of the hosted service named by `base_url`, or of the local platform.

    Args:
        base_url: default `OPENAI_BASE_URL`; when both are missing, the local platform is used,
            and started if it is not running. Its own address also selects it.
        api_key: default `OPENAI_API_KEY` for a named service; for the local one `RFTKIT_API_KEY`,
            or the key that `rftkit lab` keeps in the home.
        options: handed to `openai.OpenAI`.

    Raises:
        PlatformError: when the local platform cannot be started or reached.
        MissingExtraError: when it is not installed.
    """
    import openai

    named = base_url or settings.remote()[0]
    if named and not _is_local(named):
        return openai.OpenAI(base_url=base_url, api_key=api_key, **options)
    server = serve_status() or start_server()
    options.setdefault("http_client", openai.DefaultHttpxClient(trust_env=False))  # no proxy
    key = api_key or settings.server_api_key() or kept_api_key(server.home) or "local"
    return openai.OpenAI(base_url=server.base_url, api_key=key, **{"admin_api_key": key, **options})


def _is_local(base_url: str) -> bool:
    """Whether this is the address of the local platform that runs."""
    server = serve_status()
    return server is not None and server.base_url.rstrip("/") == base_url.rstrip("/")


def api_message(error: Exception) -> str | None:
    """The message of an error of the `openai` client; None for other errors."""
    if "openai" not in sys.modules:
        return None
    import openai

    if isinstance(error, openai.APIStatusError) and isinstance(error.body, dict):
        param = f" ({error.param})" if error.param else ""
        return f"{error.body.get('message', error.message)}{param}"
    if isinstance(error, openai.APIConnectionError):
        return f"cannot reach {error.request.url}: {error.__cause__ or error}"
    return str(error) if isinstance(error, openai.OpenAIError) else None


def judge_call() -> CompletionCall:
    """How model graders of this process call their judge.

    `RFTKIT_JUDGE_BASE_URL` if it is set, or else what `connect()` finds or starts. It is looked up
    at the first call, so that other graders start nothing.
    """
    asked: list[CompletionCall] = []

    def complete(**question: Any) -> Completion:
        if not asked:
            asked.append(completion_call(judge_client()))
        return asked[0](**question)

    return complete


def judge_client() -> OpenAI:
    """A client of `RFTKIT_JUDGE_BASE_URL` if it is set, else what `connect()` finds or starts."""
    judge = settings.judge()
    return connect(judge.base_url, judge.api_key or "none") if judge.base_url else connect()


def embedding_call() -> EmbeddingCall:
    """How `cosine` graders of this process get embeddings, from the service of `judge_call`."""
    made: list[EmbeddingCall] = []

    def embed(model: str, texts: list[str]) -> list[list[float]]:
        if not made:
            judge, client = settings.judge(), judge_client()
            is_local = judge.base_url is None and settings.remote()[0] is None
            made.append(graders.embedding_call(client, LOCAL_EMBEDDING_MODEL if is_local else None))
        return made[0](model, texts)

    return embed


def serve_status(home: Path | None = None) -> ServerStatus | None:
    """The server of this home, or None when none answers."""
    home = (home or settings.home()).resolve()
    address = _record(home).get("address")
    health = _health(address) if isinstance(address, str) else None
    if health is None or Path(health["home"]).resolve() != home:
        return None
    return ServerStatus(
        address=str(address),
        pid=health["pid"],
        home=home,
        version=health["version"],
        idle_seconds=health["idle_seconds"],
        problems=tuple(map(str, health["problems"])),
    )


def _record(home: Path) -> dict[str, Any]:
    """The record that a server wrote about itself; empty when it cannot be read."""
    try:
        record = parse_json((home / "server.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _awaited(home: Path, seconds: float) -> ServerStatus | None:
    """The server of this home; waits for one that is still starting."""
    deadline = time.monotonic() + seconds
    while (server := serve_status(home)) is None:
        if time.monotonic() > deadline or not _is_locked(home):
            return None
        time.sleep(0.1)
    return server


def start_server(
    home: Path | None = None, *, idle_minutes: float | None = settings.IDLE_MINUTES
) -> ServerStatus:
    """Start the server of this home in the background, or find the one that already runs.

    Args:
        home: default `RFTKIT_HOME`.
        idle_minutes: the server exits after this time without a request or a job; None: never.

    Raises:
        PlatformError: when it cannot be started; the message holds the end of its log.
        MissingExtraError: when it is not installed.
    """
    home = (home or settings.home()).resolve()
    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "local")
    with _starting(home):
        return serve_status(home) or _start(home, idle_minutes)


def stop_server(home: Path | None = None) -> ServerStatus | None:
    """Stop the server of this home cleanly; a running job continues when it starts again.

    Returns:
        The server that was stopped, or None when none ran.

    Raises:
        PlatformError: when it does not end.
    """
    home = (home or settings.home()).resolve()
    server = _awaited(home, ANNOUNCE_SECONDS)
    if server is None:
        if not _is_locked(home):
            return None
        server = _silent(home)
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(server.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while _is_locked(server.home):
        if time.monotonic() > deadline:
            raise PlatformError(
                f"the server (process {server.pid}) did not end within {STOP_SECONDS:.0f} seconds; "
                f"see {server.home / 'logs' / 'server.log'}, or the terminal where `rftkit serve` "
                f"runs, or end it with `kill -9 {server.pid}`: a running job continues when a "
                "server starts again"
            )
        time.sleep(0.05)
    return server


def _health(address: str) -> dict[str, Any] | None:
    """The answer of `/health`, or None; never through a proxy.

    Another program may have the port of a server that was killed, and may trickle without end.
    """
    opener = build_opener(ProxyHandler({}))

    def ask() -> bytes:
        with opener.open(f"{address}/health", timeout=PROBE_SECONDS) as response:
            answer: bytes = response.read(MAX_HEALTH_BYTES)
            return answer

    try:
        health: dict[str, Any] = parse_json(Calls().run(ask, 2 * PROBE_SECONDS))
    except (OSError, ValueError, HTTPException):  # a TimeoutError is an OSError
        return None
    if not isinstance(health, dict):
        return None
    health.setdefault("problems", [])
    is_ours = all(isinstance(health.get(name), kind) for name, kind in HEALTH.items())
    return health if is_ours and "\0" not in health["home"] else None


def _silent(home: Path) -> ServerStatus:
    """The server that locked the home but does not answer, from its record.

    Raises:
        PlatformError: when its process is unknown.
    """
    record, pid = _record(home), 0
    address, version = (str(record.get(name) or "") for name in ("address", "version"))
    with contextlib.suppress(KeyError, ValueError, TypeError, OverflowError):
        pid = int(record["pid"])
    if pid < 1:  # a signal to 0 or to a negative number goes to many processes
        raise PlatformError(
            f"a server is using the home folder {home} and does not answer, and its process is not "
            "known; find `rftkit.server` in the list of processes and end it"
        )
    return ServerStatus(address, pid, home, version, 0.0)


@contextlib.contextmanager
def _starting(home: Path) -> Iterator[None]:
    """Hold a lock, so that one process at a time starts the server of a home."""
    import filelock

    try:
        (make_home(home) / "logs").mkdir(mode=0o700, exist_ok=True)
        with filelock.FileLock(home / "start.lock", timeout=START_SECONDS, mode=0o600):
            yield
    except filelock.Timeout:
        raise PlatformError(
            f"another process has been starting the server of {home} for {START_SECONDS:.0f} "
            f"seconds; see {home / 'logs' / 'server.log'}"
        ) from None
    except OSError as error:
        raise unwritable(home, error) from error


def _start(home: Path, idle_minutes: float | None) -> ServerStatus:
    log_path = home / "logs" / "server.log"
    command = [sys.executable, "-m", "rftkit.server", "--home", str(home)]
    if idle_minutes is not None:
        command += ["--idle-minutes", str(idle_minutes)]
    with os.fdopen(os.open(log_path, LOG_FLAGS, 0o600), "ab") as log:
        begin = log.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=settings.child_environment(),
            umask=privacy.UMASK,
        )
    threading.Thread(target=process.wait, daemon=True).start()  # so that it leaves no zombie
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        server = serve_status(home)
        if server is not None:
            return server
        if process.poll() is not None and not _is_locked(home):
            if has_no_room(home):  # then the log is empty, too
                raise unwritable(home, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
            raise PlatformError(
                f"the local server exited with status {process.returncode} before it answered; "
                f"the end of {log_path}:\n{_tail(log_path, begin)}"
            )
        time.sleep(0.05)
    if process.poll() is not None:
        raise PlatformError(
            f"another server (process {_silent(home).pid}) is using the home folder {home} and "
            f"did not answer for {START_SECONDS:.0f} seconds; end it with `rftkit serve --stop`"
        )
    process.kill()
    process.wait()
    raise PlatformError(
        f"the local server did not answer within {START_SECONDS:.0f} seconds; "
        f"the end of {log_path}:\n{_tail(log_path, begin)}"
    )


def _tail(path: Path, begin: int) -> str:
    """The last lines that were written since `begin`."""
    with path.open("rb") as log:
        log.seek(begin)
        lines = log.read().decode(errors="replace").strip().splitlines()
    return "\n".join(lines[-15:]) or "(nothing)"


def _is_locked(home: Path) -> bool:
    import filelock

    lock: filelock.BaseFileLock = filelock.FileLock(home / "server.lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        return True
    lock.release()
    return False
