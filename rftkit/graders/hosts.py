"""Hosts that graders and tools must not call: they are recognised before each call.

A job's client chooses an address and the platform calls it, so the address must not be one that
answers only to this machine: the metadata service of a cloud hands out the machine's own keys.
Addresses of this machine and its network are allowed, because graders run there; their answers are
not repeated in messages.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from urllib.parse import urlsplit

__all__ = [
    "OF_MACHINE",
    "addresses",
    "describes_machine",
    "is_of_machine",
    "is_private",
    "is_public",
]

OF_MACHINE = (
    "the address is link-local or that of a cloud's metadata service, which describes this machine "
    "and is no grader"
)
METADATA = frozenset({"100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254"})
"""Metadata services that are not link-local: Alibaba, Azure, Oracle, AWS."""
NAMES = frozenset({"metadata", "metadata.google.internal", "instance-data"})

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_of_machine(url: str, *, ask_names: bool = False) -> bool:
    """Whether an address is link-local or of a metadata service, however it is spelled.

    Names are looked up only with `ask_names`, which may take seconds.
    """
    if (_host(url) or "").rstrip(".").lower() in NAMES:
        return True
    with contextlib.suppress(OSError):
        found = addresses(_host(url) or "", 0 if ask_names else socket.AI_NUMERICHOST)
        return any(map(describes_machine, found))
    return False


def is_private(url: str) -> bool:
    """Whether the address is of this machine or network; False if it cannot be found."""
    with contextlib.suppress(OSError):
        return not all(map(is_public, addresses(_host(url) or "")))
    return False


def is_public(address: str) -> bool:
    """Whether an IP address is of the internet: not of this machine, its network or its cloud."""
    found = _unwrapped(address)
    return found.is_global and not found.is_multicast and not _describes_machine(found)


def describes_machine(address: str) -> bool:
    """Whether an IP address is link-local or of a metadata service."""
    return _describes_machine(_unwrapped(address))


def _describes_machine(address: Address) -> bool:
    return address.is_link_local or str(address) in METADATA


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def addresses(host: str, flags: int = 0) -> list[str]:
    """The IP addresses of a host; `flags` are those of `socket.getaddrinfo`.

    Raises:
        OSError: there are none.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError:
        raise OSError(f"{host!r} is not a host name") from None
    return list(dict.fromkeys(str(each[4][0]).partition("%")[0] for each in found))


def _unwrapped(text: str) -> Address:
    address = ipaddress.ip_address(text)
    inner = None
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in ipaddress.ip_network("64:ff9b::/96"):  # an IPv4 address behind NAT64
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return inner or address
