"""Which addresses of the network may be asked: public ones, whatever they hide behind.

`ipaddress.is_private` lets through shared addresses (100.64/10), multicast, and IPv6 addresses that carry an IPv4 one
(mapped, 6to4, Teredo, NAT64); each of those leads into the own network as well. The check is of the address that is
connected to, not of the name, whose answer may change from one look to the next (DNS rebinding).
"""

import ipaddress
import socket
from collections.abc import Collection
from typing import Final

from aiohttp import AddrInfoType
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: IPv6 that carries IPv4 for a translator: RFC 6052, and the local prefix of RFC 8215.
_NAT64: Final = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
_COMPATIBLE: Final = ipaddress.ip_network("::/96")
#: Not public, whatever `ipaddress` of this Python says: site-local addresses (RFC 3879), those for documentation
#: (RFC 9637) and for discarding (RFC 6666, RFC 9780), segment routing (RFC 9602), and Azure's platform address.
_NEVER: Final = tuple(
    map(ipaddress.ip_network, ("fec0::/10", "3fff::/20", "100::/63", "5f00::/16", "168.63.129.16/32"))
)


class PrivateAddressError(OSError):
    """A host is, or claims to be, within the own network."""


def is_public(text: str) -> bool:
    """Whether an IP address is one of the public internet's, and so is each that it carries."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return all(map(_is_public, (address, *_carried(address))))


def _is_public(address: Address) -> bool:
    is_plain = address.is_global and not address.is_multicast and not address.is_reserved
    return is_plain and not any(address in network for network in _NEVER)


def _carried(address: Address) -> list[Address]:
    if isinstance(address, ipaddress.IPv4Address):
        return []
    carried: list[Address] = [one for one in (address.ipv4_mapped, address.sixtofour) if one is not None]
    if address.teredo is not None:
        carried += address.teredo
    if any(address in network for network in (*_NAT64, _COMPATIBLE)):
        carried.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return carried


class GuardedResolver(AbstractResolver):
    """Resolves names to public addresses only; `private_hosts` may be within the own network: the user named them."""

    def __init__(self, private_hosts: Collection[str]) -> None:
        self._private_hosts = private_hosts
        self._resolver = ThreadedResolver()
        #: Addresses within the own network that belong to hosts which may be asked.
        self._allowed = set(private_hosts)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a name. Raises `PrivateAddressError`: one of them is not public, so none is trusted."""
        found = await self._resolver.resolve(host, port, family)
        if host.lower() in self._private_hosts:
            self._allowed |= {one["host"] for one in found}
        else:
            for one in found:
                check_address(one["host"], host)
        return found

    def socket(self, address_info: AddrInfoType) -> socket.socket:
        """A socket for an address, literal or resolved. Raises `PrivateAddressError`: it is not public."""
        family, kind, protocol, _, place = address_info
        address = str(place[0])
        if address not in self._allowed:
            check_address(address, address)
        return socket.socket(family, kind, protocol)

    async def close(self) -> None:
        await self._resolver.close()


def hosts_of(text: str | None) -> frozenset[str]:
    """The hosts that a setting names, with commas between them; IPv6 in brackets or without."""
    return frozenset(host.strip(" []").lower() for host in (text or "").split(",") if host.strip())


def check_literal(host: str) -> None:
    """Refuse a literal address that is not public, which nothing resolves. Raises `PrivateAddressError`.

    `2130706433` and `0x7f.1` are names here, which the system may resolve: then the resolver sees the address.
    """
    if ":" in host or is_public(host) or all(part.isdigit() for part in host.split(".")):
        check_address(host, host)


def check_address(address: str, host: str) -> None:
    """Refuse an address that is not public, with `PrivateAddressError`."""
    if not is_public(address):
        raise PrivateAddressError(f"{host} is at {address}, which is no public address")
