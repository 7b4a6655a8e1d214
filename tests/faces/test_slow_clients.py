"""Clients that say nothing, too much, or take their time, against a real server: they end, and hold up nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest

from holdfast.archive.content import Contents
from holdfast.errors import StorageUnavailable
from holdfast.faces.bodies import Turns
from holdfast.repository.format import ID_SIZE
from holdfast.shelf.shelf import Content
from tests.support.server import Running, running

MIB = 1 << 20
SOON = 8.0  # seconds: far more than an impatient server waits, far less than a patient one


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that waits a second."""
    with running(tmp_path_factory.mktemp("impatient"), HOLDFAST_SERVER__PATIENCE="1") as found:
        yield found


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that waits half a minute: whatever ends soon there was not held up."""
    with running(tmp_path_factory.mktemp("patient")) as found:
        yield found


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def token_of(server: Running) -> str:
    """A token of a new account."""
    with server.user(f"user-{random.randrange(1 << 40)}") as client:
        made = client.post("/accounts/tokens", json={"name": "t", "scopes": ["files:read", "files:write"]})
        assert made.status_code == 201, made.text
        return str(made.json()["token"])


@contextmanager
def line(server: Running, start: bytes = b"", source: str = "") -> Iterator[socket.socket]:
    """A connection on which something was said."""
    url = httpx2.URL(server.url)
    address = (url.host, url.port or 80)
    with socket.create_connection(address, timeout=SOON, source_address=(source, 0) if source else None) as made:
        made.sendall(start)
        yield made


def head(method: str, address: str, token: str, *headers: str) -> bytes:
    """A request's headers."""
    lines = [f"{method} {address} HTTP/1.1", "Host: x", f"Authorization: Bearer {token}", *headers, "", ""]
    return "\r\n".join(lines).encode()


def answer(line: socket.socket) -> bytes:
    """All that comes until the server closes the connection; an error if it does not."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := line.recv(1 << 16):
            found += piece
    return found


def status(line: socket.socket) -> int:
    """The status of the next answer; 0 when the connection is closed without one."""
    try:
        said = line.recv(12)
    except ConnectionResetError:
        return 0
    return int(said[9:12]) if said else 0


# -- connections and headers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", b"\r\n", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Y: "])
def test_a_connection_without_a_whole_request_is_closed(impatient: Running, said: bytes):
    with line(impatient, said) as silent:
        assert answer(silent) == b""


def test_headers_that_come_byte_by_byte_are_not_waited_for(impatient: Running):
    with line(impatient, b"GET /healthz HTTP/1.1\r\nX: ") as slow, pytest.raises(OSError):
        for _ in range(int(SOON / 0.1)):
            slow.sendall(b"x")
            time.sleep(0.1)


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
def test_headers_have_64_kib(impatient: Running, end: bytes):
    start = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: "
    with line(impatient, start + b"x" * 60_000 + b"\r\n\r\n") as fitting:
        assert status(fitting) == 200
    with line(impatient, start + b"x" * (64 << 10) + end) as endless:
        assert b" 431 " in answer(endless).splitlines()[0]


def test_many_small_headers_have_64_kib_too(impatient: Running):
    with line(impatient, b"GET /healthz HTTP/1.1\r\n" + b"a:b\r\n" * 14_000) as endless:
        assert b" 431 " in answer(endless).splitlines()[0]


def test_what_follows_a_body_has_64_kib(patient: Running):
    start = head("PUT", f"/files/{sha256(b'abc')}", token_of(patient), "Transfer-Encoding: chunked")
    with line(patient, start + b"3\r\nabc\r\n0\r\nX: ") as endless:
        time.sleep(0.2)
        endless.sendall(b"x" * (65 << 10))
        assert b" 431 " in answer(endless).splitlines()[0]


def test_a_second_request_on_a_connection_has_its_own_headers_and_time(impatient: Running):
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 40_000 + b"\r\n\r\n"
    with line(impatient) as one:
        for _ in range(4):
            one.sendall(request)
            said = b""
            while not said.endswith(b"\r\n\r\nok\n"):
                said += one.recv(1 << 16)
            time.sleep(0.5)


def test_an_address_has_so_many_connections_and_who_is_silent_keeps_nobody_out(tmp_path: Path):
    limits = {"HOLDFAST_SERVER__CONNECTIONS": "8", "HOLDFAST_SERVER__CONNECTIONS_EACH": "5"}
    with running(tmp_path, **limits) as server, ExitStack() as stack:
        idle = [stack.enter_context(line(server)) for _ in range(5)]
        time.sleep(0.2)
        assert status(stack.enter_context(line(server, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"))) in (0, 503)
        others = [stack.enter_context(line(server, source="127.0.0.2")) for _ in range(3)]
        time.sleep(0.2)
        others[0].sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status(others[0]) == 200
        last = stack.enter_context(line(server, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "127.0.0.2"))
        assert status(last) == 200
        closed, _, _ = select.select(idle, [], [], SOON)  # one of those that waited longest made room
        assert len(closed) == 1 and answer(closed[0]) == b""


# -- bodies that do not come -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "address", "header"),
    [
        ("PUT", "/files/" + sha256(b"x"), "Content-Length: 10"),
        ("PUT", "/files/" + sha256(b"x"), "Content-Length: 10000000"),
        ("PUT", "/files/" + sha256(b"x"), "Transfer-Encoding: chunked"),
        ("POST", "/manifests", "Content-Length: 10"),
        ("POST", "/oauth2/token", "Content-Length: 10"),
    ],
)
def test_a_body_that_does_not_come_is_408(impatient: Running, method: str, address: str, header: str):
    kind = "Content-Type: application/x-www-form-urlencoded"
    with line(impatient, head(method, address, token_of(impatient), header, kind)) as silent:
        found = answer(silent)
    assert b" 408 " in found.splitlines()[0]
    assert json.loads(found.partition(b"\r\n\r\n")[2])["code"] == "too-slow"


def test_what_came_of_a_resumable_upload_is_kept_when_it_stops(impatient: Running):
    token, data = token_of(impatient), random.Random(1).randbytes(3 * MIB)
    address = f"/files/{sha256(data)}"
    start = head("PUT", address, token, f"Content-Length: {len(data)}", "Upload-Complete: ?1")
    with line(impatient, start + data[: 2 * MIB]) as silent:
        assert b" 408 " in answer(silent).splitlines()[0]
    with impatient.with_token(token) as client:
        until = time.monotonic() + SOON
        while client.head(address).status_code == 404 and time.monotonic() < until:
            time.sleep(0.05)
        assert client.head(address).headers["upload-offset"] == str(2 * MIB)
        kind = {"Content-Type": "application/partial-upload", "Upload-Offset": str(2 * MIB), "Upload-Complete": "?1"}
        assert client.patch(address, content=data[2 * MIB :], headers=kind).status_code == 201


@pytest.mark.parametrize(("piece", "outcome"), [(50, 408), (20_000, 201)])
def test_a_body_must_come_at_a_least_rate(impatient: Running, piece: int, outcome: int):
    data = random.Random(piece).randbytes(35 * piece)
    start = head("PUT", f"/files/{sha256(data)}", token_of(impatient), f"Content-Length: {len(data)}")
    with line(impatient, start) as slow:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for at in range(0, len(data), piece):
                slow.sendall(data[at : at + piece])
                time.sleep(0.1)
        assert status(slow) in ((outcome, 0) if outcome == 408 else (outcome,))  # 0: sent on after the answer


def test_a_client_that_is_to_be_told_to_go_on_is_told(impatient: Running):
    start = head("PUT", f"/files/{sha256(b'0123456789')}", token_of(impatient), "Content-Length: 10")
    with line(impatient, start[:-2] + b"Expect: 100-continue\r\n\r\n") as polite:
        assert b" 100 " in polite.recv(1000)
        polite.sendall(b"0123456789")
        assert status(polite) == 201


# -- nobody else is held up --------------------------------------------------------------------------------------------


def test_small_bodies_that_do_not_come_hold_up_nobody(patient: Running):
    token = token_of(patient)
    start = head("PUT", f"/files/{sha256(b'x')}", token, "Content-Length: 10")
    with ExitStack() as stack, patient.with_token(token) as ann:
        for said in [b""] * 80 + [b"1"] * 80:
            stack.enter_context(line(patient, start + said))
        began = time.monotonic()
        assert ann.put(f"/files/{sha256(b'small')}", content=b"small").status_code == 201
        assert time.monotonic() - began < SOON


def test_large_bodies_that_do_not_come_hold_up_nobody(patient: Running):
    """60 of one account: more than there are threads and turns."""
    token, data = token_of(patient), random.Random(2).randbytes(3 * MIB)
    start = head("PUT", f"/files/{sha256(data)}", token, "Transfer-Encoding: chunked") + b"1\r\nx\r\n"
    began = time.monotonic()
    with patient.with_token(token_of(patient)) as ben, patient.with_token(token) as ann:
        with ExitStack() as stack:
            for _ in range(60):
                stack.enter_context(line(patient, start))
            time.sleep(0.3)
            with patient.client() as admin:  # a log-in, which needs a thread
                assert admin.get("/accounts/me").status_code == 200
            assert ben.put(f"/files/{sha256(data)}", content=iter([data])).status_code == 201
            assert ann.put(f"/files/{sha256(b'small')}", content=b"small").status_code == 201
            assert ann.post("/manifests", json={"name": "m", "files": {}}).status_code == 201
        assert ann.put(f"/files/{sha256(data)}", content=iter([data])).status_code == 201  # those have gone away
    assert time.monotonic() - began < 2 * SOON


def test_so_many_uploads_of_an_account_run_and_others_of_it_wait(impatient: Running):
    token = token_of(impatient)
    start = head("PUT", f"/files/{sha256(b'x')}", token, "Transfer-Encoding: chunked")
    with ExitStack() as stack, impatient.with_token(token) as ann:
        busy = [stack.enter_context(line(impatient, start)) for _ in range(16)]
        with dripping(busy, b"400\r\n" + bytes(1024) + b"\r\n"):
            refused = ann.put(f"/files/{sha256(b'y')}", content=iter([b"y"]))
    assert (refused.status_code, refused.json()["code"]) == (503, "unavailable") and refused.headers["retry-after"]


def test_so_many_manifests_of_an_account_come_at_once(impatient: Running):
    token = token_of(impatient)
    start = head("POST", "/manifests", token, "Content-Length: 1000000")
    with ExitStack() as stack, impatient.with_token(token) as ann, impatient.with_token(token_of(impatient)) as ben:
        busy = [stack.enter_context(line(impatient, start)) for _ in range(4)]
        with dripping(busy, b" " * 1024):
            refused = ann.post("/manifests", json={"name": "m", "files": {}})
            taken = ben.post("/manifests", json={"name": "m", "files": {}})
    assert (refused.status_code, refused.json()["code"]) == (503, "unavailable") and refused.headers["retry-after"]
    assert taken.status_code == 201


@contextmanager
def dripping(lines: list[socket.socket], piece: bytes) -> Iterator[None]:
    """Bodies go on slowly, but fast enough, while the block runs."""
    over = threading.Event()

    def drip() -> None:
        while not over.wait(0.2):
            for one in lines:
                one.sendall(piece)

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        time.sleep(0.3)
        yield
    finally:
        over.set()
        thread.join()


# -- downloads ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(impatient: Running) -> tuple[str, str]:
    """A token, and the address of a file that no socket's buffer holds."""
    token, data = token_of(impatient), random.Random(3).randbytes(24 * MIB)
    with impatient.with_token(token) as client:
        assert client.put(f"/files/{sha256(data)}", content=data).status_code == 201
    return token, f"/files/{sha256(data)}"


def test_who_does_not_take_what_he_asked_for_is_given_up(impatient: Running, large: tuple[str, str]):
    token, address = large
    with line(impatient, head("GET", address, token, "X-Request-ID: stalled")) as stalled:
        assert status(stalled) == 200
        until = time.monotonic() + SOON
        while not any('"stalled"' in said for said in impatient.log) and time.monotonic() < until:
            time.sleep(0.1)
        assert [said for said in impatient.log if '"stalled"' in said]  # it is over
        assert len(answer(stalled)) < 24 * MIB


def test_who_takes_it_slowly_gets_all_of_it(impatient: Running, large: tuple[str, str]):
    token, address = large
    got = 0
    with line(impatient, head("GET", address, token, "Connection: close")) as slow:
        while piece := slow.recv(MIB):
            got += len(piece)
            time.sleep(0.05 if got < 16 * MIB else 0)
    assert got > 24 * MIB


def test_so_many_downloads_of_an_account_run_at_once(impatient: Running, large: tuple[str, str]):
    token, address = large
    with ExitStack() as stack:
        lines = [stack.enter_context(line(impatient, head("GET", address, token))) for _ in range(40)]
        found = sorted(status(one) for one in lines)
    assert found == [200] * 32 + [503] * 8


class Reader:
    """Chunks, each read in no time; counts them."""

    def __init__(self) -> None:
        self.count = 0

    def read(self, chunk_id: bytes, /) -> bytes:
        self.count += 1
        return bytes(10)

    def length(self, chunk_id: bytes, /) -> int:
        return 10


def test_one_chunk_is_read_ahead_for_who_takes_them_slowly():
    reader = Reader()
    ids = b"".join(bytes([number]) * ID_SIZE for number in range(1, 21))
    with Contents(reader) as contents:
        pieces, ahead = contents.of(Content(200, ids, 0).entry(b"f"), b"f"), []
        for taken, _ in enumerate(pieces, 1):
            time.sleep(0.02)
            ahead.append(reader.count - taken)
    assert max(ahead) <= 2 and set(ahead[2:]) <= {0, 1}


# -- whose turn it is --------------------------------------------------------------------------------------------------


def test_turns_are_for_some_of_each_account_and_some_of_all():
    async def run() -> None:
        turns = Turns(each=3, most=5, patience=0.05)
        for account in (1, 1, 1, 2, 2):
            await turns.take(account)
        for account in (1, 2):
            with pytest.raises(StorageUnavailable):
                await turns.take(account)
        for _ in range(Turns.ALWAYS):  # whatever the others have
            await turns.take(3)
        turns.give_back(1)
        with pytest.raises(StorageUnavailable):  # there are more than there should be still
            await turns.take(1)

    asyncio.run(run())


def test_a_turn_that_is_given_back_goes_to_who_waits_each_account_in_turn():
    async def run() -> None:
        turns, order = Turns(each=4, most=4, patience=5), list[int]()

        async def want(account: int) -> None:
            async with turns.turn(account):
                order.append(account)
                await asyncio.sleep(0)

        for _ in range(2):
            await turns.take(1)
            await turns.take(2)
        tasks = [asyncio.create_task(want(account)) for account in (1, 1, 1, 2, 2)]
        gone = asyncio.create_task(want(1))
        await asyncio.sleep(0)
        gone.cancel()
        turns.give_back(1)
        await asyncio.wait(tasks)
        assert sorted(order) == [1, 1, 1, 2, 2] and order[:3] != [1, 1, 1]

    asyncio.run(run())
