"""Two backups and a prune at once, interleaved call by call as hypothesis decides: clocks jump, leases lapse, some are
killed.

The claim: a snapshot whose backup reported success is whole, and stays it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.archive import backup, tagging
from holdfast.errors import Busy, HoldfastError, StorageUnavailable
from holdfast.repository import writer
from holdfast.repository.check import check
from holdfast.repository.leases import LEASE_LIFE_S
from holdfast.repository.prune import Request, prune
from holdfast.repository.repository import Repository, open_repository
from holdfast.storage.base import Storage
from tests.repository.making import (
    HOUR,
    KEY,
    SECOND,
    Clock,
    an_owner,
    memory,
    names,
    new_repository,
    read_back,
    some_bytes,
    through,
)
from tests.support.scheduling import Actor, Scheduler, Turn
from tests.support.storages import MemoryStorage

Tree = dict[bytes, bytes]
SHARED = {b"shared": some_bytes("shared", 2000)}
TREES: dict[str, Tree] = {
    "kept": {**SHARED, b"kept": some_bytes("kept", 1500)},
    "forgotten": {**SHARED, b"forgotten/%d" % 1: some_bytes("f1", 3000), b"forgotten/2": some_bytes("f2", 100)},
    "mixed": {**SHARED, b"forgotten/1": some_bytes("f1", 3000), b"new": some_bytes("new", 1000)},
}
WRITERS = {"first": "forgotten", "second": "mixed"}  # both need what was just forgotten
LAPSE = (LEASE_LIFE_S + 60) * SECOND


@pytest.fixture(autouse=True)
def one_thread_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the calls of one backup come one after the other."""
    monkeypatch.setattr(writer, "worker_count", lambda: 1)
    monkeypatch.setattr(writer, "STORING", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("trees")
    for name, tree in TREES.items():
        for path, content in tree.items():
            place = top / name / path.decode()
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
    return top


def request(folder: Path, tree: str) -> backup.Request:
    return backup.Request(paths=(bytes(folder / tree),))


@functools.cache
def beginning(folder: Path, condemned: bool) -> tuple[dict[str, bytes], str]:
    """One snapshot that is kept, and the packs of one that was forgotten; ``condemned``: they are on a list already."""
    repo = new_repository(clock=Clock())
    kept = backup.back_up(repo, request(folder, "kept")).snapshot_id
    gone = backup.back_up(repo, request(folder, "forgotten")).snapshot_id
    repo.storage.delete(f"snapshots/{gone}")
    if condemned:
        prune(repo, Request(deadline_s=3600))
    return memory(repo).objects, kept


@dataclass
class World:
    """The storage, everybody's clock, and who is known to be dead."""

    folder: Path
    kept: str
    storage: MemoryStorage
    base: Repository
    clock: Clock
    dead: set[str] = field(default_factory=set)

    @classmethod
    def begin(cls, folder: Path, condemned: bool) -> World:
        objects, kept = beginning(folder, condemned)
        storage, clock = MemoryStorage(), Clock(Clock().at_ns + 10**12)
        for name, data in objects.items():
            storage.put(name, [data])
        storage.now_ns += 3 * HOUR
        clock.at_ns += 3 * HOUR
        return cls(folder, kept, storage, open_repository(storage, KEY, an_owner(), clock), clock)

    def jump(self, ns: int) -> None:
        self.storage.now_ns += ns
        self.clock.at_ns += ns

    def repo(self, name: str, storage: Storage | None = None) -> Repository:
        return through(self.base, storage or self.storage, an_owner(name, f"1/{name}/1", self.dead))

    def back_up(self, name: str) -> Callable[[Storage], str]:
        return lambda storage: backup.back_up(self.repo(name, storage), request(self.folder, WRITERS[name])).snapshot_id

    def prune(self, *requests: Request) -> Callable[[Storage], int]:
        return lambda storage: sum(prune(self.repo("prune", storage), r).deleted_packs for r in requests)

    def demand(self, actors: Iterable[Actor]) -> None:
        """What must hold, whatever happened."""
        whole = {self.kept: TREES["kept"]}
        for actor in actors:
            assert actor.error is None or isinstance(actor.error, Busy | StorageUnavailable), actor.error
            if actor.name in WRITERS and actor.error is None:
                whole[actor.result] = TREES[WRITERS[actor.name]]
            if isinstance(actor.error, StorageUnavailable):
                assert actor.killed
        self.demand_whole(whole)
        for days in (0, 3):  # and it stays so, when later prunes go on from here
            self.jump(days * 24 * HOUR)
            self.dead |= {f"1/{a.name}/1" for a in actors}
            prune(self.repo("later"), Request(now=bool(days), deadline_s=0))
            self.demand_whole(whole)
        assert names(self.storage, "locks") == []

    def demand_whole(self, whole: dict[str, Tree]) -> None:
        repo = self.repo("looks")
        assert {s.id for s in repo.snapshots()} >= whole.keys()
        for snapshot_id, tree in whole.items():
            assert read_back(repo, snapshot_id) == tree
        report = check(repo, read_data=1)
        assert report.good, (report.findings, report.affected)


PRUNES = {
    "now": (Request(now=True),),
    "condemn": (Request(deadline_s=3600),),
    "condemn and sweep": (Request(deadline_s=0), Request(deadline_s=0)),
}
JUMPS = [LAPSE, 2 * HOUR, 25 * HOUR]
TURNS = st.one_of(
    st.builds(Turn, st.sampled_from([*WRITERS, "prune"]), st.integers(1, 45)),
    st.builds(Turn, st.sampled_from([*WRITERS, "prune"]), st.integers(1, 45)),
    st.sampled_from(range(len(JUMPS))),
    st.builds(Turn, st.sampled_from([*WRITERS, "prune"]), st.integers(1, 3), st.just(True)),
)
SCHEDULES = st.lists(TURNS, max_size=9)


def live(world: World, schedule: Iterable[Turn | int], how: str, writers: Iterable[str] = WRITERS) -> list[Actor]:
    scheduler = Scheduler(world.storage)
    for name in writers:
        scheduler.add(name, world.back_up(name))
    scheduler.add("prune", world.prune(*PRUNES[how]))
    turns = []
    for turn in schedule:
        if isinstance(turn, int):
            turns.append(Turn(act=functools.partial(world.jump, JUMPS[turn])))
        elif turn.kill:
            turns.append(turn._replace(act=functools.partial(world.dead.add, f"1/{turn.actor}/1")))
        else:
            turns.append(turn)
    actors = list(scheduler.run(turns).values())
    world.demand(actors)
    return actors


def both(test: Callable[..., None]) -> Callable[..., None]:
    ids = ["fresh", "condemned before"]
    marked: Callable[..., None] = pytest.mark.parametrize("condemned", [False, True], ids=ids)(test)
    marked = pytest.mark.parametrize("how", PRUNES)(marked)
    return marked


COMMON = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@both
@settings(COMMON, max_examples=8)
@given(schedule=SCHEDULES)
def test_a_backup_that_reported_success_is_whole(folder: Path, how: str, condemned: bool, schedule: list[Turn]) -> None:
    live(World.begin(folder, condemned), schedule, how)


@both
@pytest.mark.slow
@settings(COMMON, max_examples=600)
@given(schedule=SCHEDULES)
def test_a_backup_that_reported_success_is_whole_in_many_schedules(
    folder: Path, how: str, condemned: bool, schedule: list[Turn]
) -> None:
    live(World.begin(folder, condemned), schedule, how)


END = 10_000


@both
def test_prune_looks_before_a_sleeping_backup_commits_and_deletes_after(
    folder: Path, how: str, condemned: bool
) -> None:
    """The backup finds out by looking once more behind its snapshot, for condemned lists first, then for packs."""
    world = World.begin(folder, condemned)
    schedule: list[Turn | int] = [
        Turn("first", END, until="put snapshots"), 0,
        Turn("prune", END, until="delete data"), Turn("first", END), Turn("prune", END),
    ]  # fmt: skip
    writer, _ = live(world, schedule, how, ["first"])
    assert writer.error is None


@both
def test_a_sleeping_backup_whose_own_packs_were_deleted_stores_them_anew(
    folder: Path, how: str, condemned: bool
) -> None:
    world = World.begin(folder, condemned)
    schedule: list[Turn | int] = [
        Turn("first", END, until="put index"),
        Turn("first", 1),
        1,
        Turn("prune", END),
        Turn("first", END),
    ]
    writer, _ = live(world, schedule, how, ["first"])
    assert writer.error is None


@both
def test_a_backup_that_wakes_up_commits_nothing_that_lost_its_packs(folder: Path, how: str, condemned: bool) -> None:
    """Not even for a moment: killed just then, it would leave a damaged snapshot."""
    world = World.begin(folder, condemned)
    schedule: list[Turn | int] = [
        Turn("first", END, until="put index"), Turn("first", 1), 1, Turn("prune", END),
        Turn("first", END, until="put snapshots"), Turn("first", 1), Turn("first", END, kill=True),
    ]  # fmt: skip
    live(world, schedule, how, ["first"])
    assert len(names(world.storage, "snapshots")) == 2


@both
@pytest.mark.parametrize("jump", [None, 0, 2], ids=["no jump", "lapsed", "a day"])
@pytest.mark.parametrize("every", [47, pytest.param(1, marks=pytest.mark.slow)])
def test_a_backup_stopped_anywhere_and_a_prune_stopped_anywhere(
    folder: Path, how: str, condemned: bool, jump: int | None, every: int
) -> None:
    """Every schedule with two stops: the backup to a call, the prune to a call, the backup's rest, the prune's rest."""
    calls = {a.name: a.calls for a in live(World.begin(folder, condemned), [], how, ["first"])}
    for w, p in itertools.product(range(1, calls["first"] + 1), range(1, calls["prune"] + 1)):
        if (w * 7 + p) % every:
            continue
        schedule: list[Turn | int] = [Turn("first", w)]
        schedule += [] if jump is None else [jump]
        schedule += [Turn("prune", p), Turn("first", 1000), Turn("prune", 1000)]
        actors = live(World.begin(folder, condemned), schedule, how, ["first"])
        assert actors[0].error is None


@pytest.mark.parametrize("how", PRUNES)
@pytest.mark.parametrize("every", [31, pytest.param(1, marks=pytest.mark.slow)])
def test_no_snapshot_is_lost_while_its_tags_change(folder: Path, how: str, every: int) -> None:
    """It gets a new name: put, then the old one deleted. Prune must not look past both."""
    for tag_at, prune_at in itertools.product(range(1, 12), range(1, 60)):
        if (tag_at * 5 + prune_at) % every:
            continue
        world = World.begin(folder, False)

        def retag(storage: Storage, world: World = world) -> str:
            repo = world.repo("tag", storage)
            with repo.leases.hold("tag"):
                return tagging.retag(repo, repo.snapshots()[0], ["tagged"])

        scheduler = Scheduler(world.storage)
        scheduler.add("tag", retag)
        scheduler.add("prune", world.prune(*PRUNES[how]))
        actors = scheduler.run([Turn("prune", prune_at), Turn("tag", tag_at), Turn("prune", 1000), Turn("tag", 1000)])
        assert actors["tag"].error is None
        assert read_back(world.repo("looks"), actors["tag"].result) == TREES["kept"]
        assert check(world.repo("looks"), read_data=1).good


def test_a_schedule_is_followed_to_the_letter() -> None:
    scheduler, seen = Scheduler(MemoryStorage()), list[str]()

    def work(name: str, storage: Storage) -> None:
        for number in range(3):
            list(storage.list("keys"))
            seen.append(f"{name}{number}")

    for name in "ab":
        scheduler.add(name, functools.partial(work, name))
    turns = [Turn("a", 3), Turn("b", 2), Turn(act=lambda: seen.append("between")), Turn("a", 5), Turn("b", 1)]
    actors = scheduler.run(turns)
    assert [a.calls for a in actors.values()] == [4, 4]
    assert seen == ["a0", "a1", "b0", "between", "a2", "b1", "b2"]


def test_who_is_killed_does_nothing_more() -> None:
    storage = MemoryStorage()
    scheduler = Scheduler(storage)

    def work(storage: Storage) -> None:
        for number in range(5):
            storage.put(f"locks/{number:064x}", [b""])

    scheduler.add("a", work)
    actors = scheduler.run([Turn("a", 3), Turn("a", 1, kill=True)])
    assert isinstance(actors["a"].error, HoldfastError) and len(storage.objects) == 2
