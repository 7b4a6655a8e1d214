"""Who is at work, and what is going to be deleted: the leases and condemned lists under ``locks/``.

Nobody waits for anybody. Somebody at work holds a lease, which he refreshes; prune condemns packs by a list, and a
later sweep deletes them only when no lease is left that might not know the list. A lease names the lists its holder
knows, so no clocks are compared for that; ages are taken from the storage's own times. A lease is over when its
holder dropped it, when it was not refreshed for LEASE_LIFE_S, or when its process is known to have ended on this very
machine. A storage that tells no times leaves the one the writer noted, by his own clock.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from holdfast.errors import Busy, Damaged, ObjectMissing, StorageDenied, StorageError
from holdfast.repository.crypto import Secrets, object_digest
from holdfast.repository.format import NO_SENSE, Condemned, Lease
from holdfast.storage.base import ObjectInfo, Storage
from holdfast.storage.wrappers import hurry

PURPOSE = b"locks"
LEASE_LIFE_S = 30 * 60
REFRESH_S = 5 * 60
EXCLUSIVE = "prune"  # the one work that two may not do at once


@dataclass(frozen=True)
class Owner:
    """Who works here: for leases and snapshots. ``ended`` tells of a lease that its process is surely gone."""

    host: str
    user: str
    process: str
    boot: str
    ended: Callable[[Lease], bool]


@dataclass
class Locks:
    """What lies under ``locks/``: leases that are not over, leases that are, condemned lists, when each was stored, and
    damaged ones with a sentence. A damaged one counts as a lease of somebody unknown, for it may be one.
    """

    live: dict[str, Lease]
    over: dict[str, Lease]
    condemned: dict[str, Condemned]
    stored_ns: dict[str, int]
    damaged: dict[str, str]

    def condemned_packs(self) -> set[bytes]:
        return {pack for c in self.condemned.values() for pack in c.packs}


class Hold:
    """A lease held. ``knows``: the condemned lists its holder treats as absent. ``started_ns``: by the storage's clock
    as soon as it is known.
    """

    def __init__(self, leases: Leases, work: str) -> None:
        self._leases, self._work = leases, work
        self._name = ""
        self._put_ns = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.knows: frozenset[str] = frozenset()
        self.started_ns = leases.now_ns()
        self.after_s = 0.0

    @property
    def name(self) -> str:
        return self._name

    def put(self, knows: frozenset[str]) -> None:
        """Store the lease anew, with what is known now, and drop its older form."""
        with self._lock:
            if self._stop.is_set():
                return
            old, self.knows, now = self._name, knows, self._leases.now_ns()
            self._name = self._leases.put(self._work, self.started_ns, knows)
            self._put_ns = now
            if old:
                self._leases.storage.delete(old)
            else:
                with contextlib.suppress(StorageError):
                    self.started_ns = self._leases.storage.stat(self._name).stored_ns or self.started_ns

    def need(self) -> None:
        """Busy when the lease was not refreshed for so long that others may soon take it for over, or have done so."""
        if abs(self._leases.now_ns() - self._put_ns) > LEASE_LIFE_S * 1_000_000_000 // 2:
            raise Busy(f"This {self._work} was asleep for too long: somebody else may be at work.", "Run it again.")

    def refresh_until_dropped(self) -> None:
        wait_s = self.after_s or REFRESH_S
        while not self._stop.wait(wait_s):
            wait_s = REFRESH_S
            with contextlib.suppress(StorageError):  # tried again in time; a lapsed lease costs a check, not data
                self.put(self.knows)

    def drop(self) -> None:
        self._stop.set()
        with self._lock, contextlib.suppress(StorageError):
            if self._name:
                self._leases.storage.delete(self._name)
            self._name = ""


class Leases:
    """Takes and reads leases and condemned lists of one storage."""

    def __init__(self, storage: Storage, secrets: Secrets, owner: Owner, now_ns: Callable[[], int]) -> None:
        self.storage, self._secrets, self._owner, self.now_ns = storage, secrets, owner, now_ns

    @contextlib.contextmanager
    def hold(self, work: str, *, needed: bool = True, after_s: float = 0) -> Iterator[Hold]:
        """Hold a lease for the time of the block. Not ``needed``: a storage that cannot be written to is fine.
        ``after_s``: it is put only when the block has lasted for so long.
        """
        hold = Hold(self, work)
        hold.after_s = after_s
        try:
            if not after_s:
                hold.put(frozenset())
        except StorageError:
            if needed:
                raise
            yield hold
            return
        refresher = threading.Thread(target=hold.refresh_until_dropped, name="lease", daemon=True)
        refresher.start()
        try:
            yield hold
        except BaseException:
            hurry(self.storage)  # a lease ends by itself: nobody waits for a storage that is gone, once more
            raise
        finally:
            hold.drop()

    @contextlib.contextmanager
    def hold_alone(self, work: str = EXCLUSIVE) -> Iterator[Hold]:
        """Hold the exclusive lease, or raise Busy naming who holds it. Of two at once, one or both give way."""
        with self.hold(work) as hold:
            for name, lease in self.survey().live.items():
                if name != hold.name and lease.work == work:
                    raise Busy(f"A {work} is running already, {describe(lease)}.", "Wait until it has ended.")
            yield hold

    def put(self, work: str, started_ns: int, knows: frozenset[str]) -> str:
        lease = Lease(
            work=work,
            host=self._owner.host,
            process=self._owner.process,
            boot=self._owner.boot,
            started_ns=started_ns,
            knows=[bytes.fromhex(n[6:]) for n in sorted(knows)],
            put_ns=self.now_ns(),
        )
        return self._put(lease)

    def condemn(self, packs: list[bytes], deadline_s: int) -> str:
        """Store a condemned list; its name."""
        return self._put(Condemned(packs=packs, deadline_s=deadline_s, host=self._owner.host, put_ns=self.now_ns()))

    def _put(self, content: Lease | Condemned) -> str:
        data = self._secrets.share(PURPOSE, msgspec.msgpack.encode(content))
        name = f"locks/{object_digest([data]).hex()}"
        self.storage.put(name, [data])
        return name

    def survey(self) -> Locks:
        """Read everything under ``locks/``. Times are compared with the newest one the storage gave."""
        found: dict[str, tuple[ObjectInfo, Lease | Condemned | None]] = {}
        damaged: dict[str, str] = {}
        gone: set[str] = set()
        while True:
            vanished = set()
            for info in [i for i in self.storage.list("locks") if i.name not in found]:
                try:
                    found[info.name] = info, self._read(info.name)
                except ObjectMissing:
                    vanished.add(info.name)
                except Damaged as e:
                    found[info.name], damaged[info.name] = (info, None), str(e)
            if vanished <= gone:
                break
            gone |= vanished  # a lease that was refreshed meanwhile has another name now: look again
        stored = {i.name: i.stored_ns or (content.put_ns if content else 0) for i, content in found.values()}
        newest = max(stored.values(), default=0)
        locks = Locks({}, {}, {}, stored, damaged)
        for info, content in found.values():
            if isinstance(content, Condemned):
                locks.condemned[info.name] = content
                continue
            lease = content or Lease(work="something", host="?", process="", boot="", started_ns=stored[info.name])
            lapsed = stored[info.name] > 0 and newest - stored[info.name] > LEASE_LIFE_S * 1_000_000_000
            (locks.over if lapsed or self._owner.ended(lease) else locks.live)[info.name] = lease
        return locks

    def _read(self, name: str) -> Lease | Condemned:
        data = self.storage.get(name)
        if object_digest([data]).hex() != name[6:]:
            raise Damaged(f"The lock object {name} does not have the content its name says.")
        plain = self._secrets.open_shared(PURPOSE, data, f"The lock object {name}")
        try:
            return msgspec.msgpack.decode(plain, type=Lease | Condemned)
        except NO_SENSE:
            raise Damaged(f"The lock object {name} cannot be understood.") from None


def describe(lease: Lease) -> str:
    """Who holds a lease, for people."""
    return f"{lease.work} on {lease.host}, process {lease.process.rpartition('/')[0].rpartition('/')[2] or '?'}"


def clear_ended(storage: Storage, locks: Locks) -> None:
    """Delete the leases that are over; a storage that refuses keeps them."""
    for name in locks.over:
        with contextlib.suppress(StorageDenied):
            storage.delete(name)
