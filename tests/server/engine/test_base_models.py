"""Converted base models: made once, seen to be whole, made again when they are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rftkit.server.engine import models
from rftkit.wholefile import damage

TINY = models.BUNDLED["rftkit-tiny"]


def test_damaged_weights_are_made_again_and_half_made_ones_are_deleted(
    home: Path, made_models: Path
) -> None:
    shutil.copytree(made_models, home / "models")
    half_made = home / "models" / ".making-killed"
    half_made.mkdir()
    said: list[str] = []
    folder = models.prepare(TINY, home, said.append)
    assert said == []
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert models.prepare(TINY, home, said.append) == folder
    assert "model.safetensors does not have the bytes that were written" in said[0]
    assert said[1:] == ["Converting rftkit-tiny (once)"]
    assert weights.read_bytes() == whole
    assert damage(folder) is None
    assert not half_made.exists()


@pytest.mark.parametrize("left", [(), ("chat_template.jinja", "model.safetensors")])
def test_converted_weights_of_which_files_are_lost_are_made_again(
    home: Path, made_models: Path, left: tuple[str, ...]
) -> None:
    shutil.copytree(made_models, home / "models")
    [folder] = (home / "models").glob("rftkit-tiny-*")
    for path in folder.iterdir():
        if path.name not in left:
            path.unlink()
    assert models.prepare(TINY, home) == folder
    assert (folder / "config.json").is_file()


def test_weights_of_an_older_version_have_no_sums_and_are_used(
    home: Path, made_models: Path
) -> None:
    shutil.copytree(made_models, home / "models")
    [sums] = (home / "models").glob("rftkit-tiny-*/sha256.json")
    sums.unlink()
    said: list[str] = []
    models.prepare(TINY, home, said.append)
    assert said == []
