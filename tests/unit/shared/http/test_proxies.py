"""What is reached through a proxy of the environment, and what never is."""

from __future__ import annotations

import pytest

from shared.http.proxies import Proxy, configured_proxy, is_near, proxy_for


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")


def test_what_is_far_away_is_reached_through_the_proxy() -> None:
    found = configured_proxy("https://acct.blob.core.windows.net/x")
    assert found == Proxy("http://proxy.example:3128", "HTTPS_PROXY")
    assert configured_proxy("http://acct.blob.core.windows.net/x") is None


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "[::1]",
        "localhost",
        "10.1.2.3",
        "192.168.0.7",
        "172.16.9.9",
        "169.254.169.254",
        "[fd00::1]",
    ],
)
async def test_what_is_near_never_is(host: str) -> None:
    assert configured_proxy(f"https://{host}:10000/acct") is None
    assert await proxy_for(f"https://{host}:10000/acct") is None


@pytest.mark.parametrize(
    "no_proxy", ["*", "windows.net", ".core.windows.net", "acct.blob.core.windows.net:443"]
)
def test_no_proxy_is_kept(no_proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert configured_proxy("https://acct.blob.core.windows.net:443") is None


async def test_a_name_that_only_the_proxy_can_resolve_is_the_proxys() -> None:
    assert await proxy_for("https://acct.invalid") is not None


async def test_a_name_of_near_addresses_only_is_reached_directly() -> None:
    assert await proxy_for("https://localhost.") is None


def test_a_proxy_without_scheme_is_an_http_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "proxy.example:3128")
    found = configured_proxy("https://acct.blob.core.windows.net")
    assert found is not None
    assert found.url == "http://proxy.example:3128"


def test_a_password_is_for_connecting_only() -> None:
    proxy = Proxy("http://user:secret@proxy.example:3128", "HTTPS_PROXY")
    assert str(proxy) == "the proxy http://proxy.example:3128 (HTTPS_PROXY)"


@pytest.mark.parametrize("host", ["8.8.8.8", "acct.blob.core.windows.net", "2600::1", "127.0.0.1.example"])
def test_what_is_public_is_not_near(host: str) -> None:
    assert not is_near(host)
