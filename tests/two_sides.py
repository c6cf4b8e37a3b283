"""rftkit and another trainer on the same case, each in its own process and perhaps environment.

For the benchmarks: `child` runs a script again with `--child SIDE TASK RESULT`, and `clock_of`
times the steps of a trainer of transformers.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

__all__ = ["child", "clock_of"]


def child(script: str, python: str, side: str, case: dict[str, Any]) -> dict[str, Any] | None:
    """Run one side in its own process; None when it fails (out of memory, most likely)."""
    with tempfile.TemporaryDirectory() as scratch:
        task, result = Path(scratch, "task.json"), Path(scratch, "result.json")
        task.write_text(json.dumps(case))
        done = subprocess.run(
            [python, "-P", script, "--child", side, str(task), str(result)],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            print(f"  {side} failed ({done.returncode}): {done.stderr.strip()[-300:]}", flush=True)
            return None
        answer: dict[str, Any] = json.loads(result.read_text())
        return answer


def clock_of(base: type) -> Any:
    """A callback for a trainer; `seconds` and `worked` have the wall and processor time of steps.

    `base` is the `TrainerCallback` of transformers, which the other environment imports.
    """

    class Clock(base):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.worked: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.seconds.append(-time.perf_counter())
            self.worked.append(-time.process_time())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds[-1] += time.perf_counter()
            self.worked[-1] += time.process_time()

    return Clock()
