"""The commands `rftkit grader …`; see `rftkit.cli`."""

from __future__ import annotations

import typer

from rftkit.cli.calibrate import calibrate
from rftkit.cli.console import PLAIN
from rftkit.cli.hosted import hosted

__all__ = ["grader_app"]

grader_app = typer.Typer(help="Compare a judge with labels; write hosted graders.", **PLAIN)
grader_app.command()(calibrate)
grader_app.command()(hosted)
