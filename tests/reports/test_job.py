"""The report on a job: run by papermill, opened in a browser with the network off."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
import sample_job
from browser import chromium, opened  # noqa: F401 (a fixture)
from sample_job import JOB

from rftkit import reports
from rftkit.errors import ReportError

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    answers = folder / "answers.json"
    answers.write_text(json.dumps(sample_job.answers()))
    with sample_job.serving() as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "none")
        return reports.run(
            "report_job", folder / "job.html", job_id=JOB, base_url=url, answers=answers
        )


@pytest.fixture(params=["light", "dark"])
def tab(request, chromium, page):  # noqa: F811
    with opened(chromium, page, color_scheme=request.param) as opened_page:
        yield opened_page


def test_the_page_says_the_outcome_and_where_it_comes_from(page):
    html = page.read_text()

    assert "The final model is better than the base model: 0.27 → 0.70" in html
    for fact in ("ftjob-sample", "smollm2-135m-instruct", "calculate_output", "sha256", "openai"):
        assert fact in html
    for section in ("Curves", "Answers before and after", "Checkpoints", "Provenance"):
        assert f">{section}</a>" in html
    assert html.count('class="rk-svg"') == 12
    assert "<img" not in html
    assert len(html) < 700_000
    fold = html[: html.index("Curves</h2>") if "Curves</h2>" in html else html.index('id="Curves"')]
    assert (
        "<code>smollm2-135m-instruct</code>, reinforcement fine-tuning on security_review" in fold
    )
    assert "the answer's <code>compliant</code> is exactly the row's" in fold
    assert "Started on 2026-09-21" in fold
    assert "The gain came from" in fold
    assert fold.index("Test, final model") < fold.index("Validation, step 0")
    assert reports.read_summary(page)["test"]["better"] == 19


def test_it_opens_offline_and_its_answers_filter_sort_and_page(tab):
    cards = tab.locator(".rk-card:visible")
    answers = tab.locator(".rk-list", has=tab.locator(".rk-card"))
    status = answers.get_by_role("status")
    assert cards.count() == 10
    assert status.inner_text() == "1 to 10 of 24 rows"

    answers.get_by_role("button", name="Next").click()
    assert status.inner_text() == "11 to 20 of 24 rows"
    answers.get_by_label("Filter rows").fill("visitor badges")
    assert status.inner_text() == "5 of 24 rows"
    answers.get_by_label("Filter rows").fill("")
    answers.get_by_label("Which rows").select_option("not graded")
    assert status.inner_text() == "1 of 24 rows"
    answers.get_by_label("Which rows").select_option("")
    answers.get_by_label("Order").select_option(label="largest loss first")
    assert "worse −0.05" in cards.first.inner_text()
    answers.get_by_role("button", name="Open all").click()
    assert "What changed from base to final" in cards.first.inner_text()


def test_tables_sort_by_keyboard_with_missing_values_last(tab):
    table = tab.locator("figure + details table").first
    tab.locator("figure + details summary").first.click()
    heading = table.locator("th", has_text="validation").first
    heading.get_by_role("button").focus()
    tab.keyboard.press("Enter")
    values = table.locator("tbody tr:visible td:nth-child(3)").all_inner_texts()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert values[:4] == ["0.300", "0.583", "0.733", "0.792"]
    assert set(values[4:]) == {"–"}

    tab.keyboard.press("Enter")
    values = table.locator("tbody tr:visible td:nth-child(3)").all_inner_texts()
    assert heading.get_attribute("aria-sort") == "descending"
    assert values[:4] == ["0.792", "0.733", "0.583", "0.300"]


def test_text_can_be_read_in_either_theme(tab):
    """Every colour of text against the page: at least 4.5 to 1, the WCAG bar for small text."""
    worst = tab.evaluate(CONTRAST)

    assert worst["ratio"] >= 4.5, worst


def test_it_can_be_read_without_any_script(chromium, page):  # noqa: F811
    with opened(chromium, page, java_script_enabled=False) as tab:
        assert tab.locator(".rk-card").count() == 24
        assert tab.get_by_text("24 rows", exact=True).first.is_visible()
        tab.locator(".rk-card summary").first.click()
        assert tab.get_by_text("What changed from base to final").first.is_visible()


def test_nothing_is_wider_than_a_phone_or_a_sheet_of_paper(chromium, page):  # noqa: F811
    for width, media in ((390, "screen"), (688, "print")):  # 182 mm between the margins
        with opened(chromium, page, viewport={"width": width, "height": 900}) as tab:
            tab.emulate_media(media=media)
            assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_a_job_that_does_not_exist_gives_a_page_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with sample_job.serving() as url, pytest.raises(ReportError, match="NotFoundError"):
        reports.run("report_job", tmp_path / "job.html", job_id="ftjob-x", base_url=url)
    assert "This report is not complete" in (tmp_path / "job.html").read_text()


def test_a_job_that_has_only_begun_can_be_reported(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    import rftkit

    begun = sample_job.job(status="running", finished_at=None, fine_tuned_model=None)
    with sample_job.serving(job=begun, events=sample_job.events()[:1], checkpoints=[]) as url:
        record = reports.read_job(rftkit.connect(url), JOB)

    assert record.summary()["valid"] is None
    assert record.facts()["finished"] == "–"
    used = {row["hyperparameter"]: row["as used"] for row in record.hyperparameters()}
    assert used["eval_interval"] == "6"
    assert used["reasoning_effort"] == "default"  # what was given and is not auto


@pytest.mark.parametrize("method", ["reinforcement", "supervised", "dpo"])
def test_every_hyperparameter_says_what_was_used(method):
    """What was auto, what was given, what has no effect."""
    given = {"batch_size": 4, "n_epochs": "auto", "learning_rate_multiplier": "auto"}
    more = {"reinforcement": {"reasoning_effort": "high", "compute_multiplier": "auto"},
            "dpo": {"beta": 0.2}, "supervised": {}}[method]  # fmt: skip
    said = {
        "hyperparameters": {"n_epochs": 3, "learning_rate": 0.003},
        "multipliers": {"learning_rate_multiplier": 2.0, "compute_multiplier": 0.5},
        "ignored": {"reasoning_effort": "the model does not think"},
    }
    record = reports.JobRecord(
        job=sample_job.job(method={"type": method, method: {"hyperparameters": given | more}}),
        error=None, events=[{"data": said}], checkpoints=[], files=[], answers=None,
    )  # fmt: skip
    used = {row["hyperparameter"]: row["as used"] for row in record.hyperparameters()}

    assert {name: used[name] for name in given} == {
        "batch_size": "4", "n_epochs": "3", "learning_rate_multiplier": "2",
    }  # fmt: skip
    assert all(used[name] for name in more)
    if method == "reinforcement":
        assert used["reasoning_effort"] == "no effect: the model does not think"


def test_answers_that_cannot_be_read_are_refused(tmp_path):
    bad = tmp_path / "answers.json"
    for content in ("{", "[]", '{"rows": 3}'):
        bad.write_text(content)
        with pytest.raises(ReportError, match=r"answers\.json"):
            reports.job._read_answers(bad)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_clean(path):
    """No outputs in git, any Python kernel, and parameters that explain themselves."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]

    assert notebook.metadata.kernelspec.name == "python3"
    assert {"widgets", "papermill"}.isdisjoint(notebook.metadata)
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert all(re.fullmatch(r"[\w-]+", cell.id) for cell in notebook.cells)
    if path.stem.startswith("report_"):
        (cell,) = (cell for cell in code if "parameters" in cell.metadata.get("tags", []))
        assert all(isinstance(node, ast.AnnAssign) for node in ast.parse(cell.source).body)
        assert all("  # " in line for line in cell.source.splitlines())


CONTRAST = """() => {
  const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (color, under) => {
    canvas.fillStyle = under; canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ground = (element) => {
    const own = element ? getComputedStyle(element).backgroundColor : "white";
    const below = element ? ground(element.parentElement) : "white";
    const [r, g, b] = rgb(own, below);
    return `rgb(${r},${g},${b})`;
  };
  for (const details of document.querySelectorAll("details")) details.open = true;
  let worst = { ratio: 99 };
  for (const element of document.querySelectorAll("main *, footer *, footer")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !element.checkVisibility() || element.disabled) continue;
    const below = ground(element);
    const a = light(rgb(getComputedStyle(element).color, below)), b = light(rgb(below, below));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst.ratio) worst = { ratio, html: element.outerHTML.slice(0, 200) };
  }
  return worst;
}"""
