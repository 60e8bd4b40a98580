"""The CA is renewed by two config servers on one PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest

from config_server import background
from config_server.identity.ca import CertificateAuthority
from config_server.store.config import DatabaseConfig
from shared.api.jobs import JobState
from shared.trust import anchors
from tests.ca_renewals import hurry, renew, until
from tests.config_parts import ConfigServer
from tests.pair import running_pair


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def give(of: ConfigServer, to: ConfigServer) -> None:
    """As a person does."""
    for name in ("ca.key", "ca.pem"):
        (to.config.data_dir / name).write_bytes((of.config.data_dir / name).read_bytes())


async def test_who_takes_the_job_makes_no_other_ca_since_he_has_not_heard_yet_of_who_made_one(
    tmp_path: Path, database_config: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "BEAT_S", 3600.0)
    async with running_pair(tmp_path, database_config) as pair:
        begun = await renew(pair.at_b)
        found = await until(pair.a, begun.id, waits="copy ca.key and ca.pem from")
        assert "of cs-b)" in found.waits
        made = CertificateAuthority.read(pair.b.config.data_dir)
        give(pair.b, pair.a)
        done = await until(pair.a, begun.id, JobState.DONE, JobState.ATTENTION)
        assert done.state is JobState.DONE
        assert done.result == {"ca": anchors.fingerprint(made.trusted[1])}
