"""Room in vaults: quotas to the byte, bodies that are longer, shorter or slower than they should be, many at once."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.support.server import Running, running
from tests.support.trees import noise
from tests.support.vaults import Person, folder_of, listed, person, put, sha256

MIB = 1 << 20


@pytest.fixture(scope="module")
def ann(server: Running) -> Iterator[Person]:
    with contextlib.closing(person(server)) as found:
        yield found


def code(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def in_pieces(data: bytes, size: int = 50_000) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@pytest.fixture(params=["the vault", "the account"])
def full(request: pytest.FixtureRequest, server: Running) -> Iterator[tuple[Person, str]]:
    """A vault with room for 3 MiB, by its own quota or by its account's."""
    with contextlib.closing(person(server)) as owner:
        if request.param == "the account":
            with server.client() as admin:
                admin.patch(f"/accounts/users/{owner.name}", json={"quota": {"bytes": 3 * MIB}})
        yield owner, owner.vault(quota_bytes=3 * MIB if request.param == "the vault" else None)


def test_a_quota_holds_to_the_byte(full: tuple[Person, str]):
    owner, vault = full
    assert code(put(owner.program, vault, noise(3 * MIB + 1))) == (507, "quota")
    assert put(owner.program, vault, noise(3 * MIB - 5)).status_code == 200
    assert code(put(owner.program, vault, b"123456")) == (507, "quota")
    assert code(put(owner.program, vault, b"123456", "locks")) == (507, "quota")
    assert put(owner.program, vault, b"12345").status_code == 200
    assert owner.used() == (3 * MIB, 2)
    assert owner.program.delete(f"{vault}data/{sha256(noise(3 * MIB - 5))}").status_code == 200
    assert put(owner.program, vault, b"123456").status_code == 200 and owner.used() == (11, 2)


def test_a_quota_holds_for_bodies_of_unknown_length(full: tuple[Person, str]):
    owner, vault = full
    large, fits = noise(3 * MIB + 1), noise(3 * MIB)
    answer = owner.program.post(f"{vault}data/{sha256(large)}", content=in_pieces(large))
    assert code(answer) == (507, "quota") and owner.used() == (0, 0)
    assert owner.program.post(f"{vault}data/{sha256(fits)}", content=in_pieces(fits)).status_code == 200
    assert owner.used() == (3 * MIB, 1) and listed(owner.program, vault) == {sha256(fits): 3 * MIB}
    assert code(owner.program.post(f"{vault}data/{sha256(b'1')}", content=in_pieces(b"1"))) == (507, "quota")


def test_those_who_come_at_once_get_no_more_than_there_is(full: tuple[Person, str]):
    owner, vault = full
    some = [noise(MIB, number) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda data: put(owner.program, vault, data).status_code, some))
    assert sorted(answers) == [200] * 3 + [507] * 3
    assert owner.used() == (3 * MIB, 3) and sum(listed(owner.program, vault).values()) == 3 * MIB


def test_a_body_that_has_no_room_is_not_waited_for(full: tuple[Person, str]):
    owner, vault = full
    with line(owner, f"{vault}data/{'ab' * 32}", f"Content-Length: {4 * MIB}") as sock:
        assert sock.recv(1000).startswith(b"HTTP/1.1 507 ")


def test_more_than_an_object_may_have_is_refused_before_it_comes(ann: Person):
    vault = ann.vault()
    for path, size in ((f"data/{'ab' * 32}", (1 << 30) + 1), ("config", 17 * MIB), (f"keys/{'ab' * 32}", 17 * MIB)):
        with line(ann, vault + path, f"Content-Length: {size}") as sock:
            assert sock.recv(1000).startswith(b"HTTP/1.1 413 "), path
    assert ann.about(vault)["objects"] == 0


# -- bodies that break off ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def line(who: Person, path: str, *headers: str) -> Iterator[socket.socket]:
    """A connection on which a POST has begun."""
    url = httpx2.URL(who.server.url)
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {who.token}", *headers, "", ""]
    with socket.create_connection((url.host, url.port or 80), timeout=40) as made:
        made.sendall("\r\n".join(lines).encode())
        yield made


def is_empty(who: Person, vault: str) -> None:
    """Nothing is there, nothing is counted, nothing is left on the disk; soon."""
    deadline, calm = time.monotonic() + 20, 0
    while calm < 10:  # the server may have only begun to receive it
        assert time.monotonic() < deadline
        time.sleep(0.05)
        about, files = who.about(vault), list(folder_of(who.server, vault).glob("tmp/*"))
        calm = 0 if about["objects"] or about["bytes"] or files else calm + 1
    assert listed(who.program, vault) == {}


@pytest.mark.parametrize("size", [10, 3 * MIB])
def test_of_a_body_that_ends_too_early_nothing_is_kept(ann: Person, size: int):
    vault, data = ann.vault(), noise(size)
    with line(ann, f"{vault}data/{sha256(data)}", f"Content-Length: {size + 1}") as sock:
        sock.sendall(data)
    is_empty(ann, vault)
    with line(ann, f"{vault}data/{sha256(data)}", "Transfer-Encoding: chunked") as sock:
        sock.sendall(f"{size:x}\r\n".encode() + data)
    is_empty(ann, vault)
    assert put(ann.program, vault, data).status_code == 200


def test_what_follows_a_body_is_no_part_of_it(ann: Person):
    vault, data = ann.vault(), b"0123456789"
    with line(ann, f"{vault}data/{sha256(data)}", "Content-Length: 10") as sock:
        sock.sendall(data + b"more")
        assert sock.recv(1000)[9:12] in (b"200", b"400")  # the listener may see first that it is no request
        assert sock.recv(1000)[9:12] in (b"400", b"")
    got = ann.program.get(f"{vault}data/{sha256(data)}")
    assert got.status_code == 404 or got.content == data


@pytest.mark.parametrize("length", ["Content-Length: 100", f"Content-Length: {3 * MIB}", "Transfer-Encoding: chunked"])
def test_who_only_says_what_he_will_send_takes_nothing(server: Running, length: str):
    with contextlib.closing(person(server)) as ann, contextlib.closing(person(server)) as bob:
        vault = ann.vault(quota_bytes=3 * MIB)
        ann.grant(bob, "full", vault)
        with contextlib.ExitStack() as lines:
            for number in range(20):
                lines.enter_context(line(bob, f"{vault}data/{sha256(bytes([number]))}", length))
            time.sleep(0.5)
            tmp = folder_of(server, vault) / "tmp"
            assert ann.about(vault)["bytes"] == 0 and ann.about(vault)["objects"] == 0 and not list(tmp.glob("*"))
            assert put(ann.program, vault, noise(3 * MIB)).status_code == 200


def test_a_reader_of_locks_shuts_nobody_out_by_what_he_says_he_will_send(server: Running):
    with contextlib.closing(person(server)) as ann, contextlib.closing(person(server)) as bob:
        vault = ann.vault(quota_bytes=200_000)
        ann.grant(bob, "read", vault)
        with contextlib.ExitStack() as lines:
            for number in range(5):
                path = f"{vault}locks/{sha256(bytes([number]))}"
                lines.enter_context(line(bob, path, f"Content-Length: {64 << 10}")).sendall(b"x")
            time.sleep(0.5)
            assert put(ann.program, vault, noise(200_000)).status_code == 200


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "10\r\nContent-Length: 11"])
def test_a_length_that_is_none_is_refused(ann: Person, length: str):
    vault = ann.vault()
    with line(ann, f"{vault}data/{sha256(b'0123456789')}", f"Content-Length: {length}") as sock:
        sock.sendall(b"0123456789")
        assert sock.recv(1000)[9:12] in (b"400", b"")
    is_empty(ann, vault)


def test_a_body_that_does_not_go_on_is_not_waited_for(tmp_path: Path):
    with running(tmp_path, HOLDFAST_SERVER__PATIENCE="1") as server, contextlib.closing(person(server)) as ann:
        vault = ann.vault(quota_bytes=20 * MIB)
        for client in (ann.person, ann.program):  # it closes connections that nothing is asked on
            client.headers["Connection"] = "close"
        for size in (100, 3 * MIB):
            with line(ann, f"{vault}data/{'ab' * 32}", f"Content-Length: {size}") as sock:
                sock.sendall(b"some")
                assert sock.recv(1000).startswith(b"HTTP/1.1 408 ")
            is_empty(ann, vault)


# -- many at once ------------------------------------------------------------------------------------------------------


def memory_of(server: Running) -> int:
    """The most bytes of memory it has had."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.slow
def test_thirty_two_large_uploads_at_once_take_little_memory(tmp_path: Path):
    size = 128 * MIB
    with running(tmp_path) as server, contextlib.ExitStack() as stack:
        people = [stack.enter_context(contextlib.closing(person(server))) for _ in range(4)]
        vaults = [someone.vault() for someone in people]
        piece = noise(MIB)

        def body(number: int) -> Iterator[bytes]:
            yield number.to_bytes(8, "big") + piece[8:]
            for _ in range(size // MIB - 1):
                yield piece

        names = [sha256(b"".join(body(number))) for number in range(32)]
        before, together = memory_of(server), threading.Barrier(32)

        def upload(number: int) -> int:
            together.wait(60)
            who, vault = people[number % 4], vaults[number % 4]
            headers = {"Content-Length": str(size)}
            with httpx2.Client(base_url=server.url, timeout=280, headers={"Authorization": f"Bearer {who.token}"}) as c:
                return c.post(f"{vault}data/{names[number]}", content=body(number), headers=headers).status_code

        with ThreadPoolExecutor(32) as pool:
            assert list(pool.map(upload, range(32))) == [200] * 32
        assert memory_of(server) - before < 300 * MIB
        for someone, vault in zip(people, vaults, strict=True):
            assert someone.about(vault)["bytes"] == 8 * size


def test_large_objects_are_given_and_taken_at_once(ann: Person):
    vault = ann.vault()
    some = [noise(12 * MIB, number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert {a.status_code for a in pool.map(lambda data: put(ann.program, vault, data), some)} == {200}
        got = pool.map(lambda data: ann.program.get(f"{vault}data/{sha256(data)}").content == data, some)
        assert all(got)


def test_a_download_that_is_broken_off_leaves_nothing_open(ann: Person):
    vault, data = ann.vault(), noise(30 * MIB)
    put(ann.program, vault, data)
    pid = ann.server.process.pid

    def is_open() -> bool:
        files = Path(f"/proc/{pid}/fd").iterdir()
        with contextlib.suppress(OSError):
            return any(sha256(data) in str(file.readlink()) for file in files)
        return True

    for _ in range(3):
        with ann.program.stream("GET", f"{vault}data/{sha256(data)}") as answer:
            next(answer.iter_raw(1000))
    deadline = time.monotonic() + 10
    while is_open():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_who_waits_for_a_download_holds_no_file_open(tmp_path: Path):
    with running(tmp_path) as server, contextlib.closing(person(server)) as ann, contextlib.ExitStack() as lines:
        vault, data = ann.vault(), noise(30 * MIB)
        put(ann.program, vault, data)
        url = httpx2.URL(server.url)
        for _ in range(40):
            sock = lines.enter_context(socket.create_connection((url.host, url.port or 80), timeout=40))
            head = f"GET {vault}data/{sha256(data)} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ann.token}\r\n\r\n"
            sock.sendall(head.encode())
        most, deadline = 0, time.monotonic() + 3
        while time.monotonic() < deadline:
            found = 0
            for file in Path(f"/proc/{server.process.pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    found += sha256(data) in str(file.readlink())
            most = max(most, found)
            time.sleep(0.1)
        assert most == 32


def test_nothing_of_all_that_was_a_fault_of_the_servers(server: Running):
    assert [line for line in server.log if '"fault"' in line or "housekeeping" in line] == []
