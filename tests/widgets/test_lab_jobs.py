"""Four journeys in JupyterLab: launch and see the curve move, pause and resume, kill the kernel and
attach again, ask a checkpoint. Screenshots of each go to the folder named by SCREENSHOTS."""

from __future__ import annotations

import os
import re
import signal
from typing import Any

import pytest
from browser import chromium  # noqa: F401  a fixture
from lab_browser import SECONDS, Lab, lab  # noqa: F401  a fixture

LAUNCH = """from rftkit import widgets
launch = widgets.JobLauncher(
    "tiny_copy", model="rftkit-tiny", seed=1, metadata={"max_completion_tokens": "8"},
    hyperparameters={
        "batch_size": 16, "n_epochs": 50, "compute_multiplier": 4.0, "eval_interval": 10,
    },
)
launch"""
WATCH = "import os\nfrom rftkit import widgets\nmonitor = widgets.JobMonitor()\nmonitor"
PLAY = "from rftkit import widgets\nplay = widgets.Playground(temperature=1.0)\nplay"


def step_of(view: Any) -> int:
    """The step that a monitor's header shows; -1 before the first."""
    found = re.search(r"step ([\d,]+) of", view.inner_text())
    return int(found[1].replace(",", "")) if found else -1


def wait_for_step(page: Any, view: Any, step: int) -> None:
    for _ in range(10 * SECONDS):
        if step_of(view) >= step:
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"still at step {step_of(view)}, not {step}: {view.inner_text()[:500]}")


@pytest.mark.slow
def test_from_a_form_to_a_checkpoint(lab: Lab, chromium: Any) -> None:  # noqa: F811
    lab.write("journey.ipynb", [LAUNCH, WATCH, "print(os.getpid())", PLAY])
    with lab.open(chromium, "journey.ipynb") as notebook:
        page = notebook.page

        # launch
        notebook.run(0)
        form = notebook.cell(0)
        assert form.get_by_role("button", name="Start the job").is_disabled()
        form.get_by_role("button", name="1. Run checks").click()
        form.get_by_text("no cheat pays").first.wait_for()
        form.get_by_role("button", name="2. Estimate").click()
        form.get_by_text("the base model earns").first.wait_for()
        form.get_by_text("Process memory").first.wait_for()
        notebook.shot("launch", form)
        form.get_by_role("button", name="Start the job").click()
        form.get_by_text("Started ftjob-").first.wait_for()

        # the curve moves
        notebook.run(1)
        view = notebook.cell(1)
        view.locator(".rk-svg").first.wait_for()
        wait_for_step(page, view, 2)
        before = view.locator(".rk-svg").first.get_attribute("aria-label")
        wait_for_step(page, view, step_of(view) + 3)
        page.wait_for_function(
            "([old, chart]) => chart.ariaLabel !== old || !chart.isConnected",
            arg=[before, view.locator(".rk-svg").first.element_handle()],
        )
        notebook.shot("watch-light", view)

        # pause and resume, which is no error
        view.get_by_role("button", name="Pause").click()
        view.get_by_text("‖ paused").first.wait_for()
        paused_at = step_of(view)
        view.get_by_role("button", name="Rollouts").click()
        view.get_by_text("completions in 16 groups").first.wait_for()
        view.locator("summary").first.click()
        notebook.shot("rollouts", view)
        view.get_by_role("button", name="Resume").click()
        view.get_by_text("▶ running").first.wait_for()
        wait_for_step(page, view, paused_at + 1)

        # a dead kernel: the old view says so by itself, the job goes on, the same cell attaches
        notebook.run(2)
        died_at = step_of(view)
        os.kill(notebook.kernel_pid(2), signal.SIGKILL)
        view.locator(".rk-expires").wait_for(state="visible")
        page.locator(".jp-Dialog").get_by_role("button", name="Ok").click()
        notebook.shot("kernel-killed", view)
        page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.restartKernel()")
        notebook.run(1)
        wait_for_step(page, view, died_at + 1)
        view.get_by_role("button", name="Checkpoints").wait_for()
        notebook.dark()
        view.locator(".rk-svg").first.wait_for()
        notebook.shot("watch-dark", view)

        # ask the newest checkpoint, then end the job
        notebook.run(3)
        play = notebook.cell(3)
        play.get_by_label("Row").fill("3")
        play.get_by_label("Row").press("Enter")
        play.get_by_role("button", name="Ask", exact=True).click()
        play.get_by_text("What changed from").first.wait_for()
        play.get_by_text(re.compile(r"reward \d")).first.wait_for()
        notebook.shot("ask-dark", play)
        view.get_by_role("button", name="Cancel").click()
        view.get_by_role("button", name="Really cancel?").click()
        view.get_by_text("✗ cancelled").first.wait_for()
