"""The page that `report_url` opens: what it shows, and that nothing of others runs on it."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
from conftest import GRADER, Served
from eval_calls import BROKEN, asking, content, finished, make_eval

from rftkit.server.store.store import Store
from rftkit.server.training.eval_records import GradedSample, item_from, tally

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}\x1b[2J\u202e\ud800"
NAME = HOSTILE[:-1]
"""The database refuses lone surrogates in names."""


class Tags(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value for name, value in attrs if name == "href"]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_report_url_of_a_run_opens_its_page(served: Served) -> None:
    record = make_eval(served, GRADER, BROKEN)
    source: Any = {"type": "jsonl", "source": content("a", "b", sample="a")}
    run = served.client.evals.runs.create(record.id, name="my run", data_source=source)
    assert run.report_url.startswith("http://localhost/v1/evals/")
    run = finished(served, run)
    assert served.client.evals.runs.list(record.id).data[0].report_url == run.report_url
    reply = served.http.get(run.report_url)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    text = " ".join(Tags(reply.text).text)
    assert "my run: completed" in text
    assert "2 total, 0 passed, 0 failed, 2 errored" in text
    assert "exact 50.0% 1 1 0" in text
    assert "broken – 0 0 2" in text
    assert "ZeroDivisionError" in text
    assert "broken: not graded" in text


def test_the_page_shows_what_was_asked_and_pages_long_runs(served: Served) -> None:
    served.link.say = lambda request: "an answer " * 1000
    run = finished(served, asking(served))
    text = " ".join(Tags(served.http.get(run.report_url).text).text)
    assert "user: " in text
    assert "more characters)" in text
    store = served.platform.store
    many = store.add_run(run.eval_id, {"type": "jsonl"}, status="in_progress")
    graded = (GradedSample(row=n, item={"n": n}, results=[], text=f"said {n}") for n in range(205))
    store.add_items([item_from(many, each) for each in graded])
    url, shown = f"/v1/evals/{run.eval_id}/runs/{many.id}/report", []
    for _ in range(3):
        page = served.http.get(url).text
        shown.append(page.count("said "))
        url = url.partition("?")[0] + Tags(page).links[-1]
    assert shown == [100, 100, 5]
    assert "No item is finished" in served.http.get(
        f"/v1/evals/{run.eval_id}/runs/{store.add_run(run.eval_id, {}).id}/report"
    ).text  # fmt: skip


def hostile_run(store: Store) -> str:
    """The address of a run whose every text is hostile."""
    criterion = {**GRADER, "name": HOSTILE, "id": HOSTILE}
    record = store.add_eval([criterion], {"type": "custom"}, name=NAME)
    run = store.add_run(record.id, {"type": "jsonl"}, name=NAME, model=NAME,
                        metadata={HOSTILE: HOSTILE}, status="in_progress")  # fmt: skip
    message = {"role": HOSTILE, "content": HOSTILE}
    common: Any = {
        "item": {HOSTILE: HOSTILE}, "text": HOSTILE, "model": HOSTILE, "reasoning": HOSTILE,
        "finish_reason": HOSTILE, "tool_calls": [{"id": HOSTILE, "name": HOSTILE}],
    }  # fmt: skip
    errors = {HOSTILE: True, "details": HOSTILE}
    results = [{"name": HOSTILE, "type": HOSTILE, "score": None, "passed": False, "errors": errors}]
    samples = [
        GradedSample(row=0, results=results, input=[message], **common),
        GradedSample(row=1, results=results, **common),
        GradedSample(row=2, results=[], error={"code": HOSTILE, "message": HOSTILE}, **common),
    ]
    items = [item_from(run, each) for each in samples]
    store.add_items(items)
    error = {"code": HOSTILE, "message": HOSTILE}
    store.update_run(run.id, status="failed", error=error, **tally([criterion], items))
    return f"/v1/evals/{record.id}/runs/{run.id}/report"


def test_no_text_of_others_becomes_part_of_the_page(served: Served) -> None:
    reply = served.http.get(hostile_run(served.platform.store))
    assert reply.status_code == 200
    page = Tags(reply.text)
    plain = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "table", "thead"}
    assert page.tags <= plain | {"tbody", "tr", "th", "td", "p", "a"}
    assert page.attributes <= {"lang", "charset", "name", "content", "class", "href"}
    assert not {"\x1b", "\u202e"} & set(reply.text)
    assert "".join(page.text).count("<script>alert(1)</script>") > 10


def test_the_page_wants_the_key_of_the_other_routes(served: Served) -> None:
    url = hostile_run(served.platform.store)
    served.platform.store.set_api_key("sk-mine")
    served.platform.needs_key = True
    reply = served.http.get(url)
    assert reply.status_code == 401
    assert "RFTKIT_API_KEY" in reply.json()["error"]["message"]
    assert served.http.get(url, headers={"authorization": "Bearer sk-mine"}).status_code == 200


@pytest.mark.parametrize("path", ["nope/report", "report?after=nope"])
def test_a_page_that_is_not_there(served: Served, path: str) -> None:
    run = hostile_run(served.platform.store).removesuffix("report")
    assert served.http.get(run + path).status_code in (400, 404)
