"""Every argument of every command takes odd values: it works, or ends with a clear error."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from config_server.cli import main
from tests.process_server_site import free_port

ODD = {
    "empty": "",
    "space": " ",
    "not UTF-8": "\udcff\udcfe",
    "very long": "x" * 5000,
    "newline": "a\nb",
    "control": "\x1b[31m\x7f",
    "dash": "-",
    "leading dash": "--nothing",
    "direction marks": "\u202eabc\u2066",
    "markup": "[red]x[/nothing]",
    "path": "../../../etc/passwd",
    "brackets": "https://[::1",
    "format": "%s{0}{x}$HOME",
    "number": "1e400",
}
FITTING = {
    "name": "web1",
    "certificate_": "agent:web9",
    "id_": "0123456789abcdef",
    "points": "1-2",
    "role": "agent",
    "shell": "bash",
    "daemon": "agent",
    "policy_name": "gold",
}
"""Arguments that a command cannot do without, by their name."""
ALWAYS = {
    ("machine", "watch"): ["--count", "1"],
    ("machine", "wait"): ["--timeout", "0"],
    ("restore",): ["--to", "/dev/shm/nobody-makes-this", "--dry-run"],
    ("point", "create"): ["--wait", "--timeout", "0"],
    ("lab", "up"): ["--dir", "/dev/shm/nobody-makes-this"],
}
"""So that each ends at once and makes nothing."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The options that lead to a config server, which runs without storage."""
    folder = tmp_path_factory.mktemp("config-server")
    port = free_port()
    config = folder / "config-server.toml"
    config.write_text(f'data_dir = "{folder}/data"\nlisten = "127.0.0.1"\nport = {port}\n')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, (folder / "log").open("wb") as log:
        manager.bind(str(folder / "notify"))
        process = subprocess.Popen(
            [sys.executable, "-m", "config_server", "--config", str(config)],
            env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify")},
            stderr=log,
        )
        try:
            while b"READY=1" not in manager.recv(4096):
                pass
            data = folder / "data"
            yield [
                *("--server", f"https://127.0.0.1:{port}"),
                *("--token-file", str(data / "operator.token")),
                *("--ca-file", str(data / "ca.pem")),
            ]
        finally:
            process.terminate()
            process.wait()
    assert "this is a bug" not in (folder / "log").read_text()


def commands(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            inner = command.get_command(ctx, name)
            assert inner is not None
            yield from commands(inner, (*path, name))
    else:
        yield path, command


def fitting(path: tuple[str, ...], command: click.Command) -> list[str]:
    given = [
        FITTING[str(param.name)]
        for param in command.params
        if isinstance(param, click.Argument) and param.required
    ]
    return [*path, *ALWAYS.get(path, []), *given]


CASES = [
    pytest.param(path, command, param, id=f"{' '.join(path)} {param.opts[0]}")
    for path, command in commands(main.cli)
    for param in command.params
    if not (isinstance(param, click.Option) and param.is_flag) and not isinstance(param.type, click.Choice)
]


@pytest.mark.parametrize(("path", "command", "param"), CASES)
def test_an_odd_value_works_or_ends_with_a_clear_error(
    server: list[str],
    path: tuple[str, ...],
    command: click.Command,
    param: click.Parameter,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)  # some name files that are written
    for name in [name for name in os.environ if name.startswith("UNDERSTUDY_")]:
        monkeypatch.delenv(name)
    leads = server if any("--server" in option.opts for option in command.params) else []
    for kind, value in ODD.items():
        if isinstance(param, click.Argument):
            index = [p for p in command.params if isinstance(p, click.Argument)].index(param)
            words = fitting(path, command)
            place = len(path) + len(ALWAYS.get(path, [])) + index
            words[place : place + 1] = [value]
            arguments = [*words[: len(path)], *leads, *words[len(path) :]]
        else:
            arguments = [
                *fitting(path, command)[: len(path)],
                *leads,
                *fitting(path, command)[len(path) :],
                f"{param.opts[0]}={value}",
            ]
        exit_code = main.run(arguments)
        said = capsys.readouterr()
        assert exit_code in (0, 2, 3, 4, 5), (kind, exit_code, said)
        if exit_code:
            assert "Error" in said.err, kind
            assert "\x1b[31m" not in said.err, "what was given must not paint the screen"


@pytest.mark.parametrize("output", ["full", "gone"])
def test_a_result_that_cannot_be_printed_ends_with_a_clear_error(server: list[str], output: str) -> None:
    for path, command in [*commands(main.cli), (("--help",), click.Command("--help"))]:
        if path not in (
            ("completion",),
            ("event", "list"),
            ("policy", "show"),
            ("machine", "list"),
            ("token", "create"),
            ("--help",),
        ):
            continue
        with contextlib.ExitStack() as stack:
            if output == "full":
                out = stack.enter_context(Path("/dev/full").open("wb")).fileno()
            else:
                reading, out = os.pipe()
                os.close(reading)
                stack.callback(os.close, out)
            words = fitting(path, command)
            leads = server if path[0] not in ("completion", "--help") else []
            done = subprocess.run(
                [sys.executable, "-c", "from config_server.cli.main import main; main()", *words, *leads],
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert "Traceback" not in done.stderr
        assert (done.returncode, "US479" in done.stderr) == (
            (5, True) if output == "full" else (141, False)
        ), path
