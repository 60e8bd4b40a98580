"""The `understudy` command, which also writes down what the config server answered it: `python -m tests.recorded_calls FILE ARGUMENT…`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from config_server.cli import main
from shared import decoding
from shared.api.route import Route
from shared.control.rest import RestClient

_call_plain = RestClient.call_plain
_answers: list[tuple[str, Any]] = []


async def _recorded(
    client: RestClient,
    route: Route[Any, Any],
    body: Mapping[str, Any] | None,
    path: Mapping[str, str],
    wait_s: float,
    decode: Callable[[bytes], Any] | None = None,
    **more: Any,
) -> Any:
    def read(content: bytes) -> Any:
        _answers.append((route.name, json.loads(content)))
        return decoding.decode(content, type=route.response) if decode is None else decode(content)

    return await _call_plain(client, route, body, path, wait_s, read, **more)


if __name__ == "__main__":
    RestClient.call_plain = _recorded  # type: ignore[method-assign, assignment]
    code = main.run(sys.argv[2:])
    Path(sys.argv[1]).write_text(json.dumps(_answers))
    sys.exit(code)
