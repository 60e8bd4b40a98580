"""Where a server listens: the socket for `listen` and `port` of its configuration, or in words why there is none.

`0.0.0.0` is every IPv4 address of this host; `::` every address of both kinds, and of IPv4 alone where the kernel has no IPv6. Anything
else is one address, or a name, of which the first address is taken. Whoever comes over IPv4 to `::` is shown, and counted, under his IPv4
address (connections.py).
"""

from __future__ import annotations

import errno
import socket
from typing import Final

from shared.errors import ListenError, cause_of

_BACKLOG: Final = 1024
_ALL: Final = "0.0.0.0"
_ALL_OF_BOTH: Final = "::"
_NO_IPV6: Final = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}
_WHERE: Final = (
    f"an address of this host (`ip address` shows them), {_ALL} (all of IPv4), or :: (all of both)"
)

_WORDS: Final = {
    errno.EADDRNOTAVAIL: (
        "no interface of this host has this address now",
        f"If it comes later: it is tried again when the service starts again, or listen on {_ALL} or ::."
        f" Otherwise correct `listen`: {_WHERE}.",
    ),
    errno.EADDRINUSE: ("something listens there already", ListenError.default_action),
    errno.EACCES: (
        "this user may not listen on it: a port below 1024 needs a right",
        "Configure a port from 1024 on, or give the service the right: AmbientCapabilities=CAP_NET_BIND_SERVICE in its systemd unit.",
    ),
    errno.EAFNOSUPPORT: ("this kernel has no IPv6", f"Listen on an IPv4 address, or {_ALL}."),
}


def listening_socket(host: str, port: int, who: str) -> socket.socket:
    """Listens already, and does not block. `who` will accept there, and is named in the error. Raises ListenError."""
    what = f"{who} could not listen on {shown(host)}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as exc:
        raise ListenError(
            what,
            cause=f"'{host}' is no address, and no name that has one: {exc}",
            action=f"Give as `listen` {_WHERE}.",
        ) from exc
    family, _, _, _, address = found[0]
    is_both = address[0] == _ALL_OF_BOTH  # however it is written
    try:
        return _socket(family, address, both=is_both)
    except OSError as exc:
        if is_both and exc.errno in _NO_IPV6:
            return listening_socket(_ALL, port, who)
        cause, action = _WORDS.get(exc.errno or 0, (cause_of(exc), f"Give as `listen` {_WHERE}."))
        raise ListenError(what, cause=cause, action=action) from exc


def _socket(family: int, address: tuple[object, ...], *, both: bool) -> socket.socket:
    sock = socket.create_server(
        address[:2] if family == socket.AF_INET else address,
        family=family,
        backlog=_BACKLOG,
        dualstack_ipv6=both,
    )
    sock.setblocking(False)
    return sock


def shown(host: str) -> str:
    """As it stands before a port."""
    return f"[{host}]" if ":" in host else host
