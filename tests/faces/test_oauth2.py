"""OAuth2 over HTTP, by a client library that is not ours (requests-oauthlib), with a browser for what people do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
import pytest
from oauthlib.oauth2 import BackendApplicationClient, DeviceClient
from oauthlib.oauth2.rfc6749.errors import CustomOAuth2Error, InvalidGrantError, OAuth2Error
from requests.auth import HTTPBasicAuth
from requests_oauthlib import OAuth2Session

from tests.support import pkce
from tests.support.browser import Browser, form_of
from tests.support.server import Running

PASSWORD = "correct horse"
CALLBACK = "https://app.example.org/callback"
DEVICE = "urn:ietf:params:oauth:grant-type:device_code"


@pytest.fixture(autouse=True)
def http_will_do_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the client library; our server asks nobody's environment."""
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")


@pytest.fixture
def user(server: Running, name: str) -> Iterator[httpx2.Client]:
    with server.user(name) as client:
        yield client


@pytest.fixture
def admin(server: Running) -> Iterator[httpx2.Client]:
    with server.client() as client:
        yield client


@pytest.fixture
def browser(server: Running, user: httpx2.Client, name: str) -> Iterator[Browser]:
    """Logged in."""
    with Browser(server.url) as found:
        found.log_in(name, PASSWORD)
        yield found


@pytest.fixture
def anybody(server: Running) -> Iterator[httpx2.Client]:
    with server.anonymous() as client:
        yield client


def registered(user: httpx2.Client, **about: Any) -> dict[str, Any]:
    given = {"name": "an app", "redirect_uris": [CALLBACK], "scopes": ["files:read", "files:write"], **about}
    made = user.post("/accounts/clients", json=given)
    assert made.status_code == 201, made.text
    return dict(made.json())


def query(address: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}


def authorizing(client: dict[str, Any], **fields: str) -> str:
    given = {"response_type": "code", "client_id": client["client_id"], "redirect_uri": CALLBACK, "state": "a state"}
    return "/oauth2/authorize?" + urlencode({**given, **fields})


def whose(server: Running, token: str) -> str:
    """The user name behind a token; empty: it does not count."""
    with server.with_token(token) as program:
        answer = program.get("/accounts/me")
    return str(answer.json()["username"]) if answer.status_code == 200 else ""


def tokens_for(server: Running, browser: Browser, client: dict[str, Any]) -> dict[str, Any]:
    """After the whole code flow, without a library."""
    verifier, challenge = pkce.pair()
    page = browser.open(authorizing(client, code_challenge=challenge, code_challenge_method="S256"))
    code = query(browser.submit(page, decision="approve").headers["location"])["code"]
    named = {"client_id": client["client_id"]}
    if client["client_secret"]:
        named["client_secret"] = client["client_secret"]
    given = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK, "code_verifier": verifier}
    answer = browser.client.post("/oauth2/token", data={**given, **named})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


# -- the flows, by the library -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("public", [True, False], ids=["public", "with a secret"])
def test_the_code_flow_with_pkce_by_a_standard_client(
    server: Running, user: httpx2.Client, browser: Browser, name: str, public: bool
) -> None:
    client = registered(user, public=public)
    session = OAuth2Session(client["client_id"], redirect_uri=CALLBACK, scope=["files:read"], pkce="S256")
    with session:
        address, state = session.authorization_url(f"{server.url}/oauth2/authorize")
        page = browser.open(address)
        assert "an app" in page.text and "files:read" in page.text and "files:write" not in page.text
        led = browser.submit(page, decision="approve")
        assert led.status_code == 303 and query(led.headers["location"])["state"] == state
        token = session.fetch_token(
            f"{server.url}/oauth2/token", authorization_response=led.headers["location"],
            client_secret=client["client_secret"], include_client_id=True if public else None,
        )  # fmt: skip
        assert token["scope"] == ["files:read"] and token["expires_in"] == 3600
        assert session.get(f"{server.url}/accounts/me").json()["username"] == name
        auth = None if public else HTTPBasicAuth(client["client_id"], client["client_secret"])
        named = {"client_id": client["client_id"]} if public else {}
        newer = session.refresh_token(f"{server.url}/oauth2/token", auth=auth, **named)
        assert newer["refresh_token"] != token["refresh_token"]
        assert session.get(f"{server.url}/accounts/me").json()["username"] == name
        with pytest.raises(InvalidGrantError):
            session.refresh_token(
                f"{server.url}/oauth2/token", refresh_token=token["refresh_token"], auth=auth, **named
            )  # fmt: skip
        assert session.get(f"{server.url}/accounts/me").status_code == 401


def test_client_credentials_by_a_standard_client(server: Running, user: httpx2.Client, name: str) -> None:
    client = registered(user, grants=["client_credentials"], redirect_uris=[])
    with OAuth2Session(client=BackendApplicationClient(client_id=client["client_id"])) as session:
        token = session.fetch_token(
            f"{server.url}/oauth2/token", client_id=client["client_id"], client_secret=client["client_secret"]
        )
        assert "refresh_token" not in token
        me = session.get(f"{server.url}/accounts/me").json()
        assert (me["username"], me["via"], me["scopes"]) == (name, "oauth", ["files:read", "files:write"])


def test_a_device_by_a_standard_client(server: Running, browser: Browser, anybody: httpx2.Client, name: str) -> None:
    codes = anybody.post("/oauth2/device", data={"client_id": "holdfast-cli", "scope": "files:read"}).json()
    assert re.fullmatch(r"[A-Z]{4}-[A-Z]{4}", codes["user_code"]) and codes["interval"] == 5
    with OAuth2Session(client=DeviceClient("holdfast-cli")) as session:
        ask = {"device_code": codes["device_code"], "include_client_id": True}
        with pytest.raises(CustomOAuth2Error, match="authorization_pending"):
            session.fetch_token(f"{server.url}/oauth2/token", **ask)
        with pytest.raises(CustomOAuth2Error, match="slow_down"):
            session.fetch_token(f"{server.url}/oauth2/token", **ask)
        page = browser.submit(browser.open(codes["verification_uri_complete"]))
        assert "command line" in page.text and "files:read" in page.text and "127.0.0.1" in page.text
        assert "connected" in browser.submit(page, decision="approve").text
        token = session.fetch_token(f"{server.url}/oauth2/token", **ask)
        assert token["refresh_token"] and session.get(f"{server.url}/accounts/me").json()["username"] == name
        with pytest.raises(InvalidGrantError):
            session.fetch_token(f"{server.url}/oauth2/token", **ask)


def test_a_standard_client_revokes(server: Running, user: httpx2.Client, browser: Browser) -> None:
    client = registered(user, public=True)
    tokens = tokens_for(server, browser, client)
    with OAuth2Session(client["client_id"], token=tokens) as session:
        address, headers, body = session._client.prepare_token_revocation_request(
            f"{server.url}/oauth2/revoke", tokens["refresh_token"], "refresh_token", client_id=client["client_id"]
        )
        answer = session.post(address, headers=headers, data=body, withhold_token=True)
        assert answer.status_code == 200
    assert whose(server, tokens["access_token"]) == ""


def test_the_metadata_names_what_is_there(server: Running, anybody: httpx2.Client) -> None:
    told = anybody.get("/.well-known/oauth-authorization-server").json()
    assert told["issuer"] == server.url and told["code_challenge_methods_supported"] == ["S256"]
    for name in ("token", "device_authorization", "revocation", "introspection"):
        address = told[f"{name}_endpoint"]
        assert anybody.post(address).status_code == 400 and anybody.get(address).status_code == 405
    assert anybody.get(told["authorization_endpoint"]).status_code == 400


# -- consent -----------------------------------------------------------------------------------------------------------


def test_who_is_not_logged_in_is_asked_to_and_comes_back(server: Running, user: httpx2.Client, name: str) -> None:
    address = authorizing(registered(user), scope="files:read")
    with Browser(server.url) as stranger:
        assert stranger.client.get(address).headers["location"].startswith("/login?next=%2Foauth2%2Fauthorize%3F")
        page = stranger.log_in(name, PASSWORD, address)
        assert "Allow an app?" in page.text and f"registered here by {name}" in page.text
        led = stranger.submit(page, decision="deny").headers["location"]
        assert query(led)["error"] == "access_denied" and query(led)["state"] == "a state"


def test_a_password_or_token_sent_along_allows_nothing(
    server: Running, user: httpx2.Client, name: str, anybody: httpx2.Client
) -> None:
    address = authorizing(registered(user))
    for answer in (
        user.post(address, data={"decision": "approve"}),
        anybody.post(address, data={"decision": "approve"}),
    ):
        assert answer.status_code == 401 and "location" not in answer.headers
    assert user.get(address).headers["location"].startswith("/login?")


def test_another_sites_page_cannot_allow_anything(
    server: Running, user: httpx2.Client, browser: Browser, name: str
) -> None:
    address = authorizing(registered(user))
    token = form_of(browser.open(address)).fields["csrf"]
    with server.user(f"{name}-other") as _, Browser(server.url) as other:
        other.log_in(f"{name}-other", PASSWORD)
        others = form_of(other.open(address)).fields["csrf"]
    for form, headers in (
        ({"other": ""}, {}),
        ({"csrf": others}, {}),
        ({"csrf": "ä"}, {}),
        ({"csrf": token}, {"Origin": "https://evil.example.org"}),
        ({"csrf": token}, {"Origin": "null"}),
        ({"csrf": token}, {"Sec-Fetch-Site": "cross-site"}),
    ):
        for path in (address, "/oauth2/verify"):
            answer = browser.client.post(path, data={**form, "decision": "approve"}, headers=headers)
            assert answer.status_code == 403 and "location" not in answer.headers
    assert browser.client.get(address).status_code == 200  # looking allows nothing
    assert browser.client.post(address, data={"csrf": token}).status_code == 400
    assert browser.client.post(address, data={"csrf": token, "decision": "maybe"}).status_code == 400


def test_what_a_client_calls_itself_is_only_text(user: httpx2.Client, browser: Browser) -> None:
    client = registered(user, name="<script>alert(1)</script>\"'{{ 7 * 7 }}")
    page = browser.open(authorizing(client, state='"><script>alert(2)</script>'))
    assert "<script>" not in page.text and "{{ 7 * 7 }}" in page.text and "&lt;script&gt;" in page.text
    led = browser.submit(page, decision="approve").headers["location"]
    assert query(led)["state"] == '"><script>alert(2)</script>'


def test_the_page_may_lead_to_the_program_and_nowhere_else(user: httpx2.Client, browser: Browser) -> None:
    uris = ["https://app.example.org/callback", "http://127.0.0.1/cb", "http://[::1]/cb", "org.example.app:/cb"]
    client = registered(user, redirect_uris=uris)
    for uri, source in (
        (uris[0], "https://app.example.org"),
        ("http://127.0.0.1:4321/cb", "http://127.0.0.1:4321"),
        ("http://[::1]:4321/cb", "http:"),
        (uris[3], "org.example.app:"),
    ):
        page = browser.open(authorizing(client, redirect_uri=uri))
        assert page.headers["content-security-policy"].endswith(f"form-action 'self' {source}")
        assert browser.submit(page, decision="approve").headers["location"].startswith(f"{uri}?code=")


@pytest.mark.parametrize(
    "fields",
    [
        {"redirect_uri": "https://evil.example.org/"}, {"redirect_uri": CALLBACK + "/"}, {"redirect_uri": ""},
        {"redirect_uri": CALLBACK + "?a=b"}, {"redirect_uri": "javascript:alert(1)"}, {"client_id": "nobody"},
        {"client_id": ""}, {"redirect_uri": 'https://"\\<>'}, {"client_id": "\0"}, {"redirect_uri": "ä\0\n"},
    ],
)  # fmt: skip
def test_what_does_not_match_is_shown_and_leads_nowhere(
    user: httpx2.Client, browser: Browser, anybody: httpx2.Client, fields: dict[str, str]
) -> None:
    address = authorizing(registered(user), **fields)
    token = form_of(browser.open("/login")).fields["csrf"]
    for answer in (
        anybody.get(address),
        browser.client.get(address),
        browser.client.post(address, data={"csrf": token, "decision": "approve"}),
    ):
        assert answer.status_code == 400 and "location" not in answer.headers and "did not work" in answer.text


def test_a_parameter_that_stands_twice_is_refused(user: httpx2.Client, browser: Browser) -> None:
    answer = browser.client.get(authorizing(registered(user)) + "&redirect_uri=https://evil.example.org/")
    assert answer.status_code == 400 and "location" not in answer.headers


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"scope": "admin"}, "invalid_scope"), ({"scope": "files:read blobs:read"}, "invalid_scope"),
        ({"scope": " "}, "invalid_scope"),
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"response_type": 'ä"\\'}, "unsupported_response_type"),
        ({"code_challenge": "c" * 43}, "invalid_request"),
        ({"code_challenge": "c" * 43, "code_challenge_method": "plain"}, "invalid_request"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_told_to_the_program(
    user: httpx2.Client, browser: Browser, fields: dict[str, str], told: str
) -> None:
    answer = browser.client.get(authorizing(registered(user), **fields))
    where = answer.headers["location"]
    assert where.startswith(CALLBACK + "?") and query(where)["error"] == told and query(where)["state"] == "a state"


def test_nobody_is_led_away_before_it_is_known_who_he_is(
    server: Running, user: httpx2.Client, name: str, anybody: httpx2.Client
) -> None:
    """Else every program that is registered here would make a link to us one to wherever it likes."""
    client, public = registered(user), registered(user, public=True)
    for address in (
        authorizing(client, scope="admin"),
        authorizing(client, scope=" "),
        authorizing(client, response_type="token"),
        authorizing(client, code_challenge="c"),
        authorizing(public),
    ):
        assert anybody.get(address).headers["location"].startswith("/login?next=%2Foauth2%2Fauthorize%3F")
        with Browser(server.url) as stranger:
            led = stranger.log_in(name, PASSWORD, address).headers["location"]
        assert led.startswith(CALLBACK + "?") and "error" in query(led)


def test_a_public_client_without_pkce_is_refused(user: httpx2.Client, browser: Browser) -> None:
    answer = browser.client.get(authorizing(registered(user, public=True)))
    assert query(answer.headers["location"])["error"] == "invalid_request"


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_a_wrong_verifier_gets_nothing(server: Running, user: httpx2.Client, browser: Browser) -> None:
    client = registered(user, public=True)
    for library in ("wrong", "missing"):
        with OAuth2Session(client["client_id"], redirect_uri=CALLBACK, scope=["files:read"], pkce="S256") as session:
            address, _ = session.authorization_url(f"{server.url}/oauth2/authorize")
            led = browser.submit(browser.open(address), decision="approve").headers["location"]
            session._code_verifier = pkce.pair()[0] if library == "wrong" else None
            session._pkce = "S256" if library == "wrong" else None
            with pytest.raises(OAuth2Error):
                session.fetch_token(
                    f"{server.url}/oauth2/token", authorization_response=led, include_client_id=True
                )  # fmt: skip


def test_a_refresh_makes_a_token_no_wider_than_it_was_allowed(
    server: Running, user: httpx2.Client, browser: Browser
) -> None:
    client = registered(user, public=True)
    verifier, challenge = pkce.pair()
    page = browser.open(authorizing(client, scope="files:read", code_challenge=challenge, code_challenge_method="S256"))
    code = query(browser.submit(page, decision="approve").headers["location"])["code"]
    named = {"client_id": client["client_id"]}
    given = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK, "code_verifier": verifier}
    token = browser.client.post("/oauth2/token", data={**given, **named}).json()["refresh_token"]
    wide = {"grant_type": "refresh_token", "refresh_token": token, "scope": " ", **named}
    answer = browser.client.post("/oauth2/token", data=wide)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_scope")


def test_a_replayed_code_ends_what_came_of_it(server: Running, user: httpx2.Client, browser: Browser) -> None:
    client = registered(user)
    page = browser.open(authorizing(client))
    code = query(browser.submit(page, decision="approve").headers["location"])["code"]
    given = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK}
    auth = (client["client_id"], client["client_secret"])
    first = browser.client.post("/oauth2/token", data=given, auth=auth)
    assert first.status_code == 200 and first.headers["cache-control"] == "no-store"
    assert whose(server, first.json()["access_token"])
    again = browser.client.post("/oauth2/token", data=given, auth=auth)
    assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
    assert whose(server, first.json()["access_token"]) == ""
    log = "".join(server.log)
    for secret in (code, client["client_secret"], *(first.json()[f"{kind}_token"] for kind in ("access", "refresh"))):
        assert secret not in log


def test_a_disabled_account_stops_its_programs_at_once(
    server: Running, admin: httpx2.Client, user: httpx2.Client, browser: Browser, name: str
) -> None:
    client = registered(admin, public=True)
    tokens = tokens_for(server, browser, client)
    assert whose(server, tokens["access_token"]) == name
    admin.patch(f"/accounts/users/{name}", json={"disabled": True})
    assert whose(server, tokens["access_token"]) == ""
    refresh = {
        "grant_type": "refresh_token",
        "refresh_token": tokens["refresh_token"],
        "client_id": client["client_id"],
    }
    assert browser.client.post("/oauth2/token", data=refresh).json()["error"] == "invalid_grant"
    assert browser.client.get(authorizing(client)).headers["location"].startswith(("/login", CALLBACK + "?error"))


def test_a_program_makes_itself_no_more_than_it_is(server: Running, user: httpx2.Client, browser: Browser) -> None:
    tokens = tokens_for(server, browser, registered(user))
    with server.with_token(tokens["access_token"]) as program:
        for answer in (
            program.post("/accounts/tokens", json={"name": "t", "scopes": ["files:read"]}),
            program.put("/accounts/me/password", json={"old": PASSWORD, "new": "another password"}),
            program.post(
                "/accounts/clients", json={"name": "c", "redirect_uris": [CALLBACK], "scopes": ["files:read"]}
            ),
            program.get("/accounts/users"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert program.get("/accounts/tokens").status_code == 200


def test_introspection_is_for_the_client_and_for_administrators(
    server: Running, admin: httpx2.Client, user: httpx2.Client, browser: Browser, anybody: httpx2.Client, name: str
) -> None:
    client, other = registered(user), registered(user)
    token = {"token": tokens_for(server, browser, client)["access_token"]}
    auth = (client["client_id"], client["client_secret"])
    told = anybody.post("/oauth2/introspect", data=token, auth=auth).json()
    assert (told["active"], told["username"], told["iss"]) == (True, name, server.url)
    assert admin.post("/oauth2/introspect", data=token).json() == told
    theirs = anybody.post("/oauth2/introspect", data=token, auth=(other["client_id"], other["client_secret"]))
    assert theirs.json() == {"active": False}
    assert user.post("/oauth2/introspect", data=token).status_code == 403
    assert anybody.post("/oauth2/introspect", data=token).status_code == 401
    assert anybody.post("/oauth2/introspect", data=token, auth=(client["client_id"], "wrong")).status_code == 401
    assert anybody.post("/oauth2/introspect", data={**token, "client_id": "holdfast-cli"}).status_code == 401


@pytest.mark.parametrize(
    "content",
    [
        b"", b"grant_type=%ff", b"grant_type=a&grant_type=b", b"grant_type=%00", b"\xff\xfe", b"x" * 70_000,
        b"grant_type=refresh_token&refresh_token=%00&client_id=holdfast-cli",
        b"grant_type=authorization_code&code=%F0%9F%98%80&client_id=%00", b"grant_type=client_credentials&client_id=x",
        b"grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Adevice_code&device_code=%00&client_id=holdfast-cli",
    ],
)  # fmt: skip
def test_nonsense_is_refused_in_oauths_own_words(anybody: httpx2.Client, content: bytes) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    for endpoint in ("token", "revoke", *(() if b"holdfast-cli" in content else ("device",))):
        answer = anybody.post(f"/oauth2/{endpoint}", content=content, headers=headers)
        assert answer.status_code in (400, 401), answer.text
        assert answer.json()["error"] and answer.headers["cache-control"] == "no-store"
    assert anybody.post("/oauth2/token", json={"grant_type": "x"}).json()["error"] == "invalid_request"


# -- the device's page -------------------------------------------------------------------------------------------------


def test_a_device_is_denied(browser: Browser, anybody: httpx2.Client) -> None:
    codes = anybody.post("/oauth2/device", data={"client_id": "holdfast-cli"}).json()
    page = browser.submit(browser.open("/oauth2/verify"), user_code=codes["user_code"].lower())
    assert "denied" in browser.submit(page, decision="deny").text
    ask = {"grant_type": DEVICE, "device_code": codes["device_code"], "client_id": "holdfast-cli"}
    assert anybody.post("/oauth2/token", data=ask).json()["error"] == "access_denied"


def test_guessing_codes_is_answered_kindly_and_then_not_at_all(browser: Browser) -> None:
    page = browser.open("/oauth2/verify")
    for _ in range(10):
        page = browser.submit(page, user_code="<b>BBBB-BBBB")
        assert page.status_code == 404 and "no such code" in page.text and "<b>" not in page.text
    page = browser.submit(page, user_code="BBBB-BBBB")
    assert page.status_code == 429


# -- what was allowed, and its end -------------------------------------------------------------------------------------


def test_what_a_program_was_allowed_is_listed_and_ended(
    server: Running, user: httpx2.Client, browser: Browser, name: str
) -> None:
    client = registered(user)
    tokens = tokens_for(server, browser, client)
    (listed,) = user.get("/accounts/grants").json()["grants"]
    assert (listed["client"], listed["client_id"], listed["scopes"]) == (
        "an app", client["client_id"], tokens["scope"].split(),
    )  # fmt: skip
    with server.with_token(tokens["access_token"]) as program:
        assert program.delete(f"/accounts/grants/{listed['id']}").status_code == 403
    assert whose(server, tokens["access_token"]) == name
    assert user.delete(f"/accounts/grants/{listed['id']}").status_code == 204
    assert whose(server, tokens["access_token"]) == ""
    assert user.get("/accounts/grants").json() == {"grants": []}
    assert user.delete(f"/accounts/grants/{listed['id']}").status_code == 404


def test_nobody_ends_what_another_one_allowed(
    server: Running, user: httpx2.Client, browser: Browser, name: str
) -> None:
    tokens = tokens_for(server, browser, registered(user))
    number = user.get("/accounts/grants").json()["grants"][0]["id"]
    with server.user(f"{name}-2") as other:
        assert other.get("/accounts/grants").json() == {"grants": []}
        assert other.delete(f"/accounts/grants/{number}").status_code == 404
    assert whose(server, tokens["access_token"]) == name


def test_a_person_ends_a_program_on_a_page(server: Running, user: httpx2.Client, browser: Browser, name: str) -> None:
    tokens = tokens_for(server, browser, registered(user))
    number = str(user.get("/accounts/grants").json()["grants"][0]["id"])
    page = browser.open("/login/programs")
    assert "an app" in page.text and "files:read" in page.text
    assert browser.client.post("/login/programs", data={"end": number}).status_code == 403  # no form of ours
    assert browser.submit(page, end="x").status_code == 400
    assert whose(server, tokens["access_token"]) == name
    assert "There are none." in browser.submit(page, end=number).text
    assert whose(server, tokens["access_token"]) == ""
