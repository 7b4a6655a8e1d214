"""Blobs over HTTP as their document has them, at both addresses, against a real server."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path

import httpx2
import pytest

from tests.support.blobs import Person, a_bucket, demand_error, head, heard, line, own_url, person, sha1
from tests.support.server import Running, running

MIB = 1 << 20
EDGES = (0, 1, (256 << 10) - 1, 256 << 10, MIB, MIB + 1, (4 << 20) - 1, 4 << 20, (4 << 20) + 1)


@pytest.fixture(scope="module", params=["own address", pytest.param("main address", marks=pytest.mark.slow)])
def ann(request: pytest.FixtureRequest, server: Running) -> Iterator[Person]:
    at = own_url(server) if request.param == "own address" else f"{server.url}/blobs"
    with contextlib.closing(person(server, at=at, email=f"{at[-5:]}@example.org", name="Ann Example")) as found:
        yield found


@pytest.fixture(scope="module")
def bucket(ann: Person) -> str:
    return a_bucket(ann.client)


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


# -- the document's samples --------------------------------------------------------------------------------------------


def test_the_documents_samples_by_curl(ann: Person, tmp_path: Path, need: Callable[[str], str]):
    bucket, blob = a_bucket(ann.client), noise(100_000)
    (tmp_path / "my.blob").write_bytes(blob)
    (tmp_path / "login").write_text(f'header = "Authorization: Bearer {ann.token}"')
    curl = [need("curl"), "-s", "-K", str(tmp_path / "login")]
    posted = [*curl, "-X", "POST", "--data-binary", f"@{tmp_path}/my.blob", f"{ann.at}{bucket}/my/big.blob"]
    made = json.loads(subprocess.run(posted, check=True, capture_output=True).stdout)
    assert made["file"]["key"] == "my/big.blob" and made["file"]["sha1"] == sha1(blob)
    assert made["file"]["bucket"]["name"] == bucket[1:] and isinstance(made["duration"], int) and made["duration"] > 0
    got = subprocess.run([*curl, f"{ann.at}{bucket}/my/big.blob"], check=True, capture_output=True).stdout
    assert got == blob
    listed = [*curl, f"{ann.at}{bucket}?prefix=my%2Fb&sort=%2BlastModified&limit=2"]
    found = json.loads(subprocess.run(listed, check=True, capture_output=True).stdout)
    assert [file["key"] for file in found["files"]] == ["my/big.blob"]


def test_what_was_put_is_told_as_the_document_has_it(ann: Person, bucket: str):
    before = datetime.datetime.now(datetime.UTC)
    made = ann.client.post(f"{bucket}/k", content=b"content")
    assert made.status_code == 201 and made.headers["content-type"] == "application/json"
    about = made.json()
    assert about.keys() == {"duration", "file"}
    file = about["file"]
    assert file.keys() == {"bucket", "key", "lastModified", "sha1", "size"}
    owner = {"email": {"Address": f"{ann.at[-5:]}@example.org", "Name": "Ann Example"}}
    assert file["bucket"] == {"name": bucket[1:], "owner": owner}
    assert (file["key"], file["sha1"], file["size"]) == ("k", sha1(b"content"), 7)
    modified = datetime.datetime.fromisoformat(file["lastModified"])
    assert modified.tzinfo is not None and abs(modified - before) < datetime.timedelta(seconds=30)
    gone = ann.client.delete(f"{bucket}/k")
    assert (gone.status_code, gone.json()["file"]) == (200, file)
    demand_error(ann.client.get(f"{bucket}/k"), 404)


def test_the_list_of_buckets_is_as_the_document_has_it(ann: Person, bucket: str):
    found = ann.client.get("/" if ann.at == own_url(ann.server) else "").json()
    assert found.keys() == {"count", "duration", "buckets"} and found["count"] == len(found["buckets"])
    mine = [one for one in found["buckets"] if one["name"] == bucket[1:]]
    assert len(mine) == 1 and mine[0].keys() == {"name", "owner"} and isinstance(found["duration"], int)


def test_lists_by_prefix_order_and_limit(ann: Person):
    bucket = a_bucket(ann.client)
    for key in ("b", "a/2", "a/10", "c"):
        assert ann.client.post(f"{bucket}/{key}", content=key.encode()).status_code == 201

    def keys(query: str) -> list[str]:
        answer = ann.client.get(f"{bucket}?{query}")
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert found["count"] == len(found["files"]) and found["bucket"]["name"] == bucket[1:]
        return [file["key"] for file in found["files"]]

    assert keys("sort=%2Bkey") == keys("sort=+key") == ["a/10", "a/2", "b", "c"]
    assert keys("sort=-key") == ["c", "b", "a/2", "a/10"]
    assert keys("sort=%2BlastModified") == keys("sort=+lastModified") == ["b", "a/2", "a/10", "c"]
    assert keys("sort=-lastModified&limit=2") == ["c", "a/10"]
    assert keys("prefix=a%2F&sort=-key") == ["a/2", "a/10"]
    assert keys("limit=0") == keys("prefix=a/&limit=0") == []
    assert sorted(keys("")) == sorted(keys(f"limit={10**12}")) == ["a/10", "a/2", "b", "c"]
    page = ann.client.get(f"{bucket}?sort=%2Bkey&delimiter=/&limit=2").json()
    assert (page["prefixes"], [f["key"] for f in page["files"]], page["truncated"]) == (["a/"], ["b"], True)
    assert keys(f"sort=%2Bkey&delimiter=/&marker={page['next_marker']}") == ["c"]
    ann.client.delete(f"{bucket}/b")
    demand_error(ann.client.get(f"{bucket}?sort=%2BlastModified&marker=b"), 400, "usage")


def test_a_list_that_is_longer_than_a_piece_of_it_is_whole(ann: Person):
    bucket = a_bucket(ann.client)
    with ThreadPoolExecutor(8) as pool:
        names = [f"{number:04}" for number in range(450)]
        assert {a.status_code for a in pool.map(lambda n: ann.client.post(f"{bucket}/{n}", content=b""), names)} == {
            201
        }
    for limit in (199, 200, 201, 400, 401, 450, 451):
        found = ann.client.get(f"{bucket}?sort=%2Bkey&limit={limit}").json()
        assert [file["key"] for file in found["files"]] == names[:limit]
        assert found["truncated"] == (limit < 450) and ("next_marker" in found) == (limit < 450)


# -- contents ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filesystem", ["disk", "repository"])
def test_contents_of_every_size_whole_and_in_ranges(ann: Person, filesystem: str):
    bucket = a_bucket(ann.client, filesystem=filesystem)
    for size in EDGES:
        data = noise(size, size)
        for body in (data, iter([data[: size // 3], data[size // 3 :]])):  # the second one without a length
            made = ann.client.post(f"{bucket}/{size}", content=body)
            assert (made.status_code, made.json()["file"]["sha1"]) == (201, sha1(data))
            got = ann.client.get(f"{bucket}/{size}")
            assert got.content == data and got.headers["content-length"] == str(size)
    data, whole = noise(EDGES[-1], EDGES[-1]), f"{bucket}/{EDGES[-1]}"
    for start, stop in ((0, 1), (262_143, 262_145), (MIB, 3 * MIB), (len(data) - 2, len(data))):
        got = ann.client.get(whole, headers={"Range": f"bytes={start}-{stop - 1}"})
        assert (got.status_code, got.content) == (206, data[start:stop])
        assert got.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(data)}"
    assert ann.client.get(whole, headers={"Range": "bytes=-5"}).content == data[-5:]
    assert ann.client.get(whole, headers={"Range": f"bytes=5-{10**17}"}).content == data[5:]


def test_ranges_that_do_not_exist_or_make_no_sense(ann: Person, bucket: str):
    ann.client.post(f"{bucket}/r", content=b"0123456789")
    ann.client.post(f"{bucket}/empty", content=b"")
    for path, asked in ((f"{bucket}/r", "bytes=10-"), (f"{bucket}/r", "bytes=-0"), (f"{bucket}/empty", "bytes=0-0")):
        refused = ann.client.get(path, headers={"Range": asked})
        demand_error(refused, 416)
        assert refused.headers["content-range"] == f"bytes */{10 if path.endswith('r') else 0}"
    for asked in ("bytes=3-1", "bytes=a-b", "lines=1-2", "bytes=0-1,3-4", "bytes=", "bytes=-"):
        whole = ann.client.get(f"{bucket}/r", headers={"Range": asked})
        assert (whole.status_code, whole.content) == (200, b"0123456789"), asked


def test_head_tells_what_get_would(ann: Person, bucket: str):
    data = noise(3 * MIB)
    ann.client.post(f"{bucket}/h", content=data)
    got, told = ann.client.get(f"{bucket}/h"), ann.client.head(f"{bucket}/h")
    assert (told.status_code, told.content) == (200, b"")
    for name in ("content-length", "etag", "last-modified", "accept-ranges", "content-type"):
        assert told.headers[name] == got.headers[name]
    assert told.headers["etag"] == f'"{sha1(data)}"' and told.headers["content-length"] == str(len(data))
    assert told.headers["last-modified"].endswith(" GMT")
    missing = ann.client.head(f"{bucket}/nothing")
    assert (missing.status_code, missing.content) == (404, b"")


def test_what_the_client_has_is_not_sent_again(ann: Person, bucket: str):
    ann.client.post(f"{bucket}/c", content=b"content")
    first = ann.client.get(f"{bucket}/c")
    tag, when = first.headers["etag"], first.headers["last-modified"]
    past = formatdate(time.time() - 86400, usegmt=True)
    for headers, status in (
        ({"If-None-Match": tag}, 304),
        ({"If-None-Match": f'"x", W/{tag}'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-None-Match": '"other"', "If-Modified-Since": when}, 200),  # the tag decides
        ({"If-Modified-Since": when}, 304),
        ({"If-Modified-Since": past}, 200),
        ({"If-Modified-Since": "yesterday"}, 200),
        ({"If-Match": tag}, 200),
        ({"If-Match": '"other"'}, 412),
        ({"Range": "bytes=0-1", "If-Range": tag}, 206),
        ({"Range": "bytes=0-1", "If-Range": '"other"'}, 200),
    ):
        got = ann.client.get(f"{bucket}/c", headers=headers)
        assert got.status_code == status, headers
        if status == 304:
            assert got.content == b"" and got.headers["etag"] == tag
        assert ann.client.head(f"{bucket}/c", headers=headers).status_code == (200 if status == 206 else status)


def test_conditions_of_putting_and_deleting(ann: Person, bucket: str):
    put = ann.client.post
    demand_error(put(f"{bucket}/p", content=b"x", headers={"If-Match": "*"}), 412, "condition")
    assert put(f"{bucket}/p", content=b"one", headers={"If-None-Match": "*"}).status_code == 201
    for size in (10, 2 * MIB):
        demand_error(put(f"{bucket}/p", content=noise(size), headers={"If-None-Match": "*"}), 412, "condition")
        demand_error(put(f"{bucket}/p", content=noise(size), headers={"If-Match": '"00"'}), 412, "condition")
    demand_error(ann.client.delete(f"{bucket}/p", headers={"If-Match": '"00"'}), 412, "condition")
    assert ann.client.get(f"{bucket}/p").content == b"one"
    changed = put(f"{bucket}/p", content=b"two", headers={"If-Match": f'"{sha1(b"one")}"'})
    assert changed.status_code == 201 and changed.headers["etag"] == f'"{sha1(b"two")}"'
    assert ann.client.delete(f"{bucket}/p", headers={"If-Match": changed.headers["etag"]}).status_code == 200


def test_put_does_what_post_does(ann: Person, bucket: str):
    assert ann.client.put(f"{bucket}/by/put", content=b"x").status_code == 201
    assert ann.client.get(f"{bucket}/by/put").content == b"x"


def test_what_was_put_at_one_address_is_there_at_the_other(server: Running):
    with contextlib.closing(person(server)) as someone, someone.at_other(f"{server.url}/blobs") as below:
        bucket = a_bucket(below)
        someone.client.post(f"{bucket}/k", content=b"x")
        assert below.get(f"{bucket}/k").content == b"x"
        # At the blobs' own port everything is a bucket, and nothing else is there.
        for path in ("/healthz", "/openapi.json", "/blobs", "/accounts/me"):
            assert demand_error(someone.client.get(path), 404)


# -- what pages can do ------------------------------------------------------------------------------------------------


def test_an_upload_that_is_a_page_never_runs_here(ann: Person, bucket: str):
    page = b"<!doctype html><script>alert(document.domain)</script>"
    ann.client.post(f"{bucket}/x.html", content=page, headers={"Content-Type": "text/html"})
    for method, headers in (
        ("GET", {}),
        ("GET", {"Range": "bytes=0-"}),
        ("HEAD", {}),
        ("GET", {"Accept": "text/html"}),
    ):
        got = ann.client.request(method, f"{bucket}/x.html", headers=headers)
        assert got.headers["content-type"] == "application/octet-stream"
        assert got.headers["x-content-type-options"] == "nosniff"
        assert got.headers["content-disposition"].startswith("attachment")
        assert "sandbox" in got.headers["content-security-policy"]
    missing = ann.client.get(f"{bucket}/<script>alert(1)</script>")
    assert missing.headers["content-type"] == "application/json"


def test_other_sites_are_let_in_only_where_that_is_configured(tmp_path: Path, server: Running):
    ours, theirs = "https://app.example.org", "https://evil.example.org"
    with contextlib.closing(person(server)) as ann:
        assert "access-control-allow-origin" not in ann.client.get("/", headers={"Origin": ours}).headers
    with running(tmp_path, "--blob-port", "0", HOLDFAST_BLOBS__ORIGINS=ours) as other:
        for at in (own_url(other), f"{other.url}/blobs"):
            with contextlib.closing(person(other, at=at)) as ben:
                bucket = a_bucket(ben.client)
                asked = {"Origin": ours, "Access-Control-Request-Method": "POST"}
                more = {"Access-Control-Request-Headers": "authorization,if-match"}
                allowed = httpx2.options(f"{at}{bucket}/k", headers={**asked, **more})
                assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == ours
                assert "POST" in allowed.headers["access-control-allow-methods"]
                assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
                refused = httpx2.options(f"{at}{bucket}/k", headers={**asked, "Origin": theirs})
                assert "access-control-allow-origin" not in refused.headers
                made = ben.client.post(f"{bucket}/k", content=b"x", headers={"Origin": ours})
                assert made.headers["access-control-allow-origin"] == ours
                assert "ETag" in made.headers["access-control-expose-headers"]
                missing = ben.client.get(f"{bucket}/nothing", headers={"Origin": ours})
                assert missing.headers["access-control-allow-origin"] == ours  # errors can be read, too
                stranger = ben.client.get(f"{bucket}/k", headers={"Origin": theirs})
                assert "access-control-allow-origin" not in stranger.headers


def test_options_name_what_can_be_done_and_the_rest_is_405(ann: Person, bucket: str):
    with httpx2.Client(base_url=ann.at) as nobody:
        for path, allowed in (
            (f"{bucket}/k", {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"}),
            (bucket, {"GET", "HEAD", "PUT", "DELETE", "OPTIONS"}),
            (f"{bucket}?grants", {"GET", "HEAD", "PUT", "OPTIONS"}),
        ):
            told = nobody.options(path)
            assert told.status_code == 204 and set(told.headers["allow"].split(", ")) == allowed
            refused = ann.client.request("PATCH", path)
            demand_error(refused, 405, "method")
            assert refused.headers["allow"] == told.headers["allow"]
        demand_error(ann.client.post(bucket, content=b"x"), 405)


# -- who ---------------------------------------------------------------------------------------------------------------


def test_nobody_gets_in_without_a_log_in_and_tokens_do_what_they_may(ann: Person, bucket: str):
    ann.client.post(f"{bucket}/k", content=b"x")
    every: list[tuple[str, str]] = [
        ("GET", ""), ("GET", bucket), ("GET", f"{bucket}?grants"), ("GET", f"{bucket}/k"), ("HEAD", f"{bucket}/k"),
        ("POST", f"{bucket}/k"), ("PUT", f"{bucket}/k"), ("DELETE", f"{bucket}/k"), ("PUT", "/new"),
        ("PUT", f"{bucket}?grants"), ("PUT", f"{bucket}?quota"), ("DELETE", bucket),
    ]  # fmt: skip
    reader, stranger = person(ann.server, "blobs:read", at=ann.at), person(ann.server, "files:write", at=ann.at)
    with httpx2.Client(base_url=ann.at) as nobody:
        for method, path in every:
            refused = nobody.request(method, path)
            assert refused.status_code == 401 and "Bearer" in refused.headers["www-authenticate"], (method, path)
            assert stranger.client.request(method, path).status_code == 403, (method, path)
            found = reader.client.request(method, path)
            assert found.status_code == (403 if method not in ("GET", "HEAD") else 200 if path == "" else 404)
        demand_error(nobody.get(bucket), 401, "not-logged-in")
    assert ann.client.get(f"{bucket}/k").content == b"x"
    reader.close()
    stranger.close()


def test_a_stranger_cannot_tell_whether_a_bucket_is_there(ann: Person, bucket: str):
    with contextlib.closing(person(ann.server, at=ann.at)) as ben:
        for method, path in (("GET", ""), ("GET", "/k"), ("POST", "/k"), ("DELETE", "/k"), ("DELETE", "")):
            there = demand_error(ben.client.request(method, f"{bucket}{path}"), 404)
            not_there = demand_error(ben.client.request(method, f"/nowhere{path}"), 404)
            assert there.replace(bucket[1:], "X") == not_there.replace("nowhere", "X")


# -- at once, slowly, large --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 2 * MIB])
def test_of_many_posts_of_one_key_one_wins_whole(ann: Person, size: int):
    bucket, over, wrong = a_bucket(ann.client), threading.Event(), list[object]()
    ann.client.post(f"{bucket}/k", content=bytes(size))

    def read() -> None:
        with ann.at_other(ann.at) as client:
            while not over.is_set():
                got = client.get(f"{bucket}/k")
                if got.status_code != 200 or len(set(got.content)) != 1 or len(got.content) != size:
                    wrong.append((got.status_code, len(got.content), set(got.content)))
                if got.status_code == 200 and got.headers["etag"] != f'"{sha1(got.content)}"':
                    wrong.append(got.headers["etag"])

    def write(writer: int) -> None:
        with ann.at_other(ann.at) as client:
            for _ in range(4):
                assert client.post(f"{bucket}/k", content=bytes([writer]) * size).status_code == 201

    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        for done in [pool.submit(write, writer) for writer in range(1, 6)]:
            done.result(120)
        over.set()
        for reader in readers:
            reader.result(60)
    assert wrong == []
    about = ann.client.get(f"{bucket}?quota").json()["bucket"]
    assert (about["bytes"], about["objects"]) == (size, 1)


def test_who_sends_a_byte_a_second_holds_up_nobody(ann: Person, bucket: str):
    with contextlib.ExitStack() as stack:
        slow = []
        prefix = ann.at.removeprefix(str(httpx2.URL(ann.at).copy_with(path="")).rstrip("/")).encode()
        for number in range(40):
            length = b"Content-Length: 500" if number % 2 else b"Transfer-Encoding: chunked"
            start = head("POST", prefix + bucket.encode() + b"/slow%d" % number, ann.token, length)
            slow.append(stack.enter_context(line(ann.at, start + (b"x" if number % 2 else b"1\r\nx\r\n"))))
        began = time.monotonic()
        for number in range(20):
            assert ann.client.post(f"{bucket}/quick", content=b"%d" % number).status_code == 201
            assert ann.client.get(f"{bucket}/quick").content == b"%d" % number
        assert time.monotonic() - began < 15
        for one in slow[1::2][:3]:
            one.sendall(b"y" * 499)
            assert b" 201 " in one.recv(100)
    assert ann.client.get(f"{bucket}/slow1").content == b"x" + b"y" * 499
    demand_error(ann.client.get(f"{bucket}/slow0"), 404)


def test_a_body_that_breaks_off_leaves_the_old_one(ann: Person, bucket: str):
    prefix = ann.at.removeprefix(str(httpx2.URL(ann.at).copy_with(path="")).rstrip("/")).encode()
    ann.client.post(f"{bucket}/old", content=b"old")
    for length, sent in ((b"Content-Length: 500", b"x" * 400), (b"Content-Length: 9000000", b"x" * (5 * MIB)),
                         (b"Transfer-Encoding: chunked", b"5\r\nxxx")):  # fmt: skip
        start = head("POST", prefix + bucket.encode() + b"/old", ann.token, length)
        with line(ann.at, start + sent):
            pass
    time.sleep(0.5)
    assert ann.client.get(f"{bucket}/old").content == b"old"
    about = ann.client.get(f"{bucket}?quota").json()["bucket"]
    assert about["objects"] == ann.client.get(bucket).json()["count"]


def test_a_body_that_does_not_go_on_is_not_waited_for(tmp_path: Path):
    options = {"HOLDFAST_SERVER__PATIENCE": "1"}
    with running(tmp_path, "--blob-port", "0", **options) as server, contextlib.closing(person(server)) as someone:
        bucket = a_bucket(someone.client)
        for length in (b"Content-Length: 500", b"Content-Length: 9000000", b"Transfer-Encoding: chunked"):
            with line(own_url(server), head("POST", bucket.encode() + b"/k", someone.token, length)) as silent:
                assert heard(silent).status == 408
        wait_for(lambda: stored(server) == 0)
        assert not [text for text in server.log if "never retrieved" in text or '"fault"' in text]


def stored(server: Running) -> int:
    """How many objects of blobs lie on the server's disk."""
    return sum(1 for path in (server.data / "blobs" / "data").rglob("*") if path.is_file())


def wait_for(so: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not so() and time.monotonic() < until:
        time.sleep(0.05)
    assert so()


def memory_of(server: Running) -> int:
    """The most bytes of memory it has had."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.slow
@pytest.mark.parametrize(("filesystem", "gib"), [("disk", 0.3), ("repository", 0.3), ("disk", 5)])
def test_memory_does_not_grow_with_a_blob(tmp_path: Path, filesystem: str, gib: float):
    count, piece = int(gib * 1024), noise(MIB)
    expected = hashlib.sha1(usedforsecurity=False)

    def body() -> Iterator[bytes]:
        for number in range(count):
            some = number.to_bytes(8, "big") + piece[8:]
            expected.update(some)
            yield some

    with running(tmp_path, "--blob-port", "0") as server, contextlib.closing(person(server)) as someone:
        bucket = a_bucket(someone.client, filesystem=filesystem)
        someone.client.post(f"{bucket}/warm", content=noise(8 * MIB))
        before, got, size, began = memory_of(server), hashlib.sha1(usedforsecurity=False), 0, time.perf_counter()
        made = someone.client.post(f"{bucket}/large", content=body(), timeout=280)
        assert made.status_code == 201 and made.json()["file"]["sha1"] == expected.hexdigest()
        put = time.perf_counter()
        with someone.client.stream("GET", f"{bucket}/large", timeout=280) as answer:
            for some in answer.iter_bytes():
                got.update(some)
                size += len(some)
        taken, grown = time.perf_counter() - put, memory_of(server) - before
        assert (size, got.hexdigest()) == (count * MIB, expected.hexdigest())
        print(f"{filesystem}: {count} MiB put in {put - began:.1f} s, got in {taken:.1f} s, memory +{grown >> 20} MiB")
        assert grown < 150 * MIB
        assert someone.client.delete(f"{bucket}/large").status_code == 200
        if filesystem == "disk":
            wait_for(lambda: stored(server) == 2)
