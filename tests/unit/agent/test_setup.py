"""What `python -m agent setup` is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.desired import WishFile
from agent.setup import _address, _after
from shared.desired import Desired, Mark, Verb, WantedDisk, Wish
from shared.errors import UsageError
from shared.host.toml import to_toml


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ps1", ("ps1", 9443)),
        ("ps1.example.com:444", ("ps1.example.com", 444)),
        ("192.0.2.1:1", ("192.0.2.1", 1)),
        ("[2001:db8::1]", ("2001:db8::1", 9443)),
        ("[2001:db8::1]:65535", ("2001:db8::1", 65535)),
    ],
)
def test_a_process_server_is_named_with_or_without_its_port(text: str, address: tuple[str, int]) -> None:
    assert _address(text) == address


@pytest.mark.parametrize(
    "text", ["", ":", "ps1:", "ps1:0", "ps1:65536", "ps1:x", "2001:db8::1", "[::1", "a:1:2"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no address of a process server"):
        _address(text)


@pytest.mark.parametrize(
    ("verb", "says"),
    [
        (None, "Next, on the config server: understudy machine protect web1"),
        (Verb.PROTECT, "web1 is to be protected already: nothing has to be said"),
        (
            Verb.STOP,
            "somebody has ended that. To begin again, on the config server: understudy machine protect web1",
        ),
        (Verb.OTHER, "On the config server, how it does: understudy machine show web1"),
    ],
)
async def test_what_is_left_to_do_is_by_what_the_agent_was_told(
    tmp_path: Path, verb: Verb | None, says: str
) -> None:
    """An upgrade is a set-up, too: of a machine that is protected nothing is to be said again."""
    file = tmp_path / "agent.toml"
    tls = {name: str(tmp_path / name) for name in ("cert", "key", "ca")}
    config = {"machine": "web1", "identity": "test:1", "disks": ["/dev/sda"], "process_server": "ps1:9443"}
    config |= {"control_url": "https://cs", "state_dir": str(tmp_path), "pin_dir": "/sys/fs/bpf/x"}
    file.write_text(to_toml({**config, "tls": tls}))
    if verb is not None:
        wishes = WishFile(tmp_path, "web1", "test:1")
        wishes.load()
        wish = Wish(mark=Mark("i", 1, "a"), verb=Verb.PROTECT, disks=(WantedDisk("/dev/sda"),))
        await wishes.take(Desired(wish=wish))
        assert await wishes.written()
        wishes.path.write_text(wishes.path.read_text().replace('"protect"', f'"{verb}"'))
    [said] = _after(file)
    assert says in said
