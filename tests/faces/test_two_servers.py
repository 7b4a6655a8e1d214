"""Two servers over one PostgreSQL and one repository: either answers for both, and neither undoes the other's work."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support import postgres
from tests.support.server import Running, running


def entry(data: bytes) -> dict[str, Any]:
    return {"hash": hashlib.sha256(data).hexdigest(), "size": len(data)}


def noise(size: int, seed: object) -> bytes:
    return random.Random(f"{seed}").randbytes(size)


@dataclass
class Pair:
    first: Running
    second: Running
    token: str

    def clients(self) -> tuple[httpx2.Client, httpx2.Client]:
        return self.first.with_token(self.token), self.second.with_token(self.token)


@pytest.fixture
def pair(postgres_socket: str, tmp_path: Path) -> Iterator[Pair]:
    data = tmp_path / "data"
    with (
        postgres.fresh_database(postgres_socket) as url,
        running(data, "--database", url) as first,
        running(data, "--database", url) as second,
        first.user("ann") as ann,
    ):
        made = ann.post("/accounts/tokens", json={"name": "tests", "scopes": ["files:read", "files:write"]})
        yield Pair(first, second, made.json()["token"])


def test_what_one_has_taken_the_other_gives(pair: Pair) -> None:
    one, other = pair.clients()
    with one, other:
        data = noise(3_000_000, 1)
        assert one.put(f"/files/{entry(data)['hash']}", content=data).status_code == 201
        assert other.get(f"/files/{entry(data)['hash']}").content == data
        assert other.post("/manifests", json={"name": "m", "files": {"a": entry(data)}}).status_code == 201
        assert one.get("/manifests/m").json()["files"]["a"]["is_available"] is True
        assert other.put(f"/files/{entry(b'small')['hash']}", content=b"small").status_code == 201
        assert one.get(f"/files/{entry(b'small')['hash']}").content == b"small"


def test_parts_may_go_to_either(pair: Pair) -> None:
    data = noise(200_000, 2)
    address, half = f"/files/{entry(data)['hash']}", 100_000
    one, other = pair.clients()
    with one, other:
        first = {"Content-Range": f"bytes 0-{half - 1}/{len(data)}"}
        rest = {"Content-Range": f"bytes {half}-{len(data) - 1}/{len(data)}"}
        assert one.put(address, content=data[:half], headers=first).status_code == 202
        assert other.put(address, content=data[half:], headers=rest).status_code == 201
        assert one.get(address).content == data


def test_many_at_both_lose_nothing_while_manifests_come_and_go(pair: Pair) -> None:
    """Each thread writes files that all share, posts and deletes manifests of them, at one server or the other; what
    its last manifest was told to be available is available in the end.
    """
    contents = [noise(5_000, n) for n in range(12)]
    told: dict[str, dict[str, bool]] = {}
    troubles: list[str] = []

    def work(number: int) -> None:
        rng = random.Random(number)
        with pair.first.with_token(pair.token) as one, pair.second.with_token(pair.token) as other:
            for round_ in range(12):
                client = rng.choice([one, other])
                chosen = rng.sample(contents, 5)
                for data in chosen:
                    answer = client.put(f"/files/{entry(data)['hash']}", content=data)
                    if answer.status_code not in (200, 201):
                        troubles.append(answer.text)
                name = f"m{number}"
                answer = client.post(
                    "/manifests", json={"name": name, "files": {entry(d)["hash"]: entry(d) for d in chosen}}
                )
                if answer.status_code != 201:
                    troubles.append(answer.text)
                    continue
                told[name] = {path: file["is_available"] for path, file in answer.json()["files"].items()}
                if round_ % 3 == 2:
                    rng.choice([one, other]).delete(f"/manifests/name/{name}?versions=all")
                    del told[name]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(3)  # both have given up what was deleted
    assert troubles == []
    with pair.first.with_token(pair.token) as client:
        for data in contents:
            for name in told:
                if told[name].get(entry(data)["hash"]):
                    assert client.get(f"/files/{entry(data)['hash']}").content == data


def test_when_one_is_killed_the_other_goes_on(pair: Pair) -> None:
    one, other = pair.clients()
    with one, other:
        kept = [noise(4_096, n) for n in range(40)]
        for data in kept[:20]:
            one.put(f"/files/{entry(data)['hash']}", content=data)
        one.post("/manifests", json={"name": "m", "files": {entry(d)["hash"]: entry(d) for d in kept}})
        pair.first.process.kill()
        pair.first.process.wait()
        for data in kept[20:]:
            assert other.put(f"/files/{entry(data)['hash']}", content=data).status_code == 201
        assert all(file["is_available"] for file in other.get("/manifests/m").json()["files"].values())
        assert all(other.get(f"/files/{entry(data)['hash']}").content == data for data in kept)
