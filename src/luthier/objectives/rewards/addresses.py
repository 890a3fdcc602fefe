"""Which addresses a recipe may make this machine call: those of the open internet, unless it says otherwise.

A recipe may come from elsewhere, and the name of a server may lead anywhere. So a name is resolved once, every address it has is looked at,
and connections go to these addresses and no others: what the name resolves to later (DNS rebinding) does not matter.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from luthier.errors import UserError

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server, its addresses and what is asked of it.

    Args:
        host: its name, for the `Host` line and the certificate.
        port: its port.
        addresses: where it is, in the order in which they are tried.
        path: what is asked, with the query.
        secure: over TLS.
    """

    host: str
    port: int
    addresses: tuple[str, ...]
    path: str
    secure: bool


def endpoint(url: str, *, allow_private: bool, where: str) -> Endpoint:
    """The server that an address names, resolved now.

    Raises:
        UserError: it is no http address, holds a password, cannot be resolved, or leads to this machine or a private network.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise UserError(f"`{url[:200]}` is not an address: {error}", where=where) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"`{url[:200]}` should begin with https:// or http://", where=where)
    if parts.username is not None or parts.password is not None:
        raise UserError("the address holds a password", where=where, hint="Name a variable in `token_env` instead.")
    if any(ord(letter) <= 32 or ord(letter) > 126 for letter in parts.path + parts.query):
        raise UserError("the address holds a character that should be written as %XX", where=where)
    addresses = _resolved(parts.hostname, port, where)
    inside = next((address for address in addresses if not is_public(address)), None)
    if inside and not allow_private:
        hint = "If that is meant, set `allow_private: true`."
        raise UserError(f"`{parts.hostname}` is {inside}, on this machine or a private network", where=where, hint=hint)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Endpoint(parts.hostname, port, addresses, path, parts.scheme == "https")


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the open internet, and so does the IPv4 address that it may hold within."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def _resolved(host: str, port: int, where: str) -> tuple[str, ...]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(f"`{host}` cannot be found: {error}", where=where) from None
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))
