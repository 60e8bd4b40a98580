"""Which operation answers which route. Types are checked against the routes' own; a route that is left out stops the start."""

from __future__ import annotations

from typing import NamedTuple

from config_server.operations.ca_renewal import CaRenewals
from config_server.operations.call import Call
from config_server.operations.control import Control
from config_server.operations.deleting import Deleting
from config_server.operations.enrolment import Identity
from config_server.operations.granting import Granting
from config_server.operations.jobs import Jobs
from config_server.operations.keys import Keys
from config_server.operations.machines import Machines
from config_server.operations.operators import Operators
from config_server.operations.points import Points
from config_server.operations.policies import PolicyOperations
from config_server.operations.protecting import Protecting
from config_server.operations.reporting import Reporting
from config_server.operations.restores import Restores
from config_server.operations.revoking import Revoking
from config_server.operations.sides import Sides
from config_server.web.binding import Binder
from shared import api
from shared.api.route import API_VERSION, Nothing
from shared.api.server import ServerInfo
from shared.errors import ServerNotReadyError
from shared.version import VERSION


class Handlers(NamedTuple):
    identity: Identity
    revoking: Revoking
    reporting: Reporting
    machines: Machines
    points: Points
    restores: Restores
    jobs: Jobs
    protecting: Protecting
    deleting: Deleting
    policies: PolicyOperations
    granting: Granting
    keys: Keys
    operators: Operators
    renewals: CaRenewals
    sides: Sides


def bind(binder: Binder, name: str, handlers: Handlers, control: Control) -> None:
    """`name` is the server's."""

    async def health(_call: Call, _body: Nothing) -> ServerInfo:
        return ServerInfo(name=name, version=VERSION, api=API_VERSION)

    async def ready(call: Call, body: Nothing) -> ServerInfo:
        """Strangers ask, so why it is not is said in general. Raises ServerNotReadyError."""
        if control.db.trouble is not None:
            raise ServerNotReadyError("This config server is not ready", cause="its database cannot be used")
        if control.force.error is not None:
            raise ServerNotReadyError("This config server is not ready", cause="another one is in force")
        if control.refuses_renewed:
            cause = "it lacks the CA by which daemons have certificates"
            raise ServerNotReadyError("This config server is not ready", cause=cause)
        return await health(call, body)

    binder.on(api.HEALTH, health)
    binder.on(api.READY, ready)
    binder.on(api.CA, handlers.identity.ca)
    binder.on(api.CA_RENEW, handlers.renewals.begin)
    binder.on(api.ENROL, handlers.identity.enrol)
    binder.on(api.RENEW, handlers.identity.renew)
    binder.on(api.OPERATORS, handlers.operators.all)
    binder.on(api.OPERATOR_TOKEN_CREATE, handlers.operators.create_token)
    binder.on(api.OPERATOR_TOKEN_END, handlers.operators.end_token)
    binder.on(api.TOKENS, handlers.identity.list_tokens)
    binder.on(api.TOKEN_END, handlers.identity.end_token)
    binder.on(api.VAULT, handlers.keys.vault)
    binder.on(api.TOKEN_CREATE, handlers.identity.create_token)
    binder.on(api.CERTIFICATES, handlers.identity.certificates)
    binder.on(api.CERTIFICATE_REVOKE, handlers.revoking.revoke)
    binder.on(api.STATUS, handlers.reporting.status)
    binder.on(api.COMMAND, handlers.reporting.command)
    binder.on(api.EVENTS, handlers.reporting.events)
    binder.on(api.DAEMONS, handlers.reporting.daemons)
    binder.on(api.AUDIT, handlers.reporting.audit)
    binder.on(api.MACHINES, handlers.machines.all)
    binder.on(api.MACHINE, handlers.machines.one)
    binder.on(api.RESYNC, handlers.points.resync)
    binder.on(api.POINTS, handlers.points.all)
    binder.on(api.POINT_CREATE, handlers.points.create)
    binder.on(api.FLUSH, handlers.points.flush)
    binder.on(api.RESTORE, handlers.restores.begin)
    binder.on(api.JOBS, handlers.jobs.all)
    binder.on(api.JOB, handlers.jobs.one)
    binder.on(api.JOB_UPDATE, handlers.restores.update_job)
    binder.on(api.JOB_CANCEL, handlers.jobs.cancel)
    binder.on(api.JOB_RETRY, handlers.jobs.retry)
    binder.on(api.JOB_ABANDON, handlers.jobs.abandon)
    binder.on(api.PROTECT, handlers.protecting.protect)
    binder.on(api.UNPROTECT, handlers.protecting.unprotect)
    binder.on(api.DISKS, handlers.protecting.disks)
    binder.on(api.DELETION, handlers.deleting.look)
    binder.on(api.DELETE, handlers.deleting.delete)
    binder.on(api.KEEP, handlers.deleting.keep)
    binder.on(api.POLICY, handlers.policies.default)
    binder.on(api.POLICY_SET, handlers.policies.put_default)
    binder.on(api.POLICIES, handlers.policies.all)
    binder.on(api.POLICY_GET, handlers.policies.get)
    binder.on(api.POLICY_PUT, handlers.policies.put)
    binder.on(api.POLICY_DELETE, handlers.policies.delete)
    binder.on(api.POLICY_ASSIGN, handlers.policies.assign)
    binder.on(api.GRANTS, handlers.granting.list)
    binder.on(api.GRANT_RENEW, handlers.granting.renew)
    binder.on(api.GRANT_END, handlers.granting.end)
    binder.on(api.KEY_UNWRAP, handlers.keys.unwrap)
    binder.on(api.KEY_CREATE, handlers.keys.create)
    binder.on(api.RESTORE_KEY, handlers.keys.unwrap)
    binder.on(api.REBIND, handlers.sides.rebind)
    binder.on(api.COPIES, handlers.sides.copies)
