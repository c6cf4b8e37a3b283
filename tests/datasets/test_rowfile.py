"""Datasets of every form, open: pages, search, frames; nothing is dropped, whatever the bytes."""

from __future__ import annotations

import gzip
import json
import os
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rftkit import datasets
from rftkit.datasets import rowfile
from rftkit.datasets.unpack import is_document
from rftkit.errors import InputError, MissingExtraError


def lines(count: int) -> list[bytes]:
    return [json.dumps(item(number), ensure_ascii=False).encode() for number in range(count)]


def item(number: int) -> dict[str, Any]:
    prompt = f"Frage {number}: Größe?"
    return {"messages": [{"role": "user", "content": prompt}], "answer": f"a{number}"}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_pages_are_numbered_and_refused_lines_stay_in_place(tmp_path: Path) -> None:
    first, second = lines(2)
    content = b"\xef\xbb\xbf" + first + b"\r\n\r\n  \n{\n" + second
    with datasets.open(write(tmp_path / "t.jsonl", content)) as rows:
        page = rows.page(0, 10)
    assert [(each.number, each.line) for each in page] == [(0, 1), (1, 4), (2, 5)]
    assert [each.row is None for each in page] == [False, True, False]
    assert "t.jsonl:4: not valid JSON at column 2" in str(page[1].refusal)
    assert page[1].raw == b"{"
    assert page[2].row is not None
    assert page[2].row.item == item(1)
    assert rows.page(1, 1) == page[1:2] or str(rows.page(1, 1)[0].refusal) == str(page[1].refusal)
    assert rows.page(3, 5) == []


def test_the_index_is_kept_and_made_again_when_the_file_changes(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rowfile, "KEEP_FROM_BYTES", 10)
    path = write(tmp_path / "t.jsonl", b"\n".join(lines(3)))
    datasets.open(path).wait()
    kept = list((home / "cache" / "rows").iterdir())
    assert len(kept) == 1
    again = datasets.open(path)
    assert again.is_complete
    assert [each.row and each.row.item for each in again.page(0, 9)] == [item(n) for n in range(3)]
    path.write_bytes(b"\n".join(lines(5)))
    with pytest.raises(InputError, match="changed while it was open"):
        again.page(0, 2)
    longer = datasets.open(path)
    assert longer.wait()
    assert len(longer) == 5
    assert len(list((home / "cache" / "rows").iterdir())) == 1
    [kept_file] = (home / "cache" / "rows").iterdir()
    kept_file.write_bytes(b"not an index")
    broken = datasets.open(path)
    broken.wait()
    assert len(broken) == 5


def test_rows_can_be_read_while_the_index_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, go_on = threading.Event(), threading.Event()

    def slow(path: Path) -> Any:
        yield b"\n".join(lines(3)) + b"\n", 10
        ready.set()
        go_on.wait(10)
        yield b"\n".join(lines(2)), 20

    monkeypatch.setattr(rowfile, "blocks_of_file", slow)
    path = write(tmp_path / "t.jsonl", b"\n".join([*lines(3), *lines(2)]))
    rows = datasets.open(path)
    assert [each.number for each in rows.page(0, 2)] == [0, 1]
    ready.wait(10)
    assert (len(rows), rows.is_complete) == (3, False)
    assert rows.progress() == (10, path.stat().st_size)
    assert rows.wait(0.01) is False
    go_on.set()
    assert [each.number for each in rows.page(2, 9)] == [2, 3, 4]
    assert rows.wait() is True


def frame(count: int = 4) -> pd.DataFrame:
    return pd.DataFrame([item(number) | {"score": 0.5, "empty": None} for number in range(count)])


@pytest.mark.parametrize("form", ["gz", "zst", "parquet", "csv", "huggingface", "frame"])
def test_every_form_gives_the_same_rows(form: str, tmp_path: Path) -> None:
    with datasets.open(made(form, tmp_path)) as rows:
        assert rows.wait()
        found = [each.row and each.row.item for each in rows]
    assert [row and row["messages"] for row in found] == [item(n)["messages"] for n in range(4)]
    assert [row and row["answer"] for row in found] == [f"a{n}" for n in range(4)]
    assert rows.search("größe", keys=["messages"]) == [0, 1, 2, 3]


def made(form: str, folder: Path) -> Any:
    plain = b"\n".join(lines(4))
    if form == "gz":
        return write(folder / "t.jsonl.gz", gzip.compress(plain[:100]) + gzip.compress(plain[100:]))
    if form == "csv":
        data = frame()
        data["messages"] = data["messages"].map(lambda value: json.dumps(value, ensure_ascii=False))
        data.to_csv(folder / "t.csv", index=False)
        return folder / "t.csv"
    if form == "frame":
        return frame()
    pa = pytest.importorskip("pyarrow")
    if form == "parquet":
        frame().to_parquet(folder / "t.parquet")
        return folder / "t.parquet"
    if form == "zst":
        with pa.CompressedOutputStream(str(folder / "t.jsonl.zst"), "zstd") as out:
            out.write(plain)
        return folder / "t.jsonl.zst"
    table = pa.Table.from_pandas(frame())
    path = str(folder / "data.arrow")
    with pa.OSFile(path, "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    write(folder / "state.json", b'{"_data_files": [{"filename": "data.arrow"}]}')
    return folder


def test_unpacked_lines_are_kept_for_files_and_deleted_for_frames(
    tmp_path: Path, home: Path
) -> None:
    path = write(tmp_path / "t.jsonl.gz", gzip.compress(b"\n".join(lines(3))))
    datasets.open(path).wait()
    assert datasets.open(path).is_complete
    rows = datasets.open(frame())
    rows.wait()
    left = rows.lines_path
    assert left.exists()
    del rows
    assert not left.exists()


def test_records_that_are_no_rows_are_named(tmp_path: Path) -> None:
    data = pd.DataFrame({"messages": ["x", '[{"role": "user", "content": "hi"}]'], "a": [{1}, {2}]})
    data.loc[0, "a"] = object()  # type: ignore[call-overload]
    refused, usable = datasets.open(data).page(0, 5)
    assert "type object cannot be written as JSON" in str(refused.refusal)
    assert usable.row
    path = write(tmp_path / "t.csv", b'messages,a\n"[]",1,2\n"x\xff",1\n')
    short, broken = datasets.open(path).page(0, 5)
    assert "t.csv:2: the record has 3 cells, the first line 2 names" in str(short.refusal)
    assert "not valid UTF-8" in str(broken.refusal)


def test_a_source_that_breaks_off_says_so(tmp_path: Path) -> None:
    whole = gzip.compress(b"\n".join(lines(3)) + b"\n" + os.urandom(5000))
    rows = datasets.open(write(tmp_path / "t.jsonl.gz", whole[:-3000]))
    with pytest.raises(InputError, match=r"t\.jsonl\.gz: cannot be read to its end"):
        rows.wait()
    with pytest.raises(InputError):
        rows.page(1000, 1)
    with pytest.raises(InputError, match="there is no such file"):
        datasets.open(tmp_path / "nowhere.jsonl")
    for name, expected in {"t.parquet": "cannot be read", "": "save_to_disk"}.items():
        if name:
            write(tmp_path / name, b"PAR1 no")
        with pytest.raises(InputError, match=expected):
            datasets.open(tmp_path / name).wait()


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"rftkit\[data\]"):
        datasets.open(write(tmp_path / "t.parquet", b"PAR1")).wait()


def test_search_in_lines_and_in_keys(tmp_path: Path) -> None:
    extra = json.dumps({"messages": [{"role": "user", "content": 'ÉTÉ " x'}], "answer": "été"})
    rows = datasets.open(write(tmp_path / "t.jsonl", b"\n".join([*lines(30), extra.encode()])))
    assert rows.search("FRAGE 7:") == [7]
    assert rows.search("a2", keys=["answer"]) == [2, *range(20, 30)]
    assert rows.search("frage", limit=3) == [0, 1, 2]
    assert rows.search("été") == [30]
    assert rows.search('é " x', keys=["messages"]) == [30]
    assert rows.search("nowhere") == []
    seen: list[tuple[int, int]] = []
    rows.search("x", progress=lambda done, found: seen.append((done, found)))
    assert seen == [(31, 31)]


def test_frame_of_some_rows(tmp_path: Path) -> None:
    rows = datasets.open(write(tmp_path / "t.jsonl", b"\n".join([*lines(2), b"{"])))
    found = rows.frame([2, 0])
    assert found.index.tolist() == [2, 0]
    assert found["answer"].tolist()[1] == "a0"
    assert "t.jsonl:3" in found["refusal"][2]
    assert rows.frame([]).empty
    with pytest.raises(InputError, match="has no row 3; it has 3, from 0"):
        rows.frame([3])


@settings(deadline=None, max_examples=40)
@given(content=st.binary(max_size=400) | st.lists(st.sampled_from(
    [b"{", b"}", b"\n", b"\r\n", b" ", b"\xff", b'"', b"\xef\xbb\xbf", b"\x1e", b"[1,]", b"1e999",
     b'{"messages":[{"role":"user","content":"x"}]}', b',"a":1', b"\x00", b":"]
), max_size=40).map(b"".join))  # fmt: skip
def test_any_bytes_are_rows_or_named(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "fuzz.jsonl", content)
    with datasets.open(path) as rows:
        if is_document(path):  # one array, or an object over several lines
            with pytest.raises(InputError, match="rftkit dataset convert"):
                list(rows)
            return
        found = list(rows)
    expected = [line for line in content.split(b"\n") if line.removeprefix(b"\xef\xbb\xbf").strip()]
    assert len(expected) <= len(found) <= len(expected) + 1  # a lone BOM is a refused line
    assert all((each.row is None) != (each.refusal is None) for each in found)
    assert all(
        str(each.refusal).startswith(f"{path}:{each.line}: ") for each in found if not each.row
    )


def test_rubbish_behind_the_first_object_is_no_document(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", b'{"":[{"":"","":""}]}\x00')
    with datasets.open(path) as rows:
        [row] = list(rows)
    assert "rows.jsonl:1: not usable JSON at column 13" in str(row.refusal)


def test_columns_are_what_the_rows_hold(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    prompt = {"messages": [{"role": "user", "content": "x"}]}
    first = prompt | {"a b": [1, {"c": 2}], "label": "é"}
    rows = [json.dumps(prompt | {"label": label}) for label in (None, 1.5)]
    lines = ["\ufeff" + json.dumps(first), "", rows[0], "not JSON", "[1]", rows[1]]
    path.write_text("\n".join(lines), encoding="utf-8")
    seen: list[tuple[int, int]] = []
    with datasets.open(path) as opened:
        found = opened.columns(["label", "a b"], lambda done, total: seen.append((done, total)))
        assert opened.columns([]) == {}
    assert found == {"label": ["é", None, None, None, 1.5], "a b": [[1, {"c": 2}], *[None] * 4]}
    assert seen[-1] == (5, 5)
