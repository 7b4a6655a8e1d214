"""Changing a snapshot's tags. Objects never change, so a snapshot with other tags is a new object."""

from __future__ import annotations

import msgspec

from holdfast.repository.repository import Repository
from holdfast.repository.snapshots import Stored, put_snapshot


def retag(repo: Repository, stored: Stored, tags: list[str]) -> str:
    """Store the snapshot with these tags, then delete its old object; the new id. Interrupted in between, both are
    there: never none. ``original`` keeps the id it had first. A lease must be held, or prune could look in between.
    """
    old = stored.snapshot
    changed = msgspec.structs.replace(old, tags=tags, original=old.original or stored.id)
    new_id = put_snapshot(repo.storage, repo.secrets, changed)
    repo.storage.delete(f"snapshots/{stored.id}")
    return new_id
