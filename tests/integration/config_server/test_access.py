"""Which failures of the config server make a restore take what the profile has for the worst day. Real TLS, real storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from config_server.cli import point_commands
from config_server.cli.access import opened
from config_server.cli.options import Target
from config_server.cli.profile import Rescue
from config_server.cli.rescue import HINT
from shared.api.keys import MachineKeyGrant
from shared.api.restores import RestoreGrant, RestoreRequest, StorageGrant
from shared.api.route import Failure
from shared.blob import BlobConfig
from shared.errors import (
    AccessError,
    ConfigError,
    MachineNotFoundError,
    RequestError,
    StorageError,
    UnderstudyError,
)
from shared.machine.storage import MachineStorage
from shared.trust import tls
from tests.impostor import answering
from tests.machine_log import ModelMachine
from tests.pki import TestCa

OF_THE_SERVER = (
    StorageError("The database /x/state.db could not be used", cause="database or disk is full"),
    UnderstudyError("The operation 'restore' failed", cause="an error inside the config server"),
    AccessError(
        "The call 'restore' was refused", cause="the operator token is not valid on this config server"
    ),
    ConfigError("Restores cannot be granted here", cause="no vault file is configured"),
)
OF_THE_USER = (
    MachineNotFoundError("Machine 'web1' was not found"),
    RequestError("refused", cause="no such point"),
)


def refusing(error: UnderstudyError) -> web.Response:
    failure = Failure(**error.as_dict(), exit_code=error.exit_code)
    return web.Response(status=503, body=msgspec.json.encode(failure))


class Site:
    def __init__(self, folder: Path, blob: BlobConfig) -> None:
        self.ca = TestCa(folder, "CA")
        self.context = tls.server_context(self.ca.issue("config-server:cs1"), require_client=False)
        self.rescue = Rescue(vault_file=folder / "vault.json", blob=blob)

    def target(self, url: str, rescue: Rescue | None) -> Target:
        return Target(url, "token", self.ca.path, rescue)


@pytest.fixture
async def site(tmp_path: Path, machine_storage: MachineStorage, blob_config: BlobConfig) -> Site:
    await ModelMachine.create(await machine_storage.find_or_create("web1"), tmp_path)
    return Site(tmp_path, blob_config)


@pytest.mark.parametrize("error", OF_THE_SERVER, ids=lambda error: error.code)
async def test_a_config_server_that_cannot_grant_is_as_good_as_one_that_is_away(
    site: Site, error: UnderstudyError
) -> None:
    answers = {name: lambda _request: refusing(error) for name in ("restore", "points")}
    async with answering(site.context, answers) as url:
        assert (await point_commands._list(site.target(url, site.rescue), "web1")).machine == "web1"
        async with opened(site.target(url, site.rescue), "web1", RestoreRequest()) as access:
            assert access.client is None
        with pytest.raises(type(error)) as caught:
            async with opened(site.target(url, None), "web1", RestoreRequest()):
                pass
    assert caught.value.action.endswith(HINT)


@pytest.mark.parametrize("error", OF_THE_USER, ids=lambda error: error.code)
async def test_a_request_that_is_wrong_is_told_and_nothing_is_rescued(
    site: Site, error: UnderstudyError
) -> None:
    async with answering(site.context, {"restore": lambda _request: refusing(error)}) as url:
        with pytest.raises(type(error)) as caught:
            async with opened(site.target(url, site.rescue), "web1", RestoreRequest()):
                pass
    assert HINT not in caught.value.action


async def test_a_restore_that_was_granted_goes_on_when_there_can_be_no_job_of_it(
    site: Site, blob_config: BlobConfig
) -> None:
    storage = StorageGrant(url=blob_config.url, container=blob_config.container)
    grant = RestoreGrant(job="", storage=storage, key=MachineKeyGrant(key_id="k", wrapped="", key=""))

    def restore(request: dict[str, Any]) -> Any:
        return grant if request.get("dry_run") else refusing(OF_THE_SERVER[0])

    async with (
        answering(site.context, {"restore": restore}) as url,
        opened(site.target(url, None), "web1", RestoreRequest(dry_run=True)) as access,
    ):
        assert (await access.begin(RestoreRequest(), "web1")).job == ""
