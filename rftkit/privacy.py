"""Keep the home folder for its owner alone: modes of files, and the key of a shared machine.

The home holds keys of endpoint graders, uploaded data and logs. On a machine with several users it
must be closed to the others, whatever umask the shell has. Not here: who may ask the server (its
gate), and folders that the user names, which keep the user's own umask.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = [
    "UMASK",
    "has_other_users",
    "kept_api_key",
    "make_api_key",
    "make_home",
    "private_file",
    "tighten",
]

UMASK = 0o077
"""The umask of every process of the platform: only the owner can read what it writes."""
KEY_FILE = "api-key"
"""The file in the home with the key that `rftkit lab` made on a machine with several users."""
OWN_NAMES = (
    "platform.sqlite*", "server.*", "start.lock", "worker.*", "bases.*", "engine.json",
    "judge-cache.jsonl", KEY_FILE, "cache", "dumps", "evals", "exports", "files", "jobs", "logs",
    "models", "trash",
)  # fmt: skip
"""Names of the files and folders that rftkit puts into a home."""


def make_home(home: Path) -> Path:
    """Make the home folder, or close an old one to other users; return it.

    Raises:
        OSError: it cannot be made.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_shared(home):
        with contextlib.suppress(OSError):  # another user's file, or a file system without modes
            _close(home)
    return home


def tighten(home: Path) -> str | None:
    """Close an old home and all that is in it; returns what could not be closed, as a sentence."""
    make_home(home)
    shared = _is_shared(home)
    for path in _own_files(home) if shared else _everything(home):
        with contextlib.suppress(OSError):
            _close(path)
    if shared:
        return (
            f"the home folder {home} holds more than rftkit's files, so it stays open to other "
            "users of this machine; set RFTKIT_HOME to a folder of its own"
        )
    if os.name == "posix" and home.stat().st_mode & UMASK:
        mode = stat.S_IMODE(home.stat().st_mode)
        return (
            f"the home folder {home} is open to other users of this machine (mode {mode:o}) and "
            "its mode could not be changed; set RFTKIT_HOME to a folder that you own"
        )
    return None


def private_file(path: Path) -> int:
    """A descriptor of an empty file that only its owner can read."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # replace it: another process may have the old file open
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


def kept_api_key(home: Path) -> str | None:
    """The key that `make_api_key` left in this home."""
    try:
        return (home / KEY_FILE).read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def make_api_key(home: Path) -> str:
    """The home's own API key, made when there is none."""
    if (known := kept_api_key(make_home(home))) is not None:
        return known
    key = f"rk-{secrets.token_urlsafe(24)}"
    with os.fdopen(private_file(home / KEY_FILE), "w") as file:
        file.write(key + "\n")
    return key


def has_other_users() -> bool:
    """Whether other people can log in on this machine.

    Accounts with a login shell and a user id of a person count; root does not. If our own account
    is not in the local list, it comes from a directory service, which has other accounts too.
    """
    if sys.platform == "win32":
        return False
    import pwd

    own = os.getuid()
    accounts = pwd.getpwall()
    if own not in {account.pw_uid for account in accounts}:
        return own != 0
    return any(
        1000 <= account.pw_uid < 60_000
        and account.pw_uid != own
        and not account.pw_shell.endswith(("nologin", "false", "sync"))
        for account in accounts
    )


def _is_shared(folder: Path) -> bool:
    """Whether the folder is meant to hold more than rftkit's files: /tmp, /, ~."""
    place = folder.resolve()
    return bool(folder.stat().st_mode & stat.S_ISVTX) or place in (
        Path(place.anchor),
        Path.home().resolve(),
    )


def _own_files(home: Path) -> Iterator[Path]:
    for pattern in OWN_NAMES:
        for path in home.glob(pattern):
            yield path
            if path.is_dir() and not path.is_symlink():
                yield from _everything(path)


def _everything(folder: Path) -> Iterable[Path]:
    for place, folders, files in os.walk(folder):
        yield from (Path(place, name) for name in (*folders, *files))


def _close(path: Path) -> None:
    """Remove all rights of the group and others; links are left alone."""
    mode = path.lstat().st_mode
    if os.name == "posix" and mode & UMASK and not stat.S_ISLNK(mode):
        path.chmod(stat.S_IMODE(mode) & ~UMASK)
