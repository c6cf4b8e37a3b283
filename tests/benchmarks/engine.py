"""How fast the engine samples and learns, beside TRL's `GRPOTrainer`, in turn in one run.

    python tests/benchmarks/engine.py --short                     8 × 8 × 32 tokens, prompts of 60
    python tests/benchmarks/engine.py --long                      the same, prompts of 600
    python tests/benchmarks/engine.py --growth --out engine.png   rftkit alone, over sizes
    python tests/benchmarks/engine.py --learning --out learn.png  curves of both, three seeds
    python tests/benchmarks/engine.py --greedy                    first difference from `generate`
    python tests/benchmarks/engine.py --budget                    where the time of rftkit goes
    python tests/benchmarks/engine.py --loops                     rftkit with its loops and without

TRL need not live in rftkit's environment: `--trl PYTHON` names an interpreter that has it (and
torch, transformers, peft of the same versions). Both sides run as processes of their own, so that
peak memory is each one's; both get the same weights, dtype, LoRA shape, prompts, lengths (the end
token is switched off), reward function and threads. The first step is left out; a figure is the
median of the others. TRL runs with every micro-batch of `--micro`, with and without gradient
checkpointing, and counts by its fastest; rftkit runs before and after. Not shown: anything on more
than one device.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from two_sides import child, clock_of

WORDS = ["the", "reward", "of", "an", "answer", "is", "a", "number", "that", "people", "give"]
RANK, ALPHA, RATE = 16, 32.0, 1e-4


def texts(num: int, tokens: int) -> list[str]:
    """Different prompts of about so many tokens; a word of these is one token."""
    return [
        f"{i} " + " ".join(WORDS[(i + j) % len(WORDS)] for j in range(tokens)) for i in range(num)
    ]


def vowels(text: str) -> float:
    """The reward of the speed runs: share of vowels."""
    return sum(letter in "aeiou" for letter in text) / max(1, len(text))


def peak_gb() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# ── rftkit ───────────────────────────────────────────────────────────────────────────────────


def run_rftkit(case: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each step's two halves."""
    from rftkit.server.engine.torch import passes
    from rftkit.server.engine.torch.engine import TorchEngine
    from rftkit.server.engine.values import LoraConfig, SampleRequest, TrainGroup, TrainSettings

    has_kernels = passes.has_kernels
    set_threads(case)
    engine = TorchEngine(Path(case["model"]), name="benchmark")
    engine.start_policy(LoraConfig(RANK, ALPHA), case["seed"])
    if case["fixed_length"]:
        engine.eos_ids = frozenset()
    prompts = [engine.tokenizer(text)["input_ids"] for text in case["prompts"]]
    settings = TrainSettings(case["rate"])
    sampling, update, rewards = [], [], []
    shares: list[dict[str, Any]] = []
    for step in range(case["steps"]):
        # With a budget the last step is counted operator by operator, which slows it down.
        counted = case.get("budget", False) and step == case["steps"] - 1
        if case.get("alternates", False):
            passes.has_kernels = has_kernels if step % 2 else lambda _x: False
        chosen = case["rows"][step] if "rows" in case else range(len(prompts))
        start = time.perf_counter()
        seeds = [[(case["seed"], step, b, g) for g in range(case["G"])] for b in chosen]
        with counting(shares, counted):
            answers = engine.sample(
                [
                    SampleRequest(prompts[b], keys, case["T"])
                    for b, keys in zip(chosen, seeds, strict=True)
                ]
            )
        middle = time.perf_counter()
        groups = []
        for b, group in zip(chosen, answers, strict=True):
            given = [score(case, b, completion.text) for completion in group]
            mean = sum(given) / len(given)
            rewards.append(mean)
            groups.append(
                TrainGroup(
                    prompts[b],
                    [completion.tokens for completion in group],
                    [completion.sampling_logprobs for completion in group],
                    [reward - mean for reward in given],
                )
            )
        with counting(shares, counted):
            engine.train_step(groups, settings)
        if counted:
            break
        sampling.append(middle - start)
        update.append(time.perf_counter() - middle)
    model = engine._decoder
    layers = sum(block.weight.numel() for block in engine.blocks)
    return {
        "sampling": sampling,
        "update": update,
        "rewards": [] if shares else per_step(rewards, case["steps"]),
        "shares": shares,
        "weight_bytes": sum(block.weight.nbytes for block in engine.blocks) + engine.head.nbytes,
        "peak_gb": peak_gb(),
        "settings": {**engine.facts, "layers": layers, "head": engine.head.numel()},
        "prompt_tokens": sum(map(len, prompts)),
        "kind": type(model).__name__,
    }


PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_linear_pointwise", "_mkl_linear")
LOOP = "rftkit"
"""The family of loops that numba compiles: torch's profiler sees none of them by itself."""
ATTENTION = ("flash_attention", "efficient_attention", "attention_math")


@contextlib.contextmanager
def counting(into: list[dict[str, Any]], on: bool) -> Iterator[None]:
    """Append how many operators ran inside, and the seconds of each kind of them."""
    if not on:
        yield
        return
    from torch.profiler import ProfilerActivity, profile, record_function

    from rftkit.server.engine.torch import passes

    run = passes._run

    def run_seen(kernel: str, *arguments: Any) -> None:
        with record_function(f"{LOOP}::{kernel}"):
            run(kernel, *arguments)

    passes._run = run_seen
    try:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            yield
    finally:
        passes._run = run
    found = {"calls": 0, "products": 0.0, "attention": 0.0, "loops": 0.0, "other operators": 0.0}
    for event in profiler.key_averages():
        family, _, name = event.key.rpartition("::")
        name = name.rstrip("_")
        kind = "other operators"
        if family == LOOP:
            kind = "loops"
        elif name in PRODUCTS:
            kind = "products"
        elif any(part in name for part in ATTENTION):
            kind = "attention"
        found[kind] += event.self_cpu_time_total / 1e6
        found["calls"] += event.count
    into.append(found)


def set_threads(case: dict[str, Any]) -> None:
    """Both sides get the same number of threads; None: as many as torch takes by itself."""
    import torch

    if case["threads"] is not None:
        torch.set_num_threads(case["threads"])


# ── TRL ──────────────────────────────────────────────────────────────────────────────────────


def run_trl(case: dict[str, Any]) -> dict[str, Any]:
    """The same, by TRL's GRPOTrainer."""
    import torch
    import trl
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    from datasets import Dataset

    set_threads(case)
    prompts, per_step_rows = case["prompts"], case.get("rows")
    order = per_step_rows or [list(range(len(prompts)))] * case["steps"]
    rows = Dataset.from_list(
        [{"prompt": prompts[b], "row": b, "at": i} for i, step in enumerate(order) for b in step]
    )
    rewards: list[float] = []

    def reward(completions: list[str], row: list[int], **_: Any) -> list[float]:
        given = [score(case, b, text) for b, text in zip(row, completions, strict=True)]
        rewards.extend(given)
        return given

    batch = len(order[0]) * case["G"]
    extra = {"min_new_tokens": case["T"]} if case["fixed_length"] else {}
    config = trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
        per_device_train_batch_size=case["micro"],
        gradient_accumulation_steps=batch // case["micro"],
        gradient_checkpointing=case["checkpointing"],
        num_generations=case["G"],
        max_completion_length=case["T"],
        generation_kwargs=extra,
        max_steps=case["steps"],
        learning_rate=case["rate"],
        lr_scheduler_type="constant",
        adam_beta2=0.99,
        max_grad_norm=1.0,
        beta=0.0,
        epsilon=0.2,
        loss_type="dapo",
        scale_rewards="none",
        temperature=1.0,
        shuffle_dataset=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=case["seed"],
    )
    tokenizer = AutoTokenizer.from_pretrained(case["model"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    dtype = getattr(torch, case["dtype"])
    model = AutoModelForCausalLM.from_pretrained(case["model"], dtype=dtype)
    shape = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    sampling: list[float] = []
    clock = clock_of(TrainerCallback)
    trainer = trl.GRPOTrainer(
        model,
        reward_funcs=reward,
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=shape,
        callbacks=[clock],
    )
    plain = trainer._generate_and_score_completions

    def timed(*args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = plain(*args, **options)
        sampling.append(time.perf_counter() - start)
        return result

    trainer._generate_and_score_completions = timed
    trainer.train()
    return {
        "sampling": sampling,
        "update": [w - s for w, s in zip(clock.seconds, sampling, strict=True)],
        "rewards": per_step(rewards, case["steps"]),
        "peak_gb": peak_gb(),
        "settings": {
            "trl": trl.__version__, "torch": torch.__version__, "threads": torch.get_num_threads(),
            "micro": case["micro"], "checkpointing": case["checkpointing"],
        },
    }  # fmt: skip


# ── both ─────────────────────────────────────────────────────────────────────────────────────


def score(case: dict[str, Any], row: int, text: str) -> float:
    """The reward of an answer: vowels, or the grader of a data set.

    Text that is not JSON is read as people write: the first verdict it names, and all of it as the
    explanation. A model that decodes freely would else have no reward to begin from.
    """
    if "grader" not in case:
        return vowels(text)
    from rftkit.graders import Sample

    if "compiled" not in case:
        from rftkit.graders import compile_grader

        case["compiled"] = compile_grader(case["grader"])
    sample = Sample.from_text(text, response_format=case["response_format"])
    if sample.output_json is None:
        named = re.search(r"\b(yes|no|needs review)\b", text.lower())
        read = {"compliant": named[0] if named else "", "explanation": text.strip()}
        sample = Sample.from_text(json.dumps(read), response_format={"type": "json_object"})
    [grade] = case["compiled"].grade_many([(sample, case["items"][row])])
    return float(grade.reward or 0.0)


def per_step(values: list[float], steps: int) -> list[float]:
    """Mean of each of so many equal parts."""
    size = len(values) // steps
    return [statistics.mean(values[i * size : (i + 1) * size]) for i in range(steps)]


def median(values: list[float]) -> float:
    """Without the first, which warms up."""
    return statistics.median(values[1:])


def seconds(result: dict[str, Any]) -> tuple[float, float, float]:
    """Whole step, sampling, update."""
    whole = [a + b for a, b in zip(result["sampling"], result["update"], strict=True)]
    return median(whole), median(result["sampling"]), median(result["update"])


def ceiling(case: dict[str, Any]) -> tuple[float, float]:
    """Best large matrix product (FLOP/s) in the dtype of the model, and triad (bytes/s), now."""
    import torch

    set_threads(case)
    best = 0.0
    for size in (1024, 2048, 4096):
        a, b = (torch.randn(size, size).to(getattr(torch, case["dtype"])) for _ in range(2))
        best = max(best, 2 * size**3 / fastest(lambda a=a, b=b: a @ b))  # type: ignore[misc]
    x, y, z = (torch.ones(2**25) for _ in range(3))
    return best, 12 * 2**25 / fastest(lambda: torch.add(x, y, alpha=2.0, out=z))


def fastest(work: Any, rounds: int = 5) -> float:
    """Seconds of the fastest of some rounds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def compare(name: str, options: argparse.Namespace, tokens: int, aim: float) -> None:
    """Both sides at one size: rftkit, TRL in each form, rftkit again.

    The speed of a machine that others use too changes within minutes, so rftkit counts by its steps
    on both sides of TRL's.
    """
    case = speed_case(options, tokens, options.batch, options.completions)
    print(
        f"\n{name}: {options.batch} prompts of about {tokens} tokens × {options.completions} "
        f"completions × {case['T']} tokens, median of {case['steps'] - 1}",
        flush=True,
    )
    before = child(__file__, sys.executable, "rftkit", case)
    assert before is not None, "rftkit itself failed"
    show("rftkit", before)
    flops, bandwidth = ceiling(case)
    print_ceiling(case, flops, bandwidth)
    runs = [
        {"micro": micro, "checkpointing": on}
        for micro in options.micro
        for on in (False, True)
        if not (on and options.no_checkpointing)
    ]
    theirs = []
    for run in runs:
        result = child(__file__, options.trl, "trl", case | run)
        if result is not None:
            show(f"TRL {run}", result)
            theirs.append(result)
    if not theirs:
        print("  TRL did not run: name an interpreter that has it with --trl")
        return
    after = child(__file__, sys.executable, "rftkit", case)
    assert after is not None, "rftkit itself failed"
    show("rftkit again", after)
    ours = before | {half: before[half] + after[half][1:] for half in ("sampling", "update")}
    _, sampling, update = seconds(ours)
    forward = forward_flops(case, ours)
    print(f"  share of the ceiling: sampling {forward / sampling / flops:.0%} (aim 50 %), "
          f"update {2 * forward / update / flops:.0%} (aim 60 %)", flush=True)  # fmt: skip
    best = min(theirs, key=lambda result: seconds(result)[0])
    print("  TRL's fastest:", best["settings"])
    labels = ("whole step", "sampling", "update")
    for label, a, b in zip(labels, seconds(best), seconds(ours), strict=True):
        target = f"   aim: >= {aim:g}" if label == "whole step" else ""
        print(f"  {label:<12} TRL / rftkit {a / b:>7.1f}×{target}")
    print(f"  peak memory  TRL / rftkit {best['peak_gb'] / ours['peak_gb']:>7.1f}×", flush=True)


def print_ceiling(case: dict[str, Any], flops: float, bandwidth: float) -> None:
    """What this machine can do at best."""
    threads = "" if case["threads"] is None else f", threads: {case['threads']}"
    print(f"  ceiling: {flops / 1e9:,.0f} GFLOP/s {case['dtype']}, {bandwidth / 1e9:.1f} GB/s triad"
          f"{threads}", flush=True)  # fmt: skip


def forward_flops(case: dict[str, Any], ours: dict[str, Any]) -> float:
    """Of one forward pass over prompts and completions, attention left out."""
    new = len(case["prompts"]) * case["G"] * case["T"]
    layers, head = ours["settings"]["layers"], ours["settings"]["head"]
    return float(2 * (layers * (ours["prompt_tokens"] + new) + head * new))


def budget(name: str, options: argparse.Namespace, tokens: int) -> None:
    """Where rftkit's time goes: the least that the machine would need, and what it did.

    *arithmetic* and *memory* are the least seconds for the products of weights at the speed of one
    large product, and for reading every weight once a pass; they overlap. *Launching* is the number
    of operators times the cost of the smallest one. *Python* is what was spent outside operators.
    """
    case = speed_case(options, tokens, options.batch, options.completions) | {"budget": True}
    ours = child(__file__, sys.executable, "rftkit", case)
    assert ours is not None, "rftkit itself failed"
    flops, bandwidth = ceiling(case)
    print(f"\n{name}, budget of rftkit", flush=True)
    print_ceiling(case, flops, bandwidth)
    launch = smallest_operator()
    forward, weights = forward_flops(case, ours), ours["weight_bytes"]
    _, *halves = seconds(ours)
    for half, whole, work, passes, found in zip(
        ("sampling", "update"), halves, (forward, 2 * forward), (case["T"] + 1, 2),
        ours["shares"], strict=True,
    ):  # fmt: skip
        inside = {label: value for label, value in found.items() if label != "calls"}
        outside = max(0.0, whole - sum(inside.values()))
        print(f"  {half} {whole:.2f} s; at least: arithmetic {work / flops:.2f} s "
              f"({work / 1e12:.2f} TFLOP), memory {weights * passes / bandwidth:.2f} s; launching "
              f"{found['calls'] * launch:.2f} s ({found['calls']:,} operators)")  # fmt: skip
        words = ", ".join(f"{label} {value:.2f}" for label, value in inside.items())
        print(f"    spent in: {words}, outside operators {outside:.2f}", flush=True)


def loops(name: str, options: argparse.Namespace, tokens: int) -> None:
    """Compiled loops beside torch's operators: steps with the ones and the others in turn, so that
    a machine whose speed changes changes both.
    """
    case = speed_case(options, tokens, options.batch, options.completions)
    result = child(
        __file__, sys.executable, "rftkit", case | {"alternates": True, "steps": 2 * options.steps}
    )
    assert result is not None, "rftkit itself failed"
    print(f"\n{name}, compiled loops: {result['settings']['loops']}", flush=True)
    halves = ("sampling", "update")
    plain, fast = ({half: result[half][n::2] for half in halves} for n in (0, 1))
    show("torch's operators", result | plain)
    show("loops", result | fast)
    saved = [1 - b / a for a, b in zip(seconds(plain), seconds(fast), strict=True)]
    print("  saved: step {:.0%}, sampling {:.0%}, update {:.0%}".format(*saved), flush=True)


def smallest_operator() -> float:
    """Seconds of one addition of one number."""
    import torch

    x, num = torch.ones(1), 20_000

    def add() -> None:
        for _ in range(num):
            torch.add(x, x, out=x)

    return fastest(add) / num


def show(name: str, result: dict[str, Any]) -> None:
    """One line of one side: medians, and the fastest and the slowest step."""
    whole, sampling, update = seconds(result)
    steps = [a + b for a, b in zip(result["sampling"], result["update"], strict=True)][1:]
    print(f"  {name:<40} step {whole:7.2f} s ({min(steps):.2f} to {max(steps):.2f}) = sampling "
          f"{sampling:6.2f} + update {update:6.2f}; peak {result['peak_gb']:.1f} GB",
          flush=True)  # fmt: skip


def speed_case(options: argparse.Namespace, tokens: int, batch: int, num: int) -> dict[str, Any]:
    """What both sides are asked to do."""
    return {
        "model": options.model,
        "dtype": options.dtype,
        "threads": options.threads,
        "prompts": texts(batch, tokens),
        "G": num,
        "T": options.tokens,
        "steps": options.steps,
        "seed": 0,
        "rate": RATE,
        "fixed_length": True,
    }


def growth(options: argparse.Namespace) -> None:
    """Step time of rftkit over one size at a time, the others as in `--short`."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    axes: dict[str, tuple[list[int], Any]] = {
        "prompt tokens": ([64, 256, 512, 1024, 2048], lambda n: (n, 8, 8)),
        "completions a prompt": ([2, 4, 8, 16, 32], lambda n: (60, 8, n)),
        "prompts a step": ([2, 4, 8, 16, 32], lambda n: (60, n, 8)),
    }
    figure, plots = plt.subplots(1, 3, figsize=(12, 3.5), sharey=True, layout="constrained")
    for plot, (name, (sizes, shape)) in zip(plots, axes.items(), strict=True):
        curves: dict[str, list[float]] = {"whole step": [], "sampling": [], "update": []}
        for size in sizes:
            result = child(__file__, sys.executable, "rftkit", speed_case(options, *shape(size)))
            times = (float("nan"),) * 3 if result is None else seconds(result)
            for label, value in zip(curves, times, strict=True):
                curves[label].append(value)
            words = ", ".join(f"{label} {values[-1]:.2f} s" for label, values in curves.items())
            print(f"{name} {size:>5}: {words}", flush=True)
        for label, values in curves.items():
            plot.plot(sizes, values, marker="o", label=label)
        plot.set_xlabel(name)
    plots[0].set_ylabel("seconds")
    plots[0].legend(frameon=False)
    figure.savefig(options.out)
    print("written to", options.out)


def learning(options: argparse.Namespace) -> None:
    """Training reward of both sides on `security_review`, free decoding, the same settings."""
    import random

    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from transformers import AutoTokenizer

    folder = Path(__file__).parents[2] / "datasets" / "security_review"
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    messages = [row.pop("messages") for row in rows]
    case = {
        "model": options.model,
        "dtype": options.dtype,
        "threads": options.threads,
        "prompts": [
            tokenizer.apply_chat_template(each, add_generation_prompt=True, tokenize=False)
            for each in messages
        ],
        "items": rows,
        "grader": json.loads((folder / "grader.json").read_text()),
        "response_format": json.loads((folder / "response_format.json").read_text()),
        "G": options.completions,
        "T": 32,
        "steps": options.learning_steps,
        "rate": options.rate,
        "fixed_length": False,
        "micro": options.micro[0],
        "checkpointing": False,
    }
    figure, plot = plt.subplots(figsize=(6, 4), layout="constrained")
    for side, python, colour in (("rftkit", sys.executable, "C0"), ("trl", options.trl, "C1")):
        for seed in range(3):
            chance = random.Random(seed)
            batches = [chance.sample(range(len(rows)), options.batch) for _ in range(case["steps"])]
            result = child(__file__, python, side, case | {"seed": seed, "rows": batches})
            if result is None:
                continue
            curve = result["rewards"]
            print(side, "seed", seed, " ".join(f"{value:.2f}" for value in curve), flush=True)
            label = side if seed == 0 else None
            plot.plot(range(1, len(curve) + 1), curve, colour, alpha=0.7, label=label)
    plot.set_xlabel("step")
    plot.set_ylabel("mean training reward")
    plot.legend(frameon=False)
    figure.savefig(options.out)
    print("written to", options.out)


def greedy(options: argparse.Namespace) -> None:
    """Where greedy text leaves that of transformers' `generate`: in the same dtype, and in float32.

    Such a place is a near tie when the two best logits of the float32 model lie less than 0.1
    apart. In bfloat16 both sides round, each in its own way; float32 says who is nearer.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from rftkit.server.engine.torch.engine import TorchEngine
    from rftkit.server.engine.values import SampleRequest

    folder = Path(__file__).parents[2] / "datasets" / "security_review"
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    engine = TorchEngine(Path(options.model), name="benchmark")

    def load(dtype: torch.dtype) -> Any:
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype)
        return model.to(engine.device)

    same, exact = load(engine.dtype), load(torch.float32)

    def generate(model: Any, prompt: list[int]) -> list[int]:
        text = torch.tensor([prompt], device=engine.device)
        said = model.generate(text, do_sample=False, max_new_tokens=options.tokens)
        tokens: list[int] = said[0, len(prompt) :].tolist()
        return tokens

    def gap(prompt: list[int], tokens: list[int], others: list[int]) -> float | None:
        """Of the two best logits where two texts part."""
        pairs = enumerate(zip(tokens, others, strict=False))
        at = next((t for t, (a, b) in pairs if a != b), None)
        if at is None:
            return None
        with torch.no_grad():
            text = torch.tensor([[*prompt, *tokens[:at]]], device=engine.device)
            best, second = exact(text).logits[0, -1].topk(2).values.tolist()
        return float(best - second)

    gaps: dict[str, list[float]] = {}
    for number, row in enumerate(rows[: options.rows]):
        prompt = engine.encode(row["messages"])
        request = SampleRequest(prompt, [(number,)], options.tokens, temperature=0.0)
        [[completion]] = engine.sample([request], None)
        ours, theirs, truth = completion.tokens, generate(same, prompt), generate(exact, prompt)
        for pair, one, other in (
            ("rftkit and transformers", ours, theirs),
            ("rftkit and float32", ours, truth),
            ("transformers and float32", theirs, truth),
        ):
            found = gap(prompt, one, other)
            gaps.setdefault(pair, []).extend([] if found is None else [found])
    print(f"{str(engine.dtype).removeprefix('torch.')}: {options.rows} greedy texts of up to "
          f"{options.tokens} tokens; gaps of the best two in float32 where they part")  # fmt: skip
    for pair, some in gaps.items():
        near = sum(each < 0.1 for each in some)
        print(f"  {pair}: {len(some)} differ, {near} of them at near ties (below 0.1); "
              f"widest gap {max(some, default=0.0):.3f}")  # fmt: skip


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
    for name in ("short", "long", "growth", "learning", "greedy", "budget", "loops"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--model", help="a Hugging Face folder; default: smollm2-135m-instruct")
    parser.add_argument(
        "--trl", default=sys.executable, help="a Python that has TRL (for --learning rftkit too)"
    )
    parser.add_argument("--micro", type=int, nargs="+", default=[4, 8, 16, 64])
    parser.add_argument(
        "--no-checkpointing", action="store_true", help="of TRL: leave out the runs with it"
    )
    parser.add_argument("--steps", type=int, help="steps, the first left out (6; 4 for --long)")
    parser.add_argument("--threads", type=int, help="of both sides; default: as torch takes")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--completions", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32, help="completion tokens")
    parser.add_argument("--rows", type=int, default=64, help="prompts of --greedy")
    parser.add_argument("--learning-steps", type=int, default=15)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of --learning")
    parser.add_argument("--out", default="engine.png")
    parser.add_argument("--dtype", default=None, help="of TRL's model; default: what rftkit picks")
    options = parser.parse_args()
    least = 3 if options.budget else 2  # with a budget the last step is counted, and not timed
    if options.steps is not None and options.steps < least:
        parser.error(f"--steps must be at least {least}: the first step warms up and is left out")
    if options.model is None:
        from rftkit.server.engine import models
        from rftkit.settings import home

        options.model = str(models.prepare(models.find_base("smollm2-135m-instruct"), home()))
    if options.dtype is None:
        import torch

        from rftkit.server.engine.torch.hardware import best_dtype

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        options.dtype = str(best_dtype(device)).removeprefix("torch.")
    wanted = options.steps
    for name, tokens, steps, aim in (("short", 60, 6, 10.0), ("long", 600, 4, 25.0)):
        if getattr(options, name):
            options.steps = wanted or steps
            compare(name, options, tokens, aim)
    options.steps = wanted or 3
    for name, tokens in (("short", 60), ("long", 600)):
        if options.budget:
            budget(name, options, tokens)
        if options.loops:
            loops(name, options, tokens)
    if options.growth:
        growth(options)
    if options.learning:
        learning(options)
    if options.greedy:
        greedy(options)


if __name__ == "__main__":
    main()
