"""Save what a hosted account holds into a folder, read it as frames, open it in the platform.

    import_account   fetch files, jobs, evals, graders, models, and what else has lists (`others`)
    verify           check a dump against its manifest
    open_dump        a dump as pandas frames
    upload           send a dump, or loose files (`source_of`), to the local platform, read-only
    check_all        check whether each imported job and grader runs here, and what to change
    plan_rerun       list what changes if a job runs again on a local model; then `start_rerun`

Saving and reading need the `openai` client, and pandas for the frames; they need no platform and
no torch. `rftkit.importer.dump.LAYOUT` describes the files of a dump. Names load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rftkit.lazy import lazily

if TYPE_CHECKING:
    from rftkit.importer.account import Summary, import_account
    from rftkit.importer.differences import Difference
    from rftkit.importer.dump import verify
    from rftkit.importer.frames import OpenDump, open_dump
    from rftkit.importer.loose import source_of
    from rftkit.importer.migration import Check, check_all
    from rftkit.importer.origins import Origin, origin
    from rftkit.importer.remote import Remote
    from rftkit.importer.rerun import Rerun, plan_rerun, start_rerun
    from rftkit.importer.uploads import UploadSummary, upload

__all__ = [
    "Check",
    "Difference",
    "OpenDump",
    "Origin",
    "Remote",
    "Rerun",
    "Summary",
    "UploadSummary",
    "check_all",
    "import_account",
    "open_dump",
    "origin",
    "plan_rerun",
    "source_of",
    "start_rerun",
    "upload",
    "verify",
]

_HOMES = {
    "account": ("Summary", "import_account"),
    "dump": ("verify",),
    "frames": ("OpenDump", "open_dump"),
    "loose": ("source_of",),
    "differences": ("Difference",),
    "migration": ("Check", "check_all"),
    "origins": ("Origin", "origin"),
    "remote": ("Remote",),
    "rerun": ("Rerun", "plan_rerun", "start_rerun"),
    "uploads": ("UploadSummary", "upload"),
}

__getattr__, __dir__ = lazily(__name__, _HOMES)
