"""A process of a sweep: makes one report for each line on its standard input.

`python -m rftkit.reports.worker`, started by `rftkit.reports.sweep`. The imports of a report
happen once; each notebook still gets its own kernel.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from rftkit.reports.document import read_summary
from rftkit.reports.render import run

__all__ = ["main"]


def main() -> None:
    """Read tasks, answer each with one line of JSON; the output of libraries goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    import nbconvert  # noqa: F401
    import papermill  # noqa: F401

    for line in sys.stdin:
        answers.write(json.dumps(_made(json.loads(line))) + "\n")
        answers.flush()


def _made(task: dict[str, Any]) -> dict[str, Any]:
    clock, error, figures = time.perf_counter(), None, None
    try:
        page = run(task["notebook"], task["out"], **task["options"], parameters=task["parameters"])
        figures = read_summary(page)
    except Exception as caught:
        error = str(caught).removesuffix(f"; the page shows where: {task['out']}")
        error = error or type(caught).__name__
    return {"error": error, "figures": figures, "seconds": time.perf_counter() - clock}


if __name__ == "__main__":
    main()
