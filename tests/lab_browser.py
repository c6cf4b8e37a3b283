"""`rftkit lab` under test, seen through headless Chromium: what a person sees and clicks.

    from browser import chromium  # noqa: F401
    from lab_browser import Lab, lab  # noqa: F401

    def test_something(lab: Lab, chromium) -> None:
        with lab.open(chromium, "01_author_grader.ipynb") as notebook:
            notebook.run_all()
            notebook.cell(4).get_by_role("button", name="Grade").click()
            notebook.shot("graded")

One lab and one platform serve the whole session, in folders of their own. Screenshots go to the
folder named by SCREENSHOTS, else to a temporary one. A notebook's `cell(n)` is its output area;
text is looked for there only, because the same words stand in the source of the cell.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import nbformat
import pytest

from rftkit.client import stop_server

SECONDS = 120
"""How long to wait for anything; the machine may be busy."""

FRAME = 200
"""Pixels of a page's height that are menus, toolbars and margins."""

SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}

KERNEL_READY = """async () => {
  const pause = () => new Promise(done => setTimeout(done, 50));
  while (!window.jupyterapp?.shell.currentWidget?.sessionContext) await pause();
  const panel = jupyterapp.shell.currentWidget;
  await panel.context.ready;
  await panel.sessionContext.ready;
  while (panel.sessionContext.session?.kernel?.connectionStatus !== 'connected') await pause();
  await panel.sessionContext.session.kernel.info;
  while (panel.sessionContext.session.kernel.status !== 'idle') await pause();
}"""

UNFOLD = """() => {
  const folds = '.jp-Notebook .rk-panel .jupyter-widget-Collapse-header';
  for (const fold of document.querySelectorAll(folds))
    if (!fold.parentElement.classList.contains('jupyter-widget-Collapse-open')) fold.click();
}"""

ERRORS = """() => jupyterapp.shell.currentWidget.content.widgets
  .flatMap(cell => cell.model.outputs?.toJSON() ?? [])
  .filter(output => output.output_type === 'error')
  .map(output => `${output.ename}: ${output.evalue}`)"""
"""JupyterLab shows an error as it shows stderr: only its model tells them apart."""


@dataclass
class Notebook:
    """One notebook open in a page, its kernel ready."""

    page: Any
    shots: Path

    def ready(self) -> None:
        """Wait until the kernel of the notebook in front is idle."""
        self.page.evaluate(KERNEL_READY)

    def run_all(self) -> None:
        """Run every cell and wait for the last one; an error in a cell fails the test."""
        self.command("notebook:run-all-cells")
        self.page.evaluate(KERNEL_READY)
        errors = self.page.evaluate(ERRORS)
        assert not errors, errors[0]

    def run(self, index: int) -> None:
        """Run one cell and wait for it."""
        self.page.evaluate(
            """index => {
              jupyterapp.shell.currentWidget.content.activeCellIndex = index;
              jupyterapp.shell.currentWidget.content.deselectAll();
            }""",
            index,
        )
        self.command("notebook:run-cell")
        self.page.evaluate(KERNEL_READY)

    def cell(self, index: int) -> Any:
        """The outputs of cell `index`, markdown cells counted too."""
        return self._panel.locator(".jp-Cell").nth(index).locator(".jp-Cell-outputWrapper")

    def command(self, name: str, **options: Any) -> None:
        """Run a command of JupyterLab, such as `docmanager:save`."""
        self.page.evaluate("([n, o]) => jupyterapp.commands.execute(n, o)", [name, options])

    def edit(self, index: int, source: str) -> None:
        """Replace what stands in cell `index`."""
        self._panel.locator(".jp-Cell").nth(index).locator(".cm-content").click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(source)

    def switch(self, name: str) -> None:
        """Open another notebook from JupyterLab's list of files, which must be shown."""
        self.page.locator(".jp-DirListing-item", has_text=name).dblclick()
        self.page.wait_for_function(
            "name => jupyterapp.shell.currentWidget?.context?.path.includes(name)", arg=name
        )
        self.ready()

    def save(self) -> None:
        """Save the notebook."""
        self.command("docmanager:save")

    def dark(self, on: bool = True) -> None:
        """Switch JupyterLab to its dark theme, or back; the lab remembers it."""
        self.command("apputils:change-theme", theme=f"JupyterLab {'Dark' if on else 'Light'}")
        light = "false" if on else "true"
        self.page.wait_for_selector(f'body[data-jp-theme-light="{light}"]', state="attached")

    def kernel_pid(self, index: int) -> int:
        """The process of the kernel, which cell `index` must print as its only output."""
        return int(self.cell(index).inner_text())

    def shot(self, name: str, of: Any = None) -> Path:
        """Keep a screenshot of the page, or of one element, however tall that is."""
        path = self.shots / f"{name}.png"
        usual = self.page.viewport_size
        if of is not None:
            tall = int(of.bounding_box()["height"]) + FRAME
            self.page.set_viewport_size(usual | {"height": max(tall, usual["height"])})
        (of or self.page).screenshot(path=str(path))
        self.page.set_viewport_size(usual)
        return path

    def settle(self) -> None:
        """Wait until no panel works or draws any more, and what is folded inside is open."""
        self.page.evaluate(UNFOLD)
        self.ready()
        idle = "() => !/◌|Drawing|Fetching/.test(document.querySelector('.jp-Notebook').innerText)"
        self.page.wait_for_function(idle)

    def shots_of_outputs(self, name: str) -> None:
        """Screenshots of each cell's output that rftkit drew, if somebody asks for screenshots."""
        if "SCREENSHOTS" in os.environ:
            cells = self._panel.locator(".jp-Cell-outputWrapper:has(.rk)")
            for index in range(cells.count()):
                self.shot(f"{name}-{index}", cells.nth(index))

    @property
    def _panel(self) -> Any:
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")


@dataclass
class Lab:
    """A running `rftkit lab`."""

    address: str
    """Of JupyterLab, with its token."""
    folder: Path
    """Of the user's notebooks."""
    home: Path
    """RFTKIT_HOME of the platform and of the kernels."""
    shots: Path

    def write(self, name: str, cells: Sequence[str]) -> None:
        """Put a notebook of code cells into the user's folder."""
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        )
        nbformat.write(notebook, self.folder / name)

    @contextlib.contextmanager
    def open(
        self,
        chromium: Any,
        name: str,
        *,
        width: int = 1360,
        browser_shown: bool = False,
        permissions: Sequence[str] = (),
    ) -> Iterator[Notebook]:
        """Open one of the user's notebooks in a new page and wait for its kernel.

        `browser_shown` leaves JupyterLab's list of files open, which takes a quarter of the page.
        `permissions` are what the user allows the page, such as `clipboard-read`.
        """
        size = {"width": width, "height": 1000}
        context = chromium.new_context(viewport=size, permissions=list(permissions))
        context.set_default_timeout(SECONDS * 1000)
        try:
            page = context.new_page()
            scheme, host, _, query, _ = urlsplit(self.address)
            page.goto(urlunsplit((scheme, host, f"/lab/tree/{name}", f"{query}&reset", "")))
            page.evaluate(KERNEL_READY)
            if not browser_shown:
                page.keyboard.press("Control+b")
            notebook = Notebook(page, self.shots)
            notebook.dark(False)
            yield notebook
            page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        finally:
            context.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """`rftkit lab` on folders of its own, with a real platform."""
    root = tmp_path_factory.mktemp("lab")
    shots = Path(os.environ.get("SCREENSHOTS", root / "shots"))
    shots.mkdir(parents=True, exist_ok=True)
    for name, values in SETTINGS.items():
        path = root / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    command = [sys.executable, "-c", "from rftkit.cli.app import main; main()"]
    command += ["lab", str(root / "notebooks"), "--"]
    command += ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0"]
    command += ["--LabApp.expose_app_in_browser=True"]
    process = subprocess.Popen(
        command, env=_environment(root), stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        yield Lab(_address(process), root / "notebooks", root / "home", shots)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=SECONDS)
        stop_server(root / "home")  # it would go on with the job of a test that failed
    assert process.returncode == 0


def _environment(root: Path) -> dict[str, str]:
    jupyter = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
        "RFTKIT_HOME": "home",
    }
    unset = ("OPENAI_BASE_URL", "OPENAI_API_KEY", "RFTKIT_MODE", "JPY_SESSION_NAME")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return {
        **kept,
        **{name: str(root / part) for name, part in jupyter.items()},
        "OMP_NUM_THREADS": "1",
    }


def _address(process: subprocess.Popen[str]) -> str:
    """The address that the command prints first."""
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.match(r"JupyterLab +(http://\S+)$", line)
    assert found, f"expected the address of JupyterLab, found {line!r}{process.stdout.read()}"
    return found[1]
