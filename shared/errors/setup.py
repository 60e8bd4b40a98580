"""What keeps a host from becoming part of an installation (`understudy init`, `python -m ROLE setup`)."""

from __future__ import annotations

from shared.errors.base import UnhealthyError


class RecoveryFileThereError(UnhealthyError):
    """The recovery key would take the place of a file."""

    code = "US626"
    default_action = "Give the name of a file that is not there. If what is there is this installation's, keep it safe first."


class InstallationThereError(UnhealthyError):
    """The storage account's vault container is another installation's, or this one's from before this host was lost."""

    code = "US627"


class UnitError(UnhealthyError):
    """The service manager did not do what it was asked for."""

    code = "US628"


class ProgramPlaceError(UnhealthyError):
    """The units start another program than the one that sets them up."""

    code = "US629"
