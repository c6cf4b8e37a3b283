"""Save what a hosted account holds into a folder, check that folder, and read it as frames.

    import_account   fetch everything: files, jobs, evals, graders; resumes, fetches what is new
    verify           check a dump against its manifest
    open_dump        a dump as pandas frames

Needs the `openai` client (and pandas for the frames); no platform, no torch, no store. What lies
where in a dump: `rftkit.importer.dump.LAYOUT`. Names load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rftkit.importer.account import Summary, import_account
    from rftkit.importer.dump import verify
    from rftkit.importer.frames import OpenDump, open_dump
    from rftkit.importer.origins import Origin, origin
    from rftkit.importer.remote import Remote

__all__ = [
    "OpenDump",
    "Origin",
    "Remote",
    "Summary",
    "import_account",
    "open_dump",
    "origin",
    "verify",
]

_HOMES = {
    "OpenDump": "frames",
    "Remote": "remote",
    "Origin": "origins",
    "Summary": "account",
    "import_account": "account",
    "open_dump": "frames",
    "origin": "origins",
    "verify": "dump",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
