"""Memory follows the largest line of a dataset, not the file: batches are bounded by bytes."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rftkit import datasets, strictjson
from rftkit.cli.app import app
from rftkit.datasets import rowfile, rowlines, shingles, unpack

MIB = 1024**2


def record(number: int, chars: int) -> dict[str, Any]:
    text = f"{number} " + "word " * (chars // 5)
    messages = [{"role": "user", "content": text}]
    return {"messages": messages, "text": text, "reference_answer": "yes", "id": number}


def write(path: Path, num_rows: int, chars: int) -> Path:
    with path.open("w") as file:
        for number in range(num_rows):
            file.write(json.dumps(record(number, chars)) + "\n")
    return path


def test_rows_are_batched_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowlines, "BATCH_BYTES", 10_000)
    with rowfile.open(write(tmp_path / "rows.jsonl", 40, 1000)) as rows:
        rows.wait()
        batches = list(rowlines.batched(rows, 256))
    assert sum(map(len, batches)) == 40
    assert {sum(len(each.raw) for each in batch) // 1_000 for batch in batches[:-1]} == {10}


@pytest.mark.parametrize("form", ["csv", "parquet", "frame"])
def test_tables_are_unpacked_in_blocks_of_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(unpack, "BLOCK_BYTES", 10_000)
    frame = pd.DataFrame({"text": [f"{n:05}" + "x" * 1000 for n in range(100)]})
    if form == "frame":
        blocks = list(unpack.blocks_of_frame(frame))
    else:
        path = tmp_path / f"rows.{form}"
        getattr(frame, f"to_{form}")(path, index=False)
        blocks = list(unpack.blocks_of_file(path))
    lines = b"".join(block for block, _ in blocks).splitlines()
    assert len(list(filter(None, lines))) == 100  # a header of a csv file leaves an empty one
    assert max(len(block) for block, _ in blocks) < 25_000


def test_a_line_that_comes_in_many_pieces_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "FIRST_BLOCK_BYTES", 7)
    monkeypatch.setattr(unpack, "BLOCK_BYTES", 11)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content := b'{"a": 1}\n' + b'{"b": "' + b"x" * 100 + b'"}\n\n{"c": 2}')
    assert b"".join(block for block, _ in unpack.blocks_of_file(path)) == content


def test_a_long_text_has_one_signature_however_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rensa")
    texts = [" ".join(f"Word{n % 97}" for n in range(500)), "a\u2003b " * 40, "x" * 5_000]
    whole = shingles.signatures(texts)
    for chars in (1, 10, 333):
        monkeypatch.setattr(shingles, "STRETCH_CHARS", chars)
        assert np.array_equal(shingles.signatures(texts), whole)


EQ = {
    "type": "string_check", "name": "eq", "operation": "eq",
    "input": "{{sample.output_text}}", "reference": "{{item.reference_answer}}",
}  # fmt: skip


def found(path: Path) -> list[int]:
    with datasets.open(path) as rows:
        return rows.search("no such word") + rows.search("no such word", keys=["answer"])


def graded(path: Path) -> Any:
    spec = path.with_suffix(".grader.json")
    spec.write_text(json.dumps(EQ))
    return app(["grade", str(spec), str(path)], standalone_mode=False)


@pytest.mark.parametrize("what", ["profile", "split", "sample", "find", "grade", "split by text"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, what: str) -> None:
    def run(path: Path) -> None:
        folder = tmp_path / f"{path.stem}-by-text"
        verbs: dict[str, Callable[[], Any]] = {
            "find": lambda: found(path),
            "grade": lambda: graded(path),
            "split by text": lambda: datasets.split(path, folder, group="text", stratify="text"),
            "profile": lambda: datasets.profile(path),
            "split": lambda: datasets.split(path, tmp_path / f"{path.stem}-parts"),
            "sample": lambda: datasets.sample(path, tmp_path / f"{path.stem}-drawn.jsonl", 10),
        }
        verbs[what]()

    run(write(tmp_path / "first.jsonl", 20, 100))  # imports
    path = write(tmp_path / "rows.jsonl", 400, 50_000)
    assert path.stat().st_size > 38 * MIB
    tracemalloc.start()
    try:
        run(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30 * MIB


@pytest.mark.parametrize("end", ["", ",", "x"])
def test_a_long_line_that_is_broken_takes_little_more_than_itself(end: str) -> None:
    line = '{"a": "' + "word \\u00e9 " * 100_000 + '", "b": [' + "1," * 100_000 + "1]" + end + "}"
    tracemalloc.start()
    strictjson.flaw_in(line)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * len(line)
