"""`rftkit lab`: copies that follow upgrades and never overwrite work; what JupyterLab is told."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import Served

from rftkit import client, privacy, settings
from rftkit.cli import lab
from rftkit.cli.app import app
from rftkit.cli.lab import Copies, copy_notebooks
from rftkit.errors import InputError, PlatformError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("00_tour", "01_author_grader"):
        (folder / f"{name}.ipynb").write_text(f"{name}, version 1")
    return folder


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return tmp_path / "mine"


def upgrade(source: Path) -> None:
    for path in source.glob("*.ipynb"):
        path.write_text(f"{path.stem}, version 2")


def test_the_first_start_copies_all_and_the_second_nothing(source: Path, mine: Path) -> None:
    names = ("00_tour.ipynb", "01_author_grader.ipynb")
    assert copy_notebooks(mine, source) == Copies(new=names, refreshed=(), kept=())
    assert copy_notebooks(mine, source) == Copies((), (), ())
    assert (mine / "00_tour.ipynb").read_text() == "00_tour, version 1"


def test_an_upgrade_refreshes_what_was_not_changed_and_nothing_else(
    source: Path, mine: Path
) -> None:
    copy_notebooks(mine, source)
    (mine / "00_tour.ipynb").write_text("mine")
    upgrade(source)
    copies = copy_notebooks(mine, source)
    assert copies == Copies((), ("01_author_grader.ipynb",), ("00_tour.ipynb",))
    assert "not updated, because you changed them: 00_tour.ipynb" in str(copies)
    assert (mine / "00_tour.ipynb").read_text() == "mine"
    assert (mine / "01_author_grader.ipynb").read_text() == "01_author_grader, version 2"


def test_a_change_without_an_upgrade_is_not_mentioned(source: Path, mine: Path) -> None:
    copy_notebooks(mine, source)
    (mine / "00_tour.ipynb").write_text("mine")
    assert copy_notebooks(mine, source) == Copies((), (), ())


def test_a_file_that_was_there_before_is_the_users(source: Path, mine: Path) -> None:
    mine.mkdir()
    (mine / "00_tour.ipynb").write_text("mine")
    assert copy_notebooks(mine, source).kept == ("00_tour.ipynb",)
    assert (mine / "00_tour.ipynb").read_text() == "mine"


def test_a_lost_record_costs_refreshing_but_no_work(source: Path, mine: Path) -> None:
    copy_notebooks(mine, source)
    (mine / lab.RECORD).write_text("not JSON")
    upgrade(source)
    assert copy_notebooks(mine, source).kept == ("00_tour.ipynb", "01_author_grader.ipynb")


def test_a_deleted_copy_comes_back(source: Path, mine: Path) -> None:
    copy_notebooks(mine, source)
    (mine / "00_tour.ipynb").unlink()
    assert copy_notebooks(mine, source).new == ("00_tour.ipynb",)


def test_folders_that_cannot_be_used_are_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: .*; name another folder"):
        copy_notebooks(tmp_path / "file", source)


@pytest.mark.parametrize(
    ("words", "folder", "options"),
    [
        ([], "rftkit-notebooks", []),
        (["--", "--no-browser"], "rftkit-notebooks", ["--no-browser"]),
        (["--", "--port", "0"], "rftkit-notebooks", ["--port", "0"]),
        (["--"], "rftkit-notebooks", []),
        (["mine", "--", "--no-browser", "--debug"], "mine", ["--no-browser", "--debug"]),
        (["mine"], "mine", []),
    ],
)
def test_words_after_two_dashes_are_options_and_never_the_folder(
    words: list[str], folder: str, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`rftkit lab -- --no-browser` once made a folder called `--no-browser`."""
    found: list[tuple[Path, list[str]]] = []

    def run(folder: Path, options: list[str]) -> int:
        found.append((folder, list(options)))
        return 0

    monkeypatch.setattr(lab, "run_lab", run)
    with pytest.raises(SystemExit):
        app(["lab", *words])
    assert found == [(Path(folder), options)]


def test_a_paused_job_does_not_keep_the_platform_and_a_running_one_does(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped: list[bool] = []
    monkeypatch.setattr(client, "stop_server", lambda: stopped.append(True))
    job = served.create_job().id
    lab._stop_platform(served.client)
    assert f"the platform continues with {job}" in capsys.readouterr().out
    assert stopped == []
    served.platform.store.update_job(job, status="paused")
    lab._stop_platform(served.client)
    assert f"{job} is paused and saved; continue it with: rftkit job resume {job}" in (
        capsys.readouterr().out
    )
    assert stopped == [True]


def test_widgets_are_saved_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "/etc/theirs")
    path = settings.lab_environment(lab.CONFIG_DIR, "t")["JUPYTER_CONFIG_PATH"]
    own, theirs = path.split(os.pathsep)
    assert theirs == "/etc/theirs"
    defaults = json.loads((Path(own) / "labconfig/default_setting_overrides.json").read_text())
    assert defaults["@jupyter-widgets/jupyterlab-manager:plugin"] == {"saveState": True}


def test_a_printed_notebook_has_the_static_copies_of_its_panels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """JupyterLab prints what the server exports; panels were missing from it without a network."""
    from jupyter_server.serverapp import ServerApp
    from nbconvert import HTMLExporter

    path = settings.lab_environment(lab.CONFIG_DIR, "t")["JUPYTER_CONFIG_PATH"]
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", path)
    server = ServerApp()
    server.load_config_file()
    shown = {
        "application/vnd.jupyter.widget-view+json": {"model_id": "1", "version_major": 2},
        "text/html": "<p>static copy</p>",
    }
    cell = nbformat.v4.new_code_cell(
        "panel", outputs=[nbformat.v4.new_output("display_data", shown)]
    )
    notebook = nbformat.v4.new_notebook(cells=[cell])
    page, _ = HTMLExporter(config=server.config).from_notebook_node(notebook)
    assert "static copy" in page


def test_a_lab_that_does_not_start_says_why(
    source: Path, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_notebooks(mine, source)
    with (
        pytest.raises(PlatformError, match=r"(?s)ended with status .*--no-such-option"),
        lab._jupyterlab(mine, ["--no-such-option=1", "--port=notanumber"]) as process,
    ):
        lab._address(process, mine)


def test_the_token_is_in_no_log_and_the_log_is_private(source: Path, mine: Path) -> None:
    copy_notebooks(mine, source)
    lab._log_path().parent.mkdir(parents=True)
    lab._log_path().touch(0o644)
    with lab._jupyterlab(mine, ["--no-browser", "--port=0", "--allow-root"]) as process:
        address = lab._address(process, mine)
        token = address.partition("token=")[2]
        urllib.request.urlopen(address).close()
    assert len(token) >= 32
    assert token not in lab._log_path().read_text()
    assert lab._log_path().stat().st_mode & 0o777 == 0o600


def test_the_address_is_said_once_somebody_listens_there(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JupyterLab writes its record before it listens: a browser sent there was refused."""
    mine.mkdir(exist_ok=True)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    with (
        socket.socket() as bound,
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process,
    ):
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/"
        (tmp_path / f"jpserver-{process.pid}.json").write_text(json.dumps({"url": url}))
        looked: list[bool] = []
        listens = lab._listens

        def look(url: str) -> bool:
            looked.append(listens(url))
            bound.listen()
            return looked[-1]

        monkeypatch.setattr(lab, "_listens", look)
        assert lab._address(process, mine).startswith(url)
        assert looked == [False, True]
        process.communicate()


def test_a_machine_with_several_users_gets_a_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab._require_api_key(is_running=True)
    assert "rftkit serve --stop" in capsys.readouterr().out
    lab._require_api_key(is_running=False)
    key = privacy.kept_api_key(settings.home())
    assert key
    assert (settings.home() / privacy.KEY_FILE).stat().st_mode & 0o777 == 0o600
    lab._require_api_key(is_running=False)
    assert privacy.kept_api_key(settings.home()) == key


def test_a_notebook_that_was_only_opened_is_refreshed(source: Path, mine: Path) -> None:
    """JupyterLab writes metadata of its own when it saves; what was run or edited is the user's."""

    def write(path: Path, *words: str, **more: Any) -> None:
        cells = [
            {"cell_type": "code", "source": [word], "outputs": [], "metadata": {}} for word in words
        ]
        path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, **more}))

    for path in source.glob("*.ipynb"):
        write(path, "1 + 1")
    copy_notebooks(mine, source)
    write(mine / "00_tour.ipynb", "1 + 1", metadata={"language_info": {"version": "3.12"}})
    write(mine / "01_author_grader.ipynb", "1 + 2")
    for path in source.glob("*.ipynb"):
        write(path, "1 + 1", "2 + 2")
    assert copy_notebooks(mine, source) == Copies(
        (), ("00_tour.ipynb",), ("01_author_grader.ipynb",)
    )
