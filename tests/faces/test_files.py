"""``/files`` over HTTP, against a real server: whole, parts, ranges, the resumable draft, bad input, kills."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.support.server import Running, running

MIB = 1 << 20


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    with running(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture
def ann(server: Running):
    with server.user(f"ann-{random.randrange(1 << 40)}") as client:
        yield client


@pytest.mark.parametrize("size", [0, 1, 4096, MIB, MIB + 1, 9 * MIB])
def test_a_file_goes_in_and_out(ann: httpx2.Client, size: int):
    data, address = noise(size), f"/files/{sha256(noise(size))}"
    put = ann.put(address, content=data)
    assert (put.status_code, put.json()) == (201, {"hash": sha256(data), "size": size, "is_available": True})
    assert ann.put(address, content=data).status_code == 200
    got = ann.get(address)
    assert (got.status_code, got.content) == (200, data)
    assert got.headers["etag"] == f'"{sha256(data)}"' and got.headers["accept-ranges"] == "bytes"
    assert int(ann.head(address).headers["content-length"]) == size


def test_a_body_of_unknown_length_is_taken(ann: httpx2.Client):
    data = noise(5 * MIB)
    pieces = (data[at : at + 100_000] for at in range(0, len(data), 100_000))
    assert ann.put(f"/files/{sha256(data).upper()}", content=pieces).status_code == 201
    assert ann.get(f"/files/{sha256(data)}").content == data


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("0-0", 0, 1), ("100-199", 100, 200), ("-5", -5, None), ("2999000-", 2999000, None), ("0-99999999", 0, None)],
)
def test_a_range_is_given(ann: httpx2.Client, asked: str, start: int, stop: int | None):
    data = noise(3_000_000)
    ann.put(f"/files/{sha256(data)}", content=data)
    got = ann.get(f"/files/{sha256(data)}", headers={"Range": f"bytes={asked}"})
    assert (got.status_code, got.content) == (206, data[start:stop])
    first = start % len(data)
    assert got.headers["content-range"] == f"bytes {first}-{first + len(got.content) - 1}/{len(data)}"


@pytest.mark.parametrize("asked", ["3-2", "x", "bytes", "0-1,3-4", "-", "٣-٤"])
def test_a_range_that_makes_no_sense_is_ignored(ann: httpx2.Client, asked: str):
    ann.put(f"/files/{sha256(b'0123')}", content=b"0123")
    got = ann.get(f"/files/{sha256(b'0123')}", headers={b"Range": f"bytes={asked}".encode()})
    assert (got.status_code, got.content) == (200, b"0123")


@pytest.mark.parametrize("asked", ["4-", "4-5", "-0", "99999999999999999-"])
def test_a_range_beyond_the_end_is_416(ann: httpx2.Client, asked: str):
    ann.put(f"/files/{sha256(b'0123')}", content=b"0123")
    got = ann.get(f"/files/{sha256(b'0123')}", headers={"Range": f"bytes={asked}"})
    assert (got.status_code, got.headers["content-range"]) == (416, "bytes */4")


def test_who_has_it_gets_304(ann: httpx2.Client):
    ann.put(f"/files/{sha256(b'x')}", content=b"x")
    got = ann.get(f"/files/{sha256(b'x')}", headers={"If-None-Match": f'"{sha256(b"x")}"'})
    assert (got.status_code, got.content) == (304, b"")


def test_options_say_what_can_be_done(server: Running):
    with server.anonymous() as anybody:
        got = anybody.options("/files")
        assert (got.status_code, got.headers["accept-ranges"]) == (204, "bytes")


# -- parts -------------------------------------------------------------------------------------------------------------


def put_part(client: httpx2.Client, data: bytes, start: int, stop: int, total: int | None = None) -> httpx2.Response:
    headers = {"Content-Range": f"bytes {start}-{stop - 1}/{total if total is not None else len(data)}"}
    return client.put(f"/files/{sha256(data)}", content=data[start:stop], headers=headers)


def test_parts_in_any_order_make_the_file(ann: httpx2.Client):
    data = noise(3 * MIB)
    first = put_part(ann, data, 2 * MIB, 3 * MIB)
    assert first.status_code == 202
    assert first.json() == {
        "hash": sha256(data), "size": len(data), "is_available": False,
        "available_bytes": [[2 * MIB, 3 * MIB - 1]],
    }  # fmt: skip
    assert ann.get(f"/files/{sha256(data)}").status_code == 404
    assert put_part(ann, data, 0, MIB + 5).status_code == 202
    last = put_part(ann, data, MIB, 2 * MIB)
    assert (last.status_code, last.json()["is_available"]) == (201, True)
    assert ann.get(f"/files/{sha256(data)}").content == data
    assert put_part(ann, data, 0, 5).status_code == 200


def test_parts_from_several_clients_at_once_make_the_file(ann: httpx2.Client):
    data = noise(4 * MIB)
    step = len(data) // 16
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: put_part(ann, data, i * step, (i + 1) * step), range(16)))
    assert {a.status_code for a in answers} <= {200, 201, 202} and any(a.json()["is_available"] for a in answers)
    assert ann.get(f"/files/{sha256(data)}").content == data


@pytest.mark.parametrize("text", ["bytes 5-4/10", "bytes 0-10/10", "bytes 0-4/*", "0-4/10", "bytes a-b/c", "bytes */5"])
def test_a_content_range_that_is_none_is_400(ann: httpx2.Client, text: str):
    got = ann.put(f"/files/{sha256(b'')}", content=b"12345", headers={"Content-Range": text})
    assert (got.status_code, got.json()["code"]) == (400, "usage")


def test_a_part_of_another_length_than_it_says_is_400(ann: httpx2.Client):
    got = ann.put(f"/files/{sha256(b'')}", content=b"123", headers={"Content-Range": "bytes 0-4/10"})
    assert got.status_code == 400
    pieces = iter([b"123"])
    got = ann.put(f"/files/{sha256(b'')}", content=pieces, headers={"Content-Range": "bytes 0-4/10"})
    assert got.status_code == 400


def test_another_total_is_409(ann: httpx2.Client):
    data = noise(1000)
    put_part(ann, data, 0, 100)
    assert put_part(ann, data, 100, 200, 1001).status_code == 409


def test_parts_that_do_not_add_up_are_422_and_forgotten(ann: httpx2.Client):
    data = noise(1000)
    put_part(ann, data, 0, 500)
    wrong = ann.put(f"/files/{sha256(data)}", content=bytes(500), headers={"Content-Range": "bytes 500-999/1000"})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "wrong-content")
    assert ann.head(f"/files/{sha256(data)}").status_code == 404


# -- the resumable draft -----------------------------------------------------------------------------------------------


def test_an_upload_that_was_cut_goes_on_where_it_broke_off(server: Running, ann: httpx2.Client):
    data = noise(6 * MIB)
    address = f"/files/{sha256(data)}"
    cut_off(server, ann, address, data[: 3 * MIB], len(data), "Upload-Complete: ?1")
    head = wait_for_offset(ann, address)
    offset = int(head.headers["upload-offset"])
    assert head.headers["upload-complete"] == "?0" and 0 < offset <= 3 * MIB
    half = offset + (len(data) - offset) // 2
    kind = {"Content-Type": "application/partial-upload"}
    more = ann.patch(
        address, content=data[offset:half], headers={**kind, "Upload-Offset": str(offset), "Upload-Complete": "?0"}
    )
    assert (more.status_code, more.headers["upload-offset"]) == (202, str(half))
    wrong = ann.patch(
        address, content=data[offset:half], headers={**kind, "Upload-Offset": str(offset), "Upload-Complete": "?0"}
    )
    assert (wrong.status_code, wrong.headers["upload-offset"]) == (409, str(half))
    assert wrong.json()["expected-offset"] == half
    last = ann.patch(
        address, content=data[half:], headers={**kind, "Upload-Offset": str(half), "Upload-Complete": "?1"}
    )
    assert (last.status_code, last.headers["upload-complete"]) == (201, "?1")
    assert ann.get(address).content == data


def test_an_upload_of_unknown_length_is_resumable(ann: httpx2.Client):
    data = noise(300_000)
    address, kind = f"/files/{sha256(data)}", {"Content-Type": "application/partial-upload"}
    first = ann.put(address, content=data[:100_000], headers={"Upload-Complete": "?0"})
    assert (first.status_code, first.json()["size"]) == (202, None)
    last = ann.patch(
        address, content=data[100_000:], headers={**kind, "Upload-Offset": "100000", "Upload-Complete": "?1"}
    )
    assert last.status_code == 201, last.text
    assert ann.get(address).content == data


def test_an_upload_can_be_given_up(ann: httpx2.Client):
    address = f"/files/{sha256(b'never')}"
    ann.put(address, content=b"ne", headers={"Upload-Complete": "?0"})
    assert ann.delete(address).status_code == 204
    assert ann.head(address).status_code == 404
    assert ann.delete(address).status_code == 404


def cut_off(server: Running, client: httpx2.Client, address: str, some: bytes, size: int, *headers: str) -> None:
    """Send the beginning of a body and go away."""
    url = httpx2.URL(server.url)
    request = httpx2.Request("PUT", server.url)
    auth = next(client.auth.auth_flow(request)).headers["authorization"] if client.auth else ""
    lines = [
        f"PUT {address} HTTP/1.1",
        f"Host: {url.host}",
        f"Authorization: {auth}",
        f"Content-Length: {size}",
        *headers,
    ]
    with socket.create_connection((url.host, url.port or 80)) as line:
        line.sendall("\r\n".join([*lines, "", ""]).encode() + some)
        time.sleep(0.2)


def test_a_download_that_is_broken_off_disturbs_nobody(server: Running, ann: httpx2.Client):
    data = noise(30 * MIB)
    ann.put(f"/files/{sha256(data)}", content=data)
    for _ in range(20):
        with ann.stream("GET", f"/files/{sha256(data)}") as answer:
            assert len(next(answer.iter_bytes(1000))) == 1000
    assert ann.get(f"/files/{sha256(data)}").content == data
    assert [line for line in server.log if not line.startswith("{")] == []


def wait_for_offset(client: httpx2.Client, address: str) -> httpx2.Response:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        head = client.head(address)
        if head.status_code == 204:
            return head
        time.sleep(0.05)
    raise AssertionError("nothing was kept")


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_body_that_breaks_off_keeps_nothing(server: Running, ann: httpx2.Client):
    data = noise(3 * MIB)
    cut_off(server, ann, f"/files/{sha256(data)}", data[:MIB], len(data))
    cut_off(server, ann, f"/files/{sha256(data)}", b"1", 100 << 30)
    time.sleep(0.3)
    assert ann.head(f"/files/{sha256(data)}").status_code == 404
    assert ann.put(f"/files/{sha256(data)}", content=data).status_code == 201


@pytest.mark.parametrize("size", [10, 2 * MIB])
def test_bytes_that_hash_to_something_else_are_422(ann: httpx2.Client, size: int):
    got = ann.put(f"/files/{sha256(b'other')}", content=noise(size))
    assert (got.status_code, got.json()["code"]) == (422, "wrong-content")
    assert ann.get(f"/files/{sha256(b'other')}").status_code == 404


@pytest.mark.parametrize("name", ["xyz", "0" * 63, "0" * 65, "%2e%2e%2fetc", "g" * 64, "0" * 40 + "%00"])
def test_a_name_that_is_no_hash_is_400(ann: httpx2.Client, name: str):
    for answer in (ann.get(f"/files/{name}"), ann.put(f"/files/{name}", content=b"")):
        assert answer.status_code in (400, 404) and answer.json()["status"] == answer.status_code


def test_nobody_gets_in_without_a_log_in_and_nobody_reads_what_is_anothers(server: Running, ann: httpx2.Client):
    address = f"/files/{sha256(b'secret')}"
    ann.put(address, content=b"secret")
    with server.anonymous() as anybody, server.user(f"ben-{time.time_ns()}") as ben:
        for answer in (anybody.get(address), anybody.head(address), anybody.put(address, content=b"secret")):
            assert answer.status_code == 401 and "www-authenticate" in answer.headers
        assert ben.get(address).status_code == 404
        assert ben.put(address, content=b"secret").status_code == 201
        assert ben.get(address).content == b"secret"


def test_a_token_may_only_do_what_its_scopes_say(server: Running, ann: httpx2.Client):
    made = ann.post("/accounts/tokens", json={"name": "reader", "scopes": ["files:read"]})
    assert made.status_code == 201, made.text
    ann.put(f"/files/{sha256(b'x')}", content=b"x")
    with server.with_token(made.json()["token"]) as reader:
        assert reader.get(f"/files/{sha256(b'x')}").content == b"x"
        refused = reader.put(f"/files/{sha256(b'x')}", content=b"x")
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        assert ann.delete(f"/accounts/tokens/{made.json()['id']}").status_code == 204
        assert reader.get(f"/files/{sha256(b'x')}").status_code == 401


def test_a_full_quota_is_507(server: Running):
    name = f"small-{time.time_ns()}"
    with server.user(name) as small, server.client() as admin:
        assert admin.patch(f"/accounts/users/{name}", json={"quota": {"bytes": 5_000_000}}).status_code == 200
        assert small.put(f"/files/{sha256(bytes(4_000_000))}", content=bytes(4_000_000)).status_code == 201
        for size in (1_000_001, 9_000_000):
            got = small.put(f"/files/{sha256(noise(size))}", content=noise(size))
            assert (got.status_code, got.json()["code"]) == (507, "quota")


def test_of_a_body_that_does_not_say_how_long_it_is_no_more_is_stored_than_there_is_room_for(server: Running):
    name = f"small-{time.time_ns()}"
    with server.user(name) as small, server.client() as admin:
        admin.patch(f"/accounts/users/{name}", json={"quota": {"bytes": 5_000_000}})
        before = stored(server)
        body = (noise(MIB, number) for number in range(60))
        got = small.put(f"/files/{'0' * 64}", content=body)
        assert (got.status_code, got.json()["code"]) == (507, "quota")
        small.put(f"/files/{sha256(b'x')}", content=b"x")  # whatever waited is stored now
        assert stored(server) - before < 20 * MIB


def stored(server: Running) -> int:
    return sum(path.stat().st_size for path in (server.data / "repository/data").rglob("*") if path.is_file())


def test_a_file_that_fits_may_come_in_parts_to_the_last_byte_of_the_quota(server: Running):
    name, data = f"small-{time.time_ns()}", noise(900_000)
    address = f"/files/{sha256(data)}"
    with server.user(name) as small, server.client() as admin:
        admin.patch(f"/accounts/users/{name}", json={"quota": {"bytes": 900_000}})
        for start in range(0, 900_000, 300_000):
            span = {"Content-Range": f"bytes {start}-{start + 299_999}/900000"}
            assert small.put(address, content=data[start : start + 300_000], headers=span).status_code in (201, 202)
        assert small.get(address).content == data
        too_much = {"Content-Range": "bytes 0-9/900001"}
        assert small.put(f"/files/{'0' * 64}", content=data[:10], headers=too_much).status_code == 507


def test_no_secret_is_in_the_log(server: Running, ann: httpx2.Client):
    ann.get("/files/xyz?password=hunter2", headers={"X-Request-ID": "mine-1"})
    time.sleep(0.1)
    log = "".join(server.log)
    line = next(json.loads(entry) for entry in server.log if '"mine-1"' in entry)
    assert (line["path"], line["status"]) == ("/files/xyz", 400)
    assert "hunter2" not in log and "Authorization" not in log and "correct horse" not in log


# -- kills -------------------------------------------------------------------------------------------------------------


def test_what_was_acknowledged_survives_a_kill_during_64_uploads(tmp_path: Path):
    acknowledged: set[str] = set()
    contents = {
        sha256(data): data for data in (noise(random.Random(i).choice([4096, 70_000, 3 * MIB]), i) for i in range(256))
    }
    with running(tmp_path / "data") as server, server.client() as client:

        def put_all(names: list[str]) -> None:
            for name in names:
                put(name)

        def put(name: str) -> None:
            try:
                if client.put(f"/files/{name}", content=contents[name]).status_code in (200, 201):
                    acknowledged.add(name)
            except httpx2.HTTPError:
                pass

        threads = [threading.Thread(target=put_all, args=[some]) for some in split(list(contents), 64)]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 40:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join()
    assert 40 <= len(acknowledged) < len(contents)
    with running(tmp_path / "data") as server, server.client() as client:
        for name in acknowledged:
            assert client.get(f"/files/{name}").content == contents[name]


def split(names: list[str], parts: int) -> list[list[str]]:
    return [names[i::parts] for i in range(parts)]


def test_a_server_that_is_stopped_finishes_what_runs(tmp_path: Path):
    data, taken = noise(40 * MIB), threading.Event()

    def body() -> Iterator[bytes]:
        for at in range(0, len(data), MIB):
            yield data[at : at + MIB]
            if at > len(data) // 2:
                taken.set()  # no socket holds so much: the server has begun

    with running(tmp_path / "data") as server, server.client() as client:
        got: list[int] = []
        thread = threading.Thread(
            target=lambda: got.append(client.put(f"/files/{sha256(data)}", content=body()).status_code)
        )
        thread.start()
        assert taken.wait(30)
        server.process.send_signal(signal.SIGTERM)
        thread.join()
        assert server.process.wait(40) == 0
    assert got == [201]
    with running(tmp_path / "data") as server, server.client() as client:
        assert client.get(f"/files/{sha256(data)}").content == data
