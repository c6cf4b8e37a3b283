"""Which export answers like the platform, in which tool? The table of the engine's README.

    python tests/benchmarks/exports.py [--home HOME --model NAME] [--write]

Small random models with random adapters, whose tokenizers and heads are of every kind, and with
`--home` a real fine-tuned model. `--write` puts the table into rftkit/server/engine/README.md.
llama.cpp is compared where `llama-cpp-python` is installed.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from export_bases import BASES, NAME, home_with

from rftkit.server.worker.exports.export import Wanted, export

README = Path(__file__).parents[2] / "rftkit" / "server" / "engine" / "README.md"
BEGIN, END = "<!-- exports -->", "<!-- /exports -->"
HEAD = (
    "| model | format | tool | prompts the same | answers the same | log-prob gap, mean (limit) | "
    "training changed | result |"
)


def main() -> None:
    """Print the table, and write it if asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    lines = [HEAD, "|---" * HEAD.count(" |") + "|"]
    for line in itertools.chain(tiny(given.rows), real(given) if given.home else ()):
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
            for form, quantize in (("peft", None), ("merged", None), ("gguf", "f32")):
                yield from lines_of(home, NAME, f"random; {name}", Wanted(form, quantize, rows))


def real(given: argparse.Namespace) -> Iterator[str]:
    """Lines of a fine-tuned model."""
    for form, quantize in (
        ("peft", None), ("merged", None), ("gguf", "f16"), ("gguf", "q8_0"), ("gguf", "q4_0"),
        ("gguf", "q4_k_m"),
    ):  # fmt: skip
        wanted = Wanted(form, quantize, given.rows)
        yield from lines_of(given.home, given.model, base_name(given.model), wanted)


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
    ties = f", {each['near_ties']} near ties" if each["near_ties"] else ""
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
