"""Secrets and personal data are found wherever they stand in a text, however it is escaped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rftkit import datasets
from rftkit.datasets.pii import kinds_in

FOUND = {
    "email": ["jane.doe@example.com"],
    "phone": ["+49 30 1234 5678", "(415) 555-0132"],
    "card": ["4111 1111 1111 1111"],
    "iban": ["DE89 3704 0044 0532 0130 00"],
    "ssn": ["536-22-1234"],
    "ip": ["203.0.113.195", "10.20.30.40", "2001:db8::8a2e:370:7334"],
    "secret": [
        "sk-proj-" + "a1B2" * 10,
        "sk-ant-api03-" + "x" * 40,
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_" + "a" * 36,
        "github_pat_" + "a" * 60,
        "glpat-" + "a" * 20,
        "xoxb-1234567890-abcdef",
        "AIza" + "a" * 35,
        "hf_" + "a" * 34,
        "sk_live_" + "a" * 24,
        "SG." + "a" * 22 + "." + "b" * 43,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abcdefghijkl",
        "-----BEGIN RSA PRIVATE KEY",
        "123456789:AAE" + "aB3dE6fG" * 4,
        "dapi" + "0a1b2c3d" * 4,
        "shpat_" + "0a1b2c3d" * 4,
        "hvs." + "a1B2" * 8,
        'password = "hunter2hunter2"',
        "api_key: 'Zx9-4711-Qw'",
        '"client_secret": "8f14e45fceea167a"',
    ],
}
BEFORE = ["", "\n", "\t", "\r\n", "é", "\u2028", '"', "\\", "\f", "\b", "日本"]


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("kind", FOUND)
def test_after_every_escape(kind: str, before: str, ascii_only: bool, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"x{before}{text}{before}"}], "answer": "a"}
        for text in FOUND[kind]
    ]
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows), encoding="utf-8"
    )
    if not before:
        for row in rows:
            row["messages"] = [{"role": "user", "content": row["messages"][0]["content"][1:]}]  # type: ignore[index]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [each for each in datasets.check(path).findings if each.figures.get("kind") == kind]
    assert [each.count for each in found] == [len(rows)]


@pytest.mark.parametrize(
    "text",
    [
        "password = os.environ['PASSWORD_1']", 'token = "<your token 1>"', "password: required",
        'the key "word1234" is here', 'pwd = "${DB_PASSWORD_2}"', 'secret = "short1"',
        "(version 3.12.4-1)", "call (12) 345", "section 4.2.1.3", "on 127.0.0.1 or 0.0.0.0",
        "mask 255.255.255.0", "at 12:30:45", "v1.20.30.40", "10.20.30.40.50", "std::vector, a::b",
    ],
)  # fmt: skip
def test_placeholders_and_words_are_not_secrets(text: str) -> None:
    assert kinds_in(text.encode()) == set()


@pytest.mark.parametrize(
    ("text", "kind"),
    [("(536-22-1234)", "ssn"), ("(415-555-0132)", "phone"), ("(4111 1111 1111 1111)", "card")],
)
def test_numbers_in_brackets(text: str, kind: str) -> None:
    assert kinds_in(text.encode()) == {kind}


def test_a_line_that_is_no_row_is_looked_at_too() -> None:
    assert kinds_in(b'{"x": "a\\njane@example.com", broken') == {"email"}
    assert kinds_in(b'{"x": "nothing\\nhere 12"}', {"x": "nothing\nhere 12"}) == set()
