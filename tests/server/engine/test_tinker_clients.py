"""The tests of the Tinker engine with older versions of the client; they take minutes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tinker_client import JSON, PROTOBUF, path_with


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", [JSON, PROTOBUF])
def test_the_contract_holds_with_older_clients(version: str) -> None:
    try:
        path = path_with(version)
    except subprocess.CalledProcessError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"tinker {version} cannot be fetched: {error.stderr!r}")
    root = Path(__file__).parents[3]
    tests = [str(Path(__file__).with_name("test_tinker.py")), "-n", "0", "-q"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--rootdir", str(root), *tests],
        cwd=root, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
