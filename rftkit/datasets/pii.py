"""Strings that look personal or secret: reported with their rows, never deleted.

Patterns find strings of a fixed form: addresses, numbers with check digits, keys of known services
(`keyshapes`). They do not find names, streets or stories about people, and some of what they find
is made up.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Any

from rftkit.datasets.keyshapes import has_secret

__all__ = ["KINDS", "kinds_in"]

_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_DEEPEST = 3
"""So many times a text may be escaped: JSON in a text of JSON in a row."""
_PLAIN = {
    **dict.fromkeys((0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000), " "),
    **dict.fromkeys((*range(0x2010, 0x2016), 0x2212, 0xFF0D), "-"),
    **dict.fromkeys((0xAD, *range(0x200B, 0x2010), 0x2060, 0xFEFF)),
    **{0xFF10 + digit: str(digit) for digit in range(10)},
    0xFF20: "@",
    0xFF0B: "+",
}
"""Typographic blanks, dashes and digits -> those on a keyboard; invisible characters are removed.
"""
_EMAIL = re.compile(rb"[\w.+\x80-\xff-]{1,64}@(?:[\w\x80-\xff-]{1,63}\.)+[A-Za-z\x80-\xff]{2,}")
_IBAN = re.compile(rb"\b(?=([A-Za-z]{2}\d\d(?:[ -]?[A-Za-z0-9]){11,30}))")
_IBAN_LENGTHS = {
    code: length
    for length, codes in {
        15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK",
        21: "CH CR HR LI LV", 22: "BG BH DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL",
        24: "AD CZ DZ ES MD PK RO SA SE SK TN TR VG", 25: "AO CV GW LY MZ PT ST",
        26: "IR IS", 27: "BF BI CF CG CM DJ FR GA GF GP GR IT MC MG MQ NC PF PM RE SM TF WF YT",
        28: "AL AZ BJ BY CI CY DO GT HN HU LB MA ML NE NI PL SN SV TG", 29: "BR EG PS QA UA",
        30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for code in codes.split()
}  # fmt: skip
"""Country -> the letters and digits that its account numbers have."""
_DIGITS = re.compile(rb"(?<![\w-])(?<!\d[.,])\+?\(?\d(?:[ ().-]{0,2}\d){7,18}(?![\w-])")
_SSN = re.compile(rb"^(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}$")
_PHONE = re.compile(
    rb"^(?:\+\d[\d ().-]{6,16}\d|00[1-9]\d{0,2}[ -][\d ().-]{6,14}\d"
    rb"|(?:1[ .-])?\(\d{3}\) ?\d{3}[ .-]\d{4}|(?:1[ .-])?\d{3}[.-]\d{3}[.-]\d{4})$"
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
            _unescaped(line.decode("utf-8", "replace"))
            if value is None
            else "\n".join(map(_unescaped, _texts(value)))
        ).encode("utf-8", "replace")
    if not line.isascii():
        line = line.decode("utf-8", "replace").translate(_PLAIN).encode()
    found = set()
    if b"@" in line and _EMAIL.search(line):
        found.add("email")
    if has_secret(line):
        found.add("secret")
    if any(_is_iban(match[1]) for match in _IBAN.finditer(line)):
        found.add("iban")
    if any(_is_ip(match[0]) for form in (_IPV4, _IPV6) for match in form.finditer(line)):
        found.add("ip")
    for match in _DIGITS.finditer(line):
        if kind := _kind_of_digits(match[0]):
            found.add(kind)
    return found


def _texts(value: Any) -> Iterator[str]:
    """Yield every text and number inside a value, each of an object with its key."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f'"{key}": "{inner}"' if isinstance(inner, str) else str(key)
            if not isinstance(inner, str):
                yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    else:
        yield str(value)


def _unescaped(text: str) -> str:
    """The text, and the same with its escapes read: the arguments of a call are JSON in a text."""
    read = text
    for _ in range(_DEEPEST):
        if "\\" not in read:
            break
        read = _ESCAPE.sub(_read_escape, read)
    return text if read is text else f"{text}\n{read}"


def _read_escape(found: re.Match[str]) -> str:
    if found[1]:
        return chr(int(found[1], 16))
    return found[2] if found[2] in "\"'/\\" else " "


def _kind_of_digits(text: bytes) -> str | None:
    if b")" not in text:  # the bracket that opens a remark
        text = text.removeprefix(b"(")
    if _SSN.match(text):
        return "ssn"
    if _PHONE.match(text):
        return "phone"
    digits = [byte - 48 for byte in text if 48 <= byte <= 57]
    return "card" if _is_card(digits) and _luhn(digits) else None


def _is_card(digits: list[int]) -> bool:
    """Whether the length and the first digits are those of a card."""
    start = int("".join(map(str, digits[:4])))
    return 13 <= len(digits) <= 19 and (3000 <= start < 7000 or 2221 <= start <= 2720)


def _luhn(digits: list[int]) -> bool:
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(digits[-1::-2])) % 10 == 0


def _is_iban(text: bytes) -> bool:
    plain = "".join(filter(str.isalnum, text.decode("ascii"))).upper()
    length = _IBAN_LENGTHS.get(plain[:2], 0)
    if not 0 < length <= len(plain):
        return False
    number = "".join(str(int(letter, 36)) for letter in plain[4:length] + plain[:4])
    return int(number) % 97 == 1


def _is_ip(text: bytes) -> bool:
    """Whether it is a person's or machine's address, and not loopback, a mask, a section number
    (4.2.1.3) or a name (a::b).
    """
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
