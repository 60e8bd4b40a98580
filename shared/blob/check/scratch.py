"""What a check makes in the account, and that it goes again, however the check ends.

Nothing is tried in a container that holds something: a *scratch container* stands for those that machines get, beside the vault's and
made in the same way, and goes with all that is in it by one request. In the vault container, where it is there, one blob
`check/<random>` is made and deleted. What is to be made is noted before it is asked for, and a request that makes something is waited
for even when the check is interrupted: one that is cut off may still be carried out, behind the removal.

A check that was killed leaves these behind. They bear the time when they were made, and the next check removes those that are older than
any check lasts.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Final, TypeVar

from shared.blob.core import BlobCore
from shared.blob.store import BlobStore
from shared.errors import BlobExistsError, ContainerMissingError, StorageError, StorageRefusedError

T = TypeVar("T")

BLOBS: Final = "check/"
OLDEST_S: Final = 3600.0
"""No check lasts so long."""
_MADE: Final = "understudy_check"
"""Metadata of what a check makes, which tells it from what is somebody's: when it was made, by storage's clock, in Unix seconds."""


class Scratch:
    def __init__(self, core: BlobCore, now_s: float) -> None:
        """`core`: of the vault container. `now_s`: storage's time."""
        id_ = secrets.token_hex(5)
        self._core = core
        self._now_s = now_s
        self.vault = BlobStore(core)
        self.prefix = f"{self.vault.container}-check-"
        """Not a machine's container: their ids are hexadecimal."""
        self.core = core.in_container(f"{self.prefix}{id_}")
        self.store = BlobStore(self.core)
        self.blob = f"{BLOBS}{id_}"
        """Of the vault container."""
        self._made = {_MADE: f"{now_s:.0f}"}
        self.left: dict[str, str] = {}
        """What was made, or may have been, and is not gone: its name for people → why it is still there."""
        self._ways: dict[str, Callable[[], Awaitable[object]]] = {}

    async def make_container(self) -> None:
        name = self._note_container(self.store.container)
        with self._unless_refused(name):
            await carried_out(self.store.ensure_container(self._made))

    async def make_blob(self, data: bytes) -> None:
        name = self._note_blob(self.blob)
        with (
            self._unless_refused(name),
            contextlib.suppress(BlobExistsError),
        ):  # ours: a first answer was lost
            await carried_out(self.vault.create(self.blob, data, self._made))

    @contextlib.contextmanager
    def _unless_refused(self, name: str) -> Iterator[None]:
        """What storage refused to make is not there; nor might it let us look."""
        try:
            yield
        except StorageRefusedError:
            self._forget(name)
            raise

    def adopt_containers(self, found: Mapping[str, Mapping[str, str]]) -> None:
        """Of the containers that storage lists (name → metadata), those of earlier checks are removed with ours."""
        for name, metadata in found.items():
            if name.startswith(self.prefix) and self._is_old_check(metadata):
                self._note_container(name)

    def adopt_blobs(self, found: Mapping[str, Mapping[str, str]]) -> None:
        """The same of blobs of the vault container."""
        for name, metadata in found.items():
            if name.startswith(BLOBS) and self._is_old_check(metadata):
                self._note_blob(name)

    async def remove(self) -> None:
        """Afterwards `left` has what could not be removed, also when this was cancelled; nothing else is raised."""
        await asyncio.gather(*(self._remove(name, way) for name, way in list(self._ways.items())))

    async def _remove(self, name: str, way: Callable[[], Awaitable[object]]) -> None:
        try:
            await way()
        except ContainerMissingError:
            pass
        except StorageError as exc:
            self.left[name] = exc.cause or exc.what
            return
        self._forget(name)

    def _note_container(self, name: str) -> str:
        core = self._core.in_container(name)
        return self._note(
            f"container {name}",
            lambda: core.call(f"delete container {name}", core.container.delete_container),
        )

    def _note_blob(self, name: str) -> str:
        return self._note(f"blob {name} in container {self.vault.container}", lambda: self.vault.delete(name))

    def _note(self, name: str, way: Callable[[], Awaitable[object]]) -> str:
        self.left[name] = "it was not removed yet"
        self._ways[name] = way
        return name

    def _forget(self, name: str) -> None:
        self.left.pop(name, None)
        self._ways.pop(name, None)

    def _is_old_check(self, metadata: Mapping[str, str]) -> bool:
        made = metadata.get(_MADE, "")
        return made.isdecimal() and self._now_s - float(made) > OLDEST_S


async def carried_out(work: Awaitable[T]) -> T:
    """The result of `work`. Who waits may be cancelled, the work is not: that is passed on when it is over. A second time ends both."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, StorageError):
                await task
        raise
