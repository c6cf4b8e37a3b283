"""Chat templates that are fine with the first rows of a job and hang, grow or refuse later on."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import in_process
import pytest

from rftkit.errors import InputError
from rftkit.server.engine import prompts
from rftkit.server.engine.torch.engine import TorchEngine
from rftkit.server.engine.values import Completion
from rftkit.server.inference.platform import Platform
from rftkit.server.inference.worker_process import WorkerProcess
from rftkit.server.store.records import Job
from rftkit.server.worker import worker as worker_module
from rftkit.server.worker.worker import Worker

LATER = "{% if 'ded' in messages[-1].content %}%s{% endif %}"
"""What a template does to the seventh row only."""
FOR_EVER = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
SEVENTH = r"rows\.jsonl:7"


def hostile(home: Path, tiny: Path, does: str) -> None:
    """Make the model `mine`, whose template does this to a later row."""
    folder = home / "hostile"
    shutil.copytree(tiny, folder)
    template = folder / "chat_template.jinja"
    template.write_text(LATER.replace("%s", does) + template.read_text())
    (home / "bases.json").write_text(f'{{"mine": "{folder}"}}')


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ("{{ raise_exception('not this one') }}", "not this one"),
        ("{{ 'x' * 3000000 }}", r"makes 3,000,\d+ characters of these messages"),
        ("{{ 'x' * 10 ** 15 }}", "MemoryError"),
        ("{{ messages[7].content.nothing.at_all }}", "no element 7"),
    ],
)
def test_a_template_that_fails_on_a_later_row_fails_the_job_with_the_line(
    does: str, words: str, home: Path, tiny: Path
) -> None:
    hostile(home, tiny, does)
    worker = Worker(home, lambda message: None)
    job = in_process.run(worker, in_process.add_job(worker, model="mine"))
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["param"] == "training_file"
    assert re.search(f"{SEVENTH}: .*({words})", job.error["message"]), job.error["message"]


def test_every_row_is_rendered_within_a_time_limit_that_names_it(home: Path, tiny: Path) -> None:
    sent: list[dict[str, Any]] = []
    worker = Worker(home, sent.append)
    job = in_process.run(worker, in_process.add_job(worker))
    assert job.status == "succeeded", job.error
    told = [message["at"] for message in sent if "at" in message]
    assert told[1::2] == [None] * (len(told) // 2)
    limit = {"seconds": worker_module.ROW_SECONDS, "job": job.id}
    lines = [line for _ in ("training", "validation") for line in range(1, 9)]
    assert [at for at in told[::2] if "rows.jsonl" in at["what"]] == [
        {"what": f"the chat template of rftkit-tiny, given rows.jsonl:{line},", **limit}
        for line in lines
    ]
    later = [at for at in told[::2] if "given line" in at["what"]]
    assert len(later) == 2 * 4 + 3 * 8  # two steps, three validations
    assert all(at.items() >= limit.items() for at in later)


async def until_ended(platform: Platform, job: Job) -> Job:
    while (found := platform.store.job(job.id)).status not in ("failed", "succeeded"):
        await asyncio.sleep(0.05)
    return found


@pytest.mark.timeout(600)
def test_a_template_that_hangs_on_a_later_row_fails_the_job_and_not_the_next(
    home: Path, tiny: Path
) -> None:
    """The worker is killed and replaced; what it was doing is said in words."""
    hostile(home, tiny, FOR_EVER)
    filler = Worker(home, lambda message: None)
    job = in_process.add_job(filler, model="mine")
    following = in_process.add_job(filler)
    program = "from rftkit.server.worker import worker as w; w.ROW_SECONDS = 5.0; w.main()"
    process = WorkerProcess([sys.executable, "-c", program, "--home", str(home)], home / "log")
    platform = Platform(store=filler.store, worker=process, home=home)
    process.on_death = platform.worker_died

    async def run() -> tuple[Job, Job]:
        await process.start()
        try:
            return await until_ended(platform, job), await until_ended(platform, following)
        finally:
            await process.stop()

    hung, next_job = asyncio.run(asyncio.wait_for(run(), 500))
    assert hung.error is not None
    assert hung.error["code"] == "worker_hung"
    assert hung.error["message"].startswith(
        "the chat template of mine, given rows.jsonl:7, took longer than 5 seconds"
    )
    assert next_job.status == "succeeded", next_job.error


def test_a_cancelled_job_renders_no_further_row(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "CHECK_SECONDS", -1.0)
    job = in_process.add_job(worker)
    worker.engines.get("rftkit-tiny")
    encode, seen = TorchEngine.encode, []

    def cancelling(self: TorchEngine, *arguments: Any) -> list[int]:
        seen.append(arguments)
        worker.store.update_job(job.id, status="cancelled")
        return encode(self, *arguments)

    monkeypatch.setattr(TorchEngine, "encode", cancelling)
    assert in_process.run(worker, job).status == "cancelled"
    assert len(seen) == 1


def test_text_that_fits_no_context_is_not_tokenized(tiny: Path) -> None:
    engine = TorchEngine(tiny, name="rftkit-tiny")
    most = prompts.most_characters(engine.tokenizer, engine.context_tokens)
    with pytest.raises(InputError, match="characters of these messages") as caught:
        engine.encode([{"role": "user", "content": "x" * most}])
    assert caught.value.code == "context_length_exceeded"


# ── prompts that leave little room ───────────────────────────────────────────────────────────────


def long_rows(engine: TorchEngine, *rooms: int) -> list[dict[str, Any]]:
    """Rows whose prompts leave so many tokens of the context, after the usual ones."""
    rows = list(in_process.ROWS)
    for room in rooms:
        row = {"messages": [{"role": "user", "content": "copy: "}], "answer": "a"}
        missing = engine.context_tokens - room - len(engine.encode(row["messages"]))
        row["messages"][0]["content"] += "a" * missing
        rows.append(row)
    return rows


def test_answers_end_where_the_context_ends_and_the_job_says_so(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = worker.engines.get("rftkit-tiny")
    monkeypatch.setattr(engine, "context_tokens", 40)
    rows = long_rows(engine, 3, 1)
    given: list[tuple[int, int]] = []
    sample = engine.sample

    def watched(requests: Any, *arguments: Any, **options: Any) -> list[list[Completion]]:
        found = sample(requests, *arguments, **options)
        pairs = zip(requests, found, strict=True)
        given.extend((len(r.prompt_ids), len(c.tokens)) for r, some in pairs for c in some)
        return found

    monkeypatch.setattr(engine, "sample", watched)
    job = in_process.run(worker, in_process.add_job(worker, rows=rows))
    assert job.status == "succeeded", job.error
    assert all(prompt + answer <= 40 for prompt, answer in given)
    assert {37, 39} <= {prompt for prompt, _ in given}
    [note] = {each for each in in_process.messages(worker, job) if "leave less" in each}
    assert note == (
        "2 prompts of rows.jsonl leave less than max_completion_tokens=6 of the model's context of "
        "40 tokens, the first in line 9: answers to them are cut where the context ends, the "
        "shortest after 1 tokens. Shorten these prompts, or lower max_completion_tokens."
    )


def test_a_prompt_that_fills_the_context_is_refused_with_its_line(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = worker.engines.get("rftkit-tiny")
    monkeypatch.setattr(engine, "context_tokens", 40)
    job = in_process.add_job(worker, rows=long_rows(engine, 3, 0))
    job = in_process.run(worker, job)
    assert job.error is not None
    assert (
        "rows.jsonl:10: the prompt has 40 tokens; the model's context holds 40"
        in (job.error["message"])
    )
