"""What commands print."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from config_server.cli import output
from config_server.cli.main import _COMMANDS, cli, show_error
from shared.errors import NotFoundError


@pytest.mark.parametrize(
    ("size_b", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 << 40, "5.0 TiB"),
        (9 << 50, "9216.0 TiB"),
    ],
)
def test_sizes_are_binary(size_b: float | None, text: str) -> None:
    assert output.size(size_b) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.04, "0.0 s"), (119, "119.0 s"), (600, "10 min"), (7200, "2.0 h")]
)
def test_durations_are_short(value: float | None, text: str) -> None:
    assert output.seconds(value) == text


def test_every_command_can_be_loaded_and_has_a_line_in_the_list() -> None:
    runner = CliRunner()
    for name, (_, help_) in _COMMANDS.items():
        result = runner.invoke(cli, [name, "--help"])
        assert result.exit_code == 0, result.output
        assert help_.endswith("."), name


def test_an_error_is_three_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(NotFoundError("Machine 'x' was not found", cause="nobody knows it", action="Look again."))
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(":")[0].strip() for line in err.splitlines()] == ["Error US200", "Why", "Do"]
