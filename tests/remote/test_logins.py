"""Logging in by a device code, keeping the tokens, renewing them, logging out."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import Forbidden, HoldfastError, NotLoggedIn, ProviderFailed, UsageError
from holdfast.remote.address import base_url
from holdfast.remote.authority import Authority, Codes
from holdfast.remote.http import make_client
from tests.cli.inside import Inside
from tests.remote.visiting import PASSWORD
from tests.support.browser import Browser
from tests.support.commands import Commands
from tests.support.hostile import hostile_server
from tests.support.server import Running


@dataclass
class Home:
    """Somebody's settings, on a machine of his own."""

    folder: Path

    def commands(self, kind: type[Commands] = Inside, **more: str) -> Commands:
        return kind(Path(), Path(), self.folder, {"HOLDFAST_REPOSITORY": "", "HOLDFAST_KEY_FILE": "", **more})

    @property
    def call(self) -> Commands:
        return self.commands()

    @property
    def file(self) -> Path:
        return self.folder / ".config" / "holdfast" / "servers.json"

    @property
    def kept(self) -> dict[str, Any]:
        return dict(json.loads(self.file.read_text())["servers"])

    def change(self, **about: Any) -> None:
        """Change what is kept of the only log-in."""
        ((url, login),) = self.kept.items()
        self.file.write_text(json.dumps({"servers": {url: login | about}}))


def log_in(
    server: Running, home: Home, name: str, *, decision: str = "approve", status: int = 0
) -> list[dict[str, Any]]:
    """Log in from end to end; the browser's part is played over HTTP. What the command printed."""
    commands = home.commands(Commands)
    command = commands.command("login", server.url, "--json")
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=commands.environment, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout and process.stderr
        codes = json.loads(process.stdout.readline())
        with Browser(server.url) as browser:
            browser.log_in(name, PASSWORD)
            page = browser.submit(browser.open(codes["verification_uri_complete"]))
            assert codes["user_code"] in codes["verification_uri_complete"] and "files:write" in page.text
            browser.submit(page, decision=decision)
        out, error = process.communicate(timeout=60)
    assert process.returncode == status, error
    return [codes, *map(json.loads, (out + error).splitlines())]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def inside(server: Running, name: str, home: Home) -> Home:
    """Logged in."""
    server.user(name, PASSWORD).close()
    log_in(server, home, name)
    return home


def test_one_logs_in_with_a_browser_and_is_known_from_then_on(server: Running, name: str, home: Home) -> None:
    server.user(name, PASSWORD).close()
    told = log_in(server, home, name)
    assert told[-1] == {"message_type": "summary", "url": server.url, "username": name}
    assert stat.S_IMODE(home.file.stat().st_mode) == 0o600 and list(home.kept) == [server.url]
    tokens = {home.kept[server.url][kind] for kind in ("access_token", "refresh_token")}
    assert not any(token in json.dumps(told) + "".join(server.log) for token in tokens)
    assert home.call("manifest", "list", "--json").json == []  # the only server that is known is meant
    assert home.call("manifest", "list", "--from", server.url.upper().replace("HTTP", "http") + "/").status == 0


def test_what_is_denied_in_the_browser_is_no_log_in(server: Running, name: str, home: Home) -> None:
    server.user(name, PASSWORD).close()
    told = log_in(server, home, name, decision="deny", status=1)
    assert told[-1]["code"] == "forbidden" and not home.file.exists()


def test_logging_in_again_ends_the_log_in_before(server: Running, inside: Home, name: str) -> None:
    before = inside.kept[server.url]
    log_in(server, inside, name)
    assert inside.kept[server.url] != before
    with server.with_token(before["access_token"]) as client:
        assert client.get("/accounts/me").status_code == 401


def test_a_token_that_has_expired_is_renewed_and_rotated(server: Running, inside: Home) -> None:
    before = inside.kept[server.url]
    inside.change(expires_ns=0)
    assert inside.call("manifest", "list", "--json").json == []
    after = inside.kept[server.url]
    assert after["refresh_token"] != before["refresh_token"] and after["access_token"] != before["access_token"]
    assert stat.S_IMODE(inside.file.stat().st_mode) == 0o600
    inside.change(access_token="hfa_that-the-server-takes-no-more")
    assert inside.call("manifest", "list", "--json").json == []
    assert inside.kept[server.url]["refresh_token"] != after["refresh_token"]


def test_many_processes_that_renew_at_once_do_not_look_like_a_thief(server: Running, inside: Home) -> None:
    commands = inside.commands(Commands)
    for _ in range(2):
        inside.change(expires_ns=0)
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda _: commands("manifest", "list"), range(6)))
    assert inside.call("manifest", "list", "--json").json == []


def test_a_log_in_that_has_ended_says_what_to_do_and_no_token(server: Running, inside: Home) -> None:
    with server.anonymous() as client:
        token = inside.kept[server.url]["refresh_token"]
        client.post("/oauth2/revoke", data={"client_id": "holdfast-cli", "token": token})
    done = inside.call("manifest", "list", status=1)
    assert "The log-in has ended" in done.error and "holdfast login" in done.error and "hf" + "r_" not in done.error


def test_logging_out_ends_it_on_the_server_and_here(server: Running, inside: Home) -> None:
    login = inside.kept[server.url]
    assert f"Logged out of {server.url}" in inside.call("logout", server.url).text
    assert inside.kept == {}
    with server.with_token(login["access_token"]) as client:
        assert client.get("/accounts/me").status_code == 401
    assert "not logged in" in inside.call("logout", server.url, status=2).error
    done = inside.call("manifest", "list", status=2)
    assert "Say which server" in done.error and "holdfast login" in done.error


def test_a_server_that_is_gone_is_forgotten_all_the_same(inside: Home) -> None:
    (login,) = inside.kept.values()
    inside.file.write_text(json.dumps({"servers": {"http://127.0.0.1:1": login}}))
    done = inside.call("logout", "http://127.0.0.1:1", status=1)
    assert "forgotten here" in done.error and inside.kept == {}


def test_a_token_from_the_environment_wins(server: Running, inside: Home, name: str) -> None:
    other = f"{name}-other"
    with server.user(other, PASSWORD) as client:
        token = client.post("/accounts/tokens", json={"name": "t", "scopes": ["files:read", "files:write"]}).json()
        client.post("/manifests", json={"name": "theirs", "files": {}})
    found = inside.commands(HOLDFAST_TOKEN=token["token"])("manifest", "list", "--json").json
    assert [m["name"] for m in found] == ["theirs"]
    wrong = inside.commands(HOLDFAST_TOKEN="hft_wrong")("manifest", "list", status=1)
    assert "does not accept the log-in" in wrong.error and "hft_wrong" not in wrong.error


def test_a_process_shows_no_token_to_other_users(server: Running, inside: Home) -> None:
    with hostile_server() as slow:
        slow.answers["/accounts/me"] = [(503, {"Retry-After": "2"}, b"")]
        commands = inside.commands(Commands, HOLDFAST_TOKEN="hft_a-secret")
        command = commands.command("manifest", "list", "--from", slow.url)
        with subprocess.Popen(command, env=commands.environment, stderr=subprocess.PIPE) as process:
            while not slow.seen and process.poll() is None:
                pass
            line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            process.kill()
        assert b"hft_" not in line and slow.tokens == {"Bearer hft_a-secret"}


def waiting(*errors: str) -> tuple[list[float], HoldfastError]:
    """The pauses, which are not waited for, and how it ended, when a server answers with these."""
    pauses: list[float] = []
    with hostile_server() as server, make_client(server.url) as http:
        server.answers["/oauth2/token"] = [(400, {}, json.dumps({"error": error}).encode()) for error in errors]
        with pytest.raises(HoldfastError) as caught:
            Authority(http, lambda: 0).wait(Codes("d", "u", "v", interval=5), pauses.append)
    return pauses, caught.value


def test_a_server_is_asked_as_slowly_as_it_wants() -> None:
    pauses, error = waiting("authorization_pending", "slow_down", "authorization_pending", "slow_down", "access_denied")
    assert pauses == [5, 5, 10, 10, 15] and isinstance(error, Forbidden)
    assert isinstance(waiting("expired_token")[1], NotLoggedIn)
    assert isinstance(waiting("invalid_grant")[1], ProviderFailed)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://Backup.Example.org/", "https://backup.example.org"), ("https://x:443", "https://x"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"), ("http://localhost", "http://localhost"),
        ("http://[::1]:80", "http://[::1]"), ("https://x/holdfast/", "https://x/holdfast"),
    ],
)  # fmt: skip
def test_an_address_has_one_spelling(given: str, kept: str) -> None:
    assert base_url(given) == kept


@pytest.mark.parametrize(
    "given",
    ["", "x", "ftp://x", "https://", "https://u:p@x", "https://x?a=b", "https://x#y", "https://x:y", "https://x y"],
)
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="address"):
        base_url(given)


@pytest.mark.parametrize("given", ["http://example.org", "http://10.0.0.1", "http://127.0.0.1.example.org"])
def test_plain_http_to_another_machine_must_be_allowed(given: str, home: Home) -> None:
    with pytest.raises(UsageError, match="not encrypted"):
        base_url(given)
    assert base_url(given, insecure=True) == given
    for words in (["login", given], ["manifest", "list", "--from", given], ["logout", given]):
        assert "reads your token" in home.call(*words, status=2).error


def test_a_servers_file_that_is_damaged_is_said(home: Home) -> None:
    home.file.parent.mkdir(parents=True)
    home.file.write_text("{")
    assert "is damaged" in home.call("manifest", "list", status=2).error
    os.unlink(home.file)
    assert "Say which server" in home.call("manifest", "list", status=2).error


def test_after_logging_in_a_name_behind_the_servers_address_is_a_vault(server: Running, inside: Home) -> None:
    commands = inside.commands(Commands)
    commands.more = {**commands.more, "HOLDFAST_PASSWORD": "what it encrypts with", "HOLDFAST_KEY_FILE": ""}
    source = inside.folder / "source"
    source.mkdir()
    (source / "file").write_text("content")
    place = f"{server.url}/laptop"
    commands("-r", place, "init")
    inside.change(expires_ns=0)  # the token is renewed for it
    commands("-r", place, "backup", source)
    inside.change(access_token="hfa_that-the-server-takes-no-more")
    commands("-r", place, "restore", "latest", "--target", inside.folder / "out")
    assert (inside.folder / "out" / "file").read_text() == "content"
    commands("logout", server.url)
    done = commands("-r", place, "snapshots", status=2)
    assert "holdfast login" in done.error
