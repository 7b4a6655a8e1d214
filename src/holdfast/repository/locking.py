"""Objects on a storage that locks them for some days: the locks of what a snapshot needs are made to last.

A lock counts from the moment its object was stored. What an old backup stored and a new snapshot relies on must be
locked anew, or it could be deleted earlier than the snapshot may be.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from holdfast.repository.repository import Repository
from holdfast.storage.base import CONFIG
from holdfast.storage.object_lock import extend_locks


def keep_locked(repo: Repository, snapshot_id: str, packs: Iterable[bytes], days: int) -> int:
    """Have a snapshot, these packs that it needs, the index, the keys and the config locked for so many days from now;
    how many of them had to be locked anew. UsageError where the storage cannot lock.
    """
    storage = repo.storage
    names = [CONFIG, *(f"data/{pack.hex()}" for pack in packs)]
    names += [info.name for folder in ("keys", "index") for info in storage.list(folder)]
    if snapshot_id:
        names.append(f"snapshots/{snapshot_id}")
    return extend_locks(storage, names, days, datetime.fromtimestamp(repo.now_ns() / 1e9, UTC))
