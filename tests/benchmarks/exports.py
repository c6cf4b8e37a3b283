"""Which export answers like the platform, in which tool? The table of the engine's README.

    python tests/benchmarks/exports.py [--write] [--home HOME --model NAME]
    python tests/benchmarks/exports.py --time

Random adapters on small random models, whose tokenizers and heads are of every kind, and on the
bundled model, which is fetched if it is not in RFTKIT_HOME; `--home` adds a fine-tuned model of
yours. `--write` puts the table into rftkit/server/engine/README.md. PEFT and llama.cpp have to be
installed (`pip install -e '.[local,dev]'`). `--time` compares the time that transformers takes to
answer the rows of an export one at a time, and as many at once as the check does.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from export_bases import BASES, NAME, home_with

from rftkit import settings
from rftkit.server.engine import models
from rftkit.server.store.store import Store
from rftkit.server.worker.exports.export import Wanted, export
from rftkit.server.worker.exports.held_out import held_out
from rftkit.server.worker.exports.reference import platform_answers
from rftkit.server.worker.exports.source import find_source
from rftkit.server.worker.exports.tools import TOGETHER, Transformers
from rftkit.wording import counted

README = Path(__file__).parents[2] / "rftkit" / "server" / "engine" / "README.md"
BEGIN, END = "<!-- exports -->", "<!-- /exports -->"
HEAD = (
    "| model | format | tool | prompts the same | answers the same | log-prob gap, mean (limit) | "
    "training changed | result |"
)
BUNDLED = "smollm2-135m-instruct"
BUNDLED_SCALE = 0.03
"""Deviation of the bundled model's random adapter: about what a short training changes."""
SMALL_FORMATS = (("peft", None), ("merged", None), ("gguf", "f32"))
FORMATS = (
    ("peft", None), ("merged", None), ("gguf", "f16"), ("gguf", "q8_0"), ("gguf", "q4_0"),
    ("gguf", "q4_k_m"),
)  # fmt: skip


def main() -> None:
    """Print the table, and write it if asked; or print the times."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--time", action="store_true")
    given = parser.parse_args()
    if given.time:
        print_times()
        return
    lines = [HEAD, "|---" * HEAD.count(" |") + "|"]
    yours = real(given.home, given.model, given.rows) if given.home else ()
    for line in itertools.chain(tiny(given.rows), bundled(given.rows), yours):
        print(line, flush=True)
        lines.append(line)
    if given.write:
        before, _, rest = README.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        README.write_text("\n".join([before + BEGIN, *lines, END + after]))


def tiny(rows: int) -> Iterator[str]:
    """Lines of the random models, in float32 without rounding."""
    for name, make in BASES.items():
        with tempfile.TemporaryDirectory() as folder:
            home = home_with(Path(folder), make)
            for form, quantize in SMALL_FORMATS:
                yield from lines_of(home, NAME, f"random; {name}", Wanted(form, quantize, rows))


def bundled(rows: int) -> Iterator[str]:
    """Lines of the bundled model, in the dtype that this machine computes with."""
    with tempfile.TemporaryDirectory() as folder:
        home = home_with(Path(folder), link_bundled, BUNDLED_SCALE)
        for form, quantize in FORMATS:
            yield from lines_of(home, NAME, BUNDLED, Wanted(form, quantize, rows))


def link_bundled(folder: Path) -> None:
    """The bundled base model of this user's home, in the place of a base."""
    base = models.prepare(models.find_base(BUNDLED), settings.home(), print)
    folder.symlink_to(base, target_is_directory=True)


def real(home: Path, model: str, rows: int) -> Iterator[str]:
    """Lines of a fine-tuned model."""
    for form, quantize in FORMATS:
        yield from lines_of(home, model, base_name(model), Wanted(form, quantize, rows))


def print_times() -> None:
    """Seconds in which transformers answers as many rows as it takes at once, and scores them."""
    with tempfile.TemporaryDirectory() as folder:
        home = home_with(Path(folder), link_bundled, BUNDLED_SCALE)
        out = Path(folder) / "out"
        out.mkdir()
        export(home, NAME, out, Wanted("merged", rows=0))
        source = find_source(Store.open(home), home, NAME)
        rows = held_out(source, TOGETHER)
        answers = platform_answers(source, rows).answers
        prompts = [each.prompt for each in answers]
        tool = Transformers(out, "merged")
        tool.answers(prompts[:1], 2)
        together = seconds(lambda: tool.answers(prompts, rows.max_tokens))
        alone = seconds(lambda: [tool.answers([each], rows.max_tokens) for each in prompts])
        scores = seconds(lambda: [tool.scores(each.prompt, each.tokens) for each in answers])
    print(
        f"{len(prompts)} rows of at most {rows.max_tokens} tokens: {together:.1f} s at once, "
        f"{alone:.1f} s one at a time ({alone / together:.1f} times as long); the log-probs of "
        f"their answers {scores:.1f} s"
    )


def seconds(work: Callable[[], Any]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def base_name(model: str) -> str:
    """The base of a fine-tuned model's name."""
    return model.split(":")[1] if model.startswith("ft:") else model


def lines_of(home: Path, model: str, shown: str, wanted: Wanted) -> Iterator[str]:
    """One line for each tool that is installed."""
    form = wanted.form + (f" {wanted.quantize}" if wanted.quantize else "")
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = export(home, model, Path(folder), wanted)
        except Exception as error:  # a line of the table, not its end
            yield f"| {shown} | {form} | – | | | | | {str(error).split(';')[0]} |"
            return
    for each in report["tools"]:
        yield line_of(shown, form, each)


def line_of(shown: str, form: str, each: dict[str, Any]) -> str:
    """One tool's line."""
    prompts = f"{each['same_prompts']} of {each['prompts']}" if each["prompts"] else "not compared"
    ties = f", {counted(each['near_ties'], 'near tie')}" if each["near_ties"] else ""
    cells = [
        shown,
        form,
        each["tool"],
        prompts,
        f"{each['same_answers']} of {each['answers']}{ties}",
        f"{each['logprob_gap_mean']:.1g} ({each['logprob_gap_limit']:.1g})",
        f"{each['training_changed']:.2g}",
        "; ".join(each["problems"]) or "the same model",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
