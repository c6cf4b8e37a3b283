"""Strings that look personal or secret: reported with their rows, never deleted.

Patterns find strings of a fixed form: addresses, numbers with check digits, keys of known services.
They do not find names, streets or stories about people, and some of what they find is made up.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Any

__all__ = ["KINDS", "kinds_in"]

_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{4}|.)", re.DOTALL)
_EMAIL = re.compile(rb"[\w.+-]{1,64}@(?:[\w-]{1,63}\.)+[A-Za-z]{2,}")
_SECRET_STARTS = (
    b"sk-", b"sk_", b"rk_", b"AKIA", b"ASIA", b"gh", b"github_pat_", b"glpat-", b"xox", b"xapp-",
    b"AIza", b"ya29.", b"hf_", b"npm_", b"pypi-", b"SG.", b"eyJ", b"dop_v1_", b"AccountKey=",
    b"-----BEGIN", b"gsk_", b"xai-", b"r8_", b"nvapi-", b"lin_api_", b"whsec_", b":AA", b"dapi",
    b"shp", b"hvs.", b"dckr_pat_", b"glsa_", b"figd_", b"sbp_", b"pplx-", b"ntn_", b"ATATT3",
)  # fmt: skip
_SECRET = re.compile(
    rb"\bsk-[\w-]{20,}|\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}|\bwhsec_[A-Za-z0-9+/]{24,}"
    rb"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_\w{40,}"
    rb"|\bglpat-[\w-]{20,}|\bxox[abeoprs]-[\w-]{10,}|\bxapp-\d-[\w-]{10,}|\bAIza[\w-]{35}"
    rb"|\bya29\.[\w-]{20,}|\bhf_[A-Za-z0-9]{30,}|\bnpm_[A-Za-z0-9]{36}|\bpypi-AgE[\w-]{50,}"
    rb"|\bSG\.[\w-]{16,}\.[\w-]{16,}|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
    rb"|\bdop_v1_[a-f0-9]{64}|AccountKey=[A-Za-z0-9+/=]{60,}|\bgsk_[A-Za-z0-9]{40,}"
    rb"|\bxai-[A-Za-z0-9]{40,}|\br8_[A-Za-z0-9]{30,}|\bnvapi-[\w-]{40,}|\blin_api_[A-Za-z0-9]{30,}"
    rb"|\b\d{8,10}:AA[\w-]{32,}|\bdapi[a-f0-9]{32}|\bshp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}"
    rb"|\bhvs\.[\w-]{24,}|\bdckr_pat_[\w-]{20,}|\bglsa_\w{32,}|\bfigd_[\w-]{30,}"
    rb"|\bsbp_[a-f0-9]{40}|\bpplx-[A-Za-z0-9]{40,}|\bntn_[A-Za-z0-9]{40,}|\bATATT3[\w=-]{40,}"
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY"
)
_NAMES = (b"assw", b"ASSW", b"pwd", b"PWD", b"ecret", b"ECRET", b"oken", b"OKEN", b"ey", b"EY")
_ASSIGNED = re.compile(
    rb"(?i:password|passwd|pwd|secret|api[_-]?key|access[_-]?key|token)[\"']?\s{0,3}[:=]\s{0,3}"
    rb"[\"'](?=[^\s\"']*\d)[^\s\"'{}<>$]{8,}[\"']"
)
"""A quoted word with a digit that is given to such a name in code or settings."""
_IBAN = re.compile(rb"\b[A-Z]{2}\d\d(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_DIGITS = re.compile(rb"(?<![\w.,-])\+?\(?\d(?:[ ().-]{0,2}\d){7,18}(?![\w-])")
_SSN = re.compile(rb"^(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}$")
_PHONE = re.compile(
    rb"^(?:\+\d[\d ().-]{6,16}\d|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})$"
)
_IPV4 = re.compile(rb"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(rb"(?<![\w:.])(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{1,4}(?![\w:])")

KINDS = {
    "email": "e-mail addresses",
    "phone": "phone numbers",
    "card": "card numbers",
    "iban": "bank accounts",
    "ssn": "US social security numbers",
    "ip": "IP addresses",
    "secret": "secret keys",
}
"""Kind -> its name in a message."""


def kinds_in(line: bytes, value: Any = None) -> set[str]:
    r"""Return the kinds of personal or secret strings in a line.

    Args:
        line: the raw line of the file.
        value: the decoded line. In raw JSON, the letter of an escape such as `\n` touches the
            next word and hides its start, so lines with escapes are searched in decoded form.
    """
    if b"\\" in line:
        line = (
            _ESCAPE.sub(b" ", line)
            if value is None
            else "\n".join(_texts(value)).encode("utf-8", "replace")
        )
    found = set()
    if b"@" in line and _EMAIL.search(line):
        found.add("email")
    if (any(start in line for start in _SECRET_STARTS) and _SECRET.search(line)) or (
        any(name in line for name in _NAMES) and _ASSIGNED.search(line)
    ):
        found.add("secret")
    if any(_is_iban(match[0]) for match in _IBAN.finditer(line)):
        found.add("iban")
    if any(_is_ip(match[0]) for form in (_IPV4, _IPV6) for match in form.finditer(line)):
        found.add("ip")
    for match in _DIGITS.finditer(line):
        if kind := _kind_of_digits(match[0]):
            found.add(kind)
    return found


def _texts(value: Any) -> Iterator[str]:
    """Yield every text, key and number inside a value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    else:
        yield str(value)


def _kind_of_digits(text: bytes) -> str | None:
    if b")" not in text:  # the bracket that opens a remark
        text = text.removeprefix(b"(")
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


def _is_ip(text: bytes) -> bool:
    """Whether it is somebody's address: no loopback, mask, section (4.2.1.3) or name (a::b)."""
    try:
        address = ipaddress.ip_address(text.decode("ascii"))
    except ValueError:
        return False
    if address.version == 4 and max(address.packed) < 10:
        return False
    if address.version == 6 and len(list(filter(None, text.split(b":")))) < 3:
        return False
    is_nobodys = address.is_loopback or address.is_unspecified or address.is_multicast
    return not (is_nobodys or (address.version == 4 and address.is_reserved))
