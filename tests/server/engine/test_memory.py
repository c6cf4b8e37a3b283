"""Memory that tensors leave is kept for the next ones, and can be given back."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import psutil
import torch
from rftkit.server.engine.torch import memory

def held_mb():
    return psutil.Process().memory_info().rss / 2**20

memory.keep()
start = held_mb()
torch.ones(50, 2**20)  # 200 MB, gone at once
print(held_mb() - start)
memory.give_back()
print(held_mb() - start)
memory.keep()
torch.ones(50, 2**20)
print(held_mb() - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory is kept, no other")
def test_memory_is_kept_until_it_is_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120
    )
    kept, given_back, kept_again = map(float, done.stdout.split())
    assert kept == pytest.approx(200, abs=50)
    assert given_back < 50
    assert kept_again == pytest.approx(200, abs=50)
