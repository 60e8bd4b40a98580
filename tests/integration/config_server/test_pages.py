"""Long lists over the API and at the command line, page by page."""

from __future__ import annotations

import pytest

from shared import api
from shared.api.jobs import JobQuery
from shared.api.route import Page
from shared.control.rest import RestClient
from shared.errors import JobNotFoundError, NotFoundError, RequestError
from tests.cli import understudy
from tests.config_parts import ConfigServer


async def test_the_pages_are_the_list_and_an_empty_next_its_end(
    server: ConfigServer, operator: RestClient
) -> None:
    for number in range(5):
        await server.token("agent", f"web{number}")
    whole = await operator.call(api.AUDIT, Page())
    assert whole.next == ""
    found, before = [], ""
    while True:
        page = await operator.call(api.AUDIT, Page(limit=2, before=before))
        found += page.entries
        before = page.next
        if not before:
            break
        assert len(page.entries) == 2
    assert found == whole.entries
    exactly = await operator.call(api.AUDIT, Page(limit=len(found)))
    assert exactly.next == "", "as many as there are, and no page behind"


@pytest.mark.parametrize("before", ["x", "-1", "1.0", "9" * 19, "٣"])
async def test_a_place_that_is_none_is_refused(operator: RestClient, before: str) -> None:
    with pytest.raises(RequestError, match="is no place in this list"):
        await operator.call(api.AUDIT, Page(before=before))
    with pytest.raises(NotFoundError):
        await operator.call(api.CERTIFICATES, Page(before=before))
    with pytest.raises(JobNotFoundError):
        await operator.call(api.JOBS, JobQuery(before=before))


async def test_the_command_line_shows_more_than_a_page_has(
    server: ConfigServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from config_server.cli import pages

    for number in range(5):
        await server.token("agent", f"web{number}")
    monkeypatch.setattr(pages, "MOST", 2)
    async with server.operator() as operator:
        found = await pages.collected(operator, api.AUDIT, Page(), 5, lambda page: page.entries)
        assert len(found) == 5
    folder = server.config.data_dir
    options = (
        *("--server", server.url, "--token-file", str(folder / "operator.token")),
        *("--ca-file", str(folder / "ca.pem")),
    )
    shown = await understudy("audit", "list", "--limit", "20000", "--output", "json", *options)
    assert [entry["object"] for entry in shown.json][:5] == [f"agent:web{n}" for n in (4, 3, 2, 1, 0)]
