"""Whether a TCP port is free, and if not, who has it."""

from __future__ import annotations

import socket

from shared.errors import ListenError, cause_of
from shared.host.ports import listener_of


def check_free(host: str, port: int, wanted_by: str) -> None:
    """Raises ListenError, which names the port and, if it can be found, the process that listens on it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Connections that are being closed do not count, listeners do.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as exc:
            owner = listener_of(port)
            raise ListenError(
                f"Port {port}, which {wanted_by} needs, is not free",
                cause=f"process {owner.pid} ({owner.command[:100]}) listens on it"
                if owner
                else cause_of(exc),
                action="Stop that process, or choose other ports with --port-base (ss -ltnp shows all).",
            ) from exc
