"""Vaults of a server that runs, as tests use them: an account with a token for other programs, a vault, its objects."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.support.server import Running

PASSWORD = "correct horse"
V2 = "application/vnd.x.restic.rest.v2"
_numbers = itertools.count(1)


def ask(someone: Person, method: str, path: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """Ask with a token for a path to the letter: status, headers, body. (Other clients tidy a path up.)"""
    url = httpx2.URL(someone.server.url)
    with contextlib.closing(http.client.HTTPConnection(url.host, url.port, timeout=60)) as line:
        line.request(method, path, body, {"Authorization": f"Bearer {someone.token}"})
        answer = line.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Person:
    """An account, and clients that log in to it: ``person`` with the password, ``program`` with a token. ``close`` when
    done.
    """

    server: Running
    name: str
    token: str
    person: httpx2.Client
    program: httpx2.Client

    def vault(self, name: str = "", **about: Any) -> str:
        """Make a vault; its address, with the owner, and a slash at its end."""
        made = self.person.post("/vaults", json={"name": name or f"v{next(_numbers)}", **about})
        assert made.status_code == 201, made.text
        return str(made.json()["url"])

    def about(self, vault: str) -> dict[str, Any]:
        """``vault``: the address."""
        found = self.person.get(f"/vaults/{vault.removeprefix('/vault/').strip('/')}")
        assert found.status_code == 200, found.text
        return dict(found.json())

    def close(self) -> None:
        self.person.close()
        self.program.close()

    def used(self) -> tuple[int, int]:
        usage = self.person.get("/accounts/me").json()["usage"]
        return usage["bytes"], usage["objects"]

    def grant(self, to: Person, allowed: str, vault: str) -> None:
        name = vault.removeprefix("/vault/").strip("/")
        done = self.person.put(f"/vaults/{name}/grants/{to.name}", json={"allowed": allowed})
        assert done.status_code == 204, done.text

    def restic_url(self, vault: str) -> str:
        """As restic is told it: the token stands in the password's place."""
        return f"rest:http://{self.name}:{self.token}@{self.server.url.removeprefix('http://')}{vault}"


def person(server: Running, *scopes: str, **about: str) -> Person:
    """A new account. ``scopes``: the token's; those of vaults if none are named."""
    name = f"person{next(_numbers)}"
    by_password = server.user(name, PASSWORD, **about)
    wanted = {"name": "tests", "scopes": list(scopes) or ["vaults:read", "vaults:write"]}
    made = by_password.post("/accounts/tokens", json=wanted)
    assert made.status_code == 201, made.text
    token = str(made.json()["token"])
    return Person(server, name, token, by_password, server.with_token(token))


def folder_of(server: Running, vault: str) -> Path:
    """Where a vault lies on the server's disk."""
    for about in (server.data / "vaults").glob("*/*/vault.json"):
        found = json.loads(about.read_bytes())
        if vault == f"/vault/{found['owner']}/{found['name']}/":
            return about.parent
    raise AssertionError(f"{vault} is not there")


def put(client: httpx2.Client, vault: str, data: bytes, kind: str = "data", **more: Any) -> httpx2.Response:
    """Put an object under its right name."""
    return client.post(f"{vault}{kind}/{sha256(data)}", content=data, **more)


def listed(client: httpx2.Client, vault: str, kind: str = "data") -> dict[str, int]:
    """The objects of a type, and their sizes."""
    found = client.get(f"{vault}{kind}/", headers={"Accept": V2})
    assert (found.status_code, found.headers["content-type"]) == (200, V2), found.text
    return {item["name"]: item["size"] for item in found.json()}
