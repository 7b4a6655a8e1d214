"""Forms that no good client sends, limits, slow clients, many at once, and downloads that break off. A real server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx2
import pytest

from tests.support.server import Running, running
from tests.support.shares import API, BOUNDARY, CONTENT, demand_error, form, part, share, sharer

MIB = 1 << 20
MOST = 16 * MIB
SMALL_FIELD = 8 << 10


@pytest.fixture(scope="module")
def ann(server: Running) -> Iterator[httpx2.Client]:
    with sharer(server, "ann") as client:
        yield client


@pytest.fixture(scope="module")
def anybody(server: Running) -> Iterator[httpx2.Client]:
    with server.anonymous() as client:
        yield client


def files(server: Running) -> int:
    return len([path for path in (server.data / "shares").rglob("*") if path.is_file()])


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.05)


def has_status(client: httpx2.Client, url: str, status: int) -> bool:
    return client.head(url).status_code == status


@contextlib.contextmanager
def line(server: Running, said: str | bytes) -> Iterator[socket.socket]:
    """A connection on which something was said."""
    there = httpx2.URL(server.url)
    with socket.create_connection((there.host, there.port or 80), timeout=60) as made:
        made.sendall(said.encode() if isinstance(said, str) else said)
        yield made


def asking(url: str) -> str:
    return f"GET {httpx2.URL(url).path} HTTP/1.1\r\nHost: x\r\n\r\n"


def putting(ann: httpx2.Client, *more: str) -> str:
    lines = [
        f"PUT {API} HTTP/1.1", "Host: x", f"Authorization: {ann.headers['authorization']}",
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}", *more, "", "",
    ]  # fmt: skip
    return "\r\n".join(lines)


# -- forms -------------------------------------------------------------------------------------------------------------

GOOD = part("file", b"x", "a.txt")
BAD: dict[str, Any] = {
    "no file": form(part("password", b"x")),
    "no parts": form(),
    "nothing": form() | {"content": b""},
    "two files": form(GOOD, part("file", b"y", "b.txt")),
    "a file without a name": form(part("file", b"x", "")),
    "a field called file": form(part("file", b"x")),
    "a name of which nothing is left": form(part("file", b"x", "a/..")),
    "two passwords": form(GOOD, part("password", b"a"), part("password", b"b")),
    "a password that is no text": form(GOOD, part("password", b"\xff")),
    "a long password": form(GOOD, part("password", b"x" * 1025)),
    "a long field": form(GOOD, part("password", b"x" * (SMALL_FIELD + 1))),
    "many parts": form(GOOD, *(part(f"f{n}", b"") for n in range(20))),
    "a file under another name": form(part("upload", b"x", "a.txt")),
    "a large file under another name": form(part("upload", b"x" * SMALL_FIELD * 2, "a.txt"), GOOD),
    "no duration": form(GOOD, part("expires", b"soon")),
    "a duration of nothing": form(GOOD, part("expires", b"0")),
    "no number of downloads": form(GOOD, part("downloads", b"many")),
    "no downloads": form(GOOD, part("downloads", b"0")),
    "too many downloads": form(GOOD, part("downloads", b"1001")),
    "cut off": {"content": GOOD, "headers": form()["headers"]},
    "cut off in a header": {"content": GOOD[:60], "headers": form()["headers"]},
    "no form": {"content": b"x", "headers": {"Content-Type": "application/octet-stream"}},
    "no type": {"content": b"x"},
    "no boundary": {"content": GOOD, "headers": {"Content-Type": "multipart/form-data"}},
    "another boundary": {"content": GOOD, "headers": {"Content-Type": "multipart/form-data; boundary=other"}},
    "a long boundary": {"content": GOOD, "headers": {"Content-Type": f"multipart/form-data; boundary={'b' * 300}"}},
    "a form of the other kind": {
        "content": b"file=x",
        "headers": {"Content-Type": "application/x-www-form-urlencoded"},
    },
    "long headers": form(part("file", b"x", "a.txt", b"X: " + b"y" * 40_000 + b"\r\n")),
    "many headers": form(part("file", b"x", "a.txt", b"X: y\r\n" * 100)),
    "a header that is none": form(part("file", b"x", "a.txt", b"\0\0\0\r\n")),
}


@pytest.mark.parametrize("what", BAD)
def test_a_form_that_will_not_do_is_a_bad_request_and_leaves_nothing(server: Running, ann: httpx2.Client, what: str):
    before = files(server)
    demand_error(ann.put(API, **BAD[what]), 400, "Bad Request")
    assert files(server) == before


@pytest.mark.parametrize(
    ("sent", "kept", "fallback"),
    [
        ('quo"te.txt', 'quo"te.txt', "quo_te.txt"), ("new\r\nline.txt", "newline.txt", "newline.txt"),
        ("a/b/c.txt", "c.txt", "c.txt"), ("..\\..\\boot.ini", "boot.ini", "boot.ini"),
        ("😀.png", "😀.png", "png"), ("Grüße 100%.txt", "Grüße 100%.txt", "Grue 100_.txt"),
        ("%2e%2e.txt", "%2e%2e.txt", "_2e_2e.txt"),
        ("n" * 4000 + ".tar.gz", "n" * 252 + ".gz", "n" * 252 + ".gz"), ("😀" * 4000, "😀" * 63, "file"),
        ("<script>alert(1)</script>.html", "script>.html", "script_.html"),
        ("; filename=x.exe", "; filename=x.exe", "_ filename=x.exe"),
    ],
)  # fmt: skip
def test_a_name_comes_back_safely(ann: httpx2.Client, sent: str, kept: str, fallback: str):
    said = ann.get(share(ann, name=sent)).headers["content-disposition"]
    plain, _, other = said.partition("; filename*=UTF-8''")
    assert plain == f'attachment; filename="{fallback}"'
    assert (unquote(other) if other else fallback) == kept


def test_raw_names_as_various_clients_write_them(ann: httpx2.Client):
    for raw, kept in (
        (rb"back\"slash.txt", "filename*=UTF-8''back%22slash.txt"), (b"\xff\xfe.txt", "%EF%BF%BD%EF%BF%BD.txt"),
        (b"C:\\Documents\\a.txt", 'filename="a.txt"'),
    ):  # fmt: skip
        made = ann.put(API, **form(part("file", b"x", raw)))
        assert made.status_code == 201, made.text
        assert kept in ann.get(made.json()["url"]).headers["content-disposition"]


def test_an_upload_never_runs_in_our_origin(ann: httpx2.Client):
    for name, declared in (("evil.html", ""), ("evil.svg", ""), ("evil", "text/html"), ("evil.xhtml", "text/html")):
        made = ann.put(API, files={"file": (name, b"<script>alert(1)</script>", declared)})
        headers = ann.get(made.json()["url"]).headers
        assert headers["content-disposition"].startswith("attachment")
        assert (
            "sandbox" in headers["content-security-policy"]
            and "default-src 'none'" in headers["content-security-policy"]
        )
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")


def test_an_empty_file_is_a_file(ann: httpx2.Client):
    url = share(ann, b"", "empty")
    got = ann.get(url)
    assert (got.status_code, got.content, got.headers["content-length"]) == (200, b"", "0")
    demand_error(ann.get(url), 410, "Gone")


def test_fields_may_come_after_the_file_and_others_are_ignored(ann: httpx2.Client):
    made = ann.put(
        API, **form(part("x", b"y"), part("file", b"z", "a"), part("password", b"late"), part("downloads", b"2"))
    )
    url = made.json()["url"]
    demand_error(ann.get(url), 401, "Unauthorized")
    assert [ann.get(url, params={"password": "late"}).status_code for _ in range(3)] == [200, 200, 410]


def test_content_that_looks_like_a_boundary_comes_back(ann: httpx2.Client):
    tricky = b"\r\n--" + BOUNDARY[:-1].encode() + b"\r\n\r\n--\r\n" * 50_000
    made = ann.put(API, **form(part("file", tricky, "a")))
    assert ann.get(made.json()["url"]).content == tricky


# -- limits ------------------------------------------------------------------------------------------------------------


def test_sixteen_mebibytes_pass_and_one_byte_more_does_not(server: Running, ann: httpx2.Client):
    content = bytes(range(256)) * (MOST // 256)
    assert ann.get(share(ann, content)).content == content
    before = files(server)
    demand_error(ann.put(API, files={"file": ("a", content + b"x")}), 413, "Request Entity Too Large")
    assert files(server) == before


def test_of_what_is_much_too_large_nothing_is_read(server: Running, ann: httpx2.Client):
    with line(server, putting(ann, f"Content-Length: {1 << 40}")) as far_too_long:
        assert b" 413 " in far_too_long.recv(1000).splitlines()[0]


def test_a_body_without_a_length_is_cut_off_at_the_limit(server: Running, ann: httpx2.Client):
    before, sent = files(server), 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        yield part("file", b"", "a")[:-2]
        while sent < 200 * MIB:
            sent += MIB
            yield bytes(MIB)

    with contextlib.suppress(httpx2.TransportError):  # the server may close before all was said
        demand_error(ann.put(API, content=body(), headers=form()["headers"]), 413, "Request Entity Too Large")
    wait_until(lambda: files(server) == before)


def test_a_body_without_a_length_is_as_good_as_any(ann: httpx2.Client):
    whole = form(part("file", CONTENT * 500, "a"))["content"]
    pieces = (whole[at : at + 7919] for at in range(0, len(whole), 7919))
    made = ann.put(API, content=pieces, headers=form()["headers"])
    assert ann.get(made.json()["url"]).content == CONTENT * 500


def test_every_way_to_cut_a_body_gives_the_same(server: Running, ann: httpx2.Client):
    whole = form(part("password", b"pw"), part("file", b"\r\n--a-bound", "name.txt"))["content"]
    for size in (1, 3, 17):
        pieces = (whole[at : at + size] for at in range(0, len(whole), size))
        made = ann.put(API, content=pieces, headers=form()["headers"])
        got = ann.get(made.json()["url"], params={"password": "pw"})
        assert got.content == b"\r\n--a-bound" and "name.txt" in got.headers["content-disposition"]


def test_who_asks_before_he_sends_hears_first_whether_he_may(server: Running, ann: httpx2.Client):
    body = form(part("file", b"asked", "a"))["content"]
    with line(server, putting(ann, f"Content-Length: {len(body)}", "Expect: 100-continue")) as polite:
        assert polite.recv(1000).startswith(b"HTTP/1.1 100")
        polite.sendall(body)
        assert polite.recv(1000).startswith(b"HTTP/1.1 201")
    nobody = putting(ann, f"Content-Length: {len(body)}", "Expect: 100-continue").replace("Bearer ", "Bearer x")
    with line(server, nobody) as refused:
        assert refused.recv(1000).startswith(b"HTTP/1.1 401")


# -- slow clients ------------------------------------------------------------------------------------------------------


def test_slow_bodies_hold_up_nobody(server: Running, ann: httpx2.Client):
    """Of the same account, large and small, as many as there may be at once and more."""
    start = form(part("file", b"x" * 100, "a"))["content"][:150].decode("latin-1")
    before = files(server)
    with contextlib.ExitStack() as slow:
        for number in range(40):
            length = 5 * MIB if number % 2 else 5000
            slow.enter_context(line(server, putting(ann, f"Content-Length: {length}") + start))
        with sharer(server, "bob") as bob:
            began = time.monotonic()
            assert bob.get(share(bob, CONTENT * 200)).content == CONTENT * 200
            assert time.monotonic() - began < 20
    wait_until(lambda: files(server) == before + 1)


def test_a_body_at_one_byte_a_second_is_given_up_and_leaves_nothing(tmp_path: Path):
    with running(tmp_path, HOLDFAST_SERVER__PATIENCE="1") as server, server.client() as admin:
        made = admin.post("/accounts/tokens", json={"name": "t", "scopes": ["shares:write"]}).json()["token"]
        with server.with_token(made) as ann:
            start = form(part("file", b"x" * 1000, "a"))["content"][:200].decode("latin-1")
            for length in (5 * MIB, 5000):
                with line(server, putting(ann, f"Content-Length: {length}") + start) as slow:
                    stop = threading.Event()

                    def trickle(slow: socket.socket = slow, stop: threading.Event = stop) -> None:
                        with contextlib.suppress(OSError):
                            while not stop.wait(0.5):
                                slow.sendall(b"x")

                    thread = threading.Thread(target=trickle)
                    thread.start()
                    assert b" 408 " in slow.recv(1000).splitlines()[0]
                    stop.set()
                    thread.join()
        wait_until(lambda: files(server) == 0)


# -- once --------------------------------------------------------------------------------------------------------------


def many(url: str, count: int, **more: Any) -> Counter[int]:
    """The statuses of so many downloads at once. Every one that succeeds has all of it."""

    async def run() -> Counter[int]:
        limits = httpx2.Limits(max_connections=count)
        async with httpx2.AsyncClient(timeout=120, limits=limits) as client:
            answers = await asyncio.gather(*(client.get(url, **more) for _ in range(count)))
        assert len({a.content for a in answers if a.status_code == 200}) <= 1
        return Counter(a.status_code for a in answers)

    return asyncio.run(run())


@pytest.mark.parametrize("size", [10, 3 * MIB])
def test_of_two_hundred_downloads_at_once_exactly_one_wins(ann: httpx2.Client, size: int):
    url = share(ann, bytes(size))
    assert many(url, 200) == {200: 1, 410: 199}
    assert many(url, 200) == {410: 200}


def test_of_two_hundred_as_many_win_as_there_are_downloads(ann: httpx2.Client):
    assert many(share(ann, downloads="7"), 200) == {200: 7, 410: 193}


def test_of_many_who_know_the_password_exactly_one_wins(ann: httpx2.Client):
    assert many(share(ann, password="known"), 40, params={"password": "known"}) == {200: 1, 410: 39}


@pytest.mark.parametrize("size", [300_000, MOST])
@pytest.mark.parametrize("read", [0, 100_000])
def test_a_download_that_breaks_off_is_given_back(server: Running, ann: httpx2.Client, size: int, read: int):
    content = bytes(size)
    url = share(ann, content)
    with line(server, "") as breaking:
        breaking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        breaking.sendall(asking(url).encode())
        got = len(breaking.recv(10))
        while got < read:
            got += len(breaking.recv(4096))
        demand_error(ann.get(url), 410, "Gone")  # while it runs
    wait_until(lambda: ann.head(url).status_code == 200)
    assert ann.get(url).content == content
    demand_error(ann.get(url), 410, "Gone")


def test_it_can_be_given_back_many_times(server: Running, ann: httpx2.Client):
    url = share(ann, bytes(MOST), downloads="2")
    for _ in range(5):
        with line(server, asking(url)) as breaking:
            assert breaking.recv(100).startswith(b"HTTP/1.1 200")
        wait_until(lambda: ann.head(url).status_code == 200)
    assert [ann.get(url).status_code for _ in range(3)] == [200, 200, 410]


@pytest.mark.slow
def test_who_takes_nothing_is_cut_off_and_it_is_given_back(tmp_path: Path):
    with running(tmp_path, HOLDFAST_SERVER__PATIENCE="1") as server, server.client() as admin:
        for size in (400_000, MOST):
            url = share(admin, bytes(size))
            with line(server, "") as greedy:
                greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                greedy.sendall(asking(url).encode())
                for status in (410, 200):
                    wait_until(partial(has_status, admin, url, status))
            assert admin.get(url).content == bytes(size)
        assert not [said for said in server.log if "Traceback" in said or '"fault"' in said]


def test_who_takes_long_gets_all_of_it(server: Running, ann: httpx2.Client):
    url, got = share(ann, bytes(4 * MIB)), 0
    with line(server, asking(url)) as slow:
        while got < 4 * MIB:
            got += len(slow.recv(200_000))
            time.sleep(0.02)
    demand_error(ann.get(url), 410, "Gone")
