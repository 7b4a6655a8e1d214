"""Objects that nobody can delete or change for some days, not even who has all credentials: S3's Object Lock.

A storage that was opened with HOLDFAST_S3_LOCK_DAYS locks every object from the moment it is stored, by the server's
clock, but for the leases below ``locks/``, which must go when they end. HOLDFAST_S3_LOCK_MODE is COMPLIANCE (nobody can
end a lock early) or GOVERNANCE (whoever has a permission of its own can). Only a bucket that was made with Object Lock
can do this. ``extend_locks`` keeps locked what is still in use.

What a lock keeps is a version of an object. Deleting its name hides it, and storing the name anew lays another version
over it: both can be undone with the server's own tools while the lock lasts, and neither frees space before it ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, runtime_checkable

from holdfast.errors import UsageError
from holdfast.storage.base import Storage
from holdfast.storage.select import Access
from holdfast.storage.wrappers import Passing

_DAYS, _MODE = "HOLDFAST_S3_LOCK_DAYS", "HOLDFAST_S3_LOCK_MODE"
_MODES = ("COMPLIANCE", "GOVERNANCE")
_MOST_DAYS = 36500


@dataclass(frozen=True)
class Lock:
    """How objects are locked. ``days``: from the moment an object is stored; 0 where none is."""

    days: int = 0
    mode: str = "COMPLIANCE"

    def holds(self, name: str) -> bool:
        """Whether an object of this name is locked."""
        return self.days > 0 and not name.startswith("locks/")


@runtime_checkable
class Lockable(Protocol):
    """A storage that knows Object Lock."""

    def locked_until(self, name: str) -> datetime | None:
        """When an object's lock ends; None when it has none. ObjectMissing when it is not there."""
        ...

    def lock(self, name: str, until: datetime) -> None:
        """Lock an object until then. A lock in compliance mode can only become longer; StorageDenied otherwise."""
        ...


def lock_of(access: Access) -> Lock:
    """What the variables say about locks."""
    days, mode = access.get(_DAYS), access.get(_MODE).upper() or _MODES[0]
    if days and not (days.isascii() and days.isdigit() and len(days) < 9 and 0 < int(days) <= _MOST_DAYS):
        raise UsageError(f"{_DAYS} is {days!r}.", f"Set it to a number of days from 1 to {_MOST_DAYS}.")
    if mode not in _MODES:
        raise UsageError(f"{_MODE} is {mode!r}.", f"Set it to {' or '.join(_MODES)}.")
    return Lock(int(days or 0), mode)


def extend_locks(storage: Storage, names: Iterable[str], days: int, now: datetime) -> int:
    """Have each of these objects locked at least until ``days`` after ``now``; how many had to be extended.

    It can be done again after an error: what was extended stays so. ``now`` knows its zone.
    """
    if not 0 < days <= _MOST_DAYS:
        raise UsageError(f"Objects cannot be locked for {days} days.", f"Give 1 to {_MOST_DAYS} days.")
    lockable, until, extended = _lockable(storage), now + timedelta(days=days), 0
    for name in names:
        ends = lockable.locked_until(name)
        if ends is None or ends < until:
            lockable.lock(name, until)
            extended += 1
    return extended


def _lockable(storage: Storage) -> Lockable:
    """The storage behind all that stands before it, when it knows Object Lock."""
    while isinstance(storage, Passing):
        storage = storage.inner
    if not isinstance(storage, Lockable):
        raise UsageError(f"{storage.place} has no Object Lock.", "Only buckets of S3 have it.")
    return storage
