"""Text of others: harmless on a terminal, in a spreadsheet, in a message."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rftkit.safetext import Printable, cell, cells, json_printable, printable, redacted

HOSTILE = "a\x1b]0;title\x07\x1b[2J\x9b31mb\rc\x7f\u202ed\u2066e\x00\u2028"


def is_harmless(text: str) -> bool:
    return all(each in "\n\t" or each.isprintable() for each in text)


def test_control_characters_are_spelled_out() -> None:
    assert printable("plain\ttext\n– ü 漢字 😀") == "plain\ttext\n– ü 漢字 😀"
    assert printable("\x1b[2J\x9b\u202e") == "\\x1b[2J\\x9b\\u202e"
    assert is_harmless(printable(HOSTILE))


@given(st.text())
def test_json_reads_as_the_same_value(text: str) -> None:
    shown = json_printable(json.dumps({"x": text}, ensure_ascii=False))
    assert json.loads(shown) == {"x": text}
    assert not any(ord(each) < 32 or 126 < ord(each) < 160 for each in shown)


def test_a_stream_writes_what_is_printable() -> None:
    below = io.StringIO()
    stream = Printable(below)
    print(HOSTILE, file=stream)  # type: ignore[call-overload]
    stream.control("\r")
    assert below.getvalue() == printable(HOSTILE) + "\n\r"


def test_every_command_prints_through_it(home: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    row = {"messages": [{"role": "user", "content": HOSTILE}], HOSTILE: HOSTILE}
    rows.write_text(json.dumps(row) + "\n" + "\x1b[31m not JSON\n")
    folder = tmp_path / HOSTILE.replace("\x00", "")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    program = "from rftkit.cli.app import main; main()"
    for words in (
        ["check", str(rows), "--quick"],
        ["dataset", "profile", str(rows)],
        ["models", "add", str(folder)],
        ["models", "add", str(folder), "--json"],
        ["models", "remove", HOSTILE.replace("\x00", "")],
        ["grade", str(tmp_path / "none\x1b[2J"), str(rows)],
        ["check\x1b[2J"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *words], capture_output=True, check=False, cwd=tmp_path
        )
        said = (done.stdout + done.stderr).decode()
        assert said
        assert is_harmless(said), words
        assert "Traceback" not in said


def test_secrets_are_hidden_in_every_form() -> None:
    key = 'sk-"1/2-3456'
    for text in (key, repr(key), json.dumps(key), f"Bearer {key}", "sk-%221%2F2-3456"):
        assert "3456" not in redacted(f"said {text}", [f"Bearer {key}\n"])
    assert redacted("plain bearer", ["Bearer abcdef", None, ""]) == "plain bearer"


@pytest.mark.parametrize(
    ("secret", "echoed"),
    [
        ("Basic dXNlcjpodW50ZXIyYQ==", "user:hunter2a"), ("Basic dXNlcjpodW50ZXIyYQ==", "hunter2a"),
        ("session=aB3dE6fG9; theme=dark", "no session aB3dE6fG9"),
        ("a<b>c&d12", "a&lt;b&gt;c&amp;d12"), ("key:aB3dE6fG9", "aB3dE6fG9"),
    ],
)  # fmt: skip
def test_parts_of_a_secret_are_hidden(secret: str, echoed: str) -> None:
    assert echoed.split()[-1] not in redacted(f"refused: {echoed}", [secret])
    assert redacted("a dark theme of the user", [secret]) == "a dark theme of the user"


@pytest.mark.parametrize(
    "change",
    [
        str.lower, str.upper, lambda key: quote(key, safe="").lower(),
        lambda key: base64.b64encode(key.encode()).decode(),
        lambda key: json.dumps(json.dumps(key)),
    ],
)  # fmt: skip
def test_what_a_remote_makes_of_a_secret_is_hidden(change: Callable[[str], str]) -> None:
    key = 'sk-proj-aB3+/x=9"Z\\q'
    found = redacted(f"refused: {change(key)}", [f"Bearer {key}"])
    assert found.strip('\\"') in ("refused: ********", 'refused: "\\"********')


def test_no_command_repeats_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A service that answers with its request, and a key of a service that is not named here."""
    program = "import sys; from rftkit.cli.app import _fail; _fail(sys.argv[1], 1)"
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY", "MY_SERVICE_SECRET"):
        monkeypatch.setenv(name, "aB3dE6fG9hJ")
        done = subprocess.run(
            [sys.executable, "-c", program, "wrong key aB3dE6fG9hJ"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stderr == "rftkit: wrong key ********\n"
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "text",
    [
        "=1+1", "+A1", "@SUM(A1)", "-cmd|' /C calc'!A0", "  =1", "\t=1", "\n=1", "\u00a0=1",
        "\ufeff=1", "\uff1d1+1", "\uff20SUM(A1)", "-1+1", "+49 123 =1",
    ],
)  # fmt: skip
def test_formulas_become_text(text: str) -> None:
    assert cell(text) == f"'{text}"
    frame = pd.DataFrame({text: [text, "plain"], "number": [-1.5, 2]})
    assert cells(frame).to_dict("list") == {f"'{text}": [f"'{text}", "plain"], "number": [-1.5, 2]}


@pytest.mark.parametrize("value", ["-1.5", "+3", "a=b", "", 1, None, -2.0])
def test_other_cells_stay(value: object) -> None:
    assert cell(value) == value


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: sk-proj-aB3+….", "provided: sk-proj-********************As6D.",
        "key=sk-p...s6D", "a key that ends in ****As6D", "…As6D", "Bearer sk-proj-aB3+x9...",
    ],
)  # fmt: skip
def test_a_key_that_a_remote_has_shortened_itself_is_hidden(text: str) -> None:
    shown = redacted(text, ["Bearer sk-proj-aB3+x9Yz7Qw1Er2Ty3Ui4Op5As6D"])
    assert "aB3+" not in shown
    assert "sk-p" not in shown
    assert "As6D" not in shown


def test_other_shortened_words_stay() -> None:
    for text in ("well... sk-learn... is fine", "sk-proj-zzzz… is another", "so…As6Different"):
        assert redacted(text, ["sk-proj-aB3+x9Yz7Qw1Er2Ty3Ui4Op5As6D"]) == text
