"""The official Node client, from npm, drives the platform through a whole job."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import openai
import pytest

SCRIPT = Path(__file__).parents[2] / "node_client.mjs"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_node_client_notices_nothing(platform: openai.OpenAI, tmp_path: Path) -> None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("needs node and npm")
    shutil.copy(SCRIPT, tmp_path)
    install = [npm, "install", "--silent", "--no-audit", "--no-fund", "openai@7"]
    made = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"npm could not fetch the client: {made.stderr.strip()[-200:]}")
    said = subprocess.run(
        [node, SCRIPT.name],
        cwd=tmp_path,
        env={**os.environ, "OPENAI_BASE_URL": str(platform.base_url), "OPENAI_API_KEY": "local",
             "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=600,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    done = ["files", "jobs", "graders", "evals", "chat", "responses", "models"]
    assert said.stdout.split() == done
