"""Where the notebooks and the datasets that come with rftkit are. Nothing writes into them.

In a clone they are `notebooks/` and `datasets/` next to this package; in a wheel they are inside it
(`setup.py`).
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Literal

from rftkit.errors import NotFoundError

__all__ = ["bundled_folder"]

MARKERS = {"notebooks": "00_tour.ipynb", "datasets": "tiny_copy"}
"""A file that each contains, because another package called `datasets` may be installed here."""


def bundled_folder(name: Literal["notebooks", "datasets"]) -> Path:
    """The folder of the bundled notebooks or datasets.

    Raises:
        NotFoundError: rftkit was installed without it.
    """
    package = Path(str(resources.files("rftkit")))
    for folder in (package / f"_{name}", package.parent / name):
        if (folder / MARKERS[name]).exists():
            return folder
    raise NotFoundError(
        f"the {name} that come with rftkit are neither in {package} nor next to it; "
        "install it again: pip install --force-reinstall --no-deps rftkit"
    )
