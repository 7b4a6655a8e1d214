"""The log-in's pages: sessions, and what other sites cannot make a browser do."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support.browser import Browser, form_of
from tests.support.server import ADMIN_PASSWORD, Running, running

PASSWORD = "correct horse"


@pytest.fixture
def browser(server: Running) -> Iterator[Browser]:
    with Browser(server.url) as found:
        yield found


@pytest.fixture
def user(server: Running, name: str) -> str:
    server.user(name).close()
    return name


def cookie(answer: httpx2.Response) -> str:
    return str(answer.headers.get("set-cookie", ""))


def test_one_logs_in_and_out(server: Running, browser: Browser, user: str) -> None:
    page = browser.open("/login")
    assert page.status_code == 200 and "Log in" in page.text and not cookie(page)
    inside = browser.submit(page, username=user, password=PASSWORD)
    assert inside.status_code == 200 and user in inside.text and PASSWORD not in inside.text
    assert browser.client.get("/accounts/me").json()["username"] == user
    session = browser.client.cookies["holdfast_session"]
    outside = browser.submit(inside)
    assert "Log in" in outside.text and "holdfast_session" not in browser.client.cookies
    with server.anonymous() as thief:
        thief.cookies.set("holdfast_session", session)
        assert thief.get("/accounts/me").status_code == 401
    assert session not in "".join(server.log) and PASSWORD not in "".join(server.log)


def test_the_sessions_cookie_is_kept_from_scripts_and_other_sites(browser: Browser, user: str) -> None:
    answer = browser.client.post("/login", data={"username": user, "password": PASSWORD})
    flags = {part.strip().lower() for part in cookie(answer).split(";")[1:]}
    assert {"httponly", "samesite=lax", "path=/", "max-age=43200"} <= flags and "secure" not in flags


def test_behind_https_the_cookie_is_secure(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = {"HOLDFAST_SERVER__URL": "https://backup.example.org/"}
    with (
        running(tmp_path / "data", "--port", str(port), **given),
        httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        answer = client.post("/login", data={"username": "admin", "password": ADMIN_PASSWORD})
        assert answer.status_code == 303 and "; Secure" in cookie(answer)
        metadata = client.get("/.well-known/oauth-authorization-server").json()
        assert metadata["issuer"] == "https://backup.example.org"
        assert metadata["token_endpoint"] == "https://backup.example.org/oauth2/token"


def test_logging_in_again_ends_the_session_before(server: Running, browser: Browser, user: str) -> None:
    browser.log_in(user, PASSWORD)
    before = browser.client.cookies["holdfast_session"]
    browser.client.post("/login", data={"username": user, "password": PASSWORD})
    assert browser.client.cookies["holdfast_session"] != before
    with server.anonymous() as thief:
        thief.cookies.set("holdfast_session", before)
        assert thief.get("/accounts/me").status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "https://evil.example.org/", "//evil.example.org/", "/\\evil.example.org/", "\\\\evil.example.org", "evil",
        "/\t/evil.example.org/", "/\n//evil.example.org", "javascript:alert(1)", " //evil.example.org", "/a\\b", "/ä",
        "http:evil.example.org", "/\x00", "",
    ],
)  # fmt: skip
def test_a_log_in_leads_to_our_own_pages_only(browser: Browser, user: str, path: str) -> None:
    page = browser.client.get("/login", params={"next": path})
    assert form_of(page).fields["next"] == "/login"
    answer = browser.client.post("/login", data={"username": user, "password": PASSWORD, "next": path})
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    inside = browser.client.get("/login", params={"next": path})
    assert inside.status_code == 200


def test_a_log_in_leads_on_to_where_one_wanted_to_go(browser: Browser, user: str) -> None:
    page = browser.log_in(user, PASSWORD, "/oauth2/verify?user_code=BBBB-BBBB")
    assert form_of(page).fields["user_code"] == "BBBB-BBBB"


def test_a_wrong_password_is_said_to_be_and_after_ten_one_waits(browser: Browser, user: str) -> None:
    page = browser.open("/login")
    for _ in range(10):
        page = browser.submit(page, username=user, password="a wrong guess")
        assert page.status_code == 401 and "wrong" in page.text and "a wrong guess" not in page.text
    page = browser.submit(page, username=user, password=PASSWORD)
    assert page.status_code == 429 and 0 < int(page.headers["retry-after"]) <= 900 and not cookie(page)


def test_another_sites_page_cannot_log_anybody_in_or_out(server: Running, browser: Browser, user: str) -> None:
    given = {"username": user, "password": PASSWORD}
    for foreign in (
        {"Origin": "https://evil.example.org"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://["}, {"Origin": "http://[::1"}, {"Origin": "//"}, {"Origin": "x"},
    ):  # fmt: skip
        answer = browser.client.post("/login", data=given, headers=foreign)
        assert answer.status_code == 403 and not cookie(answer)
    inside = browser.log_in(user, PASSWORD)
    token = form_of(inside).fields["csrf"]
    for form, headers in (
        ({"other": ""}, {}),
        ({"csrf": ""}, {}),
        ({"csrf": "0" * 64}, {}),
        ({"csrf": token}, {"Origin": "https://evil.example.org"}),
    ):
        assert browser.client.post("/logout", data=form, headers=headers).status_code == 403
    assert browser.client.get("/accounts/me").status_code == 200


def test_pages_run_no_script_and_stand_in_no_frame(browser: Browser, user: str) -> None:
    for page in (browser.open("/login"), browser.log_in(user, PASSWORD), browser.open("/oauth2/verify")):
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "script" not in policy
        assert policy.endswith("form-action 'self'") and "unsafe" not in policy
        assert page.headers["x-frame-options"] == "DENY" and page.headers["cache-control"] == "no-store"
        assert page.headers["referrer-policy"] == "same-origin" and page.headers["content-type"].startswith("text/html")
        assert not re.search(r"<script|<style|style=|\son\w+=", page.text)
    sheet = browser.open("/assets/pages.css")
    assert sheet.status_code == 200 and sheet.headers["content-type"].startswith("text/css")


@pytest.mark.parametrize(
    "content",
    [b"username=%ff&password=x", b"username=a&username=b", b"\xff", b"x" * 70_000, b"&".join([b"a=b"] * 200), b""],
)
def test_a_form_that_makes_no_sense_is_refused(browser: Browser, content: bytes) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = browser.client.post("/login", content=content, headers=headers)
    assert answer.status_code in (400, 401) and answer.headers["content-type"].startswith("text/html")
    assert browser.client.post("/login", json={"username": "admin"}).status_code == 400


@pytest.mark.parametrize("username", ["\0", "' OR 1=1 --", "ä", "x" * 5000, "<script>alert(1)</script>"])
def test_a_name_that_is_none_is_like_any_wrong_one(browser: Browser, username: str) -> None:
    answer = browser.client.post("/login", data={"username": username, "password": PASSWORD})
    assert answer.status_code in (401, 429) and "<script>" not in answer.text
