"""``/manifests`` over HTTP, against a real server, and the command line over the same repository."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.manifests.test_manifests import SAMPLE
from tests.support.server import Running, running


def entry(data: bytes, **about: Any) -> dict[str, Any]:
    return {"hash": hashlib.sha256(data).hexdigest(), "size": len(data), **about}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    with running(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture
def ann(server: Running):
    with server.user(f"ann-{random.randrange(1 << 40)}") as client:
        yield client


def test_the_documents_sample_goes_in_and_out(ann: httpx2.Client):
    posted = ann.post("/manifests", content=SAMPLE.encode())
    assert (posted.status_code, posted.headers["location"]) == (201, "/manifests/name/my_backup?version=1")
    assert posted.json()["files"]["./index.php"]["is_available"] is False
    for address in ("/manifests/name/my_backup", "/manifests/my_backup", posted.headers["location"]):
        assert ann.get(address).json() == posted.json()
    numbers = ann.get("/manifests/my_backup?availability=int").json()
    assert numbers["files"]["./subdir/blah.php"]["availability"] == 0


def test_the_list_says_what_is_here(ann: httpx2.Client):
    ann.put(f"/files/{entry(b'one')['hash']}", content=b"one")
    ann.post("/manifests", json={"name": "a b", "files": {"x": entry(b"one"), "y": entry(b"two")}, "base": "/srv"})
    listed = ann.get("/manifests").json()
    assert listed == {
        "manifests": [{
            "name": "a b", "version": 1, "timestamp": None, "base": "/srv", "files": 2, "available": 1, "bytes": 6,
            "url": "/manifests/name/a%20b",
        }],
        "next": None,
    }  # fmt: skip
    assert ann.get(listed["manifests"][0]["url"]).status_code == 200


def test_the_list_goes_page_by_page(ann: httpx2.Client):
    for number in range(5):
        ann.post("/manifests", json={"name": f"m{number}", "files": {}})
    names: list[str] = []
    cursor: int | str | None = ""
    while cursor is not None:
        page = ann.get(f"/manifests?limit=2{f'&cursor={cursor}' if cursor else ''}").json()
        names += [m["name"] for m in page["manifests"]]
        cursor = page["next"]
    assert names == ["m4", "m3", "m2", "m1", "m0"]
    ann.post("/manifests", json={"name": "m0", "files": {}})
    versions = ann.get("/manifests?name=m0&versions=all").json()["manifests"]
    assert [v["url"] for v in versions] == ["/manifests/name/m0?version=2", "/manifests/name/m0?version=1"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "limit=1001", "cursor=-1", "name=x", "versions=all", "versions=x"]
)
def test_a_query_that_makes_no_sense_is_400(ann: httpx2.Client, query: str):
    got = ann.get(f"/manifests?{query}")
    assert (got.status_code, got.headers["content-type"]) == (400, "application/problem+json")


def test_names_are_decoded_once(ann: httpx2.Client):
    for name in ("%2e%2e", "ä ö", "a?b#c", ".."):
        assert ann.post("/manifests", json={"name": name, "files": {}}).status_code == 201
        listed = ann.get("/manifests?limit=1").json()["manifests"][0]
        assert listed["name"] == name
    assert ann.get("/manifests/name/%252e%252e").json()["name"] == "%2e%2e"


def test_broken_json_is_400_with_line_and_column(ann: httpx2.Client):
    got = ann.post("/manifests", content=b'{"name": "m",\n "files": {,}}')
    assert (got.status_code, got.json()["code"]) == (400, "usage")
    assert "line 2, column 12" in got.json()["detail"]


def test_a_bad_path_is_400_and_named(ann: httpx2.Client):
    got = ann.post("/manifests", json={"name": "m", "files": {"../../etc/passwd": entry(b"")}})
    assert got.status_code == 400 and "../../etc/passwd" in got.json()["detail"]


def test_what_is_not_there_is_404_also_when_it_is_anothers(server: Running, ann: httpx2.Client):
    ann.post("/manifests", json={"name": "of-ann", "files": {}})
    with server.user(f"ben-{time.time_ns()}") as ben:
        for name in ("of-ann", "nothing"):
            got = ben.get(f"/manifests/name/{name}")
            assert (got.status_code, got.json()["code"]) == (404, "no-content")
    assert ann.get("/manifests/name/of-ann?version=7").status_code == 404


def test_a_manifest_over_http_is_restored_by_the_command_line(tmp_path: Path):
    contents = {"docs/a.txt": b"first", "docs/deep/er/b.bin": bytes(range(256)) * 9000, "empty": b""}
    files = {
        path: entry(data, permissions=600, timestamp="2021-01-02T03:04:05+00:00") for path, data in contents.items()
    }
    with running(tmp_path / "data") as server, server.client() as admin:
        assert admin.post("/manifests", json={"name": "home", "base": "/home/x", "files": files}).status_code == 201
        for data in contents.values():
            admin.put(f"/files/{entry(data)['hash']}", content=data)
        command = [
            sys.executable, "-m", "holdfast", "-r", str(tmp_path / "data/repository"), "--key-file",
            str(tmp_path / "data/key"),
        ]  # fmt: skip
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            listed = json.loads(subprocess.check_output([*command, "snapshots", "--json"]))
            if listed:
                break
            time.sleep(0.2)
        assert len(listed) == 1, listed
        subprocess.run([*command, "restore", "latest", "--target", str(tmp_path / "out")], check=True)
    found = {str(p.relative_to(tmp_path / "out")): p for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert {name: path.read_bytes() for name, path in found.items()} == contents
    assert all(p.stat().st_mode & 0o777 == 0o600 and p.stat().st_mtime == 1_609_556_645 for p in found.values())


def test_a_server_that_was_killed_still_has_its_manifests(tmp_path: Path):
    with running(tmp_path / "data") as server, server.client() as admin:
        assert admin.post("/manifests", content=SAMPLE.encode()).status_code == 201
        server.process.kill()
    with running(tmp_path / "data") as server, server.client() as admin:
        assert admin.get("/manifests/my_backup").json()["name"] == "my_backup"


def test_a_version_is_deleted_or_all_of_them(ann: httpx2.Client):
    for _ in range(3):
        ann.post("/manifests", json={"name": "going", "files": {"x": entry(b"of the deleted")}})
    ann.put(f"/files/{entry(b'of the deleted')['hash']}", content=b"of the deleted")
    assert ann.delete("/manifests/name/going?version=2").status_code == 204
    versions = ann.get("/manifests?name=going&versions=all").json()["manifests"]
    assert [v["version"] for v in versions] == [3, 1]
    assert ann.delete("/manifests/name/going?version=2").status_code == 404
    assert ann.delete(f"/files/{entry(b'of the deleted')['hash']}").status_code == 409
    assert ann.delete("/manifests/name/going?versions=all").status_code == 204
    assert ann.get("/manifests/name/going").status_code == 404
    deadline = time.monotonic() + 30
    while ann.get("/accounts/me").json()["usage"] != {"bytes": 0, "objects": 0} and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ann.get(f"/files/{entry(b'of the deleted')['hash']}").status_code == 404


@pytest.mark.parametrize("query", ["", "?version=0", "?version=x", "?versions=newest", "?version=1&versions=all"])
def test_what_to_delete_must_be_said(ann: httpx2.Client, query: str):
    ann.post("/manifests", json={"name": "staying", "files": {}})
    assert ann.delete(f"/manifests/name/staying{query}").status_code == 400
    assert ann.get("/manifests/name/staying").status_code == 200


def test_who_only_reads_deletes_nothing(server: Running, ann: httpx2.Client):
    ann.post("/manifests", json={"name": "staying", "files": {}})
    token = ann.post("/accounts/tokens", json={"name": "reads", "scopes": ["files:read"]}).json()["token"]
    with server.with_token(token) as reader:
        assert reader.delete("/manifests/name/staying?versions=all").status_code == 403
        assert reader.delete(f"/files/{entry(b'x')['hash']}").status_code == 403
    assert ann.get("/manifests/name/staying").status_code == 200
