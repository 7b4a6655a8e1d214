"""What is gone is remembered: in the process, or in a real Redis, whose being down fails nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import redis

from holdfast.catalog.database import Database
from holdfast.errors import Gone, UsageError
from holdfast.shares.gone import KEPT_S, GoneHere, GoneInRedis
from tests.cli.test_serve import serve
from tests.shares.making import Room
from tests.support.redis import serving
from tests.support.server import running
from tests.support.shares import demand_error, share


@pytest.fixture
def room(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path}/catalog.db")
    database.migrate()
    yield Room(database, tmp_path / "shares")
    database.close()


def test_what_is_gone_is_told_without_the_catalog(room: Room):
    made = room.put(room.user("ann"))
    room.get(made)
    with pytest.raises(Gone):
        room.shares.look(made.id)
    room.database.close()
    room.shares._database = None  # type: ignore[assignment] # whoever asked it now would fail
    with pytest.raises(Gone):
        room.shares.look(made.id)


def test_the_memory_is_bounded_and_short(monkeypatch: pytest.MonkeyPatch):
    memory, now = GoneHere(), time.monotonic()
    for n in range(10_001):
        memory.note(n.to_bytes(32))
    assert not memory.knows((0).to_bytes(32)) and memory.knows((1).to_bytes(32)) and memory.knows((10_000).to_bytes(32))
    monkeypatch.setattr(time, "monotonic", lambda: now + KEPT_S + 60)
    assert not memory.knows((1).to_bytes(32))


def test_redis_remembers_digests_for_a_while_and_for_all_servers():
    with serving() as url:
        one, other = (GoneInRedis(url, lambda work, e: None) for _ in range(2))
        assert not other.knows(b"d" * 32)
        one.note(b"d" * 32)
        assert other.knows(b"d" * 32)
        with redis.Redis.from_url(url) as client:
            (key,) = client.keys()
            assert key == b"holdfast:share:gone:" + (b"d" * 32).hex().encode() and 0 < client.ttl(key) <= 3600
        for memory in (one, other):
            memory.close()


def test_a_redis_that_is_down_or_hangs_fails_nothing_and_is_told_once(tmp_path: Path):
    import socket

    told: list[str] = []
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(str(tmp_path / "hangs.sock"))
        hanging.listen(8)
        for path in ("not-there.sock", "hangs.sock"):
            memory = GoneInRedis(f"unix://{tmp_path}/{path}", lambda work, e: told.append(work))
            began = time.monotonic()
            for _ in range(50):
                memory.note(b"d" * 32)
                assert not memory.knows(b"d" * 32)
            assert time.monotonic() - began < 5
            memory.close()
    assert len(told) == 2


def test_a_server_with_redis(tmp_path: Path):
    folder = tmp_path / "redis"
    folder.mkdir()
    with (
        running(tmp_path / "data", HOLDFAST_SHARES__REDIS=f"unix://{folder}/redis.sock") as server,
        server.client() as a,
    ):
        urls = [share(a) for _ in range(3)]  # it is not there yet
        assert a.get(urls[0]).status_code == 200
        demand_error(a.get(urls[0]), 410, "Gone")
        time.sleep(2.2)  # after a failure it is left alone for so long
        with serving(folder) as url, redis.Redis.from_url(url) as client:
            assert a.get(urls[1]).status_code == 200
            for _ in range(2):
                demand_error(a.get(urls[1]), 410, "Gone")
            assert len(client.keys("holdfast:share:gone:*")) == 1
            protected = share(a, password="x")
            assert a.get(protected).status_code == 401 and a.get(urls[0][:-32] + "0" * 32).status_code == 404
            assert len(client.keys()) == 1  # neither 401 nor 404 is remembered
            client.flushall()
            demand_error(a.get(urls[1]), 410, "Gone")
        assert a.get(urls[2]).status_code == 200
        demand_error(a.get(urls[2]), 410, "Gone")
        assert not [line for line in server.log if '"fault"' in line]


def test_a_url_that_is_none_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match="redis://"):
        GoneInRedis("http://x", lambda work, e: None)
    monkeypatch.setenv("HOLDFAST_SHARES__REDIS", "nonsense")
    done = serve("--port", "0", "--data", str(tmp_path / "data"))
    assert done.returncode == 2 and "[shares] redis must begin with" in done.stderr
