"""Do comparisons keep their word, and are they quick? `python tests/benchmarks/evals.py [N]`.

Prints how often intervals hold the truth (N simulations, default 1,000; coverage four times as
many), how often a comparison of 20 equal steps calls one better, how often it calls any of ten
better steps better, and how far the best of 21 equal runs flatters itself; the same while grades
are missing; and how often intervals of kappa hold the truth. Then processor seconds from kept
runs to a comparison, and items a second of a fetch from a server in another process.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from eval_study import KINDS, PATTERNS, REPEATS, ROWS, coverage, labelled, look, missing

RUNS, NUM_ROWS, NUM_SAMPLES = 20, 1000, 5


def study(simulations: int) -> None:
    cells = [(kind, rows, times) for rows in ROWS for times in REPEATS for kind in KINDS]
    print(f"\nintervals that hold the truth, % of {4 * simulations:,} (95 are promised)")
    print(f"{'rewards':<8} {'rows':>5} {'repeats':>8} {'run':>7} {'difference':>11}")
    for kind, rows, times in cells:
        found = coverage(kind, rows, times, 4 * simulations)
        bound = 0.03 if rows < 200 else 0.02
        miss = max(abs(found.run - 0.95), abs(found.difference - 0.95)) > bound
        print(f"{kind:<8} {rows:>5} {times:>8} {found.run:>7.1%} {found.difference:>11.1%}"
              f"{'   outside' if miss else ''}", flush=True)  # fmt: skip
    print("\ngrades that are missing, 60 rows: false 'better', and a better step seen")
    for pattern in PATTERNS:
        for kind in KINDS:
            gone = missing(kind, pattern, simulations // 5, max(1, simulations // 25))
            print(
                f"{pattern:<12} {kind:<8} {gone.false_alarms:>5.1%} {gone.power:>5.0%}", flush=True
            )
    print("\n95 % intervals of kappa that hold the truth, by labels, accepted and agreeing shares")
    for num in (20, 50):
        for accepted in (0.5, 0.7, 0.9):
            held = [
                labelled(num, accepted, each, simulations // 2) for each in (0.8, 0.9, 0.95, 0.99)
            ]
            print(
                f"{num:>3} {accepted:.1f}   {'  '.join(f'{each:.1%}' for each in held)}", flush=True
            )
    print(
        f"\n20 looks, {simulations:,} simulations: false 'better' (at most 6.6 %), power at gains,"
    )
    print("and what the best of 21 equal runs seems to gain, before and after correction")
    for kind, rows, times in cells:
        seen = look(kind, rows, times, simulations)
        power = "  ".join(f"+{gain:.3f}: {share:>4.0%}" for gain, share in seen.power.items())
        print(f"{kind:<8} {rows:>5} {times:>8}   {seen.false_alarms:>5.1%}   {power}   "
              f"{seen.flattery:+.4f} {seen.flattery_left:+.4f}", flush=True)  # fmt: skip


def item(run: int, row: int, sample: int, rng: Any) -> dict[str, Any]:
    text = "The policy says that " + "staff must keep to it " * 12
    score = round(float(rng.random()), 3)
    uuid = "-0b1c2d3e-0000-4000-8000-000000000000"
    messages = [{"role": "user", "content": f"Section {row}. {text} Is that so?"}]
    return {
        "id": f"outputitem_{run}_{row}_{sample}", "object": "eval.run.output_item",
        "datasource_item_id": row, "status": "pass" if score > 0.5 else "fail",
        "datasource_item": {"messages": messages, "topic": f"t{row % 9}", "answer": text},
        "results": [{"name": f"exact{uuid}", "score": float(score > 0.5), "passed": score > 0.5},
                    {"name": f"reward{uuid}", "type": "multi", "score": score, "passed": True}],
        "sample": {"input": [], "output": [{"role": "assistant", "content": text + str(score)}],
                   "finish_reason": "stop", "usage": {"completion_tokens": 60}, "error": None},
    }  # fmt: skip


def speed() -> None:
    from rftkit.evals import saved_runs
    from rftkit.evals.items import read_items
    from rftkit.evals.samples import Run

    rng = np.random.default_rng(0)
    start = time.process_time()
    for step in range(RUNS):
        run = Run(f"Step {step}", f"evalrun_{step}", step, "m", source="http://s/v1")
        items = (item(step, row, at, rng) for row in range(NUM_ROWS) for at in range(NUM_SAMPLES))
        saved_runs.save(read_items(run, items))
    print(f"\nwriting {RUNS} runs of {NUM_ROWS:,} rows x {NUM_SAMPLES}: "
          f"{time.process_time() - start:.1f} s of processor time")  # fmt: skip
    program = (
        "import time; from rftkit import evals\n"
        f"found = evals.compare(evals.kept(*(f'evalrun_{{n}}' for n in range({RUNS}))))\n"
        "print(time.process_time(), found.choice.sentence)"
    )
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                              check=True)  # fmt: skip
        seconds, _, sentence = done.stdout.strip().partition(" ")
        print(f"a new process, imports, reading, comparing: {float(seconds):.2f} s   must: < 3")
    print(sentence)


def serve(port: Any, count: int) -> None:
    rng = np.random.default_rng(0)
    pages = [
        json.dumps({
            "object": "list", "has_more": start + 100 < count,
            "data": [item(0, row // NUM_SAMPLES, row, rng) for row in range(start, start + 100)],
        }).encode()
        for start in range(0, count, 100)
    ]  # fmt: skip
    place = {json.loads(page)["data"][-1]["id"]: at + 1 for at, page in enumerate(pages)}
    run = {"id": "evalrun_x", "eval_id": "eval_x", "name": "x", "status": "completed",
           "created_at": 0, "result_counts": {"total": count}}  # fmt: skip

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            after = dict(part.split("=") for part in query.split("&")).get("after")
            body = json.dumps({"data": [run], "has_more": False}).encode()
            if path.endswith("output_items"):
                body = pages[place[after] if after else 0]
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    port.value = server.server_address[1]
    server.serve_forever()


def fetching() -> None:
    import openai

    from rftkit import evals

    count, port = 10_000, multiprocessing.Value("i", 0)
    server = multiprocessing.Process(target=serve, args=(port, count), daemon=True)
    server.start()
    while not port.value:
        time.sleep(0.05)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port.value}/v1", api_key="k")
    wall, processor = time.perf_counter(), time.process_time()
    evals.fetch(client, "eval_x", progress=True)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    server.terminate()
    server.join()
    print(f"fetching {count:,} items: {count / wall:,.0f} a second by the clock, "
          f"{count / processor:,.0f} a second of processor time   must: 5,000")  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RFTKIT_HOME"] = folder
        speed()
        fetching()
    study(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
