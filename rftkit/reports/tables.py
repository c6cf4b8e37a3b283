"""A table of a report, with an optional CSV file of all its rows next to the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rftkit import settings, views
from rftkit.errors import ReportError
from rftkit.safetext import cells
from rftkit.views.markup import Html, html, join, wrap
from rftkit.wholefile import write_whole
from rftkit.wording import counted

__all__ = ["csv_beside", "elsewhere", "table"]


def table(
    rows: Any,
    columns: Sequence[str] | dict[str, str] | None = None,
    *,
    name: str,
    **options: Any,
) -> Html:
    """A table as `views.table` shows it; on request, a CSV file has all its rows.

    Args:
        rows: A pandas frame, or all rows as mappings.
        columns: The columns to show; the CSV file has all columns of `rows`.
        name: Part of the file's name, `<page>-<name>.csv`.
        **options: Options of `views.table`.
    """
    file = csv_beside(rows, name)
    shown = views.table(rows, columns, elsewhere=elsewhere(file), **options)
    link = (
        html('<p class="rk-note">{}: {}.</p>', _link(file), counted(len(rows), "row"))
        if file
        else Html()
    )
    return join([shown, wrap(link) if link else Html()], plain=shown.plain)


def csv_beside(rows: Any, name: str) -> str | None:
    """Write `rows` next to the page of the running report; returns the file's name.

    None if the report runs without `--csv`, or no report is running.

    Raises:
        ReportError: the file cannot be written.
    """
    import pandas as pd

    if not (prefix := settings.report_csv()):
        return None
    path = Path(f"{prefix}-{name}.csv")
    try:
        write_whole(path, cells(pd.DataFrame(rows)).to_csv(index=False))
    except OSError as error:
        raise ReportError(f"{path} cannot be written: {error.strerror}") from error
    return path.name


def elsewhere(file: str | None) -> str:
    """The end of a sentence that says where to find the rows that a page leaves out."""
    return (
        f"; all are in {file}" if file else "; make the report with --csv to get all rows in a file"
    )


def _link(file: str) -> Html:
    return html('<a href="{}">{}</a>', file, file)
