"""Digests of a model folder that rftkit did not write: taken when it is added, compared on load.

A file of up to 64 MB is read whole. Of a larger one its size and 64 blocks of 1 MB are read, spread
evenly, the first and the last among them: a folder of 16 GB costs about 0.3 s, where reading it
would take half a minute. A replaced, cut or retrained file is noticed. Not noticed: a change of a
large file that keeps its size and touches none of these blocks. Folders that rftkit writes have
digests of every byte (`wholefile`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

__all__ = ["BASES", "SUMS", "difference", "fingerprint"]

BASES = "bases.json"
"""In RFTKIT_HOME: name → folder of the base models that were added, read whenever one is looked up.
"""
SUMS = "bases.sums.json"
"""Beside it: name → {folder, files}, the fingerprints that are compared when a model is loaded."""

BLOCK_BYTES, NUM_BLOCKS = 1 << 20, 64
UNREAD = (".md", ".png", ".jpg", ".gitattributes")
"""Ends of names that no library loads: they may change."""
TEMPLATES = "additional_chat_templates"
SHOWN = 3


def fingerprint(folder: Path) -> dict[str, str]:
    """Name and digest of every file that affects what a model computes; links are followed.

    Raises:
        OSError: a file cannot be read.
    """
    files = [path for part in (folder, folder / TEMPLATES) for path in part.glob("*")]
    return {
        path.relative_to(folder).as_posix(): _digest(path)
        for path in sorted(files)
        if path.is_file() and not path.name.startswith(".") and path.suffix not in UNREAD
    }


def difference(folder: Path, known: Mapping[str, str]) -> str | None:
    """How a folder differs from its fingerprint, in words; None when it does not.

    Raises:
        OSError: a file cannot be read.
    """
    found = fingerprint(folder)
    words = [
        *(f"{name} is missing" for name in known if name not in found),
        *(f"{name} is new" for name in found if name not in known),
        *(f"{name} is another" for name in known if found.get(name, known[name]) != known[name]),
    ]
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more or None


def _digest(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= BLOCK_BYTES * NUM_BLOCKS:
            return hashlib.file_digest(file, "sha256").hexdigest()
        return f"{size}:{_digest_of_blocks(file, size)}"


def _digest_of_blocks(file: IO[bytes], size: int) -> str:
    digest = hashlib.sha256()
    for block in range(NUM_BLOCKS):
        file.seek(block * (size - BLOCK_BYTES) // (NUM_BLOCKS - 1))
        digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()
