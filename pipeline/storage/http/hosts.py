"""Host policy against server-side request forgery (SSRF): which addresses requests to web servers may reach.

A document from elsewhere (a STAC Item, a catalog, a page of an API) or a redirect could name a machine that only this
one can reach: a metadata service, a database, a router. Such addresses are refused unless the operator named the host.
The check is of the address that a connection is made to, after name resolution, so no spelling of a host passes it.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import cast
from urllib.parse import urlsplit

from pipeline.errors import SceneError, SettingsError

CONNECT_TIMEOUT_S = 10.0

IpAddress = IPv4Address | IPv6Address
SocketAddress = tuple[str, int] | tuple[str, int, int, int]
"""Argument of `socket.connect`: IP address and port, for IPv6 also flow and scope."""

_HOST = re.compile(r"((\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:.]+\])(:\d{1,5})?")
_NAT64, _LOCAL_NAT64 = ip_network("64:ff9b::/96"), ip_network("64:ff9b:1::/48")
_IPV4_COMPATIBLE, _SITE_LOCAL = ip_network("::/96"), ip_network("fec0::/10")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class ForbiddenHostError(SceneError):
    """A document or a redirect names a host that requests may not reach."""


@dataclass(frozen=True)
class HostRules:
    """The hosts that requests for an address may reach in addition to all public ones; plain data, pickles."""

    hosts: tuple[str, ...] = ()
    """Hosts (`name`, `name:port`), patterns (`*.example.org`) and networks (`10.1.0.0/16`) that may be private."""
    is_named: bool = True
    """True = the operator named the address, whose own host is then allowed; False = a document did."""

    def settled(self, address: str) -> HostRules:
        """The rules for `address`, with its own host if the operator named it and it is private now.

        Only a host that is private now is added: the name of a public one could be given a private address later.
        """
        own = private_host(address) if self.is_named else ()
        return HostRules((*self.hosts, *own), is_named=False)


NAMED_BY_OPERATOR = HostRules()
"""The rules of an address that the operator named, where no further hosts are allowed."""


def check_host_pattern(text: str) -> None:
    """Raise SettingsError if the text is not a host, a pattern or a network."""
    if _network(text) is None and not _HOST.fullmatch(text.lower()):
        raise SettingsError(
            f"hosts must hold host names, patterns such as *.example.org or networks such as 10.1.0.0/16, not {text!r}"
        )


def is_public(ip: IpAddress) -> bool:
    """Whether an IP address is reachable from everywhere; an IPv6 form of an IPv4 address counts as that.

    >>> [is_public(ip_address(text)) for text in ("8.8.8.8", "169.254.169.254", "100.64.0.1", "::ffff:10.0.0.1")]
    [True, False, False, False]
    """
    inner = _embedded_ipv4(ip)
    if inner is not None:
        return is_public(inner)
    is_special = ip.is_multicast or ip.is_reserved or ip in _LOCAL_NAT64 or ip in _SITE_LOCAL
    return ip.is_global and not is_special


def open_connection(host: str, port: int, hosts: Sequence[str], timeout_s: float = CONNECT_TIMEOUT_S) -> socket.socket:
    """A TCP connection to a host that is public, or that `hosts` allows; the one place that decides.

    Raises:
        ForbiddenHostError: one of its addresses is not public.
        OSError: it cannot be resolved or reached.
    """
    found = resolve_allowed(host, port, hosts)
    failure: OSError | None = None
    for family, sockaddr in found:
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout_s / len(found))
            connection.connect(sockaddr)
        except OSError as error:
            connection.close()
            failure = error
        else:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
    raise failure or OSError(f"{host} has no address")


def resolve_allowed(host: str, port: int, hosts: Sequence[str]) -> list[tuple[socket.AddressFamily, SocketAddress]]:
    """Family and socket address of each address of a host; raises what `open_connection` raises."""
    found = _resolve(host, port)
    for _, sockaddr in found:
        ip = ip_address(sockaddr[0])
        if not is_public(ip) and not any(_matches(pattern, _plain(host), port, ip) for pattern in hosts):
            shown = host if host == str(ip) else f"{host} ({ip})"
            raise ForbiddenHostError(
                f"a document or a redirect leads to {shown}, port {port}, which is not a public address; if it is "
                f"right, allow it with catalog.hosts, e.g. [{_plain(host)}]"
            )
    return found


def private_host(address: str) -> tuple[str, ...]:
    """The host and port of a URL as patterns, if it resolves to an address that is not public now; else none.

    A default port counts as both, 80 and 443, since many servers redirect from the one to the other.
    """
    try:
        parts = urlsplit(address)
        port = parts.port or _DEFAULT_PORTS[parts.scheme.lower()]
        host = _plain(parts.hostname or "")
        is_private = not all(is_public(ip_address(sockaddr[0])) for _, sockaddr in _resolve(host, port))
    except (KeyError, ValueError, OSError):
        return ()
    ports = _DEFAULT_PORTS.values() if port in _DEFAULT_PORTS.values() else (port,)
    shown = f"[{host}]" if ":" in host else host
    return tuple(f"{shown}:{each}" for each in ports) if is_private else ()


def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, SocketAddress]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # an empty or very long label
        raise OSError(f"{host!r} is not a host name") from error
    return [(family, cast("SocketAddress", sockaddr)) for family, *_, sockaddr in found]


def _plain(host: str) -> str:
    """A host in the form in which it is compared: lower case, without brackets and the final dot."""
    return host.lower().strip("[]").rstrip(".")


def _matches(pattern: str, host: str, port: int, ip: IpAddress) -> bool:
    """Whether a host, or the IP address that it resolves to, is the one of a pattern."""
    network = _network(pattern)
    if network is not None:
        inner = _embedded_ipv4(ip)
        return ip in network or (inner is not None and inner in network)
    name, separator, wanted = pattern.lower().rpartition(":")
    if not separator:
        name, wanted = pattern.lower(), ""
    if wanted and wanted != str(port):
        return False
    name = _plain(name)
    return host.endswith(name[1:]) if name.startswith("*.") else name in (host, str(ip))


def _network(text: str) -> IPv4Network | IPv6Network | None:
    """A network in CIDR notation or a single IP address; None for other texts."""
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None


def _embedded_ipv4(ip: IpAddress) -> IPv4Address | None:
    """The IPv4 address in a mapped, compatible, 6to4, Teredo or NAT64 form of IPv6."""
    if isinstance(ip, IPv4Address):
        return None
    if ip in _NAT64 or ip in _IPV4_COMPATIBLE:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
