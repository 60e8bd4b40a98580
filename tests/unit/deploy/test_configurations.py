"""The configurations of the daemons: their page, and files in which every key is explained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.config import AgentConfig
from config_server.cli.profile import Profile
from deploy import configurations
from deploy.configurations import SMALLEST, reference, type_of
from shared.configuration.sample import sample
from shared.daemon.service import load_config
from shared.host.toml import to_toml
from shared.vocabulary import Role

ROOT = Path(configurations.__file__).parent.parent
AWKWARD = 'a "b" \\ \n# c = [d]\t\x7f é中🙂\u2028'


def load(folder: Path, type_: type[Any], text: str) -> Any:
    file = folder / "x.toml"
    file.write_text(text, encoding="utf-8")
    return load_config(file, type_)


def test_the_page_is_what_the_code_says() -> None:
    is_right = (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == reference()
    assert is_right, (
        "docs/configuration.md is not what the code says any more: run `make docs`, and commit it"
    )


@pytest.mark.parametrize("role", SMALLEST)
def test_the_smallest_file_is_one(tmp_path: Path, role: Role) -> None:
    load(tmp_path, type_of(role), to_toml(SMALLEST[role]))
    assert f"```toml\n{to_toml(SMALLEST[role])}```" in reference()


@pytest.mark.parametrize("role", SMALLEST)
def test_a_file_with_all_keys_explained_is_read_as_its_values(tmp_path: Path, role: Role) -> None:
    values = dict(SMALLEST[role])
    expected = load(tmp_path, type_of(role), to_toml(values))
    text = sample(type_of(role), values)
    assert load(tmp_path, type_of(role), text) == expected
    # And what it shows as defaults are the defaults. What is left of tables that have no default is not to be read.
    whole = re.sub(r"^#\[\[.*\n(.*\n)*?(?=\n\n|\Z)", "", text, flags=re.MULTILINE)
    uncommented = re.sub(r"^#(?=\S)(?!.*…$)", "", whole, flags=re.MULTILINE)
    assert uncommented.count("\nlog_level = ") == 1
    assert load(tmp_path, type_of(role), uncommented) == expected


@pytest.mark.parametrize(
    ("role", "more"),
    [
        (Role.AGENT, {"machine": AWKWARD, "disks": [AWKWARD, "/dev/a"], "pin_dir": f"/{AWKWARD}"}),
        (Role.PROCESS_SERVER, {"name": AWKWARD, "spool_dir": f"/{AWKWARD}", "segment_seconds": 1e-07}),
        (Role.MASTER_TARGET, {"name": AWKWARD, "target": "image", "image_dir": f"/{AWKWARD}"}),
        (Role.CONFIG_SERVER, {"data_dir": f"/{AWKWARD}", "hosts": [], "grant_hours": 1.5}),
    ],
)
def test_awkward_values_are_read_as_they_were_given(tmp_path: Path, role: Role, more: dict[str, Any]) -> None:
    written = load(tmp_path, type_of(role), sample(type_of(role), {**SMALLEST[role], **more}))
    assert msgspec.to_builtins(written, enc_hook=str).items() >= more.items()


def test_disks_with_ids_are_read_as_they_were_given(tmp_path: Path) -> None:
    disks = [{"device": AWKWARD, "id": "data"}, {"device": "/dev/b", "identity": "wwid:naa.1"}]
    written = load(tmp_path, AgentConfig, sample(AgentConfig, {**SMALLEST[Role.AGENT], "disk": disks}))
    assert [(disk.device, disk.id, disk.identity) for disk in written.disk] == [
        (AWKWARD, "data", None),
        ("/dev/b", None, "wwid:naa.1"),
    ]


def test_the_profile_can_be_written_with_every_key_explained(tmp_path: Path) -> None:
    values = {
        "server": "https://cs",
        "token_file": AWKWARD,
        "rescue": {"vault_file": "/v", "blob": {"url": "https://a.blob.core.windows.net"}},
    }
    assert load(tmp_path, Profile, sample(Profile, values)) == load(tmp_path, Profile, to_toml(values))


def test_storage_has_no_configuration_file() -> None:
    with pytest.raises(ValueError, match="no configuration"):
        type_of(Role.STORAGE)
