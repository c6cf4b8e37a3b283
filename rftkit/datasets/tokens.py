"""The lengths of the rows in tokens of a model, and whether they fit its context.

Of RFT rows the prompt is counted, of other rows the prompt with its (longer) answer.

Tokens are counted with the model's own tokenizer and chat template when its files are on this
machine: a folder, or a model that the platform converted into `RFTKIT_HOME/models`. For any other
model (hosted ones publish no template) the length is the number of characters divided by four, and
every message says so. Up to `EXACT_ROWS` rows are all counted; of more rows a seeded sample is
counted, and its figures have an interval.
"""

from __future__ import annotations

import glob
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit import settings
from rftkit.chattemplates import rendered
from rftkit.datasets.findings import Finding, Place
from rftkit.datasets.forms import answers_in
from rftkit.datasets.rowfile import Rows
from rftkit.datasets.rowlines import batched
from rftkit.examples import text_of
from rftkit.fingerprints import BASES
from rftkit.jsontext import parse_json
from rftkit.rows import Row
from rftkit.wording import counted

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["EXACT_ROWS", "Counter", "find_counter", "length_findings"]

EXACT_ROWS = 50_000
ANSWER_TOKENS = 256  # what a job leaves for the answer by default
AT_ONCE = 256
CHARS_PER_TOKEN = 4
SEED = 1


@dataclass(frozen=True, slots=True)
class Counter:
    """Counts the tokens of prompts."""

    words: str
    """How tokens are counted, for messages."""
    count: Callable[[Sequence[Row]], list[int | None]]
    """Tokens of each prompt; None where the chat template refuses it."""
    context: int | None
    """Most tokens of prompt and answer together; None if unknown."""
    is_exact: bool
    refusal: Callable[[Row], str | None] = lambda row: None
    """Why the chat template refuses a prompt; None when it accepts it."""


def find_counter(model: str) -> Counter:
    """Return a counter with the model's tokenizer if it is on this machine, else by characters."""
    folder = _folder(model)
    if folder is None:
        words = f"characters / {CHARS_PER_TOKEN}, an estimate: no tokenizer of {model} is here"
        return Counter(words, _by_characters, None, False)
    try:
        from transformers import AutoTokenizer
    except ImportError:
        words = f"characters / {CHARS_PER_TOKEN}, an estimate: transformers is not installed"
        return Counter(words, _by_characters, _context(folder), False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # a model's own files can make the library raise anything
        said = next(iter(str(error).splitlines()), type(error).__name__)
        words = f"characters / {CHARS_PER_TOKEN}, an estimate: no tokenizer in {folder} ({said})"
        return Counter(words, _by_characters, _context(folder), False)

    def count(rows: Sequence[Row]) -> list[int | None]:
        texts = [_rendered(tokenizer, row)[0] for row in rows]
        known = [text for text in texts if text is not None]
        batch = tokenizer(known, add_special_tokens=False)["input_ids"] if known else []
        lengths = iter(len(ids) for ids in batch)
        return [None if text is None else next(lengths) for text in texts]

    words = f"the tokenizer and chat template of {model}"
    return Counter(words, count, _context(folder), True, lambda row: _rendered(tokenizer, row)[1])


def length_findings(model: str, sources: Mapping[str, Rows]) -> Iterator[Finding]:
    """Report the lengths of the prompts, and prompts that leave no room for an answer."""
    counter = find_counter(model)
    for rows in sources.values():
        numbers, lengths, is_sample, refused = _measure(counter, rows)
        if refused:
            yield _refused(model, rows, refused, counter)
        if len(lengths):
            yield _lengths(rows, lengths, counter, is_sample)
        if len(lengths) and counter.context is not None:
            yield from _too_long(rows, numbers, lengths, counter, is_sample)


def _measure(counter: Counter, rows: Rows) -> tuple[Any, npt.NDArray[Any], bool, list[int]]:
    """Return row numbers, their lengths, whether they are a sample, and rows without a length."""
    import numpy as np

    is_sample = len(rows) > EXACT_ROWS
    chosen = np.arange(len(rows))
    if is_sample:
        chosen = np.sort(np.random.default_rng(SEED).choice(len(rows), EXACT_ROWS, replace=False))
    numbers: list[int] = []
    lengths: list[int] = []
    refused: list[int] = []
    for found in batched(rows.each_at(chosen.tolist()), AT_ONCE):
        usable = [(each.number, each.row) for each in found if each.row is not None]
        counted = counter.count([row for _, row in usable])
        for (number, _), length in zip(usable, counted, strict=True):
            if length is None:
                refused.append(number)
            else:
                numbers.append(number)
                lengths.append(length)
    return np.array(numbers), np.array(lengths), is_sample, refused


def _refused(model: str, rows: Rows, numbers: list[int], counter: Counter) -> Finding:
    row = rows.rows_at(numbers[:1])[0].row
    why = counter.refusal(row) if row is not None else None
    return Finding(
        "error",
        "prompt_refused",
        f"{rows.name}: {model} does not accept the prompts of "
        f"{counted(len(numbers), 'row')}: {why}",
        "put the system message into the user's message, or choose a model with another template",
        len(numbers),
        tuple(Place(rows.name, n, rows.line(n)) for n in numbers[:100]),
    )


def _lengths(rows: Rows, lengths: Any, counter: Counter, is_sample: bool) -> Finding:
    import numpy as np

    ordered = np.sort(lengths)
    said, figures = [], {"counted_by": counter.words, "num_counted": len(ordered)}
    for share, words in ((0.5, "median"), (0.95, "95 %"), (0.99, "99 %"), (1.0, "longest")):
        value, low, high = _quantile(ordered, share)
        figures[words] = value
        said.append(f"{words} {value:,}")
        if is_sample and share < 1:
            said[-1] += f" ({low:,} to {high:,})"
    sampled = (
        f", in a sample of {len(ordered):,} rows (seed {SEED}; 95 % intervals; the longest row of "
        "all may be longer)"
        if is_sample
        else ""
    )
    return Finding(
        "info",
        "token_lengths",
        f"{rows.name}: tokens of {_counted_part(rows)}: {', '.join(said)}{sampled}; "
        f"by {counter.words}",
        figures=figures,
    )


def _quantile(ordered: Any, share: float) -> tuple[int, int, int]:
    """Return the quantile and a 95 % interval by ranks (binomial, normal approximation)."""
    n = len(ordered)
    spread = 1.96 * math.sqrt(n * share * (1 - share))
    at = [math.ceil(n * share) - 1, math.floor(n * share - spread), math.ceil(n * share + spread)]
    value, low, high = (int(ordered[min(max(rank, 0), n - 1)]) for rank in at)
    return value, low, high


def _too_long(
    rows: Rows, numbers: Any, lengths: Any, counter: Counter, is_sample: bool
) -> Iterator[Finding]:
    assert counter.context is not None
    if rows.form != "reinforcement":
        yield from _cut(rows, numbers[lengths > counter.context], counter)
        return
    bad = numbers[lengths + ANSWER_TOKENS > counter.context]
    if len(bad):
        yield Finding(
            "error" if counter.is_exact else "warning",
            "long_prompts",
            f"{rows.name}: {len(bad):,} prompts{' of the sample' if is_sample else ''} leave fewer "
            f"than {ANSWER_TOKENS} of {counter.context:,} tokens for the answer",
            "shorten or remove them, or choose a model with a longer context",
            len(bad),
            tuple(Place(rows.name, int(n), rows.line(int(n))) for n in bad[:100]),
        )


def _counted_part(rows: Rows) -> str:
    return "a prompt" if rows.form == "reinforcement" else "a prompt with its answer"


def _cut(rows: Rows, bad: Any, counter: Counter) -> Iterator[Finding]:
    """Rows that are cut at their end, where the answer is."""
    if len(bad):
        yield Finding(
            "warning",
            "long_rows",
            f"{rows.name}: {counted(len(bad), 'row')} longer than the {counter.context:,} tokens "
            "of the context; they would be truncated, and the answer is cut off first",
            "shorten or remove them, or choose a model with a longer context",
            len(bad),
            tuple(Place(rows.name, int(n), rows.line(int(n))) for n in bad[:100]),
        )


def _by_characters(rows: Sequence[Row]) -> list[int | None]:
    texts = (json.dumps(_conversation(row), ensure_ascii=False) for row in rows)
    return [-(-len(text) // CHARS_PER_TOKEN) for text in texts]


def _rendered(tokenizer: Any, row: Row) -> tuple[str | None, str | None]:
    """Render the prompt as the platform does, or return why the chat template refuses it."""
    try:
        return rendered(tokenizer, _conversation(row), row.tools, opens=True), None
    except Exception as error:  # the calls of a row can have any shape
        return None, str(error)


def _conversation(row: Row) -> list[dict[str, Any]]:
    """Everything that must fit into the context: the prompt, and the longest answer to
    learn from.
    """
    answer = max(answers_in(row), key=lambda each: len(text_of(each)), default=None)
    return row.messages if answer is None else [*row.messages, answer]


def _folder(model: str) -> Path | None:
    """Find a model's files by the names that the platform knows, or a folder of that name.

    The platform's names are those of the models that it converted, of those added with `models
    add`, and of the model of its Tinker server. Its folders are relative to the home.
    """
    base = model.split(":")[1] if model.startswith("ft:") and model.count(":") > 1 else model
    home = settings.home()
    places: list[Path] = []
    if Path(base).name == base:
        places += sorted((home / "models").glob(f"{glob.escape(base)}-v*"), reverse=True)
    if isinstance(added := _kept(BASES).get(base), str):
        places.append(home / added)
    if (remote := _kept("tinker.json")).get("model") and _tinker_name(remote) == base:
        places.append(home / str(remote.get("tokenizer")))
    places.append(Path(base).expanduser())
    return next((each for each in places if (each / "config.json").is_file()), None)


def _kept(name: str) -> dict[str, Any]:
    """Return the object in a file of the home; empty if there is none."""
    try:
        found = parse_json((settings.home() / name).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _tinker_name(remote: Mapping[str, Any]) -> str:
    """Return what the platform calls the model: of a folder the last part."""
    model = str(remote["model"])
    return Path(model).name if model.startswith(("/", ".")) else model


def _context(folder: Path) -> int | None:
    try:
        config = parse_json((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    value = config.get("text_config", config).get("max_position_embeddings")
    return value if isinstance(value, int) else None
