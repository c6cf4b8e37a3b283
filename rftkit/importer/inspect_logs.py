"""Inspect's logs, `.eval` and `.json`, as evals of the API: rows, a run, results.

A `.eval` file is a zip of JSON documents: `header.json` and one document for each sample and epoch,
packed with deflate or, by default today, with zstd, which needs pyarrow. Inspect itself is not
needed, which saves 300 MB. This module reads input, target, answer and scores; of the scorers only
`includes` has a counterpart among the graders here. A score that is not a number (NaN is Inspect's
*unscored*) does not become a result. Not here: events, tools, attachments of images.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rftkit.errors import MissingExtraError
from rftkit.importer.foreign import (
    Answer,
    ForeignEval,
    ForeignRun,
    Result,
    number_of,
    seconds_of,
)
from rftkit.importer.promptfoo_graders import MORE
from rftkit.jsontext import parse_json

__all__ = ["eval_of_log", "is_log", "parse", "read_log"]

Json = dict[str, Any]

LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
"""Inspect's values: correct, partial, incorrect, no answer."""
STOPS = {"stop": "stop", "max_tokens": "length", "model_length": "length",
         "tool_calls": "tool_calls", "content_filter": "content_filter"}  # fmt: skip
ZSTD = 93
MAX_DOCUMENT = 256 << 20
MAX_TOTAL = 4 << 30
"""Bytes of one document of a log, and of all, unpacked: a small zip can hold more than a disk."""
MAX_DOCUMENTS = 200_000
LINK = "attachment://"


def is_log(value: Any) -> bool:
    """Whether a JSON document is an Inspect log."""
    described = value.get("eval") if isinstance(value, dict) else None
    return isinstance(described, dict) and "task" in described and "status" in value


def parse(content: bytes | str) -> Any:
    """JSON as Inspect writes it: NaN and infinities are None.

    Raises:
        ValueError: it is none.
    """
    return parse_json(content, parse_constant=lambda word: None, parse_float=_finite)


def _finite(digits: str) -> float | None:
    return found if math.isfinite(found := float(digits)) else None


def read_log(path: Path) -> ForeignEval:
    """The eval in a `.eval` file.

    Raises:
        ValueError: it is no such file, or larger than a log can be.
        MissingExtraError: it is packed with zstd, and pyarrow is missing.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            infos = archive.infolist()
            if len(infos) > MAX_DOCUMENTS or sum(each.file_size for each in infos) > MAX_TOTAL:
                raise ValueError("it holds more than a log can")
            names = {each.filename: each for each in infos}
            if "header.json" not in names:
                raise ValueError("it has no header.json: the eval did not end")
            header = parse(_content(archive, file, names["header.json"]))
            if not is_log(header):
                raise ValueError("its header.json is not that of a log")
            samples = [_small(parse(_content(archive, file, each))) for each in infos
                       if each.filename.startswith("samples/")]  # fmt: skip
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error) as error:
        raise ValueError(f"it is no log of Inspect: {error}") from None
    return eval_of_log({**header, "samples": samples}, path.stem)


def _content(archive: zipfile.ZipFile, file: IO[bytes], info: zipfile.ZipInfo) -> bytes:
    """One document, never more of it than `MAX_DOCUMENT`."""
    with _opened(archive, file, info) as document:
        content: bytes = document.read(MAX_DOCUMENT + 1)
    if len(content) > MAX_DOCUMENT:
        raise ValueError(f"{info.filename!r} has more than {MAX_DOCUMENT >> 20} MB")
    return content


def _opened(archive: zipfile.ZipFile, file: IO[bytes], info: zipfile.ZipInfo) -> Any:
    if info.compress_type != ZSTD:
        return archive.open(info)
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingExtraError("pyarrow", "data") from error
    file.seek(info.header_offset)
    head = file.read(30)  # the local header: its last two numbers are the lengths of name and extra
    file.seek(sum(struct.unpack("<HH", head[26:30])), io.SEEK_CUR)
    packed = file.read(min(info.compress_size, MAX_DOCUMENT))
    return pa.CompressedInputStream(pa.BufferReader(packed), "zstd")


def _small(sample: Any) -> Json:
    """A sample without its events, which are most of it."""
    kept = ("id", "epoch", "input", "choices", "target", "messages", "output", "scores", "metadata",
            "error", "attachments")  # fmt: skip
    return {name: sample.get(name) for name in kept} if isinstance(sample, dict) else {}


def eval_of_log(log: Json, name: str) -> ForeignEval:
    """The eval in a log."""
    described, unfit = log["eval"], list[str]()
    samples = [_small(each) for each in log.get("samples") or [] if isinstance(each, dict)]
    samples.sort(key=lambda each: (str(each.get("epoch")),))
    model = str(described.get("model") or "unknown")
    answers = [_answer(each, model, unfit) for each in samples]
    if log.get("status") != "success":
        unfit.append(f"the eval ended with status {str(log.get('status'))[:40]!r}")
    if not samples:
        unfit.append("the log has no samples (log_samples was off)")
    rows = {json.dumps(each.item, sort_keys=True): each.item for each in answers}
    graders = list(_graders(described.get("scorers"), samples, unfit))
    task = str(described.get("task") or name)
    created = seconds_of(described.get("created"))
    run = ForeignRun(model, model, answers)
    return ForeignEval(task, "inspect", created, graders, list(rows.values()), [run], unfit)


def _graders(scorers: Any, samples: list[Json], unfit: list[str]) -> Iterator[Json]:
    has_one_target = all(isinstance(each.get("target"), str) for each in samples)
    for scorer in scorers if isinstance(scorers, list) else []:
        described = scorer if isinstance(scorer, dict) else {}
        name = str(described.get("name"))[:80]
        options = described.get("options") or {}
        if name.rpartition("/")[2] != "includes":
            unfit.append(f"scorer {name!r} has no counterpart here; {MORE}")
        elif not has_one_target:
            unfit.append(f"scorer {name!r} has several targets in a row; {MORE}")
        else:
            exact = isinstance(options, dict) and options.get("ignore_case") is False
            yield {
                "type": "string_check", "name": name, "operation": "like" if exact else "ilike",
                "input": "{{sample.output_text}}", "reference": "{{item.target}}",
            }  # fmt: skip


def _answer(sample: Json, model: str, unfit: list[str]) -> Answer:
    attached = sample.get("attachments") if isinstance(sample.get("attachments"), dict) else {}
    output = sample.get("output") if isinstance(sample.get("output"), dict) else {}
    assert isinstance(output, dict)
    choices = output.get("choices") or [{}]
    choice = choices[0] if isinstance(choices, list) and isinstance(choices[0], dict) else {}
    message = choice.get("message") if isinstance(choice.get("message"), dict) else None
    error = sample.get("error")
    message_of = error.get("message") if isinstance(error, dict) else error
    usage = output.get("usage") if isinstance(output.get("usage"), dict) else {}
    assert isinstance(usage, dict)
    names = {"input_tokens": "prompt_tokens", "output_tokens": "completion_tokens",
             "total_tokens": "total_tokens"}  # fmt: skip
    return Answer(
        item=_row(sample, attached, unfit),
        text=None if message is None else _text(message.get("content"), attached),
        results=[] if error else list(_results(sample.get("scores"), unfit)),
        model=str(output.get("model") or model),
        finish_reason=STOPS.get(str(choice.get("stop_reason"))),
        usage={ours: usage[n] for n, ours in names.items() if isinstance(usage.get(n), int)},
        error=str(message_of)[:2000] if error else None,
    )


def _row(sample: Json, attached: Any, unfit: list[str]) -> Json:
    given = sample.get("input")
    messages = given if isinstance(given, list) else [{"role": "user", "content": given}]
    # What a solver put before the input, such as a system message, is part of the prompt.
    sent = sample.get("messages")
    first = sent[0] if isinstance(sent, list) and sent and isinstance(sent[0], dict) else {}
    if first.get("role") == "system" and first.get("content") not in [
        each.get("content") for each in messages if isinstance(each, dict)
    ]:
        messages = [first, *messages]
    row: Json = {
        "messages": [
            {"role": str(each.get("role")), "content": _text(each.get("content"), attached)}
            for each in messages
            if isinstance(each, dict)
        ],
        "target": sample.get("target"),
    }
    if choices := sample.get("choices"):
        row["choices"] = choices
    for name, value in (sample.get("metadata") or {}).items():
        if name in row:
            unfit.append(f"metadata {str(name)[:80]!r} has a name that rows use; it is left out")
        else:
            row[str(name)] = value
    return row


def _text(content: Any, attached: Any) -> str:
    """A message's text; other parts, such as images, are named in brackets."""
    if isinstance(content, list):
        parts = [each if isinstance(each, dict) else {} for each in content]
        return "\n".join(
            _text(each.get("text"), attached)
            if each.get("type") == "text"
            else f"[{each.get('type')}]"
            for each in parts
        )
    text = "" if content is None else str(content)
    found = attached.get(text.removeprefix(LINK)) if text.startswith(LINK) else None
    return found if isinstance(found, str) else text


def _results(scores: Any, unfit: list[str]) -> Iterator[Result]:
    for name, score in (scores if isinstance(scores, dict) else {}).items():
        value = score.get("value") if isinstance(score, dict) else score
        parts = value if isinstance(value, dict) else {None: value}
        for part, each in parts.items():
            given = LETTERS.get(each) if isinstance(each, str) else number_of(each)
            label = str(name) if part is None else f"{name}/{part}"
            if given is not None:
                yield Result(label[:80], given, given >= 1.0)
            elif each is not None:
                unfit.append(f"score {label[:80]!r} has values that are no numbers")
