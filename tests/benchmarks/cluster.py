"""Is a Tinker server as good a place to learn, and what does the client of it cost?

    python tests/benchmarks/cluster.py same [--png FILE]     one small job, here and on a real SkyRL
    python tests/benchmarks/cluster.py overhead              seconds of a step with nothing computed
    python tests/benchmarks/cluster.py large [--prompts 250 --steps 3]

`same`: tiny_copy with rftkit-tiny, 4 prompts × 4 completions × 24 tokens, 15 steps, three seeds, on
either engine; validation is sampled, since the likeliest answers are right from the start.
`overhead`: 64 prompts × 4 completions against a server that answers at once; the same calls by the
bare official client stand beside. `large`: a whole job of 250 prompts × 64 completions a step (a
job takes at most 256 prompts), against a server that takes its time and a judge whose latency has a
long tail and which fails one call in a hundred. SkyRL is installed when it is first needed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
from skyrl_server import in_float32, serving

import rftkit
import rftkit.client
from rftkit.server.engine import models
from rftkit.server.engine.tinker import remote
from rftkit.server.engine.tinker.remote import Remote
from rftkit.server.engine.values import LoraConfig, SampleRequest, TrainGroup, TrainSettings

TESTS = Path(__file__).parents[1]
DATASETS = TESTS.parent / "datasets"
PRETENDED = "tiny-on-a-cluster"
JUDGE_SECONDS, JUDGE_SPREAD, JUDGE_MOST, JUDGE_FAILS = 0.4, 1.0, 30.0, 0.01


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def process(port: int, *command: str) -> Iterator[str]:
    """A server of ours in a process of its own; its address."""
    server = subprocess.Popen([sys.executable, *command, "--port", str(port)])
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def pretended(folder: Path, delay: float, workers: int, tokens: int) -> Any:
    """A Tinker server that computes nothing."""
    return process(
        free_port(), str(TESTS / "tinker_server.py"), "--state", str(folder), "--delay", str(delay),
        "--workers", str(workers), "--tokens", str(tokens),
    )  # fmt: skip


@contextlib.contextmanager
def platform(home: Path, there: Remote) -> Iterator[Any]:
    """A client of a platform whose Tinker model is `there`."""
    os.environ["RFTKIT_HOME"] = str(home)
    remote.keep_remote(home, there)
    try:
        with rftkit.connect() as client:
            yield client
    finally:
        rftkit.client.stop_server(home)


# ── same ─────────────────────────────────────────────────────────────────────────────────────


def same(png: Path, seeds: int, rate: float) -> None:
    folder = Path(tempfile.mkdtemp())
    home = folder / "home"
    made = models.prepare(models.BUNDLED["rftkit-tiny"], home)
    model = in_float32(made, folder / "rftkit-tiny")
    curves: dict[str, list[Any]] = {"torch": [], "tinker": []}
    with (
        serving(model, folder / "skyrl", free_port()) as address,
        platform(home, Remote(address, str(model), str(model))) as client,
    ):
        for seed in range(1, seeds + 1):
            for engine in curves:
                frame = small_job(client, engine, seed, rate)
                curve = frame["valid_reward_mean"].dropna()
                curves[engine].append(curve)
                line, seconds = " ".join(f"{each:.3f}" for each in curve), frame["step_seconds"]
                print(f"{engine:<7} seed {seed}: {line}  {seconds[1:].median():.2f} s a step")
    means = {}
    for engine, found in curves.items():
        first, last = (statistics.mean(each.iloc[i] for each in found) for i in (0, -1))
        means[engine] = last
        print(f"{engine:<7} mean of {seeds}: {first:.3f} → {last:.3f}, rise {last - first:+.3f}")
    print(f"difference of the final means: {abs(means['torch'] - means['tinker']):.3f}")
    draw(curves, png)


def small_job(client: Any, engine: str, seed: int, rate: float) -> Any:
    files = [
        client.files.create(
            file=(DATASETS / "tiny_copy" / f"{name}.jsonl").open("rb"), purpose="fine-tune"
        ).id
        for name in ("train", "valid")
    ]
    reinforcement = {
        "grader": json.loads((DATASETS / "tiny_copy" / "grader.json").read_text()),
        "hyperparameters": {
            "batch_size": 4, "compute_multiplier": 0.5, "n_epochs": 1, "eval_interval": 5,
            "eval_samples": 4,
            "learning_rate_multiplier": rate,
        },
    }  # fmt: skip
    job = client.fine_tuning.jobs.create(
        model="rftkit-tiny", training_file=first_rows(client, files[0], 60),
        validation_file=first_rows(client, files[1], 32), seed=seed,
        metadata={"engine": engine, "max_completion_tokens": "24"},
        method={"type": "reinforcement", "reinforcement": reinforcement},
    )  # fmt: skip
    job = rftkit.jobs.wait(client, job.id)
    assert job.status == "succeeded", job.error
    return rftkit.jobs.step_frame(rftkit.jobs.events(client, job.id))


def first_rows(client: Any, file: str, count: int) -> str:
    """A file of the first rows of another."""
    lines = client.files.content(file).content.splitlines(keepends=True)[:count]
    return str(client.files.create(file=("rows.jsonl", b"".join(lines)), purpose="fine-tune").id)


def draw(curves: dict[str, list[Any]], png: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for (engine, found), colour in zip(curves.items(), ("tab:blue", "tab:orange"), strict=True):
        for curve in found:
            axes.plot(curve.index, curve, color=colour, alpha=0.35, linewidth=1)
        mean = sum(found[1:], found[0]) / len(found)
        name = {"torch": "embedded", "tinker": "SkyRL, by the Tinker protocol"}[engine]
        axes.plot(mean.index, mean, color=colour, linewidth=2.5, label=f"{name} (mean)")
    axes.set(xlabel="step", ylabel="validation reward (32 rows, 4 samples)", ylim=(0, 1),
             title="tiny_copy, rftkit-tiny, 4 × 4 × 24, three seeds")  # fmt: skip
    axes.legend(loc="upper left")
    figure.savefig(png, dpi=120)
    print(f"drawn: {png}")


# ── overhead ─────────────────────────────────────────────────────────────────────────────────


def overhead(steps: int, tokens: int) -> None:
    """Seconds of a step, by our engine and by the bare client, in turn."""
    from rftkit.server.engine.tinker.engine import TinkerEngine

    folder = Path(tempfile.mkdtemp())
    tokenizer = models.prepare(models.BUNDLED["rftkit-tiny"], folder)
    with pretended(folder / "state", 0.0, 64, tokens) as address:
        engine = TinkerEngine(Remote(address, PRETENDED, str(tokenizer)), name=PRETENDED)
        engine.start_policy(LoraConfig(), seed=1)
        messages = [[{"role": "user", "content": f"question {i} " * 20}] for i in range(64)]
        took: dict[str, list[tuple[float, float]]] = {"ours": [], "bare": []}
        for step in range(steps + 1):
            for name, work in (("ours", our_step), ("bare", bare_step)):
                wall, own = time.perf_counter(), time.process_time()
                work(engine, messages, step)
                if step:  # the first one opens connections
                    took[name].append((time.perf_counter() - wall, time.process_time() - own))
        engine.close()
    for name, found in took.items():
        wall, own = (statistics.median(each) for each in zip(*found, strict=True))
        print(
            f"{name:<5} median of {steps} steps: {wall:.3f} s by the clock, {own:.3f} processor s"
        )
    (ours_wall, ours), (bare_wall, bare) = (
        [statistics.median(each) for each in zip(*took[name], strict=True)] for name in took
    )
    print(
        f"ours over the bare client: {ours_wall / bare_wall - 1:+.1%} by the clock, "
        f"{ours / bare - 1:+.1%} of processor"
    )


def our_step(engine: Any, messages: list[Any], step: int) -> None:
    requests = [
        SampleRequest(engine.encode(each), [(step, i, k) for k in range(4)], 64)
        for i, each in enumerate(messages)
    ]
    answers = engine.sample(requests)
    groups = [
        TrainGroup(request.prompt_ids, [each.tokens for each in said],
                   [each.sampling_logprobs for each in said], [1.0, 1.0, -1.0, -1.0])
        for request, said in zip(requests, answers, strict=True)
    ]  # fmt: skip
    engine.train_step(groups, TrainSettings(1e-3))


def bare_step(engine: Any, messages: list[Any], step: int) -> None:
    """The same calls, as the client's documentation has them."""
    import tinker

    training = engine._current().training
    sampler = training.save_weights_and_get_sampling_client()
    prompts = [engine.encode(each) for each in messages]
    params = tinker.SamplingParams(max_tokens=64, seed=step)
    futures = [sampler.sample(tinker.ModelInput.from_ints(prompt), 4, params) for prompt in prompts]
    data = [
        tinker.Datum(
            model_input=tinker.ModelInput.from_ints([*prompt, *said.tokens[:-1]]),
            loss_fn_inputs={
                "target_tokens": [*prompt[1:], *said.tokens],
                "logprobs": [0.0] * (len(prompt) - 1) + said.logprobs,
                "advantages": [0.0] * (len(prompt) - 1) + [1.0] * len(said.tokens),
            },
        )
        for prompt, future in zip(prompts, futures, strict=True)
        for said in future.result().sequences
    ]
    gradient = training.forward_backward(data, "ppo")
    update = training.optim_step(tinker.AdamParams(learning_rate=1e-3))
    gradient.result(), update.result()


# ── large ────────────────────────────────────────────────────────────────────────────────────


def judge(port: int) -> None:
    """Serve an OpenAI-shaped judge: slow, with a long tail, failing now and then."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    chance = random.Random(1)

    async def answer(request: Request) -> JSONResponse:
        asked = await request.body()
        seconds = JUDGE_SECONDS * chance.lognormvariate(0, JUDGE_SPREAD)
        await asyncio.sleep(min(JUDGE_MOST, seconds))
        if chance.random() < JUDGE_FAILS:
            return JSONResponse({"error": {"message": "overloaded"}}, 503)
        said = json.dumps({"steps": [], "result": round(chance.random(), 2)})
        message = {"role": "assistant", "content": said}
        return JSONResponse({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "judge",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": len(asked), "completion_tokens": 9, "total_tokens": 9},
        })  # fmt: skip

    app = Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])
    uvicorn.run(app, port=port, log_level="error")


def large(prompts: int, steps: int, delay: float, staleness: int) -> None:
    folder = Path(tempfile.mkdtemp())
    tokenizer = models.prepare(models.BUNDLED["rftkit-tiny"], folder)
    there = pretended(folder / "state", delay, 64, 64)
    with there as address, process(free_port(), __file__, "judge") as judging:
        os.environ["RFTKIT_JUDGE_BASE_URL"] = f"{judging}/v1"
        os.environ["RFTKIT_JUDGE_CONCURRENCY"] = "256"
        home = folder / "home"
        with platform(home, Remote(address, PRETENDED, str(tokenizer))) as client:
            watch(client, home, address, large_job(client, prompts, steps, staleness), steps)


def large_job(client: Any, prompts: int, steps: int, staleness: int) -> str:
    def upload(count: int) -> str:
        rows = ({"messages": [{"role": "user", "content": f"question {i} " * 20}]}
                for i in range(count))  # fmt: skip
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        return str(client.files.create(file=("rows.jsonl", content), purpose="fine-tune").id)

    grader = {
        "type": "score_model", "name": "judge", "model": "judge", "range": [0, 1],
        "input": [{"role": "user", "content": "How good is this? {{sample.output_text}}"}],
    }  # fmt: skip
    knobs = {"batch_size": prompts, "n_epochs": steps, "compute_multiplier": 8,
             "eval_interval": steps}  # fmt: skip
    job = client.fine_tuning.jobs.create(
        model=PRETENDED, training_file=upload(prompts), validation_file=upload(16), seed=1,
        metadata={"max_completion_tokens": "64", "max_staleness": str(staleness)},
        method={"type": "reinforcement",
                "reinforcement": {"grader": grader, "hyperparameters": knobs}},
    )  # fmt: skip
    return str(job.id)


def watch(client: Any, home: Path, address: str, job: str, steps: int) -> None:
    """Print each step: how long, how busy the server, how large the worker."""
    marks: list[tuple[float, dict[str, float]]] = []
    memory, status = 0, "queued"
    while status not in ("succeeded", "failed", "cancelled", "paused"):
        status = client.fine_tuning.jobs.retrieve(job).status
        worker = worker_of(home)
        memory = max(memory, worker.memory_info().rss)
        frame = rftkit.jobs.step_frame(rftkit.jobs.events(client, job))
        if len(frame) > len(marks):
            marks.append((time.monotonic(), stats(address)))
            own = worker.cpu_times()
            print(
                f"step {len(marks) - 1}: {busy(marks[-2:])}, worker at most "
                f"{memory / 1e6:.0f} MB, {own.user + own.system:.0f} processor s",
                flush=True,
            )
        time.sleep(0.5)
    # While the last step is graded there is no next one to sample.
    print(f"{status}; steps 1 to {steps - 1}: {busy(marks[:-1])}")
    data = [event["data"] for event in rftkit.jobs.events(client, job) if event.get("data")]
    print("staleness:", [each["staleness"] for each in data if "staleness" in each])
    columns = ["sampling_seconds", "training_seconds", "step_seconds", "failed_grades"]
    print(frame[columns].to_string())


def busy(marks: list[tuple[float, dict[str, float]]]) -> str:
    """How much of the time between the first and the last mark the server computed."""
    (began, before), (ended, after) = marks[0], marks[-1]
    seconds = max(ended - began, 1e-9)
    share, slots = ((after[name] - before[name]) / seconds for name in ("busy", "slots"))
    return f"{seconds:.0f} s, server busy {share:.1%}, its slots {slots / 64:.1%}"


def stats(address: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{address}/stats") as answer:
        found: dict[str, float] = json.load(answer)
    return found


def worker_of(home: Path) -> psutil.Process:
    server = psutil.Process(json.loads((home / "server.json").read_text())["pid"])
    return next(each for each in server.children() if "rftkit.server.worker" in each.cmdline())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["same", "overhead", "large", "judge"])
    parser.add_argument("--png", type=Path, default=Path("cluster.png"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=3.0, help="times the usual learning rate")
    parser.add_argument("--prompts", type=int, default=250)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument(
        "--delay", type=float, default=20.0, help="seconds of a prompt's completions"
    )
    parser.add_argument("--staleness", type=int, default=1)
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    if options.what == "same":
        same(options.png, options.seeds, options.rate)
    elif options.what == "overhead":
        overhead(10, 24)
    elif options.what == "large":
        large(options.prompts, options.steps, options.delay, options.staleness)
    else:
        judge(options.port)


if __name__ == "__main__":
    main()
