"""What is left to do when a config server was set up: pure."""

from __future__ import annotations

import pytest

from config_server.setup.hosts import left
from shared.vocabulary import Role

ALL = (Role.PROCESS_SERVER, Role.MASTER_TARGET, Role.AGENT)


@pytest.mark.parametrize(
    ("known", "says"),
    [
        ((), "Next, for each host that is not part of it yet: understudy token create ROLE NAME"),
        (
            (Role.PROCESS_SERVER, Role.AGENT),
            "Next: understudy token create master-target NAME, and on its host python -m master_target setup."
            " No master-target has reported yet",
        ),
        ((Role.PROCESS_SERVER,), "No master-target and no agent has reported yet (understudy daemon list)"),
        (ALL, "Nothing is left to do here. Who reports: understudy daemon list"),
    ],
)
def test_roles_of_which_nobody_has_reported_are_what_is_left(known: tuple[Role, ...], says: str) -> None:
    assert says in left(known)
