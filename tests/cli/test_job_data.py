"""`rftkit job create` takes its data as other commands do: a folder, a bundled name, or a file."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from rftkit.cli.app import app


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiny_copy", "--dataset", "security_review"], "not both"),
        ([], "name the data"),
        (["nosuch"], "nosuch"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], said: str) -> None:
    found = CliRunner().invoke(app, ["job", "create", "-m", "rftkit-tiny", *arguments])

    assert found.exit_code != 0
    assert said in f"{found.output} {found.exception}"
