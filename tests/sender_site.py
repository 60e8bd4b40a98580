"""The agent's session with a real stream behind it, and a process server that follows a script at its other end."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from agent.capture.disks import find_disk
from agent.capture.maps import Capture
from agent.capture.ring import Ring
from agent.stream.catchup import CatchUp
from agent.stream.cutter import Stream
from agent.stream.sender import Sender, disk_infos
from agent.stream.servers import Address, ProcessServers
from agent.stream.state import AgentState, Word
from agent.stream.sync_reader import SyncReader
from shared.trust import tls
from shared.wire.messages import Fault, Hello, Welcome
from shared.wire.protocol import BatchReceived, Connection, Faulted, FlushReceived, HelloReceived, Side
from tests.epoch_ids import eid
from tests.pki import TestCa

DISK_B = 16 << 20

Script = Callable[[Connection, Hello, asyncio.StreamWriter], Awaitable[None]]


class Site:
    """A sender, its state, and what each of its sessions said first."""

    sender: Sender
    context: ssl.SSLContext

    def __init__(self, state: AgentState, ring: Ring) -> None:
        self.state = state
        self.ring = ring
        self.hellos: asyncio.Queue[Hello] = asyncio.Queue()
        self.script: Script = hang_up
        self.batches: asyncio.Queue[BatchReceived] = asyncio.Queue()
        self.hang_up: Callable[[], None]
        self.sessions: set[asyncio.StreamWriter] = set()
        """Those that have said HELLO and are not over."""
        self.most = 0
        """How many of these there were at a time."""
        self.on_fault: Callable[[Fault], None] = lambda fault: None
        self.on_flush: Callable[[Connection, asyncio.StreamWriter], None] = lambda wire, writer: None
        self.sender: Sender

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Connection(Side.SERVER)
        self.hang_up = writer.close
        try:
            while data := await reader.read(65536):
                for event in wire.receive_data(data):
                    if isinstance(event, HelloReceived):
                        self.sessions.add(writer)
                        self.most = max(self.most, len(self.sessions))
                        self.hellos.put_nowait(event.hello)
                        await self.script(wire, event.hello, writer)
                    elif isinstance(event, BatchReceived):
                        self.batches.put_nowait(event)
                    elif isinstance(event, FlushReceived):
                        self.on_flush(wire, writer)
                    elif isinstance(event, Faulted):
                        self.on_fault(event.fault)
        finally:
            self.sessions.discard(writer)
            writer.close()


async def hang_up(wire: Connection, hello: Hello, writer: asyncio.StreamWriter) -> None:
    writer.close()


def welcome(epoch: int, credit_b: int = 1 << 20) -> Welcome:
    return Welcome(
        epoch=epoch,
        claim=eid(epoch).claim,
        spooled=0,
        spooled_seq=0,
        spooled_digest=bytes(16),
        uploaded=0,
        uploaded_seq=0,
        credit_b=credit_b,
    )


@asynccontextmanager
async def serving(
    device: str,
    folder: Path,
    pin_dir: Path,
    preferred: Sequence[Address] = (),
    others: Sequence[Address] = (),
    *,
    is_named: bool = True,
    begin: Callable[[AgentState], None] = lambda state: None,
) -> AsyncIterator[Site]:
    """`preferred`: process servers that the agent prefers to this one; `others`: those that it turns to; unless it `is_named`, this one
    has what the epoch needs. `begin`: with what it begins."""
    ca = TestCa(folder)
    disk = find_disk(Path(device))
    capture = Capture.attach(pin_dir, [disk], 1 << 20)
    catchup = CatchUp([disk.sectors], [capture.todo(0)])
    reader = SyncReader([disk], catchup)
    state = AgentState(capture.state, capture.server)
    begin(state)
    stream = Stream(capture, state, catchup, reader)
    await stream.rounds.recover()
    site = Site(state, capture.ring)
    site.context = context = tls.server_context(ca.issue("process-server:ps"))
    server = await asyncio.start_server(site.serve, "127.0.0.1", 0, ssl=context)

    def hello() -> Hello:
        epoch = state[Word.EPOCH]
        return Hello(
            machine="m",
            epoch=epoch,
            claim=state.epoch.claim,
            seen=state[Word.SEEN_EPOCH],
            suspect_after=state.suspicion.after if state.suspicion else None,
            disks=disk_infos([(disk.name, disk.serial, disk.sectors)]),
            last_sent=state[Word.LAST_CUT] if epoch else 0,
        )

    here, now = server.sockets[0].getsockname(), time.monotonic()
    servers = (
        ProcessServers([*preferred, here, *others], now)
        if is_named
        else ProcessServers(preferred, now, left=here)
    )
    sender = Sender(stream, state, hello, servers, ca.issue("agent:m"), state.want_epoch)
    site.sender = sender
    stop = asyncio.Event()
    running = asyncio.create_task(sender.run(stop))
    try:
        yield site
        stop.set()
        async with asyncio.timeout(10):
            await running
    finally:
        running.cancel()
        server.close()
        await server.wait_closed()
        await stream.close()
        capture.close()


async def next_hello(site: Site) -> Hello:
    async with asyncio.timeout(10):
        return await site.hellos.get()
