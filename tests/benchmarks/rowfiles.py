"""How fast datasets open, page, search, read, check and compare, on one made-up file.

    python tests/benchmarks/rowfiles.py --rows 1000000     # about 1 GB; 100000 by default

Each line states wall and processor seconds (workers included) and the peak memory of this process
and of its largest worker. Reading is compared with `pandas.read_json(lines=True)` and, if it is
installed, Hugging Face `datasets`, over the same first `--compared` rows, as a ratio in one run.
One row in a hundred repeats an earlier one with two words changed, so that recall of
near-duplicates can be counted. The file lies in a temporary folder and is deleted, unless
`--folder` names one to keep it in, so that the `--steps` can be run one at a time.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import resource
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from rftkit import datasets
from rftkit.datasets import parallel, rowfile, scan, shingles

WORDS = 85
PLANTED = 100  # every so many rows, one that nearly repeats an earlier one
CHANGED = 2  # words of 85: about 0.87 of the three-word runs are left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--compared", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="keep the made file here, for the next run")
    parser.add_argument("--steps", nargs="*", choices=STEPS, help="default: all")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RFTKIT_HOME"] = f"{folder}/home"
        path, planted = made(options.folder or Path(folder), options.rows)
        print(f"{options.rows:,} rows, {path.stat().st_size / 1e6:,.0f} MB", flush=True)
        for name in options.steps or STEPS:
            STEPS[name](path, planted, options.compared)


def made(folder: Path, num_rows: int) -> tuple[Path, dict[int, int]]:
    """The file and its planted rows, made unless they are there."""
    path, planted_path = folder / f"rows-{num_rows}.jsonl", folder / f"planted-{num_rows}.json"
    if not planted_path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        planted = make(path, num_rows)
        planted_path.write_text(json.dumps(list(planted.items())))
    return path, dict(json.loads(planted_path.read_text()))


def make(path: Path, num_rows: int) -> dict[int, int]:
    """Write the file; the planted rows, each with the earlier row it is like."""
    rng = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 11))) for _ in range(20_000)]
    planted: dict[int, int] = {}
    recent: deque[tuple[int, list[str]]] = deque(maxlen=50)
    with path.open("w") as file:
        for number in range(num_rows):
            text = rng.choices(words, k=WORDS)
            if number % PLANTED == PLANTED - 1:
                planted[number], like = rng.choice(recent)
                text = list(like)
                for spot in rng.sample(range(WORDS), CHANGED):
                    text[spot] = rng.choice(words)
            else:
                recent.append((number, text))
            file.write(line(number, text, rng, words))
    return planted


def line(number: int, text: list[str], rng: random.Random, words: list[str]) -> str:
    """One row of about a kilobyte."""
    system = "You are an expert in security reviews. Answer in JSON."
    row = {
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": f"Policy: {' '.join(text)}\nIs it compliant?"},
        ],
        "compliant": rng.choice(["yes", "no", "needs review"]),
        "explanation": " ".join(rng.choices(words, k=12)),
        "topic": f"topic {number % 997}",
        "id": number,
    }
    return json.dumps(row) + "\n"


def opening(path: Path, _: Any, __: int) -> None:
    start = time.perf_counter()
    rows = datasets.open(path)
    rows.page(0, 20)
    print(f"first page visible after {time.perf_counter() - start:.3f} s")
    with timed("the whole index"):
        rows.wait()
    rng = random.Random(2)
    waits = []
    for _ in range(200):
        start = time.perf_counter()
        rows.page(rng.randrange(len(rows)), 20)
        waits.append(time.perf_counter() - start)
    print(f"any page of 20: median {sorted(waits)[100]:.4f} s, slowest of 200 {max(waits):.4f} s")
    start = time.perf_counter()
    datasets.open(path).page(len(rows) - 20, 20)
    print(f"last page after opening again: {time.perf_counter() - start:.3f} s")
    with timed("search for a text that is nowhere"):
        assert rows.search("qqqqqqqqqq") == []


def reading(path: Path, _: Any, compared: int) -> None:
    head = Path(os.environ["RFTKIT_HOME"]).with_name("head.jsonl")
    with path.open("rb") as lines, head.open("wb") as some:
        some.writelines(islice(lines, compared))
    with timed(f"reading {compared:,} rows into row form") as ours, datasets.open(head) as rows:
        assert sum(each.row is not None for each in rows) == len(rows)
    with timed("the same, all kept") as kept:
        datasets.read(head)

    import pandas as pd

    with timed("pandas.read_json(lines=True)") as pandas:
        pd.read_json(head, lines=True)
    said("pandas", pandas, ours, kept)
    if importlib.util.find_spec("datasets") is not None:
        against_hugging_face(head, ours, kept)


def against_hugging_face(head: Path, ours: list[float], kept: list[float]) -> None:
    import datasets as hugging_face

    cache = str(head.with_name("hugging_face"))
    with timed("datasets.load_dataset, and every row of it") as whole:
        with timed("datasets.load_dataset, into an Arrow file") as loaded:
            rows = hugging_face.load_dataset("json", data_files=str(head), cache_dir=cache)["train"]
        assert sum(bool(row["messages"]) for row in rows) == len(rows)
    said("Arrow file alone", loaded, ours, kept)
    said("Hugging Face", whole, ours, kept)


def said(name: str, theirs: list[float], ours: list[float], kept: list[float]) -> None:
    for what, at in (("wall", 0), ("processor", 1)):
        print(
            f"  {name} / ours, {what} s: {theirs[at] / ours[at]:.1f} one by one, "
            f"{theirs[at] / kept[at]:.1f} kept"
        )


def checking(path: Path, _: Any, __: int) -> None:
    with timed("check without near-duplicates"):
        found = datasets.check(path, near_duplicates=False)
    print(f"  {len(found.findings)} findings")


def comparing(path: Path, planted: dict[int, int], _: int) -> None:
    with timed("near-duplicates"):
        counts = scan.Tally()
        with rowfile.open(path) as rows:
            tasks = (scan.ScanTask(each, None, None, True) for each in rows.stretches())
            for part in parallel.run_tasks(scan.tally, tasks, processes=parallel.num_cores()):
                counts.add(part)
        pairs = shingles.near_pairs(counts.array("signatures"), counts.array("prompts"))
    found = {pair.later for pair in pairs}
    hit = sum(number in found for number in planted)
    extra = len(found - set(planted))
    print(f"  {hit:,} of {len(planted):,} planted rows found; {extra:,} others named")


def profiling(path: Path, _: Any, __: int) -> None:
    before = peak()
    with timed("profile"):
        datasets.profile(path)
    print(f"  {peak() - before:,.0f} MB more than before; the file has {size_mb(path):,.0f} MB")


def splitting(path: Path, _: Any, __: int) -> None:
    before = peak()
    with timed("split"):
        datasets.split(path, Path(os.environ["RFTKIT_HOME"]).with_name("parts"))
    print(f"  {peak() - before:,.0f} MB more than before; the file has {size_mb(path):,.0f} MB")


def long_line(_: Path, __: Any, ___: int) -> None:
    """A file with one line of 50 MB: what follows the largest line."""
    path = Path(os.environ["RFTKIT_HOME"]).with_name("long.jsonl")
    row = {"messages": [{"role": "user", "content": "some words " * 4_500_000}], "answer": "yes"}
    path.write_text(json.dumps(row) + "\n")
    before = peak()
    with timed("check with one long line"):
        datasets.check(path, processes=0)
    print(f"  {peak() - before:,.0f} MB more than before; the line has {size_mb(path):,.0f} MB")


def peak() -> float:
    """Peak memory of this process, in MB; run a step alone to see what it takes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def size_mb(path: Path) -> float:
    return path.stat().st_size / 1e6


STEPS: dict[str, Callable[[Path, dict[int, int], int], None]] = {
    "open": opening,
    "read": reading,
    "check": checking,
    "near": comparing,
    "profile": profiling,
    "split": splitting,
    "long": long_line,
}


@contextmanager
def timed(words: str) -> Iterator[list[float]]:
    """Print how long a step took; the list receives its wall and processor seconds."""
    out: list[float] = []
    wall, cpu = time.perf_counter(), processor_seconds()
    yield out
    wall, cpu = time.perf_counter() - wall, processor_seconds() - cpu
    out += [wall, cpu]
    own, workers = (
        resource.getrusage(who).ru_maxrss / 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(
        f"{words}: {wall:.1f} s, {cpu:.1f} processor s; "
        f"peak {own:,.0f} MB, worker {workers:,.0f} MB",
        flush=True,
    )


def processor_seconds() -> float:
    """Of this process and of those it waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
