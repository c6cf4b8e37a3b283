"""The home is for its owner alone: new ones, old ones, and whatever the server writes there."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from rftkit import client, privacy

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX")


def open_to_others(home: Path) -> list[str]:
    paths = [home, *home.rglob("*")]
    return [str(path) for path in paths if not path.is_symlink() and path.stat().st_mode & 0o077]


@pytest.fixture(autouse=True)
def usual_umask() -> object:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_an_old_home_is_closed_when_the_server_starts(home: Path) -> None:
    (home / "logs").mkdir(parents=True)
    (home / "logs" / "jupyterlab.log").write_text("token=secret")
    (home / "files" / "ab").mkdir(parents=True)
    (home / "outside").symlink_to(home.parent)
    outside = home.parent.stat().st_mode
    with client.connect() as local:
        local.files.create(file=("a.jsonl", b"{}\n"), purpose="user_data")
        assert list(local.models.list())
        try:
            assert open_to_others(home) == []
        finally:
            client.stop_server(home)
    assert open_to_others(home) == []
    assert home.parent.stat().st_mode == outside


def test_commands_close_the_home_they_make(home: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    program = "from rftkit.cli.app import main; main()"
    command = [sys.executable, "-c", program, "models", "add", str(tmp_path / "model")]
    subprocess.run(command, check=True, capture_output=True)
    assert home.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_is_not_ours_keeps_its_mode(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "theirs").write_text("")
    (shared / "platform.sqlite").write_text("")
    warning = privacy.tighten(shared)
    assert warning is not None
    assert "RFTKIT_HOME" in warning
    assert shared.stat().st_mode & 0o7777 == 0o1777
    assert (shared / "theirs").stat().st_mode & 0o777 == 0o644
    assert (shared / "platform.sqlite").stat().st_mode & 0o777 == 0o600


def test_the_key_of_the_home_is_asked_and_found(home: Path) -> None:
    key = privacy.make_api_key(home)
    with client.connect() as local:
        try:
            assert local.api_key == key
            assert list(local.models.list())
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"{local.base_url}models")
        finally:
            client.stop_server(home)


def test_guessing_keys_is_slowed_down_whatever_address_is_claimed(home: Path) -> None:
    privacy.make_api_key(home)
    with client.connect() as local:
        try:
            assert list(local.models.list())
            at = local.base_url
            codes = []
            for number in range(14):
                source = f"127.0.0.{2 + number}"  # each of these addresses is this machine
                connection = http.client.HTTPConnection(
                    at.host, at.port, source_address=(source if number % 2 else "127.0.0.1", 0)
                )
                claimed = {
                    "X-Forwarded-For": f"10.0.0.{number}",
                    "Authorization": f"Bearer {number}",
                }
                connection.request("GET", "/v1/models", headers=claimed)
                codes.append(connection.getresponse().status)
                connection.close()
            assert codes == [401] * 10 + [429] * 4
            assert list(local.models.list())
        finally:
            client.stop_server(home)
