"""A platform whose engine keeps a tally outside of it: one line a call begun, one a call done.

`python counting_server.py --home HOME …` is the server; its worker is this file again, with
`--worker`. The tally is the file named by TALLY, written so that a SIGKILL loses no line. With
TOKEN_SECONDS a token takes that much longer.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from typing import Any

from rftkit.server import __main__ as server
from rftkit.server.http import serving
from rftkit.server.worker import worker


def count(what: str, keys: list[Any]) -> None:
    """Add a line."""
    handle = os.open(os.environ["TALLY"], os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(handle, (json.dumps([what, keys]) + "\n").encode())
    os.close(handle)


def counted(real: Any) -> Any:
    """`TorchEngine.sample` with a tally of what a job asks of it."""

    @functools.wraps(real)
    def sample(self: Any, requests: Any, adapter: Any = "policy", **options: Any) -> Any:
        keys = [list(request.seeds[0]) for request in requests]
        if adapter == "policy":
            count("begun", keys)
            options["on_tick"] = slowed(options["on_tick"])
        answers = real(self, requests, adapter, **options)
        if adapter == "policy":
            count("done", keys)
        return answers

    return sample


def slowed(on_tick: Any) -> Any:
    """The call between tokens, taking its time."""

    def wait() -> None:
        time.sleep(float(os.environ.get("TOKEN_SECONDS", "0")))
        on_tick()

    return wait


if __name__ == "__main__":
    if "--worker" in sys.argv:
        sys.argv.remove("--worker")
        from rftkit.server.engine.torch.engine import TorchEngine

        TorchEngine.sample = counted(TorchEngine.sample)  # type: ignore[method-assign]
        worker.main()
    else:
        serving.WORKER = (sys.executable, __file__, "--worker")
        sys.exit(server.main())
