"""Run a parameterised notebook with papermill and save it as one offline HTML file.

The notebook decides what a report shows. The steps are: check the parameters against the notebook's
tagged cell (`parameters`) → run it with widgets off (`execute`) → make the page (`document`,
`provenance`) → check that the page refers to nothing outside. Files are written whole or not at
all. A cell that fails still gives a page, which shows the error.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rftkit.bundled import bundled_folder
from rftkit.errors import InputError, ReportError
from rftkit.reports.document import check_templates, document, drop_widgets, outside
from rftkit.reports.execute import execute, read_notebook
from rftkit.reports.parameters import checked, declared, from_text
from rftkit.reports.provenance import Making, now
from rftkit.views.markup import text
from rftkit.wholefile import check_output, write_whole

__all__ = ["notebook_path", "read_values", "run"]

TABLE_BYTES = 80
"""The most bytes of a page's name with which the names of its tables begin."""


def run(
    notebook: str | Path,
    out: str | Path,
    /,
    *,
    keep_notebook: bool = False,
    show_code: bool = False,
    csv: bool = False,
    timeout_seconds: int = 600,
    parameters: Mapping[str, Any] | None = None,
    **more: Any,
) -> Path:
    """Run `notebook` with `parameters` and write it as one HTML file.

    Args:
        notebook: A path, or the name of a bundled notebook (`report_job`).
        out: The file of the page; its folders are created.
        keep_notebook: also write the executed notebook beside the page.
        show_code: show the code of the cells too.
        csv: also write the full table beside the page, `<page>-<table>.csv`, for each table that
            the notebook shows with `reports.table`.
        timeout_seconds: Limit for each cell.
        parameters: Values for the notebook's cell tagged `parameters`, by name.
        **more: More parameters, as keywords that are no option above.

    Returns:
        The path of the page.

    Raises:
        ReportError: a parameter is unknown or has the wrong type, the notebook has no such cell,
            `out` cannot be written, nbconvert has no templates, the page refers to something
            outside itself, or a cell failed (then the page exists and shows where).
    """
    import nbformat

    source, target = notebook_path(notebook), Path(out).expanduser()
    known = declared(read_notebook(source), source.name)
    values = checked(known, {**(parameters or {}), **more}, source.name)
    inputs = [source, *_files_in(values.values())]
    pages = [target, target.with_suffix(".ipynb")] if keep_notebook else [target]
    _check_outputs(pages, inputs, target if csv else None)
    check_templates()
    started, clock = now(), time.perf_counter()
    csv_prefix = str(_tables_of(target).resolve()) if csv else ""
    executed, failure = execute(source, values, timeout_seconds, csv_prefix)
    making = Making(source, known, values, started, time.perf_counter() - clock)
    drop_widgets(executed)
    if keep_notebook:
        write_whole(target.with_suffix(".ipynb"), nbformat.writes(executed))
    html = without_folders(document(executed, making, failure, show_code), values.values())
    write_whole(target, html)
    if failure:
        raise ReportError(f"{source.name}: {failure}; the page shows where: {target}")
    if found := outside(html):
        raise ReportError(
            f"{target} refers to {found[0]!r}, which is not in the file; a report must need no "
            "network and no other file: put the data into the page"
        )
    return target


def without_folders(html: str, given: Iterable[Any]) -> str:
    """A page without the folders of this machine: files are called by their names.

    Args:
        html: the page.
        given: values of parameters; those that are whole paths become the name of their file.
    """
    own = [bundled_folder(name) for name in ("notebooks", "datasets")]
    # shorten paths as tracebacks do
    imported = (Path(each) for each in sys.path if "site-packages" in each)
    folders = {Path.cwd(), *own, *(each.parent for each in own), *imported}
    short = {f"{path}/": "" for each in folders for path in (each, each.resolve()) if path.name}
    short |= {str(path): path.name for path in _files_in(given) if path.is_absolute()}
    for long in sorted(short, key=len, reverse=True):
        for spelled in {long, text(long)}:
            html = html.replace(spelled, short[long])
    return html.replace(f"{Path.home()}/", "~/")


def read_values(notebook: str | Path, pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Values typed as words, converted to the types of the notebook's parameters; see `run`.

    Raises:
        ReportError: a name is unknown, or its value has the wrong type.
    """
    source = notebook_path(notebook)
    return from_text(declared(read_notebook(source), source.name), pairs, source.name)


def notebook_path(notebook: str | Path) -> Path:
    """The file of a notebook, from a path or the name of a bundled notebook.

    Raises:
        ReportError: there is no such file.
    """
    if (given := Path(notebook)).is_file():
        return given
    own = bundled_folder("notebooks")
    if (path := own / f"{notebook}.ipynb").is_file():
        return path
    names = ", ".join(sorted(path.stem for path in own.glob("report_*.ipynb"))) or "none found"
    raise ReportError(f"no notebook {str(notebook)!r}: give a path or one of: {names}")


def _check_outputs(pages: Iterable[Path], inputs: list[Path], tables_of: Path | None) -> None:
    """Refuse to write over an input before the notebook runs; create the folder of the page.

    Raises:
        ReportError: A page or a table would replace an input, or cannot be written.
    """
    if tables_of is not None:
        prefix = _tables_of(tables_of)
        beside = prefix.parent.iterdir() if prefix.parent.is_dir() else ()
        for table in (path for path in beside if _may_be_table(path, prefix)):
            try:
                check_output(table, inputs)
            except InputError:
                raise ReportError(
                    f"--csv may write over {table}, which is read here; give the page another name"
                ) from None
    try:
        for page in pages:
            check_output(page, inputs).parent.mkdir(parents=True, exist_ok=True)
    except InputError as error:
        raise ReportError(error.message) from None
    except OSError as error:
        raise ReportError(f"the folder of the page cannot be made: {error.strerror}") from error


def _tables_of(page: Path) -> Path:
    """How the paths of a page's tables begin. It is cut, because the page's own name may be as long
    as the disk allows.
    """
    return page.with_name(os.fsencode(page.stem)[:TABLE_BYTES].decode("utf-8", "ignore"))


def _may_be_table(path: Path, prefix: Path) -> bool:
    """Whether a file has a name that a table of the page may get: `<page>-<table>.csv`."""
    name, start = path.name.lower(), f"{prefix.name}-".lower()  # some disks see no case
    return name.endswith(".csv") and name.startswith(start)


def _files_in(values: Iterable[Any]) -> Iterator[Path]:
    """The files and folders that parameters name: they are inputs of the report."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _files_in(value)
        elif isinstance(value, str | Path) and value:
            with contextlib.suppress(OSError, ValueError):  # a text is not a path
                if (path := Path(value).expanduser()).exists():
                    yield path
