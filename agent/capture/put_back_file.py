"""A disks.json that was put back and is not gone by (`put_back`): it is kept beside before it is written over, or it is not written over.
As long as one is kept there, that is said, by whichever process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from shared.errors import PutBackError, StateFileError, cause_of
from shared.host import durable


class PutBackFile:
    def __init__(self, path: Path) -> None:
        """`path`: of disks.json."""
        self.path: Final = path.with_name(f"{path.name}.put-back")
        self.trouble: PutBackError | None = None
        self._file = path
        self._is_due = False

    def is_not_gone_by(self, ids: Sequence[str]) -> PutBackError:
        """It says other disks of these ids than are captured."""
        self.trouble = self._said(f"of {', '.join(ids)} it says")
        self._is_due = True
        return self.trouble

    def look(self) -> None:
        """Whether somebody took away what is kept, or an earlier process left it."""
        if self._is_due:
            return
        try:
            self.path.stat()
        except FileNotFoundError:
            self.trouble = None
        except OSError:  # the next look tells
            return
        else:
            self.trouble = self.trouble or self._said("it said once")

    def keep_if_due(self) -> None:
        """Not over one that is there, unless that says the same. Raises StateFileError."""
        if not self._is_due:
            return
        try:
            self._keep()
        except OSError as exc:
            raise StateFileError(
                "Which disk is which could not be noted",
                cause=f"{self._file} was put back, and could not be kept as {self.path}: {cause_of(exc)}",
                action="Make room in the state_dir; or move away what lies there under that name.",
            ) from exc
        self._is_due = False

    def _keep(self) -> None:
        """Raises OSError."""
        try:
            content = self._file.read_bytes()
        except FileNotFoundError:
            return  # somebody took it away: nothing is written over
        if not self.path.exists() or self.path.read_bytes() != content:
            durable.create_file(self.path, content)

    def _said(self, what: str) -> PutBackError:
        return PutBackError(
            f"{self._file} was put back; what is captured goes on as what it was captured for",
            cause=f"{what} other disks than are captured, and not all of it could be proved; it is kept as {self.path} before it is"
            " written over",
        )
