"""Check items against an eval's `item_schema`, within seconds for any schema.

A pattern such as `(a+)+$`, or references that double at each level, would keep a validator busy for
years. For such schemas this file runs as a program, which is killed after a time limit; simple
schemas are checked directly. References to other documents are not followed.
"""

from __future__ import annotations

import json
import math
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

__all__ = ["SLOW_SECONDS", "check_items"]

SLOW_SECONDS = 5
"""Limit of processor time for a check."""
DIRECT_SECONDS = 30.0
"""The same for a simple schema, whose time grows with the items alone."""
WAIT_SECONDS = 60.0
"""Limit of wall time for a check, for a busy machine."""
_RISKY = re.compile(r'"(pattern|patternProperties|uniqueItems|\$ref|\$dynamicRef)":')


def check_items(schema: dict[str, Any], items: Sequence[Any]) -> tuple[int | None, str] | None:
    """Return the index of the first item that does not match, and why; None if all match.

    The index is None if the schema itself is wrong.
    """
    if not _RISKY.search(json.dumps(schema)):
        return _check(schema, items, time.thread_time() + DIRECT_SECONDS)
    program = [sys.executable, "-P", __file__, str(SLOW_SECONDS)]
    question = json.dumps([schema, items]).encode()
    late = None, f"checking the items against it takes longer than {SLOW_SECONDS} s"
    try:
        ended = subprocess.run(program, input=question, capture_output=True, timeout=WAIT_SECONDS)
    except subprocess.TimeoutExpired:
        return late
    if ended.returncode == -signal.SIGXCPU:
        return late
    if ended.returncode:
        last = ended.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return None, f"it cannot be checked: {(last or ['the check wrote nothing'])[0][:300]}"
    found = json.loads(ended.stdout)
    return None if found is None else (found[0], found[1])


def _check(
    schema: dict[str, Any], items: Sequence[Any], until: float = math.inf
) -> tuple[int | None, str] | None:
    import jsonschema
    import referencing
    import referencing.exceptions

    validator = jsonschema.Draft202012Validator(schema, registry=referencing.Registry())
    for index, item in enumerate(items):
        if time.thread_time() > until:
            return None, f"checking the items against it takes longer than {DIRECT_SECONDS:.0f} s"
        try:
            problem = next(validator.iter_errors(item), None)
        except referencing.exceptions.Unresolvable as error:
            return None, f"its reference {error.ref!r} does not exist"
        except RecursionError:
            return None, "it refers to itself endlessly"
        except re.error as error:
            return None, f"one of its patterns is not a regular expression: {error}"
        if problem is not None:
            return index, problem.message[:500]
    return None


if __name__ == "__main__":
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # SIGXCPU, then SIGKILL
    print(json.dumps(_check(*json.load(sys.stdin))))
