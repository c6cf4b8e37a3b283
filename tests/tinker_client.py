"""Other versions of the `tinker` client than the installed one, for slow tests of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import platformdirs

JSON, PROTOBUF = "0.24.1", "0.25.0"
"""The last that speaks JSON (SkyRL 0.3.0), and that of SkyRL 0.4.0."""


def folder_with(version: str) -> Path:
    """A folder to put first on PYTHONPATH; what the client needs is the installed one's.

    Raises:
        subprocess.CalledProcessError: pip cannot fetch it.
    """
    folder = Path(platformdirs.user_cache_dir("rftkit")) / f"tinker-{version}"
    if not (folder / "whole").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        wanted = ["--no-deps", "--target", str(folder), f"tinker=={version}"]
        command = [sys.executable, "-m", "pip", "install", "--quiet", *wanted]
        subprocess.run(command, check=True, capture_output=True)
        (folder / "whole").touch()
    return folder


def path_with(version: str) -> str:
    """`PYTHONPATH` for a process that uses that version."""
    kept = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(folder_with(version)), *([kept] if kept else [])])
