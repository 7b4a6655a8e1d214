"""Storages for tests: one in memory, one that misbehaves as planned, one that counts.

``MemoryStorage`` is the contract of ``holdfast.storage.base`` in a dictionary. ``Misbehaving`` stands before any
storage and does what a plan says: ``Misbehaving(inner, [fails("put", 3), truncates(1)])``; the faults there are stand
at the end. ``Counting`` notes every call.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from holdfast.errors import ObjectExists, ObjectMissing, StorageError, StorageFull, StorageUnavailable
from holdfast.storage import wrappers
from holdfast.storage.base import Buffer, ObjectInfo, Storage, check_folder, check_name, check_range

T = TypeVar("T")

KINDS = ("put", "get", "list", "stat", "delete", "free_space")
WRITES = ("put", "delete")
READS = ("get", "list", "stat")
_Infos = list[ObjectInfo]  # inside the classes ``list`` is a method


class MemoryStorage:
    """The contract in memory. ``now_ns`` is its clock, to be set; ``capacity``: bytes it holds at most, None: any."""

    lists_late = False

    def __init__(self, place: str = "memory", *, now_ns: int = 1_700_000_000_000_000_000) -> None:
        self._place, self.now_ns = place, now_ns
        self._objects: dict[str, tuple[bytes, int]] = {}
        self._lock = threading.Lock()
        self.capacity: int | None = None

    @property
    def place(self) -> str:
        return self._place

    @property
    def connections(self) -> int:
        return 1

    def create(self) -> None:
        """Nothing to make; as other storages have it."""

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        check_name(name)
        data = b"".join(memoryview(p).cast("B") for p in parts)
        with self._lock:
            if name in self._objects:
                raise ObjectExists(f"{name} is in {self._place} already.")
            if self.capacity is not None and self._used() + len(data) > self.capacity:
                raise StorageFull(f"{self._place}: {name}: no space left.")
            self._objects[name] = data, self.now_ns

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        check_range(start, length)
        data = self._object(name)[0]
        end = len(data) if length is None else start + length
        if not start <= end <= len(data):
            raise StorageError(f"{name} in {self._place} ends before byte {max(start, end)}: it is truncated.")
        return data[start:end]

    def list(self, folder: str) -> Iterator[ObjectInfo]:
        check_folder(folder)
        with self._lock:
            found = [ObjectInfo(n, len(d), t) for n, (d, t) in self._objects.items() if n.startswith(folder + "/")]
        return iter(found)

    def stat(self, name: str) -> ObjectInfo:
        data, stored_ns = self._object(name)
        return ObjectInfo(name, len(data), stored_ns)

    def delete(self, name: str) -> None:
        check_name(name)
        with self._lock:
            self._objects.pop(name, None)

    def free_space(self) -> int | None:
        with self._lock:
            return None if self.capacity is None else self.capacity - self._used()

    def close(self) -> None:
        """There is nothing open."""

    # -- for tests -------------------------------------------------------------------------------------------------

    @property
    def objects(self) -> dict[str, bytes]:
        """A copy of everything stored, by name."""
        with self._lock:
            return {name: data for name, (data, _) in self._objects.items()}

    def copy(self) -> MemoryStorage:
        """Another memory with the same objects in it."""
        other = MemoryStorage(self._place, now_ns=self.now_ns)
        with self._lock:
            other._objects = dict(self._objects)
        return other

    def overwrite(self, name: str, data: bytes) -> None:
        """What no storage may do: change an object under its name, to see whether anybody notices."""
        with self._lock:
            self._objects[name] = data, self.now_ns

    def age(self, name: str, by_ns: int) -> None:
        """Make an object older."""
        with self._lock:
            data, stored_ns = self._objects[name]
            self._objects[name] = data, stored_ns - by_ns

    def _object(self, name: str) -> tuple[bytes, int]:
        check_name(name)
        with self._lock:
            try:
                return self._objects[name]
            except KeyError:
                raise ObjectMissing(f"{name} is not in {self._place}.") from None

    def _used(self) -> int:
        return sum(len(data) for data, _ in self._objects.values())


class Passing(wrappers.Passing):
    """A storage that hands every call to another one through ``_pass``, for subclasses to do something about it."""

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        size = sum(memoryview(p).nbytes for p in parts)
        self._pass("put", name, size, lambda: self.inner.put(name, parts))

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        return self._pass("get", name, 0, lambda: self.inner.get(name, start, length))

    def list(self, folder: str) -> Iterator[ObjectInfo]:
        return iter(self._pass("list", folder, 0, lambda: list_of(self.inner, folder)))

    def stat(self, name: str) -> ObjectInfo:
        return self._pass("stat", name, 0, lambda: self.inner.stat(name))

    def delete(self, name: str) -> None:
        self._pass("delete", name, 0, lambda: self.inner.delete(name))

    def free_space(self) -> int | None:
        return self._pass("free_space", "", 0, self.inner.free_space)

    def _pass(self, kind: str, subject: str, size: int, act: Callable[[], T]) -> T:
        return act()


def list_of(storage: Storage, folder: str) -> _Infos:
    """A listing, gone through at once."""
    return [*storage.list(folder)]


class Noted(NamedTuple):
    """A call that was made: its kind, the name or folder, bytes put or got."""

    kind: str
    subject: str
    size: int


class Counting(Passing):
    """Notes what is asked of the storage behind it: ``log`` in order, ``calls`` by kind, bytes put and got."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.log: list[Noted] = []
        self.calls: Counter[str] = Counter()
        self.bytes_put = self.bytes_got = 0
        self._lock = threading.Lock()

    def _pass(self, kind: str, subject: str, size: int, act: Callable[[], T]) -> T:
        answer = act()
        got = len(answer) if isinstance(answer, bytes) else 0
        with self._lock:
            self.log.append(Noted(kind, subject, size or got))
            self.calls[kind] += 1
            self.bytes_put += size
            self.bytes_got += got
        return answer


class Call(NamedTuple):
    """A call a fault may act on. ``subject``: the object's name, or the folder of a list."""

    storage: Misbehaving
    kind: str
    subject: str


def _answers(call: Call, answer: Any) -> Any:
    return answer


@dataclass(frozen=True)
class Fault:
    """What goes wrong with which calls: the ``nth`` (from 1) of those ``kinds`` in that ``folder`` (empty: any), and
    the following up to ``times`` (None: for ever). ``before`` runs before the real call and may raise instead of it;
    ``after`` runs when it was done, and may raise (the answer is lost) or give another answer.
    """

    kinds: tuple[str, ...]
    nth: int = 1
    times: int | None = 1
    folder: str = ""
    before: Callable[[Call], None] = field(default=lambda call: None)
    after: Callable[[Call, Any], Any] = field(default=_answers)

    def counts(self, kind: str, subject: str) -> bool:
        return kind in self.kinds and (not self.folder or subject.partition("/")[0] == self.folder)

    def hits(self, number: int) -> bool:
        return number >= self.nth and (self.times is None or number < self.nth + self.times)


class Misbehaving(Passing):
    """Does to the storage behind it what the plan says.

    Power: a put is seen by others before it is durable, a delete likewise. ``cuts_power`` ends in between; then every
    call is StorageUnavailable until ``power_on``, which takes back what was not durable. ``cache``: so many of the last
    acknowledged writes are not durable either (a disk that lies about flushing).
    """

    def __init__(self, inner: Storage, plan: Iterable[Fault] = (), *, cache: int = 0) -> None:
        super().__init__(inner)
        self.plan = list(plan)
        self.steps: list[Noted] = []
        self._seen = [0] * len(self.plan)
        self._lock = threading.RLock()
        self._powered = True
        self._cache = cache
        self._volatile: list[_Write] = []
        self._writes: list[_Write] = []  # all of them, oldest first: what a stale listing takes back

    def _pass(self, kind: str, subject: str, size: int, act: Callable[[], T]) -> T:
        faults = self._count(kind, subject, size)
        call = Call(self, kind, subject)
        for fault in faults:
            fault.before(call)
        self._need_power()
        write = self._begin(kind, subject)
        answer = act()
        if write:
            with self._lock:
                self._writes.append(write)
                self._volatile.append(write)
        for fault in faults:
            answer = fault.after(call, answer)
        if write:
            with self._lock:
                self._need_power()
                write.acknowledged = True
                known = [w for w in self._volatile if w.acknowledged]
                for old in known[: len(known) - self._cache]:
                    self._volatile.remove(old)
        return answer

    def _count(self, kind: str, subject: str, size: int) -> list[Fault]:
        hit = []
        with self._lock:
            self.steps.append(Noted(kind, subject, size))
            for i, fault in enumerate(self.plan):
                if fault.counts(kind, subject):
                    self._seen[i] += 1
                    if fault.hits(self._seen[i]):
                        hit.append(fault)
        return hit

    def _begin(self, kind: str, subject: str) -> _Write | None:
        """What is needed to take a write back."""
        if kind == "put":
            return _Write(subject, None, None)
        if kind != "delete":
            return None
        try:
            return _Write(subject, self.inner.stat(subject), self.inner.get(subject))
        except ObjectMissing:
            return None

    def _need_power(self) -> None:
        if not self._powered:
            raise StorageUnavailable(f"{self.place}: the power is off.")

    # -- what faults and tests do ----------------------------------------------------------------------------------

    def power_off(self) -> None:
        """From now on every call fails, also those under way."""
        with self._lock:
            self._powered = False

    def power_on(self, survives: Callable[[str], bool] = lambda name: False) -> None:
        """Go on with what was durable; of the rest with what ``survives`` says."""
        with self._lock:
            volatile, self._volatile = self._volatile, []
            for write in reversed(volatile):
                if not survives(write.name):
                    write.take_back(self.inner)
                    self._writes.remove(write)
            self._powered = True

    def make_durable(self, name: str) -> None:
        """What was written under that name survives a power cut from now on."""
        with self._lock:
            self._volatile = [w for w in self._volatile if w.name != name]

    def stale(self, folder: str, infos: _Infos, lag: int) -> _Infos:
        """A listing as it was ``lag`` writes ago."""
        found = {info.name: info for info in infos}
        with self._lock:
            for write in reversed(self._writes[max(0, len(self._writes) - lag) :]):
                if write.old is None:
                    found.pop(write.name, None)
                elif write.name.startswith(folder + "/"):
                    found[write.name] = write.old
        return [*found.values()]


@dataclass(eq=False)
class _Write:
    """A put (``old`` None) or a delete of what was there."""

    name: str
    old: ObjectInfo | None
    content: bytes | None
    acknowledged: bool = False

    def take_back(self, inner: Storage) -> None:
        if self.content is None:
            inner.delete(self.name)
        else:
            inner.put(self.name, [self.content])


# -- the faults there are --------------------------------------------------------------------------------------------


def _kinds(kind: str) -> tuple[str, ...]:
    """A kind, ``write``, ``read`` or ``any``."""
    return {"write": WRITES, "read": READS, "any": KINDS}.get(kind, (kind,))


def fails(
    kind: str,
    nth: int = 1,
    error: type[StorageError] = StorageUnavailable,
    *,
    times: int | None = 1,
    folder: str = "",
) -> Fault:
    """The call is not done; it raises ``error``."""

    def refuse(call: Call) -> None:
        raise error(f"{call.storage.place}: {call.kind} {call.subject} failed as planned.")

    return Fault(_kinds(kind), nth, times, folder, before=refuse)


def loses_answer(kind: str, nth: int = 1, *, times: int | None = 1, folder: str = "") -> Fault:
    """The call is done, and yet raises StorageUnavailable."""

    def lose(call: Call, answer: Any) -> Any:
        raise StorageUnavailable(f"{call.storage.place}: no answer to {call.kind} {call.subject}.")

    return Fault(_kinds(kind), nth, times, folder, after=lose)


def says_missing(kind: str = "get", nth: int = 1, *, times: int | None = 1, folder: str = "") -> Fault:
    """An object that is there is said to be missing; a list leaves everything out."""

    def deny(call: Call, answer: Any) -> Any:
        if call.kind == "list":
            return []
        raise ObjectMissing(f"{call.subject} is not in {call.storage.place}.")

    return Fault(_kinds(kind), nth, times, folder, after=deny)


def says_exists(nth: int = 1, *, times: int | None = 1, folder: str = "") -> Fault:
    """A put stores nothing and says that the object is there already."""
    return fails("put", nth, ObjectExists, times=times, folder=folder)


def truncates(nth: int = 1, by: int = 1, *, times: int | None = 1, folder: str = "") -> Fault:
    """A get gives ``by`` bytes fewer, without a word."""
    return Fault(("get",), nth, times, folder, after=lambda call, data: data[: max(0, len(data) - by)])


def flips_bit(nth: int = 1, bit: int = 0, *, times: int | None = 1, folder: str = "") -> Fault:
    """A get gives one bit wrong; ``bit`` is taken modulo the length."""

    def flip(call: Call, data: bytes) -> bytes:
        if not data:
            return data
        at = bit % (8 * len(data))
        changed = bytearray(data)
        changed[at // 8] ^= 1 << at % 8
        return bytes(changed)

    return Fault(("get",), nth, times, folder, after=flip)


def is_slow(kind: str, seconds: float, nth: int = 1, *, times: int | None = None, folder: str = "") -> Fault:
    """The call takes so much longer."""
    return Fault(_kinds(kind), nth, times, folder, before=lambda call: time.sleep(seconds))


def does(kind: str, act: Callable[[], object], nth: int = 1, *, moment: str = "before", folder: str = "") -> Fault:
    """Something else happens just ``before`` or ``after`` the call: another process's work, ``os._exit``."""

    def before(call: Call) -> None:
        act()

    def after(call: Call, answer: Any) -> Any:
        act()
        return answer

    if moment == "before":
        return Fault(_kinds(kind), nth, 1, folder, before=before)
    return Fault(_kinds(kind), nth, 1, folder, after=after)


def breaks_listing(nth: int = 1, after: int = 1, *, times: int | None = 1, folder: str = "") -> Fault:
    """A list gives that many names and then raises StorageUnavailable."""

    def cut(call: Call, infos: _Infos) -> Iterator[ObjectInfo]:
        yield from infos[:after]
        raise StorageUnavailable(f"{call.storage.place}: the listing of {call.subject} broke off.")

    return Fault(("list",), nth, times, folder, after=cut)


def lists_stale(lag: int, nth: int = 1, *, times: int | None = None, folder: str = "") -> Fault:
    """A list does not know the last ``lag`` writes yet: new objects are absent, deleted ones are there."""
    return Fault(("list",), nth, times, folder, after=lambda call, infos: call.storage.stale(call.subject, infos, lag))


def cuts_power(kind: str = "put", nth: int = 1, *, moment: str = "written", folder: str = "") -> Fault:
    """The power goes ``before`` the call, when it is ``written`` but not durable, or when it is ``durable`` and only
    the answer is missing. See Misbehaving for what follows.
    """

    def before(call: Call) -> None:
        call.storage.power_off()

    def written(call: Call, answer: Any) -> Any:
        call.storage.power_off()
        raise StorageUnavailable(f"{call.storage.place}: the power went.")

    def durable(call: Call, answer: Any) -> Any:
        call.storage.make_durable(call.subject)
        return written(call, answer)

    if moment == "before":
        return Fault(_kinds(kind), nth, 1, folder, before=before)
    return Fault(_kinds(kind), nth, 1, folder, after={"written": written, "durable": durable}[moment])
