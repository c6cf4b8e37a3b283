"""The tool servers that come with rftkit: `tools.py` of a bundled dataset, which nobody starts.

An entry of a job names one as `rftkit://<dataset>`. Whoever calls it starts it in its own process,
on loopback, with a token of its own; from then on it is a tool server like any other.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rftkit.bundled import bundled_folder
from rftkit.errors import NotFoundError

__all__ = ["SCHEME", "bundled_functions", "bundled_names"]

SCHEME = "rftkit://"


def bundled_names() -> list[str]:
    """The datasets that have tools."""
    try:
        folder = bundled_folder("datasets")
    except NotFoundError:
        return []
    return sorted(path.parent.name for path in folder.glob("*/tools.py"))


@functools.cache
def bundled_functions(name: str) -> tuple[Sequence[Callable[..., Any]], Callable[..., Any] | None]:
    """The functions of a dataset's tools, and what makes the state of a rollout.

    Raises:
        NotFoundError: there is no such dataset.
    """
    if name not in bundled_names():
        raise NotFoundError(f"no dataset {name!r} with tools comes with rftkit")
    path = bundled_folder("datasets") / name / "tools.py"
    spec = importlib.util.spec_from_file_location(f"rftkit_tools_of_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # annotations are looked up there
    spec.loader.exec_module(module)
    return module.TOOLS, getattr(module, "STATE", None)
