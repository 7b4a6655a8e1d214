"""What is special about OpenStack Swift, and every way in which it can go wrong, over a real node.

``test_conformance.py`` has what it shares with the other storages, ``test_swift_login.py`` how one logs in.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import swiftclient

from holdfast.errors import (
    ObjectExists,
    ObjectMissing,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnavailable,
    UsageError,
)
from holdfast.storage import swift as room
from holdfast.storage.base import Storage
from holdfast.storage.select import Access, open_storage
from tests.storage.writing import an_object, named
from tests.support.openstack import SwiftNode, a_container, swift_of
from tests.support.pretender import WEB_PAGE, Answer, pretending
from tests.support.proxy import proxy_to
from tests.support.storages import list_of

Open = Callable[..., Storage]
NAME = "data/" + "ab" * 32


@pytest.fixture
def node(request: pytest.FixtureRequest) -> SwiftNode:
    return swift_of(request)


@pytest.fixture
def opened() -> Iterator[Open]:
    """``opened(address, variables)``: a storage that is closed at the end."""
    with contextlib.ExitStack() as ending:

        def opening(address: str, variables: dict[str, str], connections: int = 5) -> Storage:
            storage = open_storage(address, Access(variables, connections=connections))
            ending.callback(storage.close)
            return storage

        yield opening


@pytest.fixture
def container() -> str:
    return a_container()


@pytest.fixture
def storage(node: SwiftNode, opened: Open, container: str) -> Storage:
    made = opened(f"swift://{container}/backups", node.variables)
    made.create()
    return made


@pytest.fixture
def administrator(node: SwiftNode) -> Iterator[swiftclient.Connection]:
    """Somebody else with the same rights, by swiftclient itself."""
    v = node.variables
    with contextlib.closing(swiftclient.Connection(v["ST_AUTH"], v["ST_USER"], v["ST_KEY"], auth_version="1")) as other:
        yield other


def at(url: str) -> dict[str, str]:
    """Who one is at a server that is no real one."""
    return {"OS_STORAGE_URL": f"{url}/v1/AUTH_x", "OS_AUTH_TOKEN": "a-token"}


def told(kind: type[StorageError], call: Callable[..., object], *args: object) -> str:
    """The error that a call ends in: exactly of that kind."""
    with pytest.raises(kind) as caught:
        call(*args)
    assert type(caught.value) is kind
    return f"{caught.value} {caught.value.hint}"


# -- addresses -------------------------------------------------------------------------------------------------------


def test_both_spellings_of_an_address_are_one_place(node, opened, container):
    one = opened(f"swift://{container}/a/b", node.variables)
    one.create()
    one.put("config", [b"x"])
    for spelling in (f"swift:{container}:/a/b", f"swift:{container}:/a/b/", f"swift://{container}/a/b/"):
        same = opened(spelling, node.variables)
        assert same.get("config") == b"x"
        assert same.place == one.place == f"swift://{container}/a/b"


def test_without_a_prefix_objects_lie_at_the_top_as_in_a_folder(node, opened, container, administrator):
    for number, spelling in enumerate((f"swift://{container}", f"swift:{container}:/", f"swift:{container}")):
        storage = opened(spelling, node.variables)
        storage.create()
        name, data = an_object()
        storage.put(name, [data])
        assert administrator.get_object(container, f"data/{name[5:7]}/{name[5:]}")[1] == data
        assert len(list_of(storage, "data")) == number + 1


@pytest.mark.parametrize(
    "address",
    [
        "swift:",
        "swift://",
        "swift:///prefix",
        "swift::/prefix",
        "swift:container:prefix",
        "swift://user:secret@container/prefix",
        "swift://container/../other",
        "swift://../container",
        "swift://container/a//b",
        "swift://container/./b",
        "swift:a/b:/prefix",
        "swift://con\ntainer/prefix",
        "swift://container/pre\0fix",
        "swift://container/\udcff",
        "swift://" + "c" * 257,
        "swift://container/" + "p" * 1000,
    ],
)
def test_what_is_no_address_is_refused_and_not_repeated(address):
    with pytest.raises(UsageError, match="not written like that") as caught:
        open_storage(address, Access(at("http://127.0.0.1:9")))
    assert "secret" not in str(caught.value)


def test_containers_and_prefixes_may_have_any_letters(node, opened):
    storage = opened(f"swift://Büro & {a_container()} 100%41?#/ein Präfix+%2F?x=y", node.variables)
    storage.create()
    name, data = an_object()
    storage.put(name, [data])
    assert storage.get(name) == data
    assert [i.name for i in storage.list("data")] == [name]


# -- containers ------------------------------------------------------------------------------------------------------


def test_a_container_that_is_not_there_is_named_and_nothing_in_it_is_missing(node, opened, container):
    storage = opened(f"swift:{container}:/p", node.variables)
    name, data = an_object()
    calls = [
        (storage.get, "config"),
        (storage.get, name),
        (storage.get, name, 0, 0),
        (storage.get, name, 3, 4),
        (storage.stat, name),
        (storage.put, name, [data]),
        (storage.delete, name),
        (list_of, storage, "data"),
        (storage.free_space,),
    ]
    for call, *args in calls:
        assert f"There is no container '{container}'" in told(StorageError, call, *args), (call, args)


def test_creating_again_changes_nothing(node, opened, container, administrator):
    for policy in ("silver", "gold", ""):
        opened(f"swift://{container}/p", {**node.variables, "HOLDFAST_SWIFT_POLICY": policy}).create()
        assert administrator.head_container(container)["x-storage-policy"] == "silver"


def test_a_storage_policy_that_is_not_there_is_named(node, opened, container):
    storage = opened(f"swift://{container}", {**node.variables, "HOLDFAST_SWIFT_POLICY": "platinum"})
    assert "platinum" in told(StorageError, storage.create)


def test_what_else_lies_in_the_container_is_no_object(storage, container, administrator):
    name, data = an_object()
    storage.put(name, [data])
    ab = "ab" * 32
    others = [f"data/{ab}", f"data/cd/{ab}", f"data/ab/{ab.upper()}", f"data/ab/{ab}0", "data/ab/x", f"data/ab/ab/{ab}"]
    others += [
        "data/",
        "data/späte Sicherung",
        "data/../config",
        f"data/ab/{ab}/",
        f"config/{ab}",
        f"data/ab/{ab[:-1]}\n",
    ]
    for other in others:
        administrator.put_object(container, f"backups/{other}", b"x")
    for outside in (f"backups2/data/ab/{ab}", f"data/ab/{ab}", f"xbackups/data/ab/{ab}"):
        administrator.put_object(container, outside, b"x")
    assert [i.name for i in storage.list("data")] == [name]


# -- times -----------------------------------------------------------------------------------------------------------


def test_times_have_parts_of_seconds_and_listings_agree(storage):
    for _ in range(12):
        name, data = an_object("snapshots")
        storage.put(name, [data])
    listed = list_of(storage, "snapshots")
    assert listed == [storage.stat(i.name) for i in listed]
    assert any(i.stored_ns % 1_000_000_000 for i in listed)
    assert not any(i.stored_ns % 1_000_000 for i in listed)


# -- room ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [200_000, 34_000_000])
def test_beyond_the_quota_a_storage_is_full(storage, container, administrator, size):
    assert storage.free_space() is None
    administrator.post_container(container, {"X-Container-Meta-Quota-Bytes": "100100"})
    name, data = an_object()
    storage.put(name, [data])
    assert storage.free_space() == 100_000
    large = os.urandom(size)
    told(StorageFull, storage.put, named(large), [large])
    told(ObjectMissing, storage.get, named(large))
    assert storage.get(name) == data


# -- faults ----------------------------------------------------------------------------------------------------------


def test_without_its_object_server_swift_is_unavailable_for_that_time(node, storage):
    name, data = an_object()
    storage.put(name, [data])
    other, more = an_object()
    with node.without_objects():
        for call in (storage.get, storage.stat, storage.delete):
            assert "503" in told(StorageUnavailable, call, name)
        told(StorageUnavailable, storage.put, other, [more])
        assert [i.name for i in storage.list("data")] == [name]
    assert storage.get(name) == data
    storage.put(other, [more])
    assert storage.get(other) == more


def test_a_server_that_goes_away_in_the_middle_of_a_put_keeps_no_part(node, opened, storage, container):
    data = os.urandom(3_000_000)
    with proxy_to(node.url) as proxy:
        through = opened(f"swift://{container}/backups", {**node.variables, "ST_AUTH": f"{proxy.url}/auth/v1.0"})
        assert list_of(through, "data") == []
        proxy.budgets.append(1_500_000)
        told(StorageUnavailable, through.put, named(data), [data])
        assert proxy.broken == 1
        told(ObjectMissing, storage.get, named(data))
        through.put(named(data), [data])
    assert storage.get(named(data)) == data


def test_a_server_that_goes_away_in_the_middle_of_a_get_gives_nothing(node, opened, storage, container):
    data = os.urandom(3_000_000)
    storage.put(named(data), [data])
    with proxy_to(node.url) as proxy:
        through = opened(f"swift://{container}/backups", {**node.variables, "ST_AUTH": f"{proxy.url}/auth/v1.0"})
        assert through.stat(named(data)).size == len(data)
        for start, length in ((0, None), (5, 2_900_000)):
            proxy.back_budgets.append(1_500_000)
            told(StorageUnavailable, through.get, named(data), start, length)
        assert proxy.broken == 2
        assert through.get(named(data)) == data


def test_a_body_that_is_damaged_on_its_way_is_not_stored(storage, monkeypatch):
    name, data = an_object()
    with monkeypatch.context() as patch:
        patch.setattr(room, "_md5", lambda views: "0" * 32)
        assert "damaged on its way" in told(StorageUnavailable, storage.put, name, [data])
    told(ObjectMissing, storage.get, name)


def test_an_object_that_was_damaged_on_the_servers_disk_is_not_given(node, storage):
    data = os.urandom(5000)
    storage.put(named(data), [data])
    (path,) = [p for p in Path(node.folder).glob("node/disk/objects/**/*.data") if p.read_bytes() == data]
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    told(StorageUnavailable, storage.get, named(data))


def test_nobody_listens(opened):
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    assert f"127.0.0.1:{port}" in told(
        StorageUnavailable, opened("swift://c", at(f"http://127.0.0.1:{port}")).get, NAME
    )


def test_a_server_that_says_nothing_is_unavailable(opened, monkeypatch):
    monkeypatch.setattr(room, "_ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        told(StorageUnavailable, opened("swift://c", at(f"http://127.0.0.1:{silent.getsockname()[1]}")).stat, NAME)


# -- servers that are none -------------------------------------------------------------------------------------------


Call = tuple[Callable[..., object], tuple[object, ...]]


def every_call(storage: Storage) -> list[Call]:
    of_an_object: list[Call] = [(call, (NAME,)) for call in (storage.get, storage.stat, storage.delete)]
    others: list[Call] = [(storage.get, (NAME, 1, 5)), (storage.put, (NAME, [b"x"])), (list_of, (storage, "data"))]
    return [*of_an_object, *others, (storage.create, ()), (storage.free_space, ())]


@pytest.mark.parametrize(
    "answer",
    [
        WEB_PAGE,
        (301, {"Location": "http://127.0.0.1:9/"}, b""),
        (200, {"Content-Type": "application/json"}, b"{}"),
        (200, {"X-Container-Object-Count": "1", "Content-Type": "application/json"}, b'{"no": "list"}'),
        (206, {"Content-Range": "bytes x", "X-Container-Object-Count": "1"}, b'["no entry"]'),
        (400, {}, b"<html>no</html>"),
        (405, {}, b""),
        (501, {}, b""),
    ],
)
def test_what_is_no_swift_is_known_for_it(opened, answer):
    with pretending(lambda method, path: answer) as server:
        storage = opened("swift://c/p", at(server.url))
        for call, args in every_call(storage):
            if (call, answer[1].get("X-Container-Object-Count")) in [(storage.create, "1"), (storage.free_space, "1")]:
                continue  # that is a container
            assert "does not speak Swift" in told(StorageError, call, *args), call


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *[(s, StorageUnavailable) for s in (408, 429, 498, 500, 502, 503, 504)],
        *[(s, StorageFull) for s in (413, 507)],
        *[(s, StorageDenied) for s in (401, 403)],
    ],
)
def test_what_a_status_means(opened, status, kind):
    with pretending(lambda method, path: (status, {}, b"<html>any</html>")) as server:
        for call, args in every_call(opened("swift://c/p", at(server.url))):
            assert "a-token" not in told(kind, call, *args), call


def test_redirections_are_not_followed_and_nobody_else_sees_the_token(opened):
    with pretending(lambda *_: WEB_PAGE) as other:
        for status in (301, 302, 307, 308):
            with pretending(lambda *_, s=status: (s, {"Location": f"{other.url}/v1/AUTH_x/c"}, b"")) as server:
                for call, args in every_call(opened("swift://c/p", at(server.url))):
                    told(StorageError, call, *args)
        assert other.seen == []


def test_a_listing_that_does_not_go_on_ends(opened):
    entry = b'{"name": "data/ab/%s", "bytes": 1, "last_modified": "2026-01-01T00:00:00.000000"}' % (b"ab" * 32)
    headers = {"X-Container-Object-Count": "1", "Content-Type": "application/json"}
    with pretending(lambda *_: (200, headers, b"[%s]" % entry)) as server:
        told(StorageError, list_of, opened("swift://c", at(server.url)), "data")
        assert len(server.seen) == 2


def test_a_server_that_knows_no_ranges_is_understood_and_one_that_gives_others_is_not(opened):
    data, stamp = b"0123456789", {"X-Timestamp": "1700000000.12345", "Etag": "781e5e245d69b566979b86e28d23f2c7"}
    answers: dict[str, Answer] = {"GET": (200, stamp, data)}
    with pretending(lambda method, path: answers[method]) as server:
        storage = opened("swift://c", at(server.url))
        assert storage.get(NAME, 2, 3) == b"234"
        assert storage.get(NAME, 2) == b"23456789"
        answers["GET"] = (206, {**stamp, "Content-Range": "bytes 0-2/10"}, b"012")
        told(StorageUnavailable, storage.get, NAME, 2, 3)
        answers["GET"] = (206, {**stamp, "Content-Range": "bytes 2-3/10"}, b"23")
        told(StorageUnavailable, storage.get, NAME, 2, 3)
        answers["GET"] = (206, {**stamp, "Content-Range": "bytes 2-3/4"}, b"23")
        assert "truncated" in told(StorageError, storage.get, NAME, 2, 3)
        answers["GET"] = (200, {**stamp, "Etag": "0" * 32}, data)
        told(StorageUnavailable, storage.get, NAME)


def test_a_put_that_came_too_late_is_of_an_object_that_exists(opened):
    answers: dict[str, Answer] = {"HEAD": (404, {}, b""), "PUT": (202, {}, b"")}
    with pretending(lambda method, path: answers[method]) as server:
        told(ObjectExists, opened("swift://c", at(server.url)).put, NAME, [b"x"])


def test_what_exists_is_not_sent_again(opened):
    stamp = {"X-Timestamp": "1700000000.12345", "Content-Length": "5"}
    with pretending(lambda *_: (200, stamp, b"")) as server:
        told(ObjectExists, opened("swift://c", at(server.url)).put, NAME, [b"x"])
        assert [line.split()[0] for line in server.seen] == ["HEAD"]


def test_the_server_is_asked_not_to_replace_what_came_after_looking(storage, monkeypatch):
    name, data = an_object()
    storage.put(name, [data])
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_head", lambda name: None)
        told(ObjectExists, storage.put, name, [b"other"])
    assert storage.get(name) == data


# -- many, and much --------------------------------------------------------------------------------------------------


def established(url: str) -> int:
    """Connections that somebody has to that port just now."""
    port = f":{int(url.rpartition(':')[2]):04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(line[2].endswith(port) and line[3] == "01" for line in lines)


def test_no_more_connections_are_used_than_there_may_be_and_they_are_given_back(node, opened, storage, container):
    with proxy_to(node.url) as proxy:
        variables = {**node.variables, "ST_AUTH": f"{proxy.url}/auth/v1.0"}
        through = opened(f"swift://{container}/backups", variables, connections=3)
        most = 0

        def work(number: int) -> None:
            nonlocal most
            name, data = an_object(size=1000 + number)
            through.put(name, [data])
            assert through.get(name) == data
            most = max(most, established(proxy.url))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(40)))
        assert 2 <= most <= 4  # one of them is where one logs in
        through.close()
        through.close()
        assert established(proxy.url) == 0


def test_large_parts_are_not_copied(storage):
    parts = [os.urandom(1 << 20)] * 32
    name = named(b"".join(parts))
    tracemalloc.start()
    try:
        storage.put(name, parts)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert storage.stat(name).size == 32 << 20
