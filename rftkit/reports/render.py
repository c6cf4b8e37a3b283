"""Rerun a parameterised notebook with papermill and keep it as one offline HTML file.

Not here: what a report shows, which is the notebook's affair, and how the page is made
(`document`). Steps: check the parameters against the notebook's tagged cell before anything runs →
run it with widgets off → make the page → see that nothing outside is referenced. Files are written
whole or not at all, and a cell that fails still gives a page, which shows where.
"""

from __future__ import annotations

import ast
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rftkit.errors import ReportError
from rftkit.reports.document import document, drop_widgets, outside

__all__ = ["notebook_path", "run"]


def run(
    notebook: str | Path,
    out: str | Path,
    /,
    *,
    keep_notebook: bool = False,
    show_code: bool = False,
    timeout_seconds: int = 600,
    **parameters: Any,
) -> Path:
    """Rerun `notebook` with `parameters` and write it as one HTML file.

    Args:
        notebook: a path, or the name of one of the notebooks of this project (`report_job`).
        out: where the page goes; folders are made.
        keep_notebook: also write the executed notebook beside the page.
        show_code: show the code of the cells too.
        timeout_seconds: for each cell.
        **parameters: values for the notebook's cell tagged `parameters`.

    Returns:
        The path of the page.

    Raises:
        ReportError: a parameter is unknown or has the wrong type, the notebook has no such cell,
            `out` cannot be written, the page refers to something outside itself, or a cell failed
            (then the page exists and shows where).
    """
    import nbformat

    source, target = notebook_path(notebook), _target(out)
    values = _checked(source, parameters)
    executed, failure = _execute(source, values, timeout_seconds)
    drop_widgets(executed)
    if keep_notebook:
        _write(target.with_suffix(".ipynb"), nbformat.writes(executed))
    html = document(executed, source.name, values, failure, show_code)
    _write(target, html)
    if failure:
        raise ReportError(f"{source.name}: {failure}; the page shows where: {target}")
    if found := outside(html):
        raise ReportError(
            f"{target} refers to {found[0]!r}, which is not in the file; a report must need no "
            "network and no other file: put the data into the page"
        )
    return target


def notebook_path(notebook: str | Path) -> Path:
    """The file of a notebook, given as a path or as the name of one of this project's.

    Raises:
        ReportError: there is no such file.
    """
    own = Path(__file__).parents[2] / "notebooks"
    for path in (Path(notebook), own / f"{notebook}.ipynb"):
        if path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in own.glob("report_*.ipynb"))) or "none found"
    raise ReportError(f"no notebook {str(notebook)!r}: give a path or one of: {names}")


def _target(out: str | Path) -> Path:
    """Where the page goes, found out before minutes are spent on it."""
    target = Path(out)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(f"the folder of {target} cannot be made: {error.strerror}") from error
    if target.is_dir() or not os.access(target.parent, os.W_OK):
        raise ReportError(f"{target} cannot be written; give the path of a file, such as out.html")
    return target


def _checked(notebook: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters as papermill takes them, or a ReportError that says which one is wrong."""
    from papermill import inspect_notebook

    if not any("parameters" in cell.metadata.get("tags", []) for cell in _read(notebook).cells):
        raise ReportError(
            f"{notebook.name} has no cell tagged 'parameters', so it cannot take any; in "
            "JupyterLab: select the cell that assigns them, open Property Inspector, add the tag"
        )
    known = inspect_notebook(str(notebook))
    values = {}
    for name, value in parameters.items():
        if name not in known:
            raise ReportError(
                f"{notebook.name} has no parameter {name!r}; it takes: {', '.join(known)}"
            )
        value = str(value) if isinstance(value, Path) else value
        expected = _expected_type(known[name])
        if expected and not _fits(value, expected):
            raise ReportError(
                f"{notebook.name}: parameter {name!r} must be {expected}, found "
                f"{type(value).__name__} {value!r}"
            )
        values[name] = value
    return values


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "list": (list, tuple),
    "dict": (dict,),
}


def _expected_type(parameter: Mapping[str, Any]) -> str | None:
    """What the annotation says, else what the default is; None if neither tells."""
    annotation: str = parameter["inferred_type_name"].split("[")[0].strip()
    if annotation in _TYPES:
        return annotation
    try:
        kind: str = type(ast.literal_eval(parameter["default"])).__name__
    except (ValueError, SyntaxError):
        return None
    return kind if annotation == "None" and kind in _TYPES else None


def _fits(value: Any, expected: str) -> bool:
    if isinstance(value, bool):
        return expected == "bool"
    return isinstance(value, _TYPES[expected])


def _execute(notebook: Path, values: Mapping[str, Any], timeout: int) -> tuple[Any, str | None]:
    """Run it; return the executed notebook and, if a cell failed, what to say about it."""
    import papermill

    failure = None
    with tempfile.TemporaryDirectory() as folder, _widgets_off():
        result = Path(folder) / notebook.name
        try:
            papermill.execute_notebook(
                str(notebook),
                str(result),
                parameters=dict(values),
                kernel_name="python3",
                progress_bar=False,
                execution_timeout=timeout,
                extra_arguments=["--log-level=50"],  # what a cell did wrong is in its output
            )
        except papermill.PapermillExecutionError as error:
            line = next(iter(error.source.strip().splitlines()), "")
            failure = f"cell {error.exec_count} ({line}) failed with {error.ename}: {error.evalue}"
        except Exception as error:
            if not result.exists():
                raise ReportError(f"{notebook.name} could not run: {error}") from error
            failure = f"it stopped with {type(error).__name__}: {error}"
        return _read(result), failure


@contextmanager
def _widgets_off() -> Iterator[None]:
    """The kernel inherits the environment: a report never emits a widget, whatever is set here."""
    before = os.environ.get("RFTKIT_MODE")
    os.environ["RFTKIT_MODE"] = "static"
    try:
        yield
    finally:
        if before is None:
            del os.environ["RFTKIT_MODE"]
        else:
            os.environ["RFTKIT_MODE"] = before


def _read(path: Path) -> Any:
    import nbformat

    try:
        return nbformat.read(str(path), as_version=4)
    except Exception as error:
        raise ReportError(f"{path} cannot be read as a notebook: {error}") from error


def _write(path: Path, content: str) -> None:
    """All or nothing: a reader never finds half a page."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
