"""A report: a parameterised notebook rerun by papermill, kept as one offline HTML file.

Not here: what a report shows; that is the notebook's. Steps: check the parameters against the
notebook's tagged cell before anything runs → run it with widgets off → drop widget state, which no
file can use → turn it into a page with our own frame → make sure nothing outside is referenced →
write atomically. A cell that fails still gives a page, which shows where.

Left out on purpose: typesetting of mathematics and Mermaid diagrams, whose scripts live on a CDN.
"""

from __future__ import annotations

import ast
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rftkit.errors import ReportError
from rftkit.reports.summary import MIME
from rftkit.views.markup import json_script, page, text

__all__ = ["notebook_path", "read_summary", "run"]

WIDGET_MIMES = (
    "application/vnd.jupyter.widget-view+json",
    "application/vnd.jupyter.widget-state+json",
)
SUMMARY_ID = "rk-summary"


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
        ReportError: a parameter is unknown or has the wrong type, the notebook has no such cell, it
            refers to something outside the file, or a cell failed (then the page exists).
    """
    import nbformat

    source, target = notebook_path(notebook), Path(out)
    values = _checked(source, parameters)
    executed, failure = _execute(source, values, timeout_seconds)
    _drop_widgets(executed)
    if keep_notebook:
        _write(target.with_suffix(".ipynb"), nbformat.writes(executed))
    document = _page(executed, source.name, values, failure, show_code)
    _write(target, document)
    if failure:
        raise ReportError(f"{source.name}: {failure}; the page shows where: {target}")
    if found := _outside(document):
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


def read_summary(report: str | Path) -> dict[str, Any] | None:
    """The figures a page was made with, for programs; None if its notebook left none."""
    import json

    marker = f'<script type="{MIME}" id="{SUMMARY_ID}">'
    _, found, rest = Path(report).read_text(encoding="utf-8").partition(marker)
    summary: dict[str, Any] | None = json.loads(rest.partition("</script>")[0]) if found else None
    return summary


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


def _drop_widgets(notebook: Any) -> None:
    """Take out what shows as an empty box without a kernel; keep the HTML beside it."""
    notebook.metadata.pop("widgets", None)
    for output in _outputs(notebook):
        data = output.get("data", {})
        if any(data.pop(mime, None) for mime in WIDGET_MIMES) and "text/html" not in data:
            data["text/html"] = "<p><em>A live control was here; it works in the notebook.</em></p>"


def _outputs(notebook: Any) -> Iterator[Any]:
    for cell in notebook.cells:
        yield from cell.get("outputs", [])


def _page(
    notebook: Any, name: str, values: Mapping[str, Any], failure: str | None, show_code: bool
) -> str:
    from nbconvert import HTMLExporter

    summary = _take_summary(notebook)
    failed = next((cell for cell in notebook.cells if _has_failed(cell)), None)
    for cell in notebook.cells:
        hides = cell.cell_type == "code" and not show_code and cell is not failed
        cell.metadata["transient"] = {"remove_source": hides}
    notebook.cells = [cell for cell in notebook.cells if _is_shown(cell, show_code)]
    exporter = HTMLExporter(
        template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True
    )
    body, _ = exporter.from_notebook_node(notebook)
    given = ", ".join(f"{key}={value!r}" for key, value in values.items()) or "the defaults"
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return page(
        _title(notebook) or name,
        _alert(failure, failed) + _contents(body) + body,
        head=json_script(summary, kind=MIME, name=SUMMARY_ID) + "\n" if summary else "",
        foot=text(
            f"Made with rftkit {version('rftkit')} from {name}, {made}. Parameters: {given}."
        ),
    )


def _take_summary(notebook: Any) -> dict[str, Any] | None:
    """The figures left for programs, taken out of what is shown."""
    summary = None
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            summary = output.get("data", {}).get(MIME, summary)
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if MIME not in each.get("data", {})]
    return summary


_LEFT_OUT = ("remove-cell", "papermill-error-cell")


def _has_failed(cell: Any) -> bool:
    return any(output.output_type == "error" for output in cell.get("outputs", []))


def _is_shown(cell: Any, show_code: bool) -> bool:
    """Not what is for the notebook's reader only, papermill's own banner, or silent code."""
    if any(tag.startswith(_LEFT_OUT) for tag in cell.metadata.get("tags", [])):
        return False
    return cell.cell_type != "code" or show_code or bool(cell.outputs)


def _title(notebook: Any) -> str | None:
    """The heading of the first level, from the text or from what a cell showed."""
    for cell in notebook.cells:
        shown = [output.get("data", {}).get("text/markdown") for output in cell.get("outputs", [])]
        for source in [cell.source] if cell.cell_type == "markdown" else shown:
            first = "".join(source or "").strip().partition("\n")[0]
            if first.startswith("# "):
                return first.removeprefix("# ")
    return None


def _alert(failure: str | None, cell: Any) -> str:
    if not failure:
        return ""
    link = f' <a href="#cell-id={text(cell.id)}">Go to that cell.</a>' if cell else ""
    return (
        '<div class="rk rk-alert" role="alert"><strong>This report is not complete: '
        f"{text(failure)}.</strong>{link} The cells below it did not run.</div>"
    )


def _contents(body: str) -> str:
    """Links to the sections, one line."""
    headings = _Headings()
    headings.feed(body)
    links = "".join(f'<a href="#{text(i)}">{text(name)}</a>' for i, name in headings.found)
    return f'<nav class="rk-contents" aria-label="Contents">{links}</nav>' if links else ""


class _Headings(HTMLParser):
    """Collects (id, words) of every second-level heading."""

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
    """Collects what a browser would load for this page by itself; links are not loaded."""

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


def _outside(document: str) -> list[str]:
    references = _References()
    references.feed(document)
    return references.found


def _read(path: Path) -> Any:
    import nbformat

    try:
        return nbformat.read(str(path), as_version=4)
    except Exception as error:
        raise ReportError(f"{path} cannot be read as a notebook: {error}") from error


def _write(path: Path, content: str) -> None:
    """All or nothing: a reader never finds half a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
