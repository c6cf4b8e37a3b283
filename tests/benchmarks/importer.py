"""How fast `rftkit import` is, and how much memory it takes, when the remote does not limit it.

    python tests/benchmarks/importer.py [--items 10000] [--events 100000] [--delay-ms 0]

The stub account and the importer are processes of their own; the time is the whole command,
start-up and final manifest included. `--delay-ms` is the remote's time to answer.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]
RFTKIT = "from rftkit.cli import main; main()"
sys.path.insert(0, str(TESTS))

from importer_stub import KEY  # noqa: E402


def main() -> None:
    """Import twice and print seconds, objects a second and peak memory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--delay-ms", type=int, default=0)
    given = parser.parse_args()
    options = [f"--{name.replace('_', '-')}={value}" for name, value in vars(given).items()]
    stub = subprocess.Popen(
        [sys.executable, TESTS / "importer_stub.py", *options], stdout=subprocess.PIPE, text=True
    )
    try:
        assert stub.stdout is not None
        url = stub.stdout.readline().strip()
        with tempfile.TemporaryDirectory() as folder:
            for title in ("first import", "again"):
                seconds = _import(url, Path(folder) / "dump")
                peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
                total = given.items + given.events
                print(
                    f"{title}: {seconds:.1f} s, {total / seconds:,.0f} objects/s "
                    f"({given.items:,} output items, {given.events:,} events), "
                    f"peak memory {peak:,.0f} MB"
                )
    finally:
        stub.terminate()
        stub.wait()


def _import(url: str, dump: Path) -> float:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", RFTKIT, "import", "--from", url, "--dump", dump, "--json"],
        env={**os.environ, "OPENAI_API_KEY": KEY},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert json.loads(done.stdout)["complete"]
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
