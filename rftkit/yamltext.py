"""YAML that a user or another tool wrote, read as plain values: no tag makes an object.

It refuses a key that appears twice in a mapping (readers silently keep only the last one), and
aliases that expand a few lines to more values than memory holds. Not here:
JSON (`strictjson`), and what the values mean.
"""

from __future__ import annotations

import functools
from typing import Any

__all__ = ["parse_yaml"]

MAX_VALUES = 200_000
"""Values of a document, aliases written out."""
MAX_LEVELS = 50


def parse_yaml(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        ValueError: it is not YAML of plain values, has a key twice, or is too large.
    """
    import yaml

    try:
        found = yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        raise ValueError(f"it is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_size(found)
    return found


@functools.cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain values, and no key twice."""

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen = set()
            for key, _ in node.value:
                name = (key.tag, str(key.value))
                if name in seen:
                    raise ValueError(
                        f"line {key.start_mark.line + 1}: the key {key.value!r} appears twice in "
                        "one mapping; remove one of them"
                    )
                seen.add(name)
            return node

    return Loader


def _check_size(value: Any) -> None:
    count, stack = 0, [(value, 0)]
    while stack:
        each, depth = stack.pop()
        count += 1
        if count > MAX_VALUES or depth > MAX_LEVELS:
            raise ValueError("it holds more values, or deeper ones, than such a file can need")
        inner = [*each, *each.values()] if isinstance(each, dict) else each
        if isinstance(inner, list):
            stack += [(part, depth + 1) for part in inner]
