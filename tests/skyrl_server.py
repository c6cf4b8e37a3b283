"""A real Tinker server: SkyRL with its JAX backend on the CPU, for the slow test and the benchmark.

It lives in a virtual environment of its own, made once with `uv` in a cache folder, and takes torch
from this one (it only reads weights with it; a second copy may be several GB of CUDA). Not here:
SkyRL's other backends, which need GPUs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import platformdirs

VERSION = "0.3.0"
CONFIG = {
    "max_lora_adapters": 3, "max_lora_rank": 16, "tensor_parallel_size": 1,
    # Batches of one size: every other size is compiled anew, for half a minute.
    "sample_max_num_sequences": 16, "train_micro_batch_size": 4,
}  # fmt: skip
STARTING_SECONDS = 180


class NotInstalledError(Exception):
    """SkyRL cannot be installed here."""


def installed() -> Path:
    """The environment that has SkyRL, made when it is not there.

    Raises:
        NotInstalledError: with what pip or uv said.
    """
    name = f"skyrl-{VERSION}-py{sys.version_info[0]}.{sys.version_info[1]}"
    folder = Path(platformdirs.user_cache_dir("rftkit")) / name
    if not (folder / "whole").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        without = folder / "overrides.txt"
        without.write_text("torch ; sys_platform == 'never'\n")
        wanted = [f"skyrl[tinker,jax]=={VERSION}", "tinker<=0.24.1"]
        _call(sys.executable, "-m", "venv", str(folder))
        _call(str(folder / "bin" / "pip"), "install", "uv")
        _call(str(folder / "bin" / "uv"), "pip", "install", "--python", str(folder), *wanted,
              "--overrides", str(without))  # fmt: skip
        [packages] = folder.glob("lib/*/site-packages")
        (packages / "zz_rftkit.pth").write_text(_paths())
        (folder / "whole").touch()
    return folder


def _paths() -> str:
    """Lines of a .pth file: a fix of Python 3.11 that SkyRL needs, and where torch is."""
    import torch

    fix = "import typing, typing_extensions; typing.TypedDict = typing_extensions.TypedDict\n"
    line = fix if sys.version_info < (3, 12) else ""
    return f"{line}{Path(torch.__file__).parent.parent}\n"


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotInstalledError(f"{' '.join(command)}:\n{done.stderr[-2000:]}")


def in_float32(model: Path, folder: Path) -> Path:
    """The same model, to be computed in float32: faster on a CPU, and the optimizer is exact."""
    folder.mkdir(parents=True)
    for file in model.iterdir():
        (folder / file.name).symlink_to(file.resolve())
    config = json.loads((model / "config.json").read_bytes()) | {"dtype": "float32"}
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@contextlib.contextmanager
def serving(model: Path, state: Path, port: int) -> Iterator[str]:
    """Serve a model folder; the address. What it says is in `state`/log."""
    environment = installed()
    state.mkdir(parents=True, exist_ok=True)
    # SkyRL insists on being started by `uv run`.
    command = ["uv", "run", "--no-project", "--active", "-m", "skyrl.tinker.api", "--base-model",
               str(model), "--backend", "jax", "--backend-config", json.dumps(CONFIG), "--host",
               "127.0.0.1", "--port", str(port), "--database-url", f"sqlite:///{state}/db.sqlite",
               "--checkpoints-base", str(state / "checkpoints")]  # fmt: skip
    surroundings = os.environ | {
        "VIRTUAL_ENV": str(environment),
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(environment / "compiled"),
        "HF_HUB_OFFLINE": "1",
    }
    with (state / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env=surroundings, cwd=state, stdout=log, stderr=log, start_new_session=True
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(address, process, state / "log")
            yield address
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTING_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{address}/api/v1/healthz", timeout=5).close()
            return
        time.sleep(0.5)
    raise RuntimeError(f"SkyRL did not start:\n{log.read_text()[-3000:]}")
