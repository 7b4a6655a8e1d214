"""Connections to real servers that break at random bytes, in both directions, and stand still: during backup, prune and
restore nothing is lost, and nobody ever sees half an object.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from holdfast.archive import backup, restore
from holdfast.errors import StorageUnavailable
from holdfast.repository import prune
from holdfast.repository.check import check
from holdfast.repository.keys import Password
from holdfast.repository.leases import Owner
from holdfast.repository.repository import create, open_repository
from holdfast.storage.base import CONFIG, FOLDERS
from holdfast.storage.retrying import Patience, Retrying
from holdfast.storage.select import open_storage
from tests.archive.making import QUICK
from tests.storage.conftest import PLACES
from tests.support.proxy import proxy_to
from tests.support.trees import contents, noise, write

KINDS = [k for k in ("rest-rclone", "s3-moto", "swift", "sftp-openssh") if k in PLACES]
PASSWORD = Password("cut off")
SERVER = re.compile(r"127\.0\.0\.1:(\d+)")
MIB = 1 << 20


@pytest.fixture(params=KINDS)
def place(request):
    for opened in PLACES[request.param](request):
        try:
            yield opened
        finally:
            opened.close()


@pytest.fixture
def proxy(place):
    told = [place.address, *place.access.variables.values()]
    (port,) = {m[1] for text in told for m in SERVER.finditer(text)}
    with proxy_to(f"http://127.0.0.1:{port}") as made:
        yield made


@pytest.fixture
def storage(place, proxy):
    """The storage through the proxy, asked patiently."""
    there = f"127.0.0.1:{proxy.url.rpartition(':')[2]}"
    variables = {k: SERVER.sub(there, v) for k, v in place.access.variables.items()}
    known = place.access.home / ".ssh" / "known_hosts"
    if known.exists():
        lines = known.read_text().splitlines()
        known.write_text("\n".join([*lines, *(f"[127.0.0.1]:{there[10:]} {x.partition(' ')[2]}" for x in lines), ""]))
    access = dataclasses.replace(place.access, variables=variables)
    made = Retrying(open_storage(SERVER.sub(there, place.address), access), Patience(60.0, 120.0, 0.05))
    yield made
    made.close()


def break_often(proxy, dice, times):
    """So many connections to come end after so many bytes, this way and that."""
    proxy.budgets[:] = [dice.choice([1, 100, 5000, 300_000, 3 * MIB]) for _ in range(times)]
    proxy.back_budgets[:] = [dice.choice([1, 100, 5000, 300_000]) for _ in range(times)]


def all_whole(place):
    """Every object that can be seen has the content its name says; how many there are."""
    count = 0
    for folder in FOLDERS:
        for info in place.storage.list(folder):
            data = place.storage.get(info.name)
            assert len(data) == info.size
            assert hashlib.sha256(data).hexdigest() == info.name.rpartition("/")[2], info.name
            count += 1
    return count


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_backup_prune_and_restore_survive_connections_that_break(place, proxy, storage, tmp_path, seed):
    dice = random.Random(seed)
    owner = Owner("host", "user", "1/2/3", "boot", lambda lease: False)
    repo = create(storage, PASSWORD, owner, lambda: 10**18 + seed, argon2=QUICK)
    reports = []
    for number in range(3):
        source = write(
            tmp_path / "source",
            {f"f{number}-{i}": noise(40_000, 100 * number + i) for i in range(30)} | {"large": noise(9 * MIB, number)},
        )
        break_often(proxy, dice, 8)
        reports.append(backup.back_up(repo, backup.Request(paths=(bytes(source),))))
        assert all_whole(place) if place.whole else True
    broken = proxy.broken
    assert broken > 3
    break_often(proxy, dice, 8)
    storage.delete(f"snapshots/{reports[0].snapshot_id}")
    prune.prune(repo, prune.Request(now=True))
    break_often(proxy, dice, 8)
    repo = open_repository(storage, PASSWORD, owner, lambda: 10**18)
    assert [s.id for s in repo.snapshots()] == [r.snapshot_id for r in reports[1:]]
    with repo.reading() as reader:
        told = restore.restore(reader, reports[2].snapshot.root, restore.Request(bytes(tmp_path / "out"), verify=True))
    assert not told.troubles
    assert contents(tmp_path / "out") == contents(tmp_path / "source")
    proxy.budgets.clear()
    proxy.back_budgets.clear()
    assert proxy.broken > broken
    assert all_whole(place) if place.whole else True
    assert place.storage.stat(CONFIG).size > 0


def test_a_connection_that_stands_still_in_the_middle_of_a_pack_loses_nothing(place, proxy, storage, tmp_path):
    owner = Owner("host", "user", "1/2/3", "boot", lambda lease: False)
    repo = create(storage, PASSWORD, owner, lambda: 10**18, argon2=QUICK)
    source = write(tmp_path / "source", {"large": noise(9 * MIB)})
    proxy.holds.append(2 * MIB)

    def look():
        try:
            assert proxy.held.wait(60)
            return all_whole(place) if place.whole else 1
        finally:
            proxy.go.set()

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        report = backup.back_up(repo, backup.Request(paths=(bytes(source),)))
        assert looking.result() >= 1
    with repo.reading() as reader:
        restore.restore(reader, report.snapshot.root, restore.Request(bytes(tmp_path / "out")))
    assert contents(tmp_path / "out") == contents(source)
    assert not check(repo, read_data=1.0).findings


@pytest.mark.parametrize("ways", ["budgets", "back_budgets"])
def test_a_connection_cut_anywhere_while_it_is_made_is_worth_another_try(ways, request, tmp_path):
    for opened in PLACES["sftp-openssh"](request):
        assert opened.access is not None
        (port,) = SERVER.findall(opened.address)
        with proxy_to(f"http://127.0.0.1:{port}") as proxy:
            there = f"127.0.0.1:{proxy.url.rpartition(':')[2]}"
            known = opened.access.home / ".ssh" / "known_hosts"
            lines = known.read_text().splitlines()
            known.write_text(
                "\n".join([*lines, *(f"[127.0.0.1]:{there[10:]} {x.partition(' ')[2]}" for x in lines), ""])
            )
            refused = 0
            for size in range(700, 6000, 211):
                getattr(proxy, ways)[:] = [size]
                storage = open_storage(SERVER.sub(there, opened.address), opened.access)
                try:
                    storage.create()
                except StorageUnavailable:
                    refused += 1
                finally:
                    storage.close()
            assert refused > 4
        opened.close()
