"""Which models a Tinker server trains for this home, and what the protocol cannot do. Pure.

The operator names one with `rftkit serve --engine tinker --tinker-url URL --tinker-model NAME`; it
is kept in `tinker.json` of the home, so that a server started later continues its jobs. Imports
neither torch nor tinker, because the server process refuses jobs with it. Not here: calls
(`engine.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rftkit.errors import PlatformError, RequestError
from rftkit.wholefile import write_whole

__all__ = [
    "LOSS_NAMES",
    "STATE",
    "Remote",
    "differences",
    "forget_remote",
    "keep_remote",
    "kind_of",
    "kind_of_folder",
    "refuse",
    "remote_of",
]

FILE = "tinker.json"
"""The file in a home that names the server and the model."""
STATE = "tinker.json"
"""The file in the folder of a saved policy: `state` is the path of weights and optimizer on the
server, `sampler` that of weights to sample from."""
ALPHA = 32.0
"""The scale of adapters on Tinker servers; the protocol has no field for it."""
LOSS_NAMES = {"clipped": "ppo", "importance_sampling": "importance_sampling"}
"""Our names of losses, and the protocol's."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A model of a Tinker server."""

    url: str
    model: str
    """Its name on the server; for SkyRL the folder that the server was started with."""
    tokenizer: str
    """A folder of this machine, or a hub name in its cache, with tokenizer and config.json."""
    is_default: bool = True
    """Whether jobs on this model train there unless metadata `engine` is torch."""

    @property
    def name(self) -> str:
        """The name of the model here: its name on the server, or the last part of a folder."""
        return Path(self.model).name if self.model.startswith(("/", ".")) else self.model


def keep_remote(home: Path, remote: Remote) -> None:
    """Make it the Tinker model of a home."""
    write_whole(home / FILE, json.dumps(asdict(remote)))


def forget_remote(home: Path) -> None:
    """Train on this machine again; models on the Tinker server stay listed."""
    remote = remote_of(home)
    if remote is not None:
        keep_remote(home, Remote(remote.url, remote.model, remote.tokenizer, is_default=False))


def remote_of(home: Path) -> Remote | None:
    """The Tinker model of a home, if the operator named one.

    Raises:
        PlatformError: when the file cannot be read.
    """
    path = home / FILE
    if not path.is_file():
        return None
    try:
        return Remote(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise PlatformError(
            f"{path} cannot be read ({error}); write it again with rftkit serve --engine tinker "
            "--tinker-url URL --tinker-model NAME"
        ) from error


def kind_of(base: str, home: Path | None, wanted: str | None) -> str:
    """The engine that a base model runs on: one of `hyperparameters.ENGINES`.

    Args:
        base: its name.
        home: of the platform.
        wanted: the engine that a job or a saved model needs; None follows the operator.

    Raises:
        RequestError: `wanted` is tinker and the operator named no such model.
    """
    there = None if home is None else remote_of(home)
    is_there = there is not None and there.name == base
    if wanted == "tinker" and not is_there:
        raise RequestError(
            f"no Tinker server serves {base!r} here; start the platform with: rftkit serve "
            "--engine tinker --tinker-url URL --tinker-model NAME",
            param="metadata.engine",
        )
    by_choice = there is not None and is_there and there.is_default
    return wanted or ("tinker" if by_choice else "torch")


def kind_of_folder(folder: Path) -> str | None:
    """The engine that a saved policy needs; None when both engines can load it."""
    if not (folder / STATE).is_file():
        return "torch"
    return None if (folder / "adapter_config.json").is_file() else "tinker"


def refuse(metadata: Mapping[str, str]) -> None:
    """Refuse a job with settings that the protocol does not have.

    Args:
        metadata: of the job.

    Raises:
        RequestError: naming the setting, why not, and what to do.
    """
    checks: dict[str, tuple[Any, str]] = {
        "kl_coef": (lambda v: float(v) == 0.0, "its losses have no KL term; leave it 0"),
        "lora_alpha": (lambda v: float(v) == ALPHA, f"its adapters are scaled by {ALPHA:g}"),
        "tuning": (lambda v: v == "lora", "its policies are adapters; leave it lora"),
        "guidance": (lambda v: v == "none", "it has no update with completions it did not sample"),
        "loss": (lambda v: v in LOSS_NAMES, f"it has {' and '.join(LOSS_NAMES)}"),
    }
    for name, (is_allowed, why) in checks.items():
        value = metadata.get(name)
        try:
            allowed = value is None or is_allowed(value)
        except ValueError:
            continue  # not a number: refused as such by the plan
        if not allowed:
            raise RequestError(
                f"metadata `{name}` is {value!r}, which the Tinker protocol cannot do: {why}, or "
                "train on this machine with metadata `engine` = torch",
                param=f"metadata.{name}",
            )


def differences(has_schema: bool, thinks: bool) -> list[str]:
    """Return what differs from training on this machine, as sentences for the job's events."""
    notes = [
        "Sampling and updates run on the server: the same seed gives the same numbers only as far "
        "as the server keeps to it, and what bounds the gradient's norm is the server's."
    ]
    if has_schema:
        notes.append(
            "The Tinker protocol does not constrain decoding: answers that are not what "
            "response_format asks for are unscorable, get the floor reward and are counted in the "
            "metrics."
        )
    if thinks:
        notes.append(
            "The Tinker protocol has no budget for reasoning: an answer whose reasoning takes all "
            "of max_completion_tokens is cut."
        )
    return notes
