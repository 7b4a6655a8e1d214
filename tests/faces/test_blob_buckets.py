"""Buckets over HTTP: whose they are, who may do what, what they may hold, where they lie; and an open server."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.blobs.making import noise
from tests.storage.places.buckets import PLACES
from tests.support.blobs import Person, a_bucket, demand_error, own_url, person, sha1
from tests.support.openstack import a_container, swift_of
from tests.support.server import ADMIN_PASSWORD, Running, running

MIB = 1 << 20


@pytest.fixture
def ann(server: Running) -> Iterator[Person]:
    with contextlib.closing(person(server)) as found:
        yield found


@pytest.fixture
def ben(server: Running) -> Iterator[Person]:
    with contextlib.closing(person(server)) as found:
        yield found


@pytest.fixture
def admin(server: Running) -> Iterator[httpx2.Client]:
    with server.client() as found:
        found.base_url = httpx2.URL(own_url(server))
        yield found


# -- making and deleting -----------------------------------------------------------------------------------------------


def test_a_bucket_is_made_once_and_deleted_when_it_is_empty(ann: Person, ben: Person):
    made = ann.client.put("/once")
    assert made.status_code == 201 and made.json()["bucket"]["name"] == "once"
    for someone in (ann, ben):
        demand_error(someone.client.put("/once"), 409, "contradiction")
    ann.client.post("/once/k", content=b"x")
    demand_error(ann.client.delete("/once"), 409, "contradiction")
    ann.client.delete("/once/k")
    assert ann.client.delete("/once").status_code == 200
    demand_error(ann.client.get("/once"), 404)
    assert ben.client.put("/once").status_code == 201  # its name is free again


def test_a_bucket_belongs_to_who_makes_it_and_administrators_may_name_another(
    server: Running, ann: Person, admin: httpx2.Client
):
    email = {"Address": "carl@example.org", "Name": "whatever is said"}
    with contextlib.closing(person(server, email="carl@example.org", name="Carl")) as carl:
        demand_error(ann.client.put("/carls", json={"owner": {"email": email}}), 403)
        made = admin.put("/carls", json={"owner": {"email": email}})
        assert made.json()["bucket"]["owner"] == {"email": {"Address": "carl@example.org", "Name": "Carl"}}
        assert carl.client.post("/carls/k", content=b"x").status_code == 201
        own = carl.client.put("/carls2", json={"owner": {"email": {"Address": "CARL@example.org"}}})
        assert own.status_code == 201  # himself
        demand_error(admin.put("/x", json={"owner": {"email": {"Address": "nobody@example.org"}}}), 404)


def test_administrators_see_and_change_every_bucket_but_not_with_a_small_token(
    server: Running, ann: Person, admin: httpx2.Client
):
    bucket = a_bucket(ann.client)
    ann.client.post(f"{bucket}/k", content=b"x")
    assert bucket[1:] in {one["name"] for one in admin.get("/").json()["buckets"]}
    assert admin.get(f"{bucket}/k").content == b"x" and admin.get(bucket).json()["count"] == 1
    assert admin.put(f"{bucket}?grants", json={"admin": ["read"]}).status_code == 200
    assert admin.delete(f"{bucket}/k").status_code == 200
    admin.put(f"{bucket}?grants", json={})
    with server.client() as main:
        token = main.post("/accounts/tokens", json={"name": "t", "scopes": ["blobs:read", "blobs:write"]}).json()
    with httpx2.Client(base_url=own_url(server), headers={"Authorization": f"Bearer {token['token']}"}) as small:
        demand_error(small.get(bucket), 404)
        assert bucket[1:] not in {one["name"] for one in small.get("/").json()["buckets"]}


# -- what others may ---------------------------------------------------------------------------------------------------

ACTS: dict[str, list[tuple[str, str, int]]] = {
    "read": [("GET", "/k", 200), ("HEAD", "/k", 200)],
    "write": [("POST", "/l", 201), ("PUT", "/l", 201), ("DELETE", "/l", 200)],
    "list": [("GET", "", 200)],
    "admin": [("GET", "?grants", 200), ("PUT", "?quota", 200), ("PUT", "?grants", 200)],
}


@pytest.mark.parametrize("everyone", [False, True])
def test_a_grant_lets_one_do_just_that(ann: Person, ben: Person, everyone: bool):
    bucket, whom = a_bucket(ann.client), "*" if everyone else ben.name
    ann.client.post(f"{bucket}/k", content=b"x")
    for granted in ACTS:
        changed = ann.client.put(f"{bucket}?grants", json={whom: [granted]})
        assert changed.status_code == 200 and changed.json() == {whom: [granted]}
        assert ann.client.get(f"{bucket}?grants").json() == {whom: [granted]}
        assert bucket[1:] in {one["name"] for one in ben.client.get("/").json()["buckets"]}
        assert ben.client.get(f"{bucket}?quota").json()["allowed"] == [granted]
        for act, requests in ACTS.items():
            for method, path, status in requests:
                body = {"json": {whom: [granted]} if path == "?grants" else {}} if method == "PUT" else {}
                found = ben.client.request(method, f"{bucket}{path}", **body)  # type: ignore[arg-type]
                assert found.status_code == (status if act == granted else 403), (granted, method, path)
    ann.client.put(f"{bucket}?grants", json={})
    demand_error(ben.client.get(bucket), 404)


def test_what_is_granted_to_an_account_ends_with_it(server: Running, ann: Person):
    bucket = a_bucket(ann.client)
    with contextlib.closing(person(server)) as gone:
        ann.client.put(f"{bucket}?grants", json={gone.name: ["read"], "*": ["list"]})
        with server.client() as admin:
            assert admin.delete(f"/accounts/users/{gone.name}").status_code == 204
    assert ann.client.get(f"{bucket}?grants").json() == {"*": ["list"]}


# -- what they may hold ------------------------------------------------------------------------------------------------


def test_a_quota_is_held_and_can_be_changed(ann: Person):
    bucket = a_bucket(ann.client, quota={"bytes": 2 * MIB, "objects": 2})
    assert ann.client.post(f"{bucket}/a", content=noise(MIB)).status_code == 201
    for body in (noise(MIB + 1), noise(2 * MIB), iter([noise(MIB), noise(MIB)])):
        demand_error(ann.client.post(f"{bucket}/b", content=body), 507, "quota")
    assert ann.client.post(f"{bucket}/b", content=noise(MIB)).status_code == 201
    demand_error(ann.client.post(f"{bucket}/c", content=b""), 507, "quota")
    assert ann.client.post(f"{bucket}/a", content=noise(MIB, 1)).status_code == 201
    about = ann.client.get(f"{bucket}?quota").json()["bucket"]
    assert about["quota"] == {"bytes": 2 * MIB, "objects": 2} and (about["bytes"], about["objects"]) == (2 * MIB, 2)
    assert ann.client.put(f"{bucket}?quota", json={}).json()["bucket"]["quota"] == {"bytes": None, "objects": None}
    assert ann.client.post(f"{bucket}/c", content=noise(3 * MIB)).status_code == 201


def test_what_buckets_hold_counts_for_their_owner_until_the_account_is_deleted(server: Running, admin: httpx2.Client):
    someone = person(server)
    bucket = a_bucket(someone.client)
    for key in "abc":
        someone.client.post(f"{bucket}/{key}", content=noise(1000))
    with server.client() as main:
        usage = main.get(f"/accounts/users/{someone.name}").json()["usage"]
        assert (usage["bytes"], usage["objects"]) == (3000, 3)
        assert main.delete(f"/accounts/users/{someone.name}").status_code == 204
    assert someone.client.get(f"{bucket}/a").status_code == 401
    demand_error(admin.get(f"{bucket}/a"), 404)
    someone.close()


# -- where they lie ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["s3", pytest.param("swift", marks=pytest.mark.slow)])
def test_a_bucket_in_an_object_store(request: pytest.FixtureRequest, tmp_path: Path, store: str):
    if store == "s3":
        place = next(PLACES["s3-moto"](request))
        assert place.access is not None
        address, variables = place.address, dict(place.access.variables)
    else:
        address, variables = f"swift://{a_container()}/blobs", swift_of(request).variables
    for _ in range(2):  # and after a restart
        with contextlib.ExitStack() as stack:
            client = client_of(stack, tmp_path, **variables, HOLDFAST_BLOBS__OBJECT=address)
            if client.get("/far").status_code == 404:
                assert client.put("/far", json={"filesystem": "object"}).status_code == 201
                for size in (0, 10, 5 * MIB):
                    assert client.post(f"/far/{size}", content=noise(size)).status_code == 201
            for size in (0, 10, 5 * MIB):
                assert client.get(f"/far/{size}").content == noise(size)
            assert client.get(f"/far/{5 * MIB}", headers={"Range": "bytes=-9"}).content == noise(5 * MIB)[-9:]
    assert not list((tmp_path / "blobs" / "data").glob("*/*"))
    with running(tmp_path, "--blob-port", "0") as server, server.client() as client:  # it is not set up any more
        client.base_url = httpx2.URL(own_url(server))
        demand_error(client.get("/far/10"), 503)
        demand_error(client.post("/far/x", content=b"x"), 503)
        assert client.get("/far").json()["count"] == 3
        demand_error(client.put("/other", json={"filesystem": "object"}), 400)


def test_policies_in_a_folder_make_buckets_when_the_server_starts(tmp_path: Path):
    policies = tmp_path / "policies"
    policies.mkdir()
    owner = {"email": {"Address": "ann@example.org", "Name": "Ann"}}
    with running(tmp_path / "data", "--blob-port", "0") as server:
        server.user("ann", email="ann@example.org").close()
    about = {"name": "made", "owner": owner, "filesystem": "repository", "quota": {"objects": 3}}
    (policies / "one.json").write_text(json.dumps(about))
    for _ in range(2):  # the second time they are there
        with contextlib.ExitStack() as stack:
            ann = client_of(stack, tmp_path / "data", "ann", "correct horse", HOLDFAST_BLOBS__POLICIES=str(policies))
            found = ann.get("/made?quota").json()["bucket"]
            assert found["filesystem"] == "repository" and found["quota"] == {"bytes": None, "objects": 3}
    (policies / "two.json").write_text("{")
    refused = serve(tmp_path / "data", HOLDFAST_BLOBS__POLICIES=str(policies))
    assert refused.returncode != 0 and "two.json" in refused.stderr and "Traceback" not in refused.stderr


def client_of(
    stack: contextlib.ExitStack, data: Path, username: str = "admin", password: str = ADMIN_PASSWORD, **environment: str
) -> httpx2.Client:
    """A client of blobs of a server of its own, which runs until the stack ends."""
    server = stack.enter_context(running(data, "--blob-port", "0", **environment))
    client = stack.enter_context(server.client(username, password))
    client.base_url = httpx2.URL(own_url(server))
    return client


def serve(data: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A server that is not to start."""
    command = [sys.executable, "-m", "holdfast", "serve", "--port", "0", "--data", str(data), *options]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)


# -- an open server ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("open"), "--open", "--blob-port", "0") as found:
        yield found


def test_whoever_has_no_log_in_uses_an_open_server(opened: Running):
    for at in (own_url(opened), f"{opened.url}/blobs"):
        with httpx2.Client(base_url=at) as anybody:
            bucket = a_bucket(anybody)
            made = anybody.post(f"{bucket}/my/big.blob", content=b"big")
            assert made.json()["file"]["sha1"] == sha1(b"big")
            assert anybody.get(f"{bucket}/my/big.blob").content == b"big"
            assert anybody.get(f"{bucket}?prefix=my").json()["count"] == 1
            owner = anybody.get(f"{bucket}?quota").json()["bucket"]["owner"]["email"]
            assert owner["Name"] == "anonymous"
            assert anybody.delete(f"{bucket}/my/big.blob").status_code == 200
            assert anybody.delete(bucket).status_code == 200


def test_an_open_server_lets_pages_of_every_site_in(opened: Running):
    origin = {"Origin": "https://anywhere.example.org"}
    for at in (own_url(opened), f"{opened.url}/blobs"):
        asked = httpx2.options(f"{at}/b/k", headers={**origin, "Access-Control-Request-Method": "PUT"})
        assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] == "*"
        assert httpx2.get(f"{at}/b", headers=origin).headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in asked.headers


def test_an_open_server_is_open_for_blobs_and_shares_only_and_keeps_what_is_others(opened: Running):
    with contextlib.closing(person(opened)) as ann, opened.anonymous() as anybody:
        bucket = a_bucket(ann.client)
        ann.client.post(f"{bucket}/k", content=b"x")
        for path in (f"/blobs{bucket}", f"/blobs{bucket}/k"):
            demand_error(anybody.get(path), 404)
        for path in ("/accounts/me", "/accounts/users", "/vaults", "/manifests", "/metrics", f"/files/{'0' * 64}"):
            assert anybody.get(path).status_code == 401, path
        demand_error(anybody.put("/blobs/for-admin", json={"owner": {"email": {"Address": "x@example.org"}}}), 403)
        ann.client.put(f"{bucket}?grants", json={"anonymous": ["read"]})
        assert anybody.get(f"/blobs{bucket}/k").content == b"x"
        assert anybody.get("/blobs", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_nobody_logs_in_as_anybody(opened: Running):
    for password in ("", "anonymous", "correct horse"):
        with opened.client("anonymous", password) as client:
            assert client.get("/accounts/me").status_code == 401
            assert client.get("/blobs").status_code == 401
    with opened.client() as admin:
        made = admin.post("/accounts/users", json={"username": "anonymous", "password": "correct horse"})
        assert made.status_code == 409


def test_what_anybody_put_stays_and_is_closed_with_the_server(tmp_path: Path):
    with running(tmp_path, "--open", "--blob-port", "0") as server, httpx2.Client(base_url=own_url(server)) as anybody:
        a_bucket(anybody)
        anybody.put("/kept")
        anybody.post("/kept/k", content=b"x")
    with running(tmp_path, "--blob-port", "0") as server, httpx2.Client(base_url=own_url(server)) as anybody:
        for method, path in (("GET", "/"), ("GET", "/kept/k"), ("PUT", "/new"), ("POST", "/kept/k")):
            demand_error(anybody.request(method, path), 401, "not-logged-in")
        with server.client() as admin:
            assert admin.get("/blobs/kept/k").content == b"x"


@pytest.mark.parametrize("host", ["0.0.0.0", "example.org"])
def test_an_open_server_is_for_this_machine_alone(tmp_path: Path, host: str):
    refused = serve(tmp_path, "--open", "--host", host)
    assert refused.returncode != 0 and "this machine alone" in refused.stderr
    assert not list(tmp_path.iterdir())


def test_blobs_can_have_no_port_of_their_own(tmp_path: Path):
    with running(tmp_path, "--blob-port", "-1") as server, server.client() as client:
        assert own_url(server) == ""
        assert client.put("/blobs/b").status_code == 201


def test_a_port_of_blobs_that_is_taken_is_named(server: Running, tmp_path: Path):
    taken = str(httpx2.URL(own_url(server)).port)
    refused = serve(tmp_path, "--blob-port", taken)
    assert refused.returncode != 0 and taken in refused.stderr and "--blob-port" in refused.stderr
