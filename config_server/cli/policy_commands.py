"""`understudy policy …`: replication policies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import msgspec

from config_server.cli import versions
from config_server.cli.machine_pages import machine_page
from config_server.cli.names import checked_name, name_argument
from config_server.cli.options import COMMON, add_options, find_target
from config_server.cli.output import emit, grid, plain_fields, run
from shared.errors import ChangedSinceError, PolicyNotFoundError, ServerOutdatedError

if TYPE_CHECKING:
    from rich.table import Table

    from shared.api import Route
    from shared.api.machines import MachineView
    from shared.api.policies import Policy, PolicyView
    from shared.control.rest import RestClient

_DEFAULT: Final = "default"
_TRIES: Final = 5
"""Of a change, while others change the same."""
_R = TypeVar("_R", bound=msgspec.Struct)

_policy_argument = click.argument("policy_name", metavar="POLICY", callback=checked_name)
_default_argument = click.argument(
    "policy_name", metavar="[POLICY]", default=_DEFAULT, required=False, callback=checked_name
)


@click.group()
@add_options(*COMMON)
def policy() -> None:
    """Replication policies: how often points are made, and when an RPO is a warning."""


@policy.command("list")
@add_options(*COMMON)
def policy_list() -> None:
    """All policies, and the machines for which they hold.

    \b
    Example: understudy policy list
    """
    found = run(_list())
    emit(found, lambda: _table(found))


@policy.command("show")
@_default_argument
@add_options(*COMMON)
def policy_show(policy_name: str) -> None:
    """One policy. Without a name the default one, of machines that have no other.

    \b
    Example: understudy policy show gold
    """
    found = run(_get(policy_name))
    emit(found, lambda: plain_fields(found))


@policy.command("set")
@_default_argument
@click.option("--point-interval", "point_interval_s", type=float, metavar="S", help="Seconds between points.")
@click.option(
    "--own-interval",
    is_flag=True,
    help="Points as often as each agent's own configuration says. So it is until an interval is given.",
)
@click.option(
    "--rpo-threshold", "rpo_threshold_s", type=float, metavar="S", help="An RPO above this raises an event."
)
@add_options(*COMMON)
def policy_set(policy_name: str, *, own_interval: bool, **changes: float | None) -> None:
    """Create or change a policy; what is not given stays, or is the default one's at first. Without a name the default one.

    \b
    Example: understudy policy set gold --point-interval 60 --rpo-threshold 300
    """
    given: dict[str, float | msgspec.UnsetType] = {
        n: value for n, value in changes.items() if value is not None
    }
    if own_interval and "point_interval_s" in given:
        raise click.UsageError("--point-interval and --own-interval exclude each other.")
    found = run(_set(policy_name, given | ({"point_interval_s": msgspec.UNSET} if own_interval else {})))
    emit(found, lambda: plain_fields(found))


@policy.command("assign")
@_policy_argument
@name_argument
@add_options(*COMMON)
def policy_assign(policy_name: str, name: str) -> None:
    """Have a policy hold for a machine, from now on and as it is changed.

    \b
    Example: understudy policy assign gold web1
    """
    found = run(_assign(policy_name, name))
    emit(found, lambda: machine_page(found))


@policy.command("delete")
@_policy_argument
@add_options(*COMMON)
def policy_delete(policy_name: str) -> None:
    """Delete a policy that holds for no machine; what it was is shown.

    \b
    Example: understudy policy delete gold
    """
    found = run(_delete(policy_name))
    emit(found, lambda: plain_fields(found))


def _table(found: list[PolicyView]) -> Table:
    rows = [
        (each.name, _interval(each.point_interval_s), f"{each.rpo_threshold_s:g} s", ", ".join(each.machines))
        for each in found
    ]
    return grid(None, ("policy", ">points every", ">RPO at most", "machines"), rows)


def _interval(seconds: float | None) -> str:
    return "as configured" if seconds is None else f"{seconds:g} s"


async def _call(
    client: RestClient,
    route: Route[Any, _R],
    body: msgspec.Struct,
    path: dict[str, str],
    version: str | None = None,
) -> _R:
    asked = client.call_plain(route, msgspec.to_builtins(body), path, 0.0, version=version)
    return await versions.answered(client, asked, is_new=True)


async def _list() -> list[PolicyView]:
    from shared import api
    from shared.api.route import Nothing

    async with find_target().connect() as client:
        return (await _call(client, api.POLICIES, Nothing(), {})).policies


async def _get(name: str) -> PolicyView | Policy:
    from shared import api
    from shared.api.route import Nothing

    async with find_target().connect() as client:
        try:
            return await _call(client, api.POLICY_GET, Nothing(), {"policy": name})
        except ServerOutdatedError:
            if name != _DEFAULT:
                raise
            return await client.call(api.POLICY, Nothing())  # it has the default one alone


async def _set(name: str, changes: dict[str, float | msgspec.UnsetType]) -> PolicyView | Policy:
    """What is not named in `changes` stays as it is, also where somebody changes it at the same time."""
    async with find_target().connect() as client:
        tries = 0
        while True:
            tries += 1
            try:
                return await _change(client, name, changes)
            except ChangedSinceError:
                if tries == _TRIES:
                    raise


async def _change(
    client: RestClient, name: str, changes: dict[str, float | msgspec.UnsetType]
) -> PolicyView | Policy:
    from shared import api

    before, version = await _before(client, name)
    changed = msgspec.structs.replace(before, **changes)
    try:
        return await _call(client, api.POLICY_PUT, changed, {"policy": name}, version)
    except ServerOutdatedError:
        if name != _DEFAULT:
            raise
        return await client.call(api.POLICY_SET, changed)


async def _before(client: RestClient, name: str) -> tuple[Policy, str | None]:
    """And its version: empty where it is not there yet, None where the server does not tell."""
    from shared import api
    from shared.api.policies import Policy
    from shared.api.route import Nothing

    try:
        found = await _call(client, api.POLICY_GET, Nothing(), {"policy": name})
    except PolicyNotFoundError:
        return await client.call(api.POLICY, Nothing()), ""
    except ServerOutdatedError:
        if name != _DEFAULT:
            raise
        return await client.call(api.POLICY, Nothing()), None
    interval_s = msgspec.UNSET if found.point_interval_s is None else found.point_interval_s
    policy = Policy(point_interval_s=interval_s, rpo_threshold_s=found.rpo_threshold_s)
    return policy, found.version or None


async def _assign(policy_name: str, machine: str) -> MachineView:
    from shared import api
    from shared.api.machines import PolicyChoice

    async with find_target().connect() as client:
        return await _call(client, api.POLICY_ASSIGN, PolicyChoice(policy_name), {"machine": machine})


async def _delete(name: str) -> PolicyView:
    from shared import api
    from shared.api.route import Nothing

    async with find_target().connect() as client:
        return await _call(client, api.POLICY_DELETE, Nothing(), {"policy": name})
