"""Log-in through an outside OpenID Connect provider: a real one on loopback, honest and otherwise."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from joserfc.jwk import RSAKey

from tests.support import provider as providers
from tests.support.browser import Browser
from tests.support.provider import CLIENT, SECRET, Provider
from tests.support.server import Running, running

ANN = {"sub": "00-ann", "email": "Ann@Example.org", "email_verified": True, "name": "Ann", "preferred_username": "ann"}


@pytest.fixture(scope="module")
def outside() -> Iterator[Provider]:
    with providers.running() as found:
        yield found


@pytest.fixture
def provider(outside: Provider) -> Iterator[Provider]:
    """As honest as when it began."""
    outside.key, outside.algorithm, outside.person, outside.change = outside.published, "RS256", dict(ANN), {}
    yield outside


def settings(folder: Path, provider: Provider, admit: str) -> dict[str, str]:
    (folder / "secret").write_text(SECRET + "\n")
    given = {"ISSUER": provider.url, "CLIENT_ID": CLIENT, "CLIENT_SECRET_FILE": str(folder / "secret"), "ADMIT": admit}
    return {f"HOLDFAST_OIDC__{name}": value for name, value in given.items()}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, outside: Provider) -> Iterator[Running]:
    """It lets in whoever has an account."""
    folder = tmp_path_factory.mktemp("server")
    with running(folder / "data", **settings(folder, outside, "existing")) as found:
        yield found


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory, outside: Provider) -> Iterator[Running]:
    """It lets in whoever the provider knows."""
    folder = tmp_path_factory.mktemp("server")
    with running(folder / "data", **settings(folder, outside, "anyone")) as found:
        yield found


def comes_back(browser: Browser, path: str = "") -> str:
    """Where the provider leads to after a log-in there."""
    there = browser.client.get("/login/oidc", params={"next": path} if path else {})
    assert there.status_code == 303, there.text
    return str(httpx2.get(there.headers["location"]).headers["location"])


def log_in(server: Running, path: str = "") -> tuple[httpx2.Response, str]:
    """The page one comes to, and as whom (empty: nobody)."""
    with Browser(server.url) as browser:
        page = browser.open(comes_back(browser, path))
        me = browser.client.get("/accounts/me")
        return page, str(me.json()["username"]) if me.status_code == 200 else ""


@pytest.fixture
def ann(server: Running, provider: Provider, name: str) -> str:
    """An account with an address that no other has, and the provider's person who has it too."""
    server.user(name, email=f"{name}@example.org").close()
    provider.person = {**ANN, "sub": f"00-{name}", "email": f"{name.title()}@Example.org"}
    return name


def test_who_has_an_account_with_the_verified_address_gets_in(server: Running, ann: str) -> None:
    with Browser(server.url) as browser:
        assert "127.0.0.1" in browser.open("/login").text
        page = browser.open(comes_back(browser, "/oauth2/verify"))
        assert page.status_code == 200 and page.url.path == "/oauth2/verify"
        assert browser.client.get("/accounts/me").json()["username"] == ann
        assert "holdfast_oidc" not in browser.client.cookies


def test_who_got_in_once_is_known_by_the_providers_name_for_him(server: Running, provider: Provider, ann: str) -> None:
    assert log_in(server)[1] == ann
    provider.person |= {"email": "another@example.org", "email_verified": False}
    assert log_in(server)[1] == ann
    provider.person |= {"sub": "00-somebody-else"}
    page, who = log_in(server)
    assert (page.status_code, who) == (403, "")


@pytest.mark.parametrize(
    "change",
    [{"email_verified": False}, {"email_verified": None}, {"email_verified": "true"}, {"email": None},
     {"email": "nobody@example.org"}, {"email": ""}, {"email": "@"}, {"email": 5}, {"email": "a\0@b"}],
)  # fmt: skip
def test_who_has_no_account_with_a_verified_address_stays_out(
    server: Running, provider: Provider, ann: str, change: dict[str, Any]
) -> None:
    provider.change = change
    page, who = log_in(server)
    assert (page.status_code, who) == (403, "") and "no account for you" in page.text


def test_an_address_that_two_accounts_have_lets_nobody_in(server: Running, ann: str) -> None:
    server.user(f"{ann}-other", email=f"{ann}@example.org").close()
    assert log_in(server)[1] == ""


def test_a_disabled_account_stays_out(server: Running, ann: str) -> None:
    assert log_in(server)[1] == ann
    with server.client() as admin:
        admin.patch(f"/accounts/users/{ann}", json={"disabled": True})
    page, who = log_in(server)
    assert (page.status_code, who) == (401, "")


def test_where_anyone_may_come_in_an_account_is_made(open_server: Running, provider: Provider) -> None:
    with open_server.client() as admin:
        for person, username in (
            ({**ANN, "sub": "1"}, "ann"),
            ({**ANN, "sub": "1", "preferred_username": "renamed"}, "ann"),
            ({"sub": "2", "preferred_username": "../Ö <b>"}, "b-"),
        ):
            provider.person = person
            assert log_in(open_server)[1] == username
        provider.person = {"sub": "3", "preferred_username": "ann"}
        another = log_in(open_server)[1]
        assert another.startswith("ann-")
        made = admin.get("/accounts/users/ann").json()
        assert (made["email"], made["name"], made["role"]) == ("Ann@Example.org", "Ann", "user")
        assert admin.get(f"/accounts/users/{another}").json()["email"] == ""


@pytest.mark.parametrize(
    "change",
    [
        {"iss": "https://evil.example.org"}, {"iss": None}, {"aud": "another client"}, {"aud": None},
        {"aud": ["another client"]}, {"aud": [CLIENT, "another"], "azp": "another"}, {"exp": int(time.time()) - 3600},
        {"exp": None}, {"exp": "soon"}, {"nonce": "another"}, {"nonce": None}, {"sub": None}, {"sub": ""}, {"sub": 5},
        {"nbf": int(time.time()) + 3600}, {"iat": None}, {"at_hash": "wrong"},
    ],
)  # fmt: skip
def test_an_id_token_that_does_not_hold_lets_nobody_in(
    server: Running, provider: Provider, ann: str, change: dict[str, Any]
) -> None:
    provider.change = change
    page, who = log_in(server)
    assert (page.status_code, who) == (502, "")


def test_an_id_token_that_others_signed_lets_nobody_in(server: Running, provider: Provider, ann: str) -> None:
    provider.key = RSAKey.generate_key(2048)
    assert log_in(server)[1] == ""
    provider.key = provider.published
    for provider.algorithm in ("HS256", "none"):  # what a verifier falls for that lets the token choose
        assert log_in(server)[1] == ""
    provider.algorithm = "RS256"
    assert log_in(server)[1] == ann


def test_a_log_in_counts_only_in_the_browser_that_began_it(server: Running, ann: str) -> None:
    with Browser(server.url) as mallory, Browser(server.url) as victim:
        back = comes_back(mallory)
        assert victim.open(back).status_code == 401
        comes_back(victim)
        assert victim.open(back).status_code == 401
        assert victim.client.get("/accounts/me").status_code == 401


@pytest.mark.parametrize(
    "query", ["", "state=x", "code=x", "error=access_denied&state=x", "code=x&state=%C3%A4", "%ff"]
)
def test_a_return_that_makes_no_sense_lets_nobody_in(server: Running, query: str) -> None:
    with Browser(server.url) as browser:
        comes_back(browser)
        assert browser.open(f"/login/oidc/callback?{query}").status_code in (400, 401)
        browser.client.cookies.set("holdfast_oidc", "nonsense", path="/login/oidc")
        assert browser.open(f"/login/oidc/callback?{query}").status_code in (400, 401)


def test_a_code_of_the_provider_works_once(server: Running, ann: str) -> None:
    with Browser(server.url) as browser:
        back = comes_back(browser)
        kept = browser.client.cookies.get("holdfast_oidc")
        assert browser.open(back).status_code == 200
        browser.client.cookies.clear()
        browser.client.cookies.set("holdfast_oidc", str(kept), path="/login/oidc")
        assert browser.open(back).status_code == 502


def test_a_provider_that_is_away_is_said_to_be(tmp_path: Path, provider: Provider) -> None:
    gone = {**settings(tmp_path, provider, "existing"), "HOLDFAST_OIDC__ISSUER": "http://127.0.0.1:9"}
    with running(tmp_path / "data", **gone) as server, Browser(server.url) as browser:
        answer = browser.client.get("/login/oidc")
        assert answer.status_code == 502 and "cannot be reached" in answer.text


def test_metadata_of_another_issuer_is_not_believed(tmp_path: Path, provider: Provider) -> None:
    with (
        running(tmp_path / "data", **settings(tmp_path, provider, "existing")) as server,
        Browser(server.url) as browser,
    ):
        provider.issuer = "https://evil.example.org"
        try:
            assert browser.client.get("/login/oidc").status_code == 502
        finally:
            provider.issuer = ""


def test_a_provider_that_names_no_safe_address_is_not_gone_to(
    tmp_path: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = provider.metadata()
    monkeypatch.setattr(provider, "metadata", lambda: told)
    with (
        running(tmp_path / "data", **settings(tmp_path, provider, "existing")) as server,
        Browser(server.url) as browser,
    ):
        for address in ("http://[", "http://login.example.org/", "//[", "", 5, None):
            told["authorization_endpoint"] = address
            assert browser.client.get("/login/oidc").status_code == 502, address


def test_without_a_provider_there_is_no_way_to_one(tmp_path: Path) -> None:
    with running(tmp_path / "data") as server, Browser(server.url) as browser:
        assert browser.client.get("/login/oidc").status_code == 404
        assert "oidc" not in browser.open("/login").text
