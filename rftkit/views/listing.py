"""Long lists on a page: the first items as plain markup, the others for the script.

The script (`views.js`) adds a filter, sorting and paging to any list made here. In a notebook that
strips scripts the reader sees the first items and how many there are; a page has all of them as
plain markup (`markup.page`), so that neither paper nor a browser without scripts loses any.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from rftkit.views.markup import REST, REST_SCRIPT, Html, html, join, missing, number, text
from rftkit.wording import counted

__all__ = ["MAX_BYTES", "disclosure", "is_numeric", "listing", "table"]

MAX_BYTES = 1_000_000
"""How much of a list is put into a page, in bytes of markup: about 5,000 lines of a table."""

MAX_CELL = 100_000
"""How much of one text is put into a page, in characters."""


def listing(
    items: Sequence[Html],
    frame: Callable[[Html], Html],
    *,
    noun: str = "row",
    total: int | None = None,
    page: int = 20,
    max_bytes: int = MAX_BYTES,
    sorts: Sequence[tuple[str, str]] = (),
    order: str = "",
    elsewhere: str = "",
) -> Html:
    """Show `items`, each the markup of one element, inside `frame(markup)`.

    Args:
        items: in the order they are shown; those past `max_bytes` are left out and counted.
        frame: puts the items into the element that has the class `rk-items`.
        noun: what one item is called.
        total: how many there are in all, when `items` is already a part of them.
        page: items on one page.
        max_bytes: of markup, over all items.
        sorts: (name, label) pairs offered to the reader; an item has the value as `data-<name>`,
            and a name that starts with `-` sorts in descending order.
        order: the order in which they are, as a choice beside `sorts`.
        elsewhere: where to find the items that are left out, as the end of a sentence.
    """
    kept = items[: _fitting(items, max_bytes)]
    total = max(total or 0, len(items))
    rest = join(kept[page:])
    count = (
        counted(total, noun)
        if len(kept[:page]) == total
        else (f"the first {len(kept[:page]):,} of {counted(total, noun)}")
    )
    parts = [
        frame(join(kept[:page]) + (REST if rest else "")),
        html("{}{}</script>", REST_SCRIPT, rest) if rest else Html(),
        html(
            '<p class="rk-count" role="status" data-all="{}">{}</p>',
            counted(len(kept), noun),
            count,
        ),
        _left_out(len(kept), total, noun, elsewhere),
    ]
    given = html(' data-order="{}"', order) if order else Html()
    return html(
        '<div class="rk rk-list" data-page="{}" data-noun="{}"{} data-sorts="{}">{}</div>',
        page,
        noun,
        given,
        json.dumps([list(pair) for pair in sorts], ensure_ascii=False),
        join(parts),
        plain=f"{len(kept):,} of {counted(total, noun)}",
    )


def table(
    rows: Any,
    columns: Sequence[str] | dict[str, str] | None = None,
    *,
    caption: str = "",
    noun: str = "row",
    total: int | None = None,
    page: int = 20,
    max_bytes: int = MAX_BYTES,
    elsewhere: str = "",
) -> Html:
    """A table that can be filtered, sorted and paged, and is readable without that.

    Args:
        rows: mappings, dataclasses, or a pandas frame. None and NaN are shown as a dash and
            sort last.
        columns: keys in order, or key -> heading; by default the keys of all rows.
        caption: a title, read out by screen readers.
        noun: what one row is called.
        total: how many rows there are in all, when `rows` is already a part of them.
        page: rows on one page.
        max_bytes: of markup; rows beyond it are left out, and the view says how many.
        elsewhere: where to find those, as the end of a sentence.
    """
    records = rows.to_dict("records") if hasattr(rows, "to_dict") else [_record(r) for r in rows]
    if columns is None:
        columns = list(dict.fromkeys(key for record in records for key in record))
    headings = columns if isinstance(columns, dict) else {key: key for key in columns}
    numeric = {key for key in headings if is_numeric(record.get(key) for record in records)}
    head = join(
        html('<th scope="col"{}>{}</th>', NUMERIC if key in numeric else "", label)
        for key, label in headings.items()
    )
    title = html("<caption>{}</caption>", caption) if caption else Html()
    return listing(
        [_row(record, headings, numeric) for record in records],
        lambda body: html(
            '<div class="rk-scroll" tabindex="0"><table>{}<thead><tr>{}</tr></thead>'
            '<tbody class="rk-items">{}</tbody></table></div>',
            title,
            head,
            body,
        ),
        noun=noun,
        total=total,
        page=page,
        max_bytes=max_bytes,
        elsewhere=elsewhere,
    )


def disclosure(value: str, limit: int = 160) -> Html:
    """Fold a long text behind its first words; return a short one as it is."""
    left_out = len(value) - MAX_CELL
    shown = text(value[:MAX_CELL])
    if left_out > 0:
        shown += html(" <em>… {:,} more characters are left out</em>", left_out)
    if len(value) <= limit and value.count("\n") < 4:
        return html('<span class="rk-text">{}</span>', shown)
    excerpt = text(" ".join(value[:limit].split()))
    return html(
        '<details><summary data-lm-suppress-shortcuts="true">'
        '<span class="rk-excerpt">{} …</span></summary>'
        '<span class="rk-text">{}</span></details>',
        excerpt,
        shown,
    )


NUMERIC = Html(' class="rk-number" style="text-align:right"')
"""Attributes of cells with numbers. The inline style is for untrusted notebooks, which strip style
sheets."""


def _record(row: Any) -> dict[str, Any]:
    return asdict(row) if is_dataclass(row) and not isinstance(row, type) else dict(row)


def _row(record: dict[str, Any], keys: dict[str, str], numeric: set[str]) -> Html:
    return html("<tr>{}</tr>", join(_cell(record.get(key), key in numeric) for key in keys))


def _cell(value: Any, numeric: bool) -> Html:
    if missing(value):
        return html('<td class="rk-missing{}" data-v="">–</td>', " rk-number" if numeric else "")
    if numeric:
        return html('<td{} data-v="{!r}">{}</td>', NUMERIC, value, number(value))
    if isinstance(value, Html):
        return html("<td>{}</td>", value)
    if isinstance(value, bool):
        return html("<td>{}</td>", "yes" if value else "no")
    if isinstance(value, float):
        value = number(value)
    if isinstance(value, dict | list | tuple):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return html("<td>{}</td>", disclosure(str(value)))


def is_numeric(values: Iterable[Any]) -> bool:
    """Whether all values that are there are numbers, and there are some."""
    present = [value for value in values if not missing(value)]
    return bool(present) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in present
    )


def _fitting(items: Sequence[Html], max_bytes: int) -> int:
    size = 0
    for index, item in enumerate(items):
        size += len(item.encode())
        if size > max_bytes and index:
            return index
    return len(items)


def _left_out(kept: int, total: int, noun: str, elsewhere: str) -> Html:
    if kept == total:
        return Html()
    return html(
        '<p class="rk-note">{:,} of {} are on this page; the others are left out to '
        "keep it small{}.</p>",
        kept,
        counted(total, noun),
        elsewhere,
    )
