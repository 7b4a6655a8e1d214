"""A server whose disk is full, or loses its power: what it acknowledged is there, what it could not keep it refused."""

from __future__ import annotations

import hashlib
import random
import signal
import threading
import time
from itertools import count

import httpx2
import pytest

from tests.support.faults import Machine
from tests.support.server import running

pytestmark = pytest.mark.needs_root


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_full_disk_is_507_and_what_was_acknowledged_stays(machine: Machine):
    disk = machine.disk("ext4", 64)
    kept: dict[str, bytes] = {}
    with running(disk.path / "data") as server, server.client() as admin:
        for seed in range(400):
            data = random.Random(seed).randbytes(random.Random(seed).choice([4096, 300_000, 2_000_000]))
            answer = admin.put(f"/files/{sha256(data)}", content=data)
            if answer.status_code != 201:
                assert (answer.status_code, answer.json()["code"]) == (507, "full")
                break
            kept[sha256(data)] = data
        else:
            raise AssertionError("the disk never filled")
        assert len(kept) > 10
        for name, data in kept.items():
            assert admin.get(f"/files/{name}").content == data
        assert admin.get(f"/files/{sha256(data)}").status_code in (200, 404)
        ballast = disk.path / "data/ballast"
        assert not ballast.exists()
    assert "Traceback" not in "".join(server.log)


def test_a_disk_that_has_room_again_is_written_to_again(machine: Machine):
    disk = machine.disk("ext4", 64)
    with running(disk.path / "data") as server, server.client() as admin:
        ballast = disk.path / "ballast"
        with ballast.open("wb") as f, pytest.raises(OSError, match="No space left"):
            while True:
                f.write(bytes(1 << 16))
                f.flush()
        data = random.Random(1).randbytes(500_000)
        assert admin.put(f"/files/{sha256(data)}", content=data).status_code == 507
        ballast.unlink()
        assert admin.put(f"/files/{sha256(data)}", content=data).status_code == 201
        assert admin.get(f"/files/{sha256(data)}").content == data


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize("seconds", [0.1, pytest.param(0.7, marks=pytest.mark.slow)])
def test_what_was_acknowledged_survives_a_power_cut(machine: Machine, kind: str, seconds: float):
    disk = machine.disk(kind)
    acknowledged: dict[str, bytes] = {}
    numbers = count()
    with running(disk.path / "data") as server, server.client() as admin:
        ended = threading.Event()

        def put_on() -> None:
            while not ended.is_set():
                data = random.Random(next(numbers)).randbytes(10_000)
                try:
                    if admin.put(f"/files/{sha256(data)}", content=data).status_code == 201:
                        acknowledged[sha256(data)] = data
                except httpx2.HTTPError:
                    return

        threads = [threading.Thread(target=put_on) for _ in range(8)]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 8:
            time.sleep(0.01)
        time.sleep(seconds)
        disk.cut_power(lambda: server.process.send_signal(signal.SIGKILL))
        ended.set()
        for thread in threads:
            thread.join()
        server.process.wait()
    disk.come_back()
    with running(disk.path / "data") as server, server.client() as admin:
        assert len(acknowledged) >= 8
        for name, data in acknowledged.items():
            assert admin.get(f"/files/{name}").content == data
