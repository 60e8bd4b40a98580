"""Whether a server is reached through a proxy: HTTPS_PROXY, HTTP_PROXY and NO_PROXY of the environment.

What is near is never asked for through a proxy, whatever the environment says: loopback, private and link-local
addresses (the instance metadata service among them), and names that resolve to such addresses only, as those of
private endpoints do. A proxy could not reach them, or would send traffic around that must stay inside.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import msgspec


class Proxy(msgspec.Struct, frozen=True):
    url: str
    """With the password, should it carry one: for connecting only."""
    variable: str
    """The variable that names it."""

    def __str__(self) -> str:
        """For people: without user and password."""
        parts = urlsplit(self.url)
        return f"the proxy {parts.scheme}://{parts.netloc.rpartition('@')[2]} ({self.variable})"


def configured_proxy(url: str) -> Proxy | None:
    """The environment's proxy for this URL; never one for names and addresses that are evidently near."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = getproxies_environment()
    found = proxies.get(parts.scheme) or proxies.get("all")
    if not found or not host or is_near(host) or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    variable = f"{parts.scheme.upper()}_PROXY" if parts.scheme in proxies else "ALL_PROXY"
    return Proxy(found if "://" in found else f"http://{found}", variable)


async def proxy_for(url: str) -> Proxy | None:
    """Like `configured_proxy`; asks DNS, too: a name whose addresses are all near is reached directly.

    A name that cannot be resolved here is the proxy's to resolve.
    """
    found = configured_proxy(url)
    if found is None:
        return None
    try:
        resolved = await asyncio.get_running_loop().getaddrinfo(
            urlsplit(url).hostname, None, type=socket.SOCK_STREAM
        )
    except OSError:
        return found
    return None if resolved and all(is_near(str(address[0])) for *_, address in resolved) else found


def is_near(host: str) -> bool:
    """Whether it is this host or in a private network, as far as its name or address tells."""
    name = host.strip("[]").lower().rstrip(".")
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_private or mapped.is_loopback or mapped.is_link_local)
