"""Keystone v3 on loopback, and a proxy server of Swift that believes it.

``keystone_of(request)`` gives one for all tests of this process. Making its database takes half a minute: it is kept
below ``.test-servers/keystone`` for the next time, with everybody who is in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.openstack import (
    HERE,
    HOME,
    PIPELINE,
    SETTINGS,
    SwiftNode,
    free_ports,
    python_of,
    running,
    shared,
    swift_of,
)

LOGIN = "authtoken keystoneauth"
PLACEHOLDERS = ("http://keystone.invalid", "http://swift.invalid", "http://page.invalid")  # in the kept catalog
LOGIN_SETTINGS = """
[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
www_authenticate_uri = {url}
auth_url = {url}
auth_type = password
project_domain_id = default
user_domain_id = default
project_name = service
username = swift
password = swiftpw
delay_auth_decision = true
include_service_catalog = false
cache = swift.cache
token_cache_time = 1
[filter:keystoneauth]
use = egg:swift#keystoneauth
operator_roles = admin, member
"""


class Identity:
    """Keystone at ``url``, and Swift at ``swift_url``.

    The user bob of the domain corp is a member of the project backup there, has no role in the project elsewhere, and
    has an application credential. The region R1 has the object store; in the region R2 a web page is called one.
    """

    def __init__(self, url: str, swift_url: str, known: dict[str, str]) -> None:
        self.url, self.swift_url, self._known = url, swift_url, known

    @property
    def variables(self) -> dict[str, str]:
        """Who bob is, by his password."""
        return {
            "OS_AUTH_URL": self.url,
            "OS_USERNAME": "bob",
            "OS_PASSWORD": "bobpw",
            "OS_USER_DOMAIN_NAME": "corp",
            "OS_PROJECT_NAME": "backup",
            "OS_PROJECT_DOMAIN_NAME": "corp",
            "OS_REGION_NAME": "R1",
        }

    @property
    def by_ids(self) -> dict[str, str]:
        """The same, by ids."""
        who = {"OS_USER_ID": self._known["user"], "OS_PROJECT_ID": self._known["project"]}
        return {"OS_AUTH_URL": self.url, "OS_PASSWORD": "bobpw", "OS_REGION_NAME": "R1", **who}

    @property
    def credential(self) -> dict[str, str]:
        """The same, by the application credential."""
        names = {"OS_APPLICATION_CREDENTIAL_ID": "credential", "OS_APPLICATION_CREDENTIAL_SECRET": "secret"}
        who = {variable: self._known[name] for variable, name in names.items()}
        return {"OS_AUTH_URL": self.url, "OS_REGION_NAME": "R1", **who}

    def token(self) -> str:
        return _enter(self.url, "bob", "bobpw", "corp", "backup")

    def revoke(self, token: str) -> None:
        _ask("DELETE", f"{self.url}/auth/tokens", _enter(self.url, "admin", "adminpw", "Default", "admin"), about=token)


def _ask(method: str, url: str, token: str, said: object = None, about: str = "") -> Any:
    headers = {"Content-Type": "application/json", "X-Auth-Token": token, "X-Subject-Token": about}
    data = None if said is None else json.dumps(said).encode()
    request = urllib.request.Request(url, data, {k: v for k, v in headers.items() if v}, method=method)
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read() or b"{}") | {"token in the head": answer.headers["X-Subject-Token"]}


def _enter(url: str, user: str, password: str, domain: str, project: str) -> str:
    who = {"user": {"name": user, "domain": {"name": domain}, "password": password}}
    identity = {"methods": ["password"], "password": who}
    said = {"auth": {"identity": identity, "scope": {"project": {"name": project, "domain": {"name": domain}}}}}
    return str(_ask("POST", f"{url}/auth/tokens", "", said)["token in the head"])


def _populate(url: str) -> dict[str, str]:
    """Make everybody and everything there is; their ids."""
    admin = _enter(url, "admin", "adminpw", "Default", "admin")

    def made(kind: str, **said: str) -> str:
        return str(_ask("POST", f"{url}/{kind}s", admin, {kind: said})[kind]["id"])

    def may(project: str, user: str, name: str) -> None:
        (role,) = (r["id"] for r in _ask("GET", f"{url}/roles", admin)["roles"] if r["name"] == name)
        _ask("PUT", f"{url}/projects/{project}/users/{user}/roles/{role}", admin)

    domain = made("domain", name="corp")
    project = made("project", name="backup", domain_id=domain)
    made("project", name="elsewhere", domain_id=domain)
    user = made("user", name="bob", domain_id=domain, password="bobpw")
    may(project, user, "member")
    service = made("project", name="service", domain_id="default")
    may(service, made("user", name="swift", domain_id="default", password="swiftpw"), "admin")
    identity, store = (
        made("service", name="keystone", type="identity"),
        made("service", name="swift", type="object-store"),
    )
    keystone, swift, page = PLACEHOLDERS
    for region in ("R1", "R2"):
        made("region", id=region)
    for interface in ("public", "internal", "admin"):
        made("endpoint", service_id=identity, interface=interface, region_id="R1", url=f"{keystone}/v3")
    swift = f"{swift}/v1/AUTH_$(project_id)s"
    made("endpoint", service_id=store, interface="public", region_id="R1", url=swift)
    made("endpoint", service_id=store, interface="public", region_id="R2", url=page)
    asked = {"application_credential": {"name": "backups", "roles": [{"name": "member"}]}}
    bob = _enter(url, "bob", "bobpw", "corp", "backup")
    credential = _ask("POST", f"{url}/users/{user}/application_credentials", bob, asked)["application_credential"]
    return {"user": user, "project": project, "credential": credential["id"], "secret": credential["secret"]}


@contextlib.contextmanager
def _keystone(folder: Path, port: int) -> Iterator[str]:
    command = [python_of("keystone"), "-W", "ignore", str(HERE / "openstack_keystone.py"), str(folder), str(port)]
    with running(command, folder / "log"):
        yield f"http://127.0.0.1:{port}/v3"


def _kept() -> Path:
    """A folder with the state of a Keystone that was populated, made where it is not there yet."""
    made_by = b"".join(Path(p).read_bytes() for p in (__file__, HERE / "openstack_keystone.py"))
    kept = HOME / "keystone" / f"state-{hashlib.sha256(made_by).hexdigest()[:16]}"
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=HOME / "keystone") as folder:
            with _keystone(Path(folder), free_ports(1)[0]) as url:
                known = _populate(url)
            (Path(folder) / "state" / "known.json").write_text(json.dumps(known))
            with contextlib.suppress(OSError):  # another process was quicker
                (Path(folder) / "state").rename(kept)
    return kept


@contextlib.contextmanager
def keystone(swift: SwiftNode) -> Iterator[Identity]:
    python_of("keystone")
    with tempfile.TemporaryDirectory(prefix="holdfast-keystone-") as name:
        folder = Path(name)
        state = shutil.copytree(_kept(), folder / "state")
        port, swift_port = free_ports(2)
        addresses = (f"http://127.0.0.1:{port}", f"http://127.0.0.1:{swift_port}", swift.url)
        with contextlib.closing(sqlite3.connect(state / "keystone.db")) as database, database:
            for pair in zip(PLACEHOLDERS, addresses, strict=True):
                database.execute("UPDATE endpoint SET url = replace(url, ?, ?)", pair)
        swift.configure(
            "proxy-keystone", PIPELINE.format(login=LOGIN), SETTINGS + LOGIN_SETTINGS.format(url=addresses[0])
        )
        with _keystone(folder, port) as url, swift.process(proxy_keystone=swift_port):
            yield Identity(url, addresses[1], json.loads((state / "known.json").read_text()))


_KEYSTONE = pytest.StashKey[Identity]()


def keystone_of(request: pytest.FixtureRequest) -> Identity:
    return shared(request, _KEYSTONE, lambda: keystone(swift_of(request)))
