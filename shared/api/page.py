"""docs/api.md: how the API is called, and what there is (`make docs`)."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from shared.api import ROUTES, failures
from shared.api.route import Access, Route

_HEAD: Final = """\
# The API of the config server

Everything that the command line does goes over this API, and so can your scripts and your monitoring. It speaks HTTPS on port 443 with a
certificate of the installation's own CA. [openapi.json](openapi.json) describes each call and each field (OpenAPI 3.1); a server serves its
own at `/v1/openapi.json`, to anybody. This page is made from the code (`make docs`).

## Calling it

With an operator's token, which `understudy init` put where the profile says (`operator_token_file`), and the CA's certificate:

```sh
curl --silent --cacert ca.pem --header "Authorization: Bearer $(cat operator.token)" https://config.example.com/v1/machines
```

The command line shows the same: `understudy machine list --output json`.

- Bodies are JSON in UTF-8. A request with a field that is not known is refused: a mistyped one would silently mean its default. Answers may
  get new fields; ignore what you do not know.
- Times are RFC 3339 in UTC with nanoseconds. What ends in `_b` is bytes, in `_s` seconds.
- 200: done. 201: there is something new. 202: it is asked for, and done later (`GET /v1/commands/{id}` says how it goes;
  with `Prefer: wait=20` that answer is held until there is something to say, or 20 s).
- A request that may have been lost can be sent again: PUT and DELETE say how things shall be. Where twice would matter, a POST takes an
  `Idempotency-Key` of yours (a random UUID, say; or a `request` in its body): the same key begins the same thing once.
- Long lists come in pages, the newest first: `limit` entries, and `next`. The page behind it is the same request with `before` = that;
  an empty `next` is the end.
- What people read and then change has a `version`, which is also its `ETag`. Say over which you change it (`If-Match: "VERSION"`, or `*`;
  `If-None-Match: *` where there is to be none yet): what somebody else has said meanwhile is not undone unseen.

## When it fails

The answer is `application/problem+json` (RFC 9457): `code` is the error's own (US…; what it means stays the same over versions), `what`
failed, `cause` is why, `action` is what to do, and `exit_code` how the command line ends.

openapi.json names for each call the codes that it may answer with, by status.

| Status | Meaning |
|---|---|
"""
_CALLS: Final = """
## Calls

"""


def text(routes: Iterable[Route[Any, Any]]) -> str:
    """docs/api.md."""
    routes = tuple(routes)
    operators = [route for route in routes if route.access is Access.OPERATOR]
    others = [route for route in routes if route.access is not Access.OPERATOR]
    statuses = "".join(f"| {status.code} | {status.meaning} |\n" for status in sorted(failures.STATUSES))
    return (
        _HEAD
        + statuses
        + _CALLS
        + "For operators, each with the permission that it needs (an operator has all of them today):\n\n"
        + _table("Needs", [(route, str(route.needs)) for route in operators])
        + "\nFor the installation's own daemons, who show their certificate, and for anybody:\n\n"
        + _table("Who", [(route, _who(route)) for route in others])
    )


def _table(head: str, rows: Iterable[tuple[Route[Any, Any], str]]) -> str:
    lines = [f"| {route.method} | `{route.path}` | {route.summary} | {last} |" for route, last in rows]
    return "\n".join([f"| | Path | What it does | {head} |", "|---|---|---|---|", *lines, ""])


def _who(route: Route[Any, Any]) -> str:
    if route.access is Access.PUBLIC:
        return "anybody"
    return ", ".join(role.replace("-", " ") for role in route.roles) or "every daemon"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(ROUTES), encoding="utf-8")
