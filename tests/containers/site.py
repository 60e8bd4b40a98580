"""Some containers beside each other, on one network, and nothing of them left behind.

    with site() as here:
        server = here.container("config-server")
        agent = here.container("db1")
        server.start()
        ...

Containers are added before the first is started: each knows the names of all (/etc/hosts). A name without a container, for a server of the
test's own, is a `place`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.containers import leftovers
from tests.containers.container import Container
from tests.containers.leftovers import Note, Process
from tests.containers.network import Link, Network
from tests.containers.rootfs import rootfs
from tests.containers.world import World, world
from tests.loopdisk import attached

_RAM: Final = Path("/dev/shm")


class Site:
    """`folder` is the host's, for what is the containers' and for what belongs to the test."""

    def __init__(self, folder: Path, world: World) -> None:
        self.name: Final = folder.name
        self.folder: Final = folder
        self.world: Final = world
        self.network: Final = Network(world)
        self.containers: Final[dict[str, Container]] = {}
        self._undo = contextlib.ExitStack()

    def container(self, name: str) -> Container:
        """A new one, off; a lower-case word."""
        link = self.network.join(name)
        own = self.folder / name
        for part in ("upper", "work", "root"):
            (own / part).mkdir(parents=True, mode=0o755)
        options = f"lowerdir={rootfs()},upperdir={own / 'upper'},workdir={own / 'work'}"
        self.world.run("mount", "-t", "overlay", "-o", options, "overlay", own / "root")
        made = Container(name, link, own / "root", own, self.world)
        self._write(made, "etc/machine-id", f"{uuid.uuid4().hex}\n")
        self._write(made, "etc/hostname", f"{name}\n")
        self.containers[name] = made
        self._tell_names()
        return made

    def place(self, name: str) -> Link:
        """An address and a name that a program of the host can serve: `beside(name)` begins its command line."""
        link = self.network.join(name)
        self._tell_names()
        return link

    def beside(self, name: str) -> list[str]:
        """What to put in front of a command: it runs with the host's files and processes, in this name's network. It ends with the test."""
        namespace = self.world.seen(Path(self.network.link(name).namespace))
        return ["setpriv", "--pdeathsig=KILL", "nsenter", f"--net={namespace}", "--"]

    def disk(self, name: str, size_b: int) -> str:
        """A loop device of the host over a file in the site's folder; gone with the site."""
        backing = self.folder / f"{name}.img"
        with backing.open("xb") as file:
            file.truncate(size_b)
        return self._undo.enter_context(attached(backing))

    def close(self) -> None:
        with self._undo:
            for container in self.containers.values():
                container.kill()

    def _tell_names(self) -> None:
        for container in self.containers.values():
            self._write(container, "etc/hosts", self.network.hosts())

    def _write(self, container: Container, place: str, text: str) -> None:
        self.world.seen(container.root / place).write_text(text)


@contextlib.contextmanager
def site(parent: Path = _RAM) -> Iterator[Site]:
    """`parent`: where the containers' files are, by default in memory. Names what killed tests left, and removes it."""
    for note in leftovers.remove_left():
        print(
            f"containers {note.name} of process {note.owner.pid}, which was killed, are removed",
            file=sys.stderr,
        )
    name = f"understudy-containers-{secrets.token_hex(3)}"
    owner = Process.of(os.getpid())
    assert owner is not None
    note = Note(name, owner, str(parent / name))
    leftovers.write(note)
    try:
        Path(note.folder).mkdir()
        with world(name) as own:
            note = Note(name, owner, note.folder, Process.of(own.pid))
            leftovers.write(note)
            made = Site(Path(note.folder), own)
            with contextlib.closing(made):
                yield made
    finally:
        leftovers.remove(note)
