"""A lab whose agent is told what is wanted: its config server's answers pass a server that adds it."""

from __future__ import annotations

import asyncio
import threading
import tomllib
from pathlib import Path
from typing import Any, Self

import aiohttp
import msgspec
from aiohttp import web

from shared import api
from shared.desired import Desired, Mark, Verb, WantedDisk, Wish
from shared.host.toml import to_toml
from shared.trust import tls
from tests.lab import Lab
from tests.long.story import wait_until


class WishingLab:
    """A context manager: the agent of a lab that is up is started again with this one as its config server."""

    def __init__(self, site: Lab) -> None:
        self._site = site
        self._desired: Desired | None = None
        self._number = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="wishing-lab")
        self._begun = threading.Event()
        self._over = asyncio.Event()
        self._port = 0
        self.report: dict[str, Any] = {}
        """The agent's last one."""

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._begun.wait(30)
        file = self._site.folder / "agent.toml"
        config = tomllib.loads(file.read_text())
        file.write_text(to_toml(config | {"control_url": f"https://127.0.0.1:{self._port}"}))
        self._site.stop("agent")
        self._site.start("agent")
        return self

    def __exit__(self, *exc: object) -> None:
        self._site.stop("agent")
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(30)

    def wish(self, verb: Verb, *disks: str, servers: tuple[str, ...] = ()) -> None:
        """Returns when the agent goes by it."""
        self._number += 1
        mark = Mark(incarnation="test", number=self._number, act=f"act-{self._number}")
        wanted = tuple(WantedDisk(disk) for disk in disks)
        wish = Wish(mark=mark, verb=verb, disks=wanted, process_servers=servers)
        self._desired = Desired(wish=wish)
        plain = msgspec.json.decode(msgspec.json.encode(wish))
        wait_until(lambda: self.report.get("wish") == plain, "the wish is not taken", 60, lambda: self.report)

    def reports(self, disks: list[str], state: str, seconds: float = 120) -> None:
        """Until the agent says that it captures just these, and is in this state."""

        def does() -> bool:
            found = [disk["device"] for disk in self.report.get("disks", [])]
            return (found, self.report.get("state")) == (disks, state)

        wait_until(does, f"not {state} with {disks}", seconds, lambda: self.report)

    # -- in the thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        folder, config = self._site.folder, tomllib.loads((self._site.folder / "agent.toml").read_text())
        agent = tls.TlsFiles(**{name: Path(path) for name, path in config["tls"].items()})
        own = folder / "config-server"
        server = tls.TlsFiles(cert=own / "server.pem", key=own / "server.key", ca=own / "ca.pem")
        self._upstream = config["control_url"]
        app = web.Application(client_max_size=16 << 20)
        app.router.add_route("*", "/{path:.*}", self._pass)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        connector = aiohttp.TCPConnector(ssl=tls.client_context(agent, tls.CONFIG_SERVER))
        async with aiohttp.ClientSession(connector=connector) as self._session:
            await runner.setup()
            context = tls.server_context(server, require_client=False)
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
            self._port = runner.addresses[0][1]
            self._begun.set()
            await self._over.wait()
            await runner.cleanup()
        await asyncio.sleep(
            0.25
        )  # connections under TLS end behind the client's back (aiohttp, "graceful shutdown")

    async def _pass(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = {"Prefer": request.headers["Prefer"]} if "Prefer" in request.headers else {}
        try:
            async with self._session.request(
                request.method, f"{self._upstream}{request.path_qs}", data=body, headers=headers
            ) as answer:
                content, status = await answer.read(), answer.status
        except aiohttp.ClientError:
            return web.Response(status=502)
        if request.path == api.STATUS.path:
            self.report = msgspec.json.decode(body)
            if status == 200 and self._desired is not None:
                content = msgspec.json.encode(
                    msgspec.json.decode(content) | {"desired": msgspec.to_builtins(self._desired)}
                )
        return web.Response(status=status, body=content, content_type="application/json")
