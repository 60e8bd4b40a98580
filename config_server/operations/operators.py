"""Handlers of operators and their tokens."""

from __future__ import annotations

import secrets

from config_server.operations.call import Call
from config_server.operations.control import Control, check_name
from config_server.rules.clock import SECOND_NS, rfc3339
from config_server.store import audit, operators
from config_server.store.database import Connection
from shared.api.operators import OperatorList, OperatorToken, OperatorTokenRequest, OperatorTokenView
from shared.api.route import Nothing
from shared.errors import RequestError


class Operators:
    def __init__(self, control: Control) -> None:
        self._control = control

    async def all(self, _call: Call, _body: Nothing) -> OperatorList:
        return OperatorList(operators=await self._control.db.run(operators.views))

    async def create_token(self, call: Call, body: OperatorTokenRequest) -> OperatorToken:
        name = check_name(call.path["operator"], "operator")
        now_ns = self._control.now_ns()
        expires_ns = now_ns + body.ttl_s * SECOND_NS
        token, id_ = operators.new_token(), secrets.token_hex(6)
        new = OperatorTokenView(id=id_, words=body.words, who=call.who, created=rfc3339(now_ns))

        def work(db: Connection) -> None:
            operators.give(db, token, new, name, now_ns, expires_ns)
            detail = {"id": id_, "words": body.words, "expires": rfc3339(expires_ns)}
            audit.add(db, call.who, "operator.token", name, detail, now_ns)

        await self._control.db.run(work)
        return OperatorToken(id=id_, operator=name, token=token, expires=rfc3339(expires_ns))

    async def end_token(self, call: Call, _body: Nothing) -> OperatorTokenView:
        """Raises NotFoundError."""
        name, id_, now_ns = call.path["operator"], call.path["id"], self._control.now_ns()
        if id_ == operators.FILE:
            raise RequestError(
                f"The token of operator '{name}' was not ended",
                cause="it is a file of the config server, which has its owner in when nobody else gets in",
                action="For another one, delete operator.token in the config server's data folder, and start it again.",
            )

        def work(db: Connection) -> OperatorTokenView:
            ended = operators.end(db, name, id_)
            audit.add(db, call.who, "operator.token.end", name, {"id": id_, "words": ended.words}, now_ns)
            return ended

        return await self._control.db.run(work)
