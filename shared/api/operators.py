"""Operators: people and programs that call with a token."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

import msgspec

from shared.api.permissions import Permission
from shared.api.route import Access, Nothing, Route


class OperatorTokenRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    words: Annotated[str, msgspec.Meta(max_length=200)] = ""
    """What it is for."""
    ttl_s: Annotated[int, msgspec.Meta(ge=60, le=366 * 86_400)] = 90 * 86_400


class OperatorToken(msgspec.Struct, kw_only=True):
    """The only answer that has the token itself: what is stored tells nothing of it."""

    id: str
    operator: str
    token: str
    expires: str

    def __repr__(self) -> str:
        return f"OperatorToken(id={self.id!r}, operator={self.operator!r})"


class OperatorTokenView(msgspec.Struct, kw_only=True):
    id: str
    """`file`: that of the config server's data folder, which has its owner in when nobody else gets in. It ends where it lies."""
    words: str = ""
    who: str = ""
    """By whom it was made."""
    created: str
    expires: str | None = None
    """Null: it does not."""
    used: str | None = None
    """Last, to the hour; null: never, or that is not written down."""


class OperatorView(msgspec.Struct, kw_only=True):
    name: str
    tokens: list[OperatorTokenView]


class OperatorList(msgspec.Struct):
    operators: list[OperatorView]


OPERATORS = Route(
    "operators",
    "GET",
    "/v1/operators",
    Access.OPERATOR,
    Nothing,
    OperatorList,
    "Who may call, and their tokens",
    needs=Permission.OPERATOR_READ,
)
OPERATOR_TOKEN_CREATE = Route(
    "operator_token_create",
    "POST",
    "/v1/operators/{operator}/tokens",
    Access.OPERATOR,
    OperatorTokenRequest,
    OperatorToken,
    "A token for an operator, who may be a new one",
    needs=Permission.OPERATOR_CHANGE,
    status=HTTPStatus.CREATED,
)
OPERATOR_TOKEN_END = Route(
    "operator_token_end",
    "DELETE",
    "/v1/operators/{operator}/tokens/{id}",
    Access.OPERATOR,
    Nothing,
    OperatorTokenView,
    "End an operator's token at once",
    needs=Permission.OPERATOR_CHANGE,
)
