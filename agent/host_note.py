"""The note for other programs of this host which disks are protected (shared/protected.py), and its trouble: a machine is protected
whether or not the note can be written."""

from __future__ import annotations

from agent.capture.maps import Capture
from agent.config import AgentConfig
from shared import logging, protected
from shared.errors import HostNoteError, cause_of

_log = logging.get()


class HostNote:
    """`keep` it now and then: what could not be written is tried again. Blocks for a moment."""

    def __init__(self, config: AgentConfig, capture: Capture) -> None:
        self.problem: HostNoteError | None = None
        self._config = config
        self._capture = capture
        self._written = False

    def keep(self) -> None:
        if self._written:
            return
        disks = [(disk.name, disk.diskseq) for disk in self._capture.disks]
        try:
            protected.note(self._config.machine, self._config.pin_dir, disks)
        except OSError as exc:
            error = HostNoteError(
                "The protected disks could not be noted for other programs of this host",
                cause=f"{cause_of(exc)} ({exc.filename})" if exc.filename else str(exc),
            )
            if self.problem is None or self.problem.cause != error.cause:
                _log.warning("protected disks not noted", **error.as_dict())
            self.problem = error
        else:
            self._written, self.problem = True, None
