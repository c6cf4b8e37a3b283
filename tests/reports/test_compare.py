"""Reports on eval runs, made by papermill from runs that are kept in the home."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import sample_comparison
from browser import chromium, opened  # noqa: F401 (a fixture)

from rftkit import reports
from rftkit.evals import saved_runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A home that holds the runs of the sample, and a folder for pages."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RFTKIT_HOME", str(folder / "home"))
        samples = sample_comparison.samples()
        runs = tuple(
            replace(run, id=f"{saved_runs.LOCAL_PREFIX}{run.step}", job_id=None)
            for run in samples.runs
        )
        samples = replace(samples, runs=runs)
        for label in samples.labels:
            saved_runs.save(saved_runs.record_of(samples, label))
        yield folder


@pytest.fixture(scope="module")
def page(folder):
    return reports.run(
        "report_compare", folder / "compare.html", slices=["topic"], most_rows=40, csv=True
    )


@pytest.fixture(scope="module")
def grader_page(folder):
    frame = sample_comparison.samples().frame.dropna(subset="reward").iloc[:30]
    lines = [
        {"row": row.row, "run": row.run, "sample": row.sample, "value": float(row.reward > 0.6)}
        for row in frame.itertuples()
    ]
    labels = folder / "labels.jsonl"
    labels.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return reports.run("report_grader", folder / "grader.html", labels=str(labels))


def test_the_page_recommends_shows_where_and_names_the_csv(page):
    html = page.read_text()

    assert "deploy Step 12" in html
    for section in ("Runs", "Against the baseline", "Rows", "Provenance"):
        assert f">{section}</a>" in html
    assert "all are in compare-rows.csv" in html
    assert "This page has 40 of 60 rows" in html
    assert page.with_name("compare-rows.csv").read_text().count("\n") == 61
    assert page.with_name("compare-samples.csv").is_file()
    figures = reports.read_summary(page)
    assert (figures["deploy"], figures["verdict"]) == ("Step 12", "better")
    assert len(html) < 1_500_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_works_offline_and_a_number_leads_to_rows(page, chromium, scheme):  # noqa: F811
    with opened(chromium, page, color_scheme=scheme) as tab:
        tab.locator('a[data-said="fixed at Step 12"]').first.click()
        assert "rows fixed at Step 12" in tab.locator(".rk-only").inner_text()
        tab.locator(".rk-card:visible summary").first.click()
        assert tab.locator(".rk-card:visible ins").first.is_visible()


def test_the_report_on_a_grader_holds_it_against_people(grader_page):
    html = grader_page.read_text()

    assert "kappa" in html
    assert "Length of answers" in html
    assert "No edited grader was given" in html
    assert reports.read_summary(grader_page)["agreement"] is not None
