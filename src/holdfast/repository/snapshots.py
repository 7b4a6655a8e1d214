"""Snapshots: one sealed object each, the one commit point of a backup. Found by id prefix, ``latest``, and filters."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from holdfast.errors import Damaged, ObjectMissing, SnapshotMissing, UsageError
from holdfast.repository.crypto import Secrets, object_digest
from holdfast.repository.format import NO_SENSE, Snapshot
from holdfast.storage.base import Storage
from holdfast.storage.parallel import answers

PURPOSE = b"snapshot"
SHORT = 8
INTERNAL = "holdfast:"  # tags that begin so are the server's: what has one is only seen by who asks for that tag
_REPAIR = "`holdfast check` says what is lost; `holdfast repair snapshots` removes what cannot be read."
_PREFIX = re.compile(r"[0-9a-f]{1,64}\Z")


class Stored(NamedTuple):
    """A snapshot and its id (64 hex digits: the object's name)."""

    id: str
    snapshot: Snapshot

    @property
    def short(self) -> str:
        return self.id[:SHORT]


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which snapshots count: any of the hosts, any of the paths, all tags of any of the tag lists. Empty: all but those
    with a tag that is the server's own.
    """

    hosts: tuple[str, ...] = ()
    paths: tuple[bytes, ...] = ()
    tags: tuple[tuple[str, ...], ...] = ()

    def matches(self, snapshot: Snapshot) -> bool:
        if self.hosts and snapshot.host not in self.hosts:
            return False
        if self.paths and not set(self.paths) & {*snapshot.paths, snapshot.base}:
            return False
        if not self.tags:
            return not any(tag.startswith(INTERNAL) for tag in snapshot.tags)
        return any(set(wanted) <= set(snapshot.tags) for wanted in self.tags)


def put_snapshot(storage: Storage, secrets: Secrets, snapshot: Snapshot) -> str:
    """Seal, open again where the key can, store; the id."""
    data = secrets.seal(PURPOSE, msgspec.msgpack.encode(snapshot))
    if secrets.can_read:
        secrets.open_sealed(PURPOSE, data, "The new snapshot")
    digest = object_digest([data]).hex()
    storage.put(f"snapshots/{digest}", [data])
    return digest


def read_snapshot(storage: Storage, secrets: Secrets, snapshot_id: str) -> Snapshot:
    """One snapshot, verified."""
    name = f"snapshots/{snapshot_id}"
    data = storage.get(name)
    if object_digest([data]).hex() != snapshot_id:
        raise Damaged(f"The snapshot object {name} does not have the content its name says.", _REPAIR)
    plain = secrets.open_sealed(PURPOSE, data, f"The snapshot {snapshot_id[:SHORT]}")
    try:
        return msgspec.msgpack.decode(plain, type=Snapshot)
    except NO_SENSE:
        raise Damaged(f"The snapshot {snapshot_id[:SHORT]} cannot be understood.", _REPAIR) from None


def read_snapshots(storage: Storage, secrets: Secrets, damaged: list[str] | None = None) -> list[Stored]:
    """Every snapshot, oldest first. Damaged ones raise, or are named in ``damaged`` when it is given."""
    found: dict[str, Stored | None] = {}
    gone: set[str] = set()
    while True:
        vanished = set()
        new = [i.name[10:] for i in storage.list("snapshots") if i.name[10:] not in found]
        with contextlib.closing(answers(storage, new, functools.partial(read_snapshot, storage, secrets))) as read:
            for snapshot_id, snapshot in read:
                try:
                    found[snapshot_id] = Stored(snapshot_id, snapshot())
                except ObjectMissing:
                    vanished.add(snapshot_id)
                except Damaged as e:
                    if damaged is None:
                        raise
                    damaged.append(str(e))
                    found[snapshot_id] = None
        if vanished <= gone:
            return sorted((s for s in found.values() if s), key=lambda s: (s.snapshot.time_ns, s.id))
        gone |= vanished  # forgotten meanwhile, or under another name now (tags changed): look again


def choose(snapshots: Iterable[Stored], name: str) -> Stored:
    """The one that ``latest`` or an id's beginning names."""
    ordered = list(snapshots)
    if name == "latest":
        if not ordered:
            raise SnapshotMissing("There is no snapshot yet that fits.", "Make one with `holdfast backup`.")
        return ordered[-1]
    if not _PREFIX.match(name):
        raise UsageError(f"{name!r} is not a snapshot: give `latest` or the beginning of an id.")
    fitting = [s for s in ordered if s.id.startswith(name)]
    if len(fitting) > 1:
        raise UsageError(f"{len(fitting)} snapshots begin with {name}: give more digits.")
    if not fitting:
        raise SnapshotMissing(f"No snapshot begins with {name}.", "`holdfast snapshots` lists them.")
    return fitting[0]


def series(snapshots: Iterable[Stored], host: str, paths: Iterable[bytes]) -> Iterator[Stored]:
    """Those of the same host and paths, in order."""
    wanted = sorted(paths)
    return (s for s in snapshots if s.snapshot.host == host and sorted(s.snapshot.paths) == wanted)
