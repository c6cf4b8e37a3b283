"""`rftkit check` and `rftkit dataset`, typed; the doctor's page, opened in a browser."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, opened
from conftest import GRADER, Served
from typer.testing import CliRunner, Result

from rftkit import client, datasets, views
from rftkit.cli import app as cli
from rftkit.errors import InputError, RftkitError

__all__ = ["chromium"]

Type = Callable[..., Result]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, served: Served) -> Type:
    """Type a command in this process; `connect()` gives the platform in memory."""
    monkeypatch.setattr(client, "connect", lambda *_: served.client)
    return lambda *words: CliRunner().invoke(cli.app, [str(word) for word in words])


def row(prompt: str, **keys: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], **keys}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text(
        "".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in rows)
    )
    return path


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write(tmp_path / "grader.json", [GRADER])
    write(tmp_path / "good.jsonl", [row(f"say {n}", answer="hi") for n in range(12)])
    hostile = "<script>document.title='gone'</script>"
    rows = [row(hostile, answer="x"), row("b", anser="y"), "{", row(hostile, answer="z")]
    write(tmp_path / "bad.jsonl", rows)
    return tmp_path


def test_check_asks_the_model_and_writes_what_teaches(
    typed: Type, served: Served, files: Path
) -> None:
    said = iter(range(1000))
    served.link.say = lambda _: "hi" if next(said) % 2 else "no"
    done = typed(
        *("check", files / "good.jsonl", "--grader", files / "grader.json", "--json"),
        *("--model", "rftkit-tiny", "--rows", "3", "--completions", "2"),
        *("--useful", files / "useful.jsonl", "--html", files / "page.html"),
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["preview"]["completions"] == 2
    assert "learnability" in {each["code"] for each in found["findings"]}
    assert len(datasets.read(files / "useful.jsonl")) == 3
    page = (files / "page.html").read_text()
    assert "What the model can learn" in page
    assert "What the grader rewards" in page


def test_check_takes_the_name_of_a_bundled_dataset(typed: Type, files: Path) -> None:
    done = typed("check", "--dataset", "tiny_copy", "--json", "--quick")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["audit"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["good.jsonl", "--dataset", "tiny_copy"],
            "use either --dataset or the paths of files, not both",
        ),
        ([], "type: rftkit check DATA, or rftkit check --dataset NAME"),
        (["--dataset", "x"], "there are contract_facts, policy_lookup, security_review, tiny_copy"),
    ],
)
def test_check_wants_files_or_the_name_of_a_dataset(
    typed: Type, words: list[str], expected: str
) -> None:
    done = typed("check", *words)
    assert isinstance(done.exception, RftkitError)
    assert expected in str(done.exception)


def test_useful_rows_need_a_model_and_a_grader(typed: Type, files: Path) -> None:
    done = typed("check", files / "good.jsonl", "--useful", files / "u.jsonl")
    assert isinstance(done.exception, InputError)


def test_making_datasets(typed: Type, files: Path) -> None:
    done = typed("dataset", "split", files / "good.jsonl", files / "out", "--share", "a=0.5")
    assert done.exit_code == 0, done.output
    assert "a: 6 rows" in done.stdout
    assert "6 not drawn" in done.stdout
    done = typed("dataset", "sample", files / "good.jsonl", files / "s.jsonl", "--rows", "4")
    assert done.stdout.startswith("4 rows, seed 1")
    done = typed("dataset", "convert", files / "bad.jsonl", files / "c.jsonl", "--dry-run")
    assert done.exit_code == 1
    assert "bad.jsonl:3: not valid JSON" in done.stdout
    assert not (files / "c.jsonl").exists()
    done = typed("dataset", "profile", files / "good.jsonl", "--out", files / "p.csv")
    assert "prompt_chars" in done.stdout
    assert len((files / "p.csv").read_text().splitlines()) == 13
    done = typed("dataset", "split", files / "good.jsonl", files / "o2", "--share", "a=x")
    assert isinstance(done.exception, InputError)


def test_a_profile_is_not_written_into_the_folder_that_it_reads(typed: Type, files: Path) -> None:
    folder = files / "data"
    folder.mkdir()
    (folder / "rows.jsonl").write_bytes((files / "good.jsonl").read_bytes())
    done = typed("dataset", "profile", folder, "--out", folder / "x.csv")
    assert isinstance(done.exception, InputError)
    assert not (folder / "x.csv").exists()
    done = typed("dataset", "profile", folder, "--out", files / "x.csv")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_links_findings_to_their_rows(chromium: Any, files: Path, scheme: str) -> None:
    check = datasets.check(files / "bad.jsonl", grader=GRADER)
    charts = views.profile_chart(datasets.profile(files / "bad.jsonl"))
    page = files / "page.html"
    page.write_text(views.page("Dataset check", views.check_page(check, charts=charts)))
    with opened(
        chromium, page, color_scheme=scheme, viewport={"width": 390, "height": 800}
    ) as shown:
        assert shown.title() == "Dataset check"
        assert shown.locator("h1").inner_text() == "Dataset check"
        assert "A job would not run: 2 errors" in shown.locator(".rk-verdict").inner_text()
        link = shown.locator(".rk-findings a").first
        link.focus()
        shown.keyboard.press("Enter")
        target = shown.locator(link.get_attribute("href"))
        assert target.is_visible()
        assert shown.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_page_reads_without_a_script(chromium: Any, files: Path) -> None:
    page = files / "page.html"
    page.write_text(views.page("x", views.check_page(datasets.check(files / "bad.jsonl"))))
    with opened(chromium, page, java_script_enabled=False) as shown:
        assert "bad.jsonl:3" in shown.locator("main").inner_text()
