"""What no good client sends to blobs: refused in the document's words, or taken for what it is; nothing breaks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import httpx2
import pytest

from tests.support.blobs import Person, a_bucket, demand_error, head, heard, line, own_url, person, said, sha1
from tests.support.server import Running


@pytest.fixture(scope="module", params=["", "/blobs"])
def ann(request: pytest.FixtureRequest, server: Running) -> Iterator[Person]:
    at = f"{server.url}/blobs" if request.param else own_url(server)
    with contextlib.closing(person(server, at=at)) as found:
        yield found


@pytest.fixture(scope="module")
def bucket(ann: Person) -> bytes:
    return a_bucket(ann.client).encode()


@pytest.fixture(autouse=True)
def nothing_is_a_fault(server: Running) -> Iterator[None]:
    yield
    assert not [text for text in server.log if '"fault"' in text or "Traceback" in text]


def target(ann: Person, path: bytes) -> bytes:
    """What stands in the first line of a request."""
    return (b"/blobs" if ann.at.endswith("/blobs") else b"") + path


def ask(ann: Person, method: str, path: bytes, *headers: bytes, body: bytes = b"") -> tuple[int, bytes]:
    found = said(ann.at, method, target(ann, path), ann.token, *headers, body=body)
    if found.status >= 400 and method != "HEAD" and b"application/json" in found.headers:
        assert found.json().keys() == {"code", "error", "description"} and found.json()["code"] == found.status
    return found.status, found.body


# -- addresses ---------------------------------------------------------------------------------------------------------

KEYS = {
    b"a": "a", b"a/b": "a/b", b"a//b": "a//b", b"a/": "a/", b"/a": "/a", b"//": "//", b"a%2Fc": "a/c",
    b"%252e%252e": "%2e%2e", b"%252F": "%2F", b"a%20b": "a b", b"a+b": "a+b", b"%C3%A4": "ä", b"...": "...",
    b"..a/a..": "..a/a..", b"a;b=c": "a;b=c", b"a%3Fb": "a?b", b"a%23b": "a#b", b"%25": "%", b"%%": "%%", b"%zz": "%zz",
    b"a\\..\\b": "a\\..\\b", b"%0A": "\n", b"%F0%9F%92%BE": "💾", b"~!$&'()*,:@": "~!$&'()*,:@",
    b"x" * 1024: "x" * 1024, b"%C3%9F" * 512: "ß" * 512,
}  # fmt: skip


def test_keys_are_decoded_once_and_are_nothing_but_names(ann: Person, bucket: bytes):
    for raw, key in KEYS.items():
        assert ask(ann, "POST", bucket + b"/" + raw, body=key.encode())[0] == 201, raw
    for raw, key in KEYS.items():
        assert ask(ann, "GET", bucket + b"/" + raw) == (200, key.encode()), raw
    found = ann.client.get(f"{bucket.decode()}?sort=%2Bkey").json()
    assert [file["key"] for file in found["files"]] == sorted(KEYS.values(), key=str.encode)
    for raw in KEYS:
        assert ask(ann, "DELETE", bucket + b"/" + raw)[0] == 200, raw


@pytest.mark.parametrize(
    "raw",
    [
        b"x" * 1025, b"x" * 4096, b"%C3%9F" * 513, b".", b"..", b"../x", b"a/../b", b"a/.", b"./a", b"%2e%2e", b"%2E",
        b"a/%2e%2e/b", b"a%2F..%2Fb", b"%00", b"a%00b", b"%ff", b"%C3", b"%ED%A0%80", b"%C0%AE%C0%AE",
    ],
)  # fmt: skip
def test_keys_that_nothing_may_be_called_are_400(ann: Person, bucket: bytes, raw: bytes):
    for method in ("POST", "GET", "DELETE"):
        body = b"x" if method == "POST" else b""
        assert ask(ann, method, bucket + b"/" + raw, body=body)[0] == 400, method


@pytest.mark.parametrize(
    "path",
    [b"//k", b"///", b"/..", b"/../etc/passwd", b"/%2e%2e/etc", b"/./k", b"/a%00b/k", b"/-a/k", b"/" + b"a" * 64,
     b"/%20/k", b"/%C3%A4/k"],
)  # fmt: skip
def test_buckets_that_nothing_may_be_called_are_not_there(ann: Person, path: bytes):
    for method in ("GET", "POST", "DELETE", "HEAD"):
        status, _ = ask(ann, method, path)
        assert status in (404, 405), method
    assert ask(ann, "GET", path)[0] == 404


def test_buckets_that_nothing_may_be_called_are_not_made(ann: Person):
    for name in (b"..", b"-a", b"a" * 64, b"%20", b"%C3%A4", b"a%00b"):
        assert ask(ann, "PUT", b"/" + name)[0] == 400, name
    assert ask(ann, "PUT", b"/%ff")[0] == 400


def test_letters_that_are_not_percent_encoded_break_nothing(ann: Person, bucket: bytes):
    for raw in ("ä".encode(), b"\xff", b"a b", b"a\tb"):
        assert ask(ann, "GET", bucket + b"/" + raw)[0] in (0, 400, 404)


def test_one_key_that_another_begins_with_is_no_folder(ann: Person):
    bucket = a_bucket(ann.client)
    for key in ("a", "a/b", "a/b/c", "a/b/"):
        assert ann.client.post(f"{bucket}/{key}", content=key.encode()).status_code == 201
    assert ann.client.delete(f"{bucket}/a/b").status_code == 200
    assert ann.client.get(f"{bucket}/a").content == b"a"
    assert ann.client.get(f"{bucket}/a/b/c").content == b"a/b/c"
    demand_error(ann.client.get(f"{bucket}/a/b"), 404)


# -- what is asked of lists --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["-1", "x", "", "1.5", "1e3", "+1", "%C2%B2", "0x10", "1" * 19, " 1", "1_0"])
def test_limits_that_are_no_numbers_are_400(ann: Person, bucket: bytes, limit: str):
    status, body = ask(ann, "GET", bucket + b"?limit=" + limit.replace(" ", "%20").encode())
    assert status == 400 and b"limit" in body


@pytest.mark.parametrize("sort", ["key", "+size", "%2BKey", "+lastmodified", "++key", "%2B", "-", "%20%20key", "%00"])
def test_orders_that_there_are_not_are_400(ann: Person, bucket: bytes, sort: str):
    assert ask(ann, "GET", bucket + b"?sort=" + sort.encode())[0] == 400


def test_questions_that_are_no_text_or_too_long_or_no_question(ann: Person, bucket: bytes):
    for query in (b"prefix=%ff", b"marker=%C3", b"delimiter=%ED%A0%80", b"prefix=" + b"x" * 4097,
                  b"delimiter=/&sort=%2BlastModified"):  # fmt: skip
        assert ask(ann, "GET", bucket + b"?" + query)[0] == 400, query
    for query in (b"", b"&&&", b"prefix", b"prefix=", b"unknown=1", b"sort=", b"prefix=%00", b"%ff"[:0] + b"=x",
                  b"limit=1&limit=2", b"prefix=" + b"x" * 4096):  # fmt: skip
        assert ask(ann, "GET", bucket + b"?" + query)[0] == 200, query


# -- bodies ------------------------------------------------------------------------------------------------------------


def test_a_body_without_a_length_is_none_or_comes_in_chunks(ann: Person, bucket: bytes):
    assert ask(ann, "POST", bucket + b"/no-length")[0] == 201
    assert ask(ann, "GET", bucket + b"/no-length") == (200, b"")
    with line(ann.at, head("POST", target(ann, bucket + b"/chunks"), ann.token, b"Transfer-Encoding: chunked",
                           b"Connection: close")) as made:  # fmt: skip
        for chunk in (b"one ", b"two ", b"three"):
            made.sendall(b"%x;ext=1\r\n%b\r\n" % (len(chunk), chunk))
            time.sleep(0.02)
        made.sendall(b"0\r\nTrailer: x\r\n\r\n")
        assert heard(made).status == 201
    assert ask(ann, "GET", bucket + b"/chunks") == (200, b"one two three")


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([b"Content-Length: 5", b"Transfer-Encoding: chunked"], b"5\r\nhello\r\n0\r\n\r\n"),
        ([b"Transfer-Encoding: chunked", b"Content-Length: 5"], b"5\r\nhello\r\n0\r\n\r\n"),
        ([b"Content-Length: 5", b"Content-Length: 6"], b"hello!"),
        ([b"Content-Length: 5, 6"], b"hello!"),
        ([b"Content-Length: -5"], b"hello"),
        ([b"Content-Length: five"], b"hello"),
        ([b"Content-Length: 0x5"], b"hello"),
        ([b"Content-Length: " + b"9" * 40], b"hello"),
        ([b"Transfer-Encoding: chunked"], b"zz\r\nhello\r\n0\r\n\r\n"),
        ([b"Transfer-Encoding: chunked"], b"-5\r\nhello\r\n0\r\n\r\n"),
        ([b"Transfer-Encoding: chunked"], b"5\r\nhello!\r\n0\r\n\r\n"),
    ],
)
def test_lengths_that_contradict_or_make_no_sense_store_nothing(
    ann: Person, bucket: bytes, headers: list[bytes], body: bytes
):
    start = head("POST", target(ann, bucket + b"/lengths"), ann.token, *headers, b"Connection: close")
    with line(ann.at, start + body) as made:
        assert heard(made).status in (0, 400, 413)
    assert ask(ann, "GET", bucket + b"/lengths")[0] == 404


def test_a_length_beyond_everything_is_refused_at_once(ann: Person, bucket: bytes):
    for length in (b"Content-Length: 999999999999999999",):
        start = head("POST", target(ann, bucket + b"/huge"), ann.token, length, b"Connection: close")
        with line(ann.at, start) as made:
            assert b" 413 " in made.recv(100)


def test_who_asks_whether_to_send_is_told_no_before_he_sends(ann: Person, bucket: bytes):
    expect = b"Expect: 100-continue"
    for path, status in ((b"/nowhere/k", 404), (bucket + b"/..", 400)):
        start = head("POST", target(ann, path), ann.token, b"Content-Length: 9000000", expect)
        with line(ann.at, start) as made:
            assert made.recv(12) == b"HTTP/1.1 %d" % status
    with line(ann.at, head("POST", target(ann, bucket + b"/k"), "wrong", b"Content-Length: 9000000", expect)) as made:
        assert made.recv(12) == b"HTTP/1.1 401"
    for size in (10, 2 << 20):
        length = b"Content-Length: %d" % size
        start = head("POST", target(ann, bucket + b"/polite"), ann.token, length, expect, b"Connection: close")
        with line(ann.at, start) as made:
            assert made.recv(100).startswith(b"HTTP/1.1 100 ")
            made.sendall(b"x" * size)
            assert heard(made).status == 201
        assert ann.client.head(f"{bucket.decode()}/polite").headers["content-length"] == str(size)


def test_a_part_of_a_blob_cannot_be_put(ann: Person, bucket: bytes):
    assert ask(ann, "POST", bucket + b"/part", b"Content-Range: bytes 0-4/10", body=b"hello")[0] == 400
    assert ask(ann, "GET", bucket + b"/part")[0] == 404


def test_headers_that_make_no_sense_do_no_harm(ann: Person, bucket: bytes):
    ask(ann, "POST", bucket + b"/h", body=b"content")
    for header, status in (
        (b"If-Match:", 412), (b"If-Match: ,,,", 412), (b'If-Match: "', 412), (b"If-Match: \xff", 412),
        (b"If-None-Match: W/", 200), (b"If-None-Match: " + sha1(b"content").encode(), 304),
        (b"If-Modified-Since: \xff", 200), (b"If-Modified-Since: Mon, 01 Jan 99999 00:00:00 GMT", 200),
        (b"If-Modified-Since: 0", 200), (b"Range: bytes=" + b"9" * 18 + b"-", 416), (b"Range: \xb2", 200),
        (b"If-Modified-Since: Mon, 01 Jan 0001 00:00:00 GMT", 200), (b"Range: bytes=" + b"9" * 30 + b"-", 200),
        (b"If-Modified-Since: Mon, 01 Jan 2024 00:00:00 -9999", 200),
    ):  # fmt: skip
        assert ask(ann, "GET", bucket + b"/h", header)[0] == status, header
        assert ask(ann, "HEAD", bucket + b"/h", header)[0] == (200 if status == 416 else status), header


# -- what describes buckets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"[]", b"1", b"null", b'"x"', b"{", b'{"owner": 1}', b'{"owner": {"email": {"address": "x"}}}', b"}",
        b'{"quota": {"bytes": -1}}', b'{"quota": {"bytes": 1.5}}', b'{"quota": {"bytes": 1e400}}', b'{"filesystem": 1}',
        b'{"quota": {"objects": 99999999999999999999999}}', b'{"filesystem": "tape"}', b'{"filesystem": "object"}',
        b'{"unknown": 1}', b'{"name": "other"}', b"\xff", b'"\\ud800"', b"[" * 100_000, b'{"name": "\\ud800"}',
        b'{"filesystem": "disk"} {}', b"\0",
    ],
)  # fmt: skip
def test_policies_that_make_no_sense_are_400(ann: Person, body: bytes):
    assert ask(ann, "PUT", b"/never", body=body)[0] == 400
    assert ask(ann, "GET", b"/never")[0] == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[]", 400), (b'{"*": "read"}', 400), (b'{"*": ["fly"]}', 400), (b'{"*": [1]}', 400), (b'{"nobody": []}', 404),
        (b'{"a\\u0000b": ["read"]}', 404), (b'{"": ["read"]}', 404), (b'{"\\ud800": ["read"]}', 400), (b"\xff", 400),
        (b" " * (2 << 20), 413),
    ],
)  # fmt: skip
def test_grants_that_make_no_sense_are_refused_and_change_nothing(ann: Person, bucket: bytes, body: bytes, status: int):
    ann.client.put(f"{bucket.decode()}?grants", json={"*": ["list"]})
    assert ask(ann, "PUT", bucket + b"?grants", body=body)[0] == status
    assert ann.client.get(f"{bucket.decode()}?grants").json() == {"*": ["list"]}


def test_a_body_where_none_is_wanted_and_many_requests_on_one_connection(ann: Person, bucket: bytes):
    with httpx2.Client(base_url=ann.at, headers={"Authorization": f"Bearer {ann.token}"}) as client:
        for number in range(50):
            got = client.request("GET", f"{bucket.decode()}/nothing", content=b"x" * number)
            assert got.status_code == 404
            assert client.post(f"{bucket.decode()}/yes", content=b"%d" % number).status_code == 201
            assert client.get(f"{bucket.decode()}/yes").content == b"%d" % number
