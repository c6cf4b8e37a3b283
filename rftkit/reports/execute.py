"""Run a parameterised notebook with papermill, with widgets off.

Not here: the check of the parameters, and the page. If a cell fails, the notebook is returned as
far as it ran, with an error message.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rftkit.errors import ReportError

__all__ = ["execute", "read_notebook"]


def execute(
    notebook: Path, values: Mapping[str, Any], timeout_seconds: int, csv_prefix: str
) -> tuple[Any, str | None]:
    """Run a notebook; returns the executed notebook and, if a cell failed, the error message.

    Args:
        notebook: Its kernel is the interpreter that runs this.
        values: Checked values of its parameters.
        timeout_seconds: Limit for each cell.
        csv_prefix: Path prefix of the full tables; empty for none.
    """
    import papermill

    failure = None
    # A report never emits a widget, whatever is set here; the kernel inherits the environment.
    changes = {"RFTKIT_MODE": "static", "RFTKIT_REPORT_CSV": csv_prefix}
    with tempfile.TemporaryDirectory() as folder, _environment(changes):
        result = Path(folder) / notebook.name
        try:
            papermill.execute_notebook(
                str(notebook),
                str(result),
                parameters=dict(values),
                kernel_name="python3",
                language="python",
                progress_bar=False,
                execution_timeout=timeout_seconds,
                extra_arguments=["--log-level=50"],  # a cell's error is in its output
            )
        except papermill.PapermillExecutionError as error:
            line = next(iter(error.source.strip().splitlines()), "")
            failure = f"cell {error.exec_count} ({line}) failed with {error.ename}: {error.evalue}"
        except Exception as error:
            if not result.exists():
                raise ReportError(f"{notebook.name} could not run: {error}") from error
            message = next(iter(str(error).strip().splitlines()), "")
            failure = f"it stopped with {type(error).__name__}: {message}"
        return read_notebook(result), failure


def read_notebook(path: Path) -> Any:
    """A notebook as nbformat reads it.

    Raises:
        ReportError: The file is not a notebook.
    """
    import nbformat

    try:
        return nbformat.read(str(path), as_version=4)
    except Exception as error:
        raise ReportError(f"{path} cannot be read as a notebook: {error}") from error


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
