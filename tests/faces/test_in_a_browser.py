"""The pages in a real browser (Chromium): they work without scripts, on a phone too, and their own policy is in
nobody's way.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.support import pkce
from tests.support.server import Running

PASSWORD = "correct horse"
CALLBACK = "http://127.0.0.1/callback"  # on loopback any port will do
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 640}


@pytest.fixture(scope="module")
def chromium(need: Callable[[str], str]) -> Iterator[Browser]:
    path = need("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """Somebody at a browser. ``troubles``: what the console complained of; ``elsewhere``: what was asked of others."""

    page: Page
    server: Running
    pictures: Path
    name: str
    troubles: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda message: self.troubles.append(message.text))
        self.page.on("request", lambda request: self._note(request.url))

    def open(self, path: str) -> None:
        self.page.goto(self.server.url + path)

    def log_in(self) -> None:
        self.page.get_by_label("User name").fill(self.name)
        self.page.get_by_label("Password").fill(PASSWORD)
        self.press("Log in")

    def press(self, button: str) -> None:
        with self.page.expect_navigation():
            self.page.get_by_role("button", name=button).click()

    @property
    def heading(self) -> str:
        return str(self.page.get_by_role("heading", level=1).inner_text())

    def picture(self, name: str) -> None:
        self.page.screenshot(path=self.pictures / f"{name}.png", full_page=True)

    def _note(self, url: str) -> None:
        if not url.startswith(self.server.url):
            self.elsewhere.append(url)


@pytest.fixture(params=[DESK, PHONE], ids=["at a desk", "on a phone"])
def visit(
    chromium: Browser, server: Running, user: httpx2.Client, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Visit]:
    """Each page that was seen fits its window, and the console had nothing to say of it."""
    context = chromium.new_context(viewport=request.param, java_script_enabled=True, color_scheme="light")
    pictures = Path(os.environ.get("PAGES", tmp_path))  # a folder to look at them in
    found = Visit(context.new_page(), server, pictures, name)
    yield found
    wide = found.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    context.close()
    assert wide[0] <= wide[1]
    assert not [text for text in found.troubles if "401" not in text]


@pytest.fixture
def user(server: Running, name: str) -> Iterator[httpx2.Client]:
    with server.user(name) as client:
        yield client


@pytest.fixture
def app(user: httpx2.Client) -> str:
    """A program's id."""
    about = {
        "name": "Photo importer",
        "redirect_uris": [CALLBACK],
        "scopes": ["files:read", "files:write"],
        "public": True,
    }
    made = user.post("/accounts/clients", json=about)
    assert made.status_code == 201, made.text
    return str(made.json()["client_id"])


class _Program(BaseHTTPRequestHandler):
    """What listens for the browser in a program on this machine."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><link rel=icon href=data:,><p>You can close this.")

    def log_message(self, *about: object) -> None:
        """Nothing."""


@pytest.fixture
def callback() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Program) as program:
        thread = threading.Thread(target=program.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{program.server_address[1]}/callback"
        program.shutdown()
        thread.join()


def test_somebody_logs_in_and_out(visit: Visit) -> None:
    visit.open("/login")
    visit.picture("login")
    visit.page.get_by_label("User name").fill(visit.name)
    visit.page.get_by_label("Password").fill("wrong")
    with visit.page.expect_navigation():
        visit.page.keyboard.press("Enter")
    assert visit.page.get_by_role("alert").is_visible()
    visit.picture("login-wrong")
    visit.log_in()
    assert visit.heading == "You are logged in" and visit.name in visit.page.content()
    visit.picture("logged-in")
    visit.press("Log out")
    assert visit.heading == "Log in"
    assert visit.elsewhere == []


def test_somebody_allows_a_program_and_ends_it(visit: Visit, app: str, callback: str) -> None:
    verifier, challenge = pkce.pair()
    asked = {
        "response_type": "code", "client_id": app, "redirect_uri": callback, "scope": "files:read", "state": "s",
        "code_challenge": challenge, "code_challenge_method": "S256",
    }  # fmt: skip
    visit.open("/oauth2/authorize?" + urlencode(asked))
    visit.log_in()
    assert visit.heading == "Allow Photo importer?"
    assert f"Photo importer, registered here by {visit.name}, wants to act" in visit.page.inner_text("main")
    visit.picture("consent")
    visit.press("Allow")
    assert visit.page.url.startswith(callback)
    told = parse_qs(urlsplit(visit.page.url).query)
    assert told["state"] == ["s"]
    token = _token(visit, app, callback, told["code"][0], verifier)
    visit.open("/login/programs")
    visit.picture("programs")
    visit.press("End Photo importer")
    assert "There are none." in visit.page.content()
    with visit.server.with_token(token) as program:
        assert program.get("/accounts/me").status_code == 401


def test_somebody_connects_a_device(visit: Visit) -> None:
    with visit.server.anonymous() as anybody:
        asked = anybody.post("/oauth2/device", data={"client_id": "holdfast-cli", "scope": "files:read admin"}).json()
    visit.page.goto(asked["verification_uri"])
    visit.log_in()
    visit.page.get_by_label("The code that the device shows").fill(asked["user_code"].lower())
    visit.picture("device")
    visit.press("Continue")
    visit.picture("device-consent")
    visit.press("Allow")
    assert visit.heading == "The device is connected"
    visit.picture("device-done")
    assert visit.elsewhere == []


def test_the_reference_needs_no_network(visit: Visit) -> None:
    visit.open("/docs")
    visit.page.get_by_text("/manifests/name/{name}").first.click()
    visit.picture("docs")
    assert visit.elsewhere == []


def _token(visit: Visit, app: str, callback: str, code: str, verifier: str) -> str:
    given: dict[str, Any] = {
        "grant_type": "authorization_code", "client_id": app, "code": code, "redirect_uri": callback,
        "code_verifier": verifier,
    }  # fmt: skip
    with visit.server.anonymous() as program:
        answer = program.post("/oauth2/token", data=given)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["access_token"])
