"""The note for other programs of this host which disks are protected (shared/host/protected.py), and its trouble: a machine is protected
whether or not the note can be written."""

from __future__ import annotations

from agent.capture.maps import Capture
from agent.config import AgentConfig
from shared.daemon import logging
from shared.errors import HostNoteError, cause_of
from shared.host import protected

_log = logging.get()


class HostNote:
    """`keep` it now and then, while it `is_due`: what could not be written is tried again."""

    def __init__(self, config: AgentConfig, capture: Capture) -> None:
        self.problem: HostNoteError | None = None
        self._config = config
        self._capture = capture
        self._written = False

    @property
    def is_due(self) -> bool:
        return not self._written

    def keep(self) -> None:
        """Blocks for a moment."""
        if self._written:
            return
        disks = [(disk.name, disk.diskseq) for disk in self._capture.disks]
        try:
            protected.note(self._config.machine, self._config.pin_dir, disks)
        except OSError as exc:
            self.failed(f"{cause_of(exc)} ({exc.filename})" if exc.filename else str(exc))
        else:
            self._written, self.problem = True, None

    def failed(self, cause: str) -> None:
        """It could not be kept, or not even be tried."""
        error = HostNoteError(
            "The protected disks could not be noted for other programs of this host", cause=cause
        )
        if self.problem is None or self.problem.cause != error.cause:
            _log.warning("protected disks not noted", **error.as_dict())
        self.problem = error
