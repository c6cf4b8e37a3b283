"""From an executed notebook to one HTML document that needs nothing outside itself.

Not here: running the notebook. nbconvert's `basic` template renders the body, and
`rftkit.views.page` the frame. This takes 20 KB instead of the 277 KB of the `lab` template, which
also loads scripts from a CDN. Typeset mathematics and Mermaid diagrams are left out for this.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rftkit.errors import ReportError
from rftkit.jsontext import parse_json
from rftkit.reports.provenance import MIME as SOURCE_MIME
from rftkit.reports.provenance import Making, provenance
from rftkit.reports.summary import MIME
from rftkit.views.markup import Html, html, join, json_script, page

__all__ = ["check_templates", "document", "drop_widgets", "outside", "read_summary"]

WIDGET_MIMES = (
    "application/vnd.jupyter.widget-view+json",
    "application/vnd.jupyter.widget-state+json",
)
SUMMARY_ID = "rk-summary"
LEFT_OUT = ("remove-cell", "papermill-error-cell")
"""Tags of cells that are only for the notebook's reader, and of papermill's own banner."""


def check_templates() -> None:
    """Find out before a notebook runs whether nbconvert can make a page of it.

    Raises:
        ReportError: nbconvert was installed without its templates, or they are damaged.
    """
    try:
        _ = _exporter().template  # nbconvert loads it on first use
    except Exception as error:  # nbconvert's for a missing folder, jinja's for a missing file
        found = " ".join(str(error).split())
        raise ReportError(
            f"nbconvert cannot load its page templates ({type(error).__name__}: {found}). Install "
            "it again with: pip install --force-reinstall nbconvert. Or set JUPYTER_PATH to the "
            "folder share/jupyter that holds nbconvert/templates"
        ) from error


def _exporter() -> Any:
    from nbconvert import HTMLExporter

    return HTMLExporter(
        template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True
    )


def document(notebook: Any, making: Making, failure: str | None, show_code: bool) -> str:
    """Render an executed notebook as a page.

    Args:
        notebook: The notebook. Its code is removed, except that of a failed cell.
        making: The parameters and times of the report, for the last section.
        failure: The error, shown at the top; None without one.
        show_code: Keep the code of all cells.
    """
    summary = next(reversed(_taken(notebook, MIME)), None)
    sources = [each for named in _taken(notebook, SOURCE_MIME) for each in named]
    failed = next((cell for cell in notebook.cells if _has_failed(cell)), None)
    for cell in notebook.cells:
        hides = cell.cell_type == "code" and not show_code and cell is not failed
        cell.metadata["transient"] = {"remove_source": hides}
    notebook.cells = [cell for cell in notebook.cells if _is_shown(cell, show_code)]
    rendered, _ = _exporter().from_notebook_node(notebook)
    body = Html(rendered) + provenance(making, sources)
    return page(
        _title(notebook) or making.notebook.stem,
        _alert(failure, failed) + _contents(body) + body,
        head=json_script(summary, kind=MIME, name=SUMMARY_ID) + "\n" if summary else "",
        foot=f"Made with rftkit {version('rftkit')} from {making.notebook.name}.",
    )


def read_summary(report: str | Path) -> dict[str, Any] | None:
    """The figures that the notebook published in a page; None if there are none."""
    marker = html('<script type="{}" id="{}">', MIME, SUMMARY_ID)
    _, found, rest = Path(report).read_text(encoding="utf-8").partition(marker)
    summary: dict[str, Any] | None = parse_json(rest.partition("</script>")[0]) if found else None
    return summary


def drop_widgets(notebook: Any) -> None:
    """Remove widgets, which are empty boxes without a kernel; keep the HTML next to them."""
    notebook.metadata.pop("widgets", None)
    for output in _outputs(notebook):
        data = output.get("data", {})
        dropped = [data.pop(mime) for mime in WIDGET_MIMES if mime in data]
        if dropped and "text/html" not in data:
            data["text/html"] = "<p><em>A live control was here; it works in the notebook.</em></p>"


def outside(document: str) -> list[str]:
    """What a browser would load for this page automatically, beyond the page."""
    references = _References()
    references.feed(document)
    return references.found


def _outputs(notebook: Any) -> Iterator[Any]:
    for cell in notebook.cells:
        yield from cell.get("outputs", [])


def _has_failed(cell: Any) -> bool:
    return any(output.output_type == "error" for output in cell.get("outputs", []))


def _is_shown(cell: Any, show_code: bool) -> bool:
    """Whether the page shows a cell: not one for the notebook's reader only, nor silent code."""
    if any(tag.startswith(LEFT_OUT) for tag in cell.metadata.get("tags", [])):
        return False
    return cell.cell_type != "code" or show_code or bool(cell.outputs)


def _taken(notebook: Any, mime: str) -> list[Any]:
    """Remove the outputs of one MIME type from the cells, and return them, oldest first."""
    found = [each["data"][mime] for each in _outputs(notebook) if mime in each.get("data", {})]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if mime not in each.get("data", {})]
    return found


def _title(notebook: Any) -> str | None:
    """The first-level heading, from a text cell or from the output of a cell."""
    for cell in notebook.cells:
        shown = [output.get("data", {}) for output in cell.get("outputs", [])]
        for data in shown:
            found = re.match("<h1>(.*?)</h1>", "".join(data.get("text/html") or ""), re.DOTALL)
            if found:
                return Markup(found[1]).unescape()
        marked = [data.get("text/markdown") for data in shown]
        for source in [cell.source] if cell.cell_type == "markdown" else marked:
            first = "".join(source or "").strip().partition("\n")[0]
            if first.startswith("# "):
                return first.removeprefix("# ")
    return None


def _alert(failure: str | None, cell: Any) -> Html:
    if not failure:
        return Html()
    link = html(' <a href="#cell-id={}">Go to that cell.</a>', cell.id) if cell else Html()
    return html(
        '<div class="rk rk-alert" role="alert"><strong>This report is not complete: {}.</strong>{} '
        "The cells below it did not run.</div>",
        failure,
        link,
    )


def _contents(body: str) -> Html:
    """Links to the sections, one line."""
    headings = _Headings()
    headings.feed(body)
    links = join(html('<a href="#{}">{}</a>', i, name) for i, name in headings.found)
    return (
        html('<nav class="rk-contents" aria-label="Contents">{}</nav>', links) if links else Html()
    )


class _Headings(HTMLParser):
    """Collects the id and text of every second-level heading."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self._id: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "h2" and (identity := dict(attrs).get("id")):
            self._id = identity

    def handle_data(self, data: str) -> None:
        if self._id:
            self.found.append((self._id, data))
            self._id = None


class _References(HTMLParser):
    """Collects what a browser would load for this page automatically; links are not loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            loads = name in ("src", "srcset", "poster", "background") or (
                (tag, name) in (("link", "href"), ("object", "data"), ("image", "href"))
            )
            if loads and value and not value.startswith(("data:", "#")):
                self.found.append(value)
