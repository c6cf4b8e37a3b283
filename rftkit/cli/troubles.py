"""Errors of the machine and of files as the one line that a command prints; see `rftkit.cli`.

Not here: errors that rftkit raises itself, which have their own words.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
from pathlib import Path

from rftkit import settings
from rftkit.jsontext import NestedTooDeeply
from rftkit.wholefile import has_no_room, is_full

__all__ = ["message_of"]


def message_of(error: Exception) -> str | None:
    """The message for an error of the machine or of a file; None for a bug in rftkit."""
    if isinstance(error, BrokenPipeError):  # the reader of our output is gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    if is_full(error):
        return _full_disk(error)
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return f"too many files are open ({error.strerror}); raise the limit with `ulimit -n 4096`"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    if isinstance(error, RuntimeError) and "Symlink loop" in str(error):
        return f"a link leads to itself ({error})"
    if isinstance(error, RecursionError | NestedTooDeeply):
        return "the input is nested too deeply"
    if isinstance(error, MemoryError):
        return "there is not enough memory for this command"
    if isinstance(error, UnicodeDecodeError):
        return "an input file is not UTF-8; save it as UTF-8"
    return None


def _full_disk(error: Exception) -> str:
    """Which disk is full: an error that comes while a file is written does not name it."""
    places = {"the home folder": settings.home(), "this folder": Path.cwd()}
    with contextlib.suppress(OSError):  # there is no stream to write to
        places["temporary files (TMPDIR)"] = Path(tempfile.gettempdir())
    full = [f"of {name} ({path})" for name, path in places.items() if has_no_room(path)]
    which = " and ".join(full) or f"that holds {getattr(error, 'filename', None) or 'the output'}"
    return f"the disk {which} is full; free some space, then run the command again"
