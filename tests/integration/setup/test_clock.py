"""A host's clock beside the config server's, who says in each answer what time it is: real TLS, and a date that the test chooses."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from pathlib import Path

import pytest

from shared.control import enrol
from shared.errors import HostClockError, UnknownAuthorityError
from shared.setup.checks import Clock, ConfigServer
from shared.setup.steps import Outcome, carry_out
from shared.trust import anchors, identity, tls
from tests.config_parts import config_for, running


@contextlib.asynccontextmanager
async def telling(data_dir: Path, off_s: float | None) -> AsyncIterator[str]:
    """A server with the config server's certificate, whose clock is off."""
    files = tls.TlsFiles(cert=data_dir / "server.pem", key=data_dir / "server.key", ca=data_dir / "ca.pem")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        date = "" if off_s is None else f"Date: {formatdate(time.time() + off_s, usegmt=True)}\r\n"
        writer.write(f"HTTP/1.1 404 Not Found\r\n{date}Connection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    context = tls.server_context(files, require_client=False)
    served = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with served:
        yield f"https://127.0.0.1:{served.sockets[0].getsockname()[1]}"


@pytest.fixture
async def data_dir(tmp_path: Path) -> Path:
    config = config_for(tmp_path)
    async with running(config):
        pass
    return config.data_dir


def asked(url: str, data_dir: Path) -> Clock:
    server = ConfigServer(url, "", identity.files_in(data_dir))
    server.trusted = anchors.of_file(data_dir / "ca.pem")
    return Clock(server)


@pytest.mark.parametrize(
    ("off_s", "outcome", "says"),
    [
        (0, Outcome.CHECKED, "agrees"),
        (60, Outcome.WARNING, "s behind the config server's"),
        (-60, Outcome.WARNING, "s ahead of the config server's"),
        (None, Outcome.WARNING, "does not say"),
    ],
)
async def test_the_difference_is_told_in_seconds(
    data_dir: Path, off_s: float | None, outcome: Outcome, says: str
) -> None:
    async with telling(data_dir, off_s) as url:
        [found] = await carry_out([asked(url, data_dir)], lambda _: None)
    assert (found.outcome, says in found.detail) == (outcome, True), found


@pytest.mark.parametrize("off_s", [400, -400])
async def test_a_clock_by_which_a_new_certificate_would_be_refused_ends_it(
    data_dir: Path, off_s: float
) -> None:
    async with telling(data_dir, off_s) as url:
        with pytest.raises(HostClockError, match="config server"):
            await carry_out([asked(url, data_dir)], lambda _: None)


async def test_nobody_else_is_believed(data_dir: Path, tmp_path: Path) -> None:
    async with running(config_for(tmp_path / "other")) as other:
        clock = asked(other.url, data_dir)
        with pytest.raises(UnknownAuthorityError):
            await carry_out([clock], lambda _: None)
    assert enrol.trusting(clock.server.trusted or ())
