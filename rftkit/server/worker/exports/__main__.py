"""`python -m rftkit.server.worker.exports`: export one model in a process of its own.

So the server never imports torch, and a training job does not wait. An error is one line on
stderr, with exit status 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rftkit.errors import RftkitError
from rftkit.privacy import UMASK
from rftkit.server.worker.exports.export import FORMATS, Wanted, export


def main() -> int:
    """Export one model; print an error to stderr and exit with status 1."""
    parser = argparse.ArgumentParser(prog="rftkit.server.worker.exports")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--format", choices=FORMATS, default="peft")
    parser.add_argument("--quantize")
    parser.add_argument("--rows", type=int, default=Wanted.rows)
    given = parser.parse_args()
    os.umask(UMASK)
    wanted = Wanted(given.format, given.quantize, given.rows)
    try:
        export(given.home, given.model, given.out, wanted)
    except RftkitError as error:
        print(getattr(error, "message", str(error)), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
