"""axe-core finds nothing serious on a page made of our views, in light and in dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sample_comparison
import sample_job
from browser import barriers, chromium, opened

from rftkit import datasets, evals, jobs, views
from rftkit.diagnosis import findings, story_of
from rftkit.importer import Check as Imported
from rftkit.importer.migration import Difference
from rftkit.jobs import Check
from rftkit.jobs.runs import Run
from rftkit.views import launch
from rftkit.views.markup import copyable
from rftkit.views.runs import run_table
from rftkit.widgets import GraderLab, RowBrowser

__all__ = ["chromium"]


RUNS = [
    Run("ftjob-1", "running", "rftkit-tiny", "train.jsonl", "reinforcement", 1.7e9),
    Run("ftjob-2", "failed", "rftkit-tiny", "train.jsonl", "dpo", 1.7e9, "mine", None, 0.5),
]


IMPORTED = [
    Imported("job", "ftjob-1", "ft:gpt-4o:acme::1", "reinforcement", "openai", (),
             (Difference("model", "gpt-4o is not here", "choose a model: -m NAME", stops=True),)),
    Imported("grader", "0123456789ab", "quality", "score_model", "openai", ("ftjob-1",)),
]  # fmt: skip
STEP = {
    "step": 1, "num_steps": 1,
    "groups": [{"line": 1, "item": {"messages": [{"role": "user", "content": "Hi?"}]},
                "rollouts": [{"text": "Ho", "stop_reason": "stop", "tokens": 1,
                              "grade": {"reward": 0.5, "outcome": "graded"}}]}],
}  # fmt: skip


def _steps() -> list[dict[str, Any]]:
    return list(jobs.step_frame(sample_job.events()).to_dict("records"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset check, a comparison of runs, rows, grades and a broken grader on one page."""
    data = datasets.load("security_review")
    shape = {"grader": data.grader, "response_format": data.response_format}
    check = datasets.check(data.valid, near_duplicates=False, **shape)  # type: ignore[arg-type]
    compared = evals.compare(sample_comparison.samples(), slices=["topic"])
    lab = GraderLab(data, rows=[0, 1])
    lab.grade()
    grades = lab.to_html()
    lab.spec = lab.spec | {"calculate_output": "complaint"}
    events = sample_job.events()
    parts = [
        "<h1>Everything</h1>",
        views.check_page(check),
        "<h2>Runs</h2>",
        views.compare_headline(compared),
        views.compare_runs(compared),
        views.compare_rows(compared),
        "<h2>Rows</h2>",
        RowBrowser(data, row=0).to_html(max_bytes=50_000),
        "<h2>Jobs</h2>",
        views.job_status(sample_job.job(), _steps(), findings=findings(story_of(events))),
        views.diagnosis(events),
        views.reward_chart(events, training=views.StepJumps(frozenset({1}))),
        views.training_steps([STEP]),
        views.drift_chart(evals.drift(sample_comparison.samples(), events)),
        "<h2>Imported</h2>",
        views.migration(IMPORTED),
        views.spec({"grader": sample_job.GRADER}),
        "<h2>More</h2>",
        views.signal_chart(events),
        views.events(events),
        run_table(RUNS, watched=RUNS[0].id),
        launch.checklist([Check("data", "ok", "60 rows"), Check("grader", "error", "pays")]),
        copyable("Copy the code", "import rftkit\n" * 3, is_open=True),
        "<h2>Grades</h2>",
        grades,
        lab.to_html(),
    ]
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(views.page("Everything", "".join(map(str, parts))))
    return path


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_closed_to_keyboard_or_reader(
    page: Path, chromium: Any, scheme: str, width: int
) -> None:
    size = {"width": width, "height": 900}
    with opened(chromium, page, color_scheme=scheme, viewport=size, bypass_csp=True) as tab:
        assert barriers(tab) == []
        overflow = tab.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert overflow <= 0  # nothing is clipped: what is wider scrolls in its own box
