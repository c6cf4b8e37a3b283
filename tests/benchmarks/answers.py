"""Tokens a second of supervised and dpo training, beside TRL's `SFTTrainer` and `DPOTrainer`.

    python tests/benchmarks/answers.py                     both methods, both kinds of rows
    python tests/benchmarks/answers.py --method supervised --rows 32 --micro 8 32

Two kinds of rows of about the same length: `shared` begin with one long instruction, `apart` have
nothing in common but the marks of the chat template. A token counts once for each row that has it,
prompts included; a dpo row has its prompt twice, once for each answer. Both sides run as processes
of their own on the same weights, dtype, LoRA shape and threads; TRL gets every micro-batch of
`--micro` and counts by its fastest. The first step is left out; a figure is of the median step, by
the clock and, for machines that other programs use too, by processor time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from two_sides import child, clock_of

RANK, ALPHA, RATE = 16, 32.0, 1e-4
WORDS = ["the", "policy", "of", "an", "account", "is", "a", "number", "that", "people", "give"]
KINDS = ("shared", "apart")

Row = tuple[str, str, str]
"""Prompt, answer, another answer."""


def words(seed: int, num: int) -> str:
    """So many words, in another order for each seed."""
    return " ".join(WORDS[(seed * 7 + j * (seed % 5 + 1)) % len(WORDS)] for j in range(num))


def rows_of(kind: str, num: int, shared: int, own: int, answer: int) -> list[Row]:
    """Rows of about the same length, with a long beginning in common or with none."""
    return [
        (
            f"{words(1, shared) if kind == 'shared' else f'{i} {words(i + 2, shared)}'} "
            f"question {i}: {words(i, own)}",
            f"{i} {words(i + 3, answer)}",
            f"not {i} {words(i + 4, answer)}",
        )
        for i in range(num)
    ]


def messages(prompt: str, answer: str) -> list[dict[str, str]]:
    """A row as a conversation."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


# ── rftkit ───────────────────────────────────────────────────────────────────────────────────


def run_rftkit(case: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each step; the reference log-probs of dpo are computed in the first."""
    from rftkit.server.engine.torch.engine import TorchEngine
    from rftkit.server.engine.values import LoraConfig, Pair, TrainSettings

    engine = TorchEngine(Path(case["model"]), name="benchmark")
    engine.start_policy(LoraConfig(RANK, ALPHA), 0)
    encoded = [
        [engine.conversation(messages(prompt, text), [1])[0] for text in answers]
        for prompt, *answers in case["rows"]
    ]
    settings, seconds, worked = TrainSettings(RATE), [], []
    pairs: list[Pair] = []
    for _ in range(case["steps"]):
        start, busy = time.perf_counter(), time.process_time()
        if case["method"] == "supervised":
            engine.imitate([texts[0] for texts in encoded], settings)
        else:
            if not pairs:
                pairs = [Pair(*texts) for texts in encoded]
                sums = engine.answer_logprobs(pairs, None)
                pairs = [Pair(*texts, each) for texts, each in zip(encoded, sums, strict=True)]
            engine.prefer(pairs, 0.1, settings)
        seconds.append(time.perf_counter() - start)
        worked.append(time.process_time() - busy)
    sides = 1 if case["method"] == "supervised" else 2
    tokens = sum(len(text.tokens) for texts in encoded for text in texts[:sides])
    return {
        "seconds": seconds, "worked": worked, "tokens": tokens, "settings": dict(engine.facts),
    }  # fmt: skip


# ── TRL ──────────────────────────────────────────────────────────────────────────────────────


def run_trl(case: dict[str, Any]) -> dict[str, Any]:
    """The same, by TRL; the references of dpo are computed before the first step."""
    import torch
    import trl
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    from datasets import Dataset

    tokenizer = AutoTokenizer.from_pretrained(case["model"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    is_dpo = case["method"] == "dpo"
    options: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": not torch.cuda.is_available(),
        "bf16": torch.cuda.is_available(),
        "per_device_train_batch_size": case["micro"],
        "gradient_accumulation_steps": len(case["rows"]) // case["micro"],
        "gradient_checkpointing": False,
        "max_length": None,
        "max_steps": case["steps"],
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    if is_dpo:
        options |= {"beta": 0.1, "precompute_ref_log_probs": True}
        config: Any = trl.DPOConfig(**options)
        given = [
            {
                "prompt": messages(prompt, "")[:1],
                "chosen": messages("", answer)[1:],
                "rejected": messages("", other)[1:],
            }
            for prompt, answer, other in case["rows"]
        ]
    else:
        config = trl.SFTConfig(**options, packing=False)
        given = [
            {"prompt": messages(prompt, "")[:1], "completion": messages("", answer)[1:]}
            for prompt, answer, _ in case["rows"]
        ]
    clock = clock_of(TrainerCallback)
    trainer = (trl.DPOTrainer if is_dpo else trl.SFTTrainer)(
        AutoModelForCausalLM.from_pretrained(case["model"], dtype=getattr(torch, case["dtype"])),
        args=config,
        train_dataset=Dataset.from_list(given),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[clock],
    )
    trainer.train()
    settings = {"trl": trl.__version__, "micro": case["micro"], "threads": torch.get_num_threads()}
    return {"seconds": clock.seconds, "worked": clock.worked, "settings": settings}


# ── both ─────────────────────────────────────────────────────────────────────────────────────


def compare(method: str, kind: str, options: argparse.Namespace) -> None:
    """Both sides on one kind of rows."""
    rows = rows_of(kind, options.rows, options.shared, options.own, options.answer)
    case = {
        "model": options.model, "dtype": options.dtype, "method": method, "rows": rows,
        "steps": options.steps,
    }  # fmt: skip
    ours = child(__file__, sys.executable, "rftkit", case)
    assert ours is not None, "rftkit itself failed"
    tokens = ours["tokens"]
    print(f"\n{method}, rows {kind}: {len(rows)} rows, {tokens:,} tokens a step", flush=True)
    best = show("rftkit", ours, tokens)
    theirs = [
        show(f"TRL, micro-batch {micro}", found, tokens)
        for micro in options.micro
        if (found := child(__file__, options.trl, "trl", case | {"micro": micro})) is not None
    ]
    if theirs:
        must = 5.0 if kind == "shared" else 1.0
        clock, worked = (best[i] / max(each[i] for each in theirs) for i in (0, 1))
        print(f"  rftkit / TRL's fastest: {clock:.1f}× by the clock, {worked:.1f}× by processor "
              f"time   must: >= {must:g}", flush=True)  # fmt: skip
    else:
        print("  TRL did not run: name an interpreter that has it with --trl")


def show(name: str, result: dict[str, Any], tokens: int) -> tuple[float, float]:
    """One line of one side; its tokens by second, and by second of a processor."""
    step, busy = (statistics.median(result[key][1:]) for key in ("seconds", "worked"))
    print(f"  {name:<24} step {step:7.2f} s, {tokens / step:9,.0f} tokens/s; "
          f"{busy:7.2f} processor s, {tokens / busy:9,.0f} tokens/s", flush=True)  # fmt: skip
    return tokens / step, tokens / busy


def main() -> None:
    """Read the options and run what was asked for."""
    if sys.argv[1:2] == ["--child"]:
        side, task, result = sys.argv[2:]
        answer = {"rftkit": run_rftkit, "trl": run_trl}[side](json.loads(Path(task).read_text()))
        Path(result).write_text(json.dumps(answer))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--method", choices=("supervised", "dpo"), nargs="+")
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--model", help="a Hugging Face folder; default: smollm2-135m-instruct")
    parser.add_argument("--trl", default=sys.executable, help="a Python that has TRL")
    parser.add_argument("--rows", type=int, default=32, help="of a step")
    parser.add_argument("--shared", type=int, default=100, help="words of the instruction")
    parser.add_argument("--own", type=int, default=8, help="words of the question")
    parser.add_argument("--answer", type=int, default=8, help="words of an answer")
    parser.add_argument("--micro", type=int, nargs="+", default=[4, 8, 32])
    parser.add_argument("--steps", type=int, default=4, help="the first is left out")
    parser.add_argument("--dtype", default=None, help="of TRL's model; default: what rftkit picks")
    options = parser.parse_args()
    if options.model is None:
        from rftkit.server.engine import models
        from rftkit.settings import home

        options.model = str(models.prepare(models.find_base("smollm2-135m-instruct"), home()))
    if options.dtype is None:
        import torch

        from rftkit.server.engine.torch.hardware import best_dtype

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        options.dtype = str(best_dtype(device)).removeprefix("torch.")
    for method in options.method or ("supervised", "dpo"):
        for kind in options.kind:
            compare(method, kind, options)


if __name__ == "__main__":
    main()
