"""Export a model and check it: write the folder, load it again with the user's tool, compare.

What could not be checked because a package is missing is reported as not checked. A folder that is
not the model keeps its files and gets EXPORT_FAILED.md, which whoever fetches it sees.
`api.weights` sends the folder to the client.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit.errors import NotFoundError
from rftkit.server.store.store import Store
from rftkit.server.worker.exports import gguf_file
from rftkit.server.worker.exports.card import FAILED, card, failure_note
from rftkit.server.worker.exports.check import Comparison, compare, limit_of
from rftkit.server.worker.exports.folders import (
    end_tokens_of,
    tokenizer_of,
    write_adapter,
    write_merged,
)
from rftkit.server.worker.exports.held_out import HeldOut, held_out
from rftkit.server.worker.exports.llama_cpp import PACKAGE, LlamaCpp, has_llama_cpp
from rftkit.server.worker.exports.ollama import modelfile
from rftkit.server.worker.exports.reference import Reference, answer_text, platform_answers
from rftkit.server.worker.exports.rewards import Rewards, grade_both
from rftkit.server.worker.exports.source import Source, find_source
from rftkit.server.worker.exports.tools import Tool, Transformers, is_installed

__all__ = ["FORMATS", "REPORT", "Wanted", "export"]

FORMATS = ("peft", "merged", "gguf")
REPORT = "export_check.json"
"""The file in the folder with the comparisons and their results."""
CONTEXT_TOKENS = 4096
"""For Ollama: the default context of a chat, if the model can read as much."""
LORA_NAME = re.compile(r"base_model\.model\.[\w.]+\.lora_[AB]\.weight")
"""How PEFT and vLLM name the weights of an adapter."""

Report = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """The request for an export."""

    form: str = "peft"
    """A name in `FORMATS`."""
    quantize: str | None = None
    """For a GGUF file: a name in `gguf_file.QUANTIZATIONS`; None for f16."""
    rows: int = 16
    """How many rows the check answers; 0 for no check."""


def export(home: Path, name: str, out: Path, wanted: Wanted) -> Report:
    """Write the model `name` of a home into the empty folder `out`, and check it.

    Returns:
        The report, which is in the folder too. Its `result` is same, differs or not checked.

    Raises:
        NotFoundError: there is no such model, or it has no adapter.
        InputError: there is no such quantization.
        RftkitError: its files are damaged, or cannot be written in this format.
    """
    quantization = None
    if wanted.form == "gguf":
        quantization = wanted.quantize or gguf_file.DEFAULT
        gguf_file.check_quantization(quantization)
    store = Store.open(home)
    try:
        source = find_source(store, home, name)
        if wanted.form == "peft" and not source.has_adapter:
            what = "is a base model" if source.model is None else "was trained in full"
            raise NotFoundError(
                f"{name!r} {what} and has no adapter; add --format merged to export the whole "
                "model",
                param="model",
            )
        _write(source, wanted.form, quantization, out)
        report = _checked(source, wanted, quantization, out)
        (out / REPORT).write_text(json.dumps(report, indent=1) + "\n")
        files = sorted(path.name for path in out.iterdir())
        (out / "README.md").write_text(card(source, wanted.form, report, files))
        if report["result"] == "differs":
            (out / FAILED).write_text(failure_note(report))
        return report
    finally:
        store.close()


def _write(source: Source, form: str, quantization: str | None, out: Path) -> None:
    if form == "peft":
        write_adapter(source, out)
    elif form == "merged":
        write_merged(source, out)
    else:
        assert quantization is not None
        path = gguf_file.write_gguf(source, out, quantization)
        tokenizer = tokenizer_of(source.base_folder)
        ends = end_tokens_of(source.base_folder)
        (out / "Modelfile").write_text(modelfile(path.name, tokenizer, ends, CONTEXT_TOKENS))


def _checked(source: Source, wanted: Wanted, quantization: str | None, out: Path) -> Report:
    """Compare what was written with the platform, in each tool that is installed."""
    report: Report = {
        "model": source.name,
        "format": wanted.form,
        "quantization": quantization,
        "result": "not checked",
        "rows": None,
        "num_rows": 0,
        "tools": [],
        "not_checked": [],
    }
    if wanted.rows < 1:
        report["not_checked"].append("the check was left out (--rows 0)")
        return report
    rows = held_out(source, wanted.rows)
    report |= {"rows": rows.origin, "num_rows": len(rows.rows)}
    reference = platform_answers(source, rows)
    limit = limit_of(reference, quantization)
    for tool in _tools(wanted.form, out, rows, reference, report["not_checked"]):
        found = compare(rows, reference, tool, limit, is_templated=source.thinking is None)
        if wanted.form == "peft":
            found.problems.extend(_layout_problems(out))
        rewards = _rewards(source, rows, reference, found)
        if isinstance(rewards, Rewards) and (drop := rewards.drop):
            found.problems.append(drop)
        reward = rewards if isinstance(rewards, str) else rewards.to_dict()
        report["tools"].append({**found.to_dict(), "reward": reward})
    if report["tools"]:
        wrong = any(each["problems"] for each in report["tools"])
        report["result"] = "differs" if wrong else "same"
    return report


def _tools(
    form: str, out: Path, rows: HeldOut, reference: Reference, not_checked: list[str]
) -> Iterator[Tool]:
    """Load the export with the tool that people use; what is not installed is reported."""
    if form == "peft" and not is_installed("peft"):
        not_checked.append("PEFT is not installed; type: pip install peft")
    elif form != "gguf":
        yield Transformers(out, form)
    else:
        [path] = out.glob("*.gguf")
        if has_llama_cpp():
            longest = max(len(each.prompt) for each in reference.answers)
            yield LlamaCpp(path, longest + rows.max_tokens)
        else:
            yield Transformers(out, form, path.name)
            not_checked.append(
                "llama.cpp is not installed, so tokenizer, chat template and end tokens of the "
                f"file were not compared; type: pip install {PACKAGE}, and export again"
            )


def _layout_problems(out: Path) -> list[str]:
    """What vLLM would refuse about an adapter folder."""
    from safetensors import safe_open

    with safe_open(out / "adapter_model.safetensors", "pt") as file:
        odd = [name for name in file.keys() if not LORA_NAME.fullmatch(name)]  # noqa: SIM118
    return [f"vLLM does not know the weight {name}" for name in odd[:3]]


def _rewards(
    source: Source, rows: HeldOut, reference: Reference, found: Comparison
) -> Rewards | str:
    tokenizer = tokenizer_of(source.base_folder)
    ends = set(end_tokens_of(source.base_folder))
    before = [(each.text, each.ended) for each in reference.answers]
    after = [
        (answer_text(tokenizer, tokens, source.thinking), bool(tokens) and tokens[-1] in ends)
        for tokens in found.tokens
    ]
    return grade_both(rows, before, after)
