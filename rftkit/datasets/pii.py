"""Strings that look personal or secret: flagged with their rows, never deleted.

Patterns find what has a fixed form (addresses, numbers with check digits, keys of known services).
They do not find names, streets or stories about people, and some of what they find is invented.
"""

from __future__ import annotations

import re

__all__ = ["KINDS", "kinds_in"]

_EMAIL = re.compile(rb"[\w.+-]{1,64}@(?:[\w-]{1,63}\.)+[A-Za-z]{2,}")
_SECRET_STARTS = (b"sk-", b"AKIA", b"gh", b"-----BEGIN")
_SECRET = re.compile(
    rb"\bsk-[\w-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}"
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY"
)
_IBAN = re.compile(rb"\b[A-Z]{2}\d\d(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_DIGITS = re.compile(rb"(?<![\w.,-])\+?\(?\d(?:[ ().-]{0,2}\d){7,18}(?![\w-])")
_SSN = re.compile(rb"^(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}$")
_PHONE = re.compile(
    rb"^(?:\+\d[\d ().-]{6,16}\d|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})$"
)

KINDS = {
    "email": "e-mail addresses",
    "phone": "phone numbers",
    "card": "card numbers",
    "iban": "bank accounts",
    "ssn": "US social security numbers",
    "secret": "secret keys",
}
"""Kind -> how a message calls it."""


def kinds_in(line: bytes) -> set[str]:
    """The kinds of personal or secret strings that stand in a raw line."""
    found = set()
    if b"@" in line and _EMAIL.search(line):
        found.add("email")
    if any(start in line for start in _SECRET_STARTS) and _SECRET.search(line):
        found.add("secret")
    if any(_is_iban(match[0]) for match in _IBAN.finditer(line)):
        found.add("iban")
    for match in _DIGITS.finditer(line):
        if kind := _kind_of_digits(match[0]):
            found.add(kind)
    return found


def _kind_of_digits(text: bytes) -> str | None:
    if _SSN.match(text):
        return "ssn"
    if _PHONE.match(text):
        return "phone"
    digits = [byte - 48 for byte in text if 48 <= byte <= 57]
    return (
        "card" if 13 <= len(digits) <= 19 and digits[0] in (3, 4, 5, 6) and _luhn(digits) else None
    )


def _luhn(digits: list[int]) -> bool:
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(digits[-1::-2])) % 10 == 0


def _is_iban(text: bytes) -> bool:
    plain = text.replace(b" ", b"").decode("ascii")
    number = "".join(str(int(letter, 36)) for letter in plain[4:] + plain[:4])
    return 15 <= len(plain) <= 34 and int(number) % 97 == 1
