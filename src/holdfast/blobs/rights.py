"""Who may do what in a bucket.

What is promised: to whom nothing was granted a bucket is not there. Its owner and administrators may everything;
others what was granted to them or to everyone: ``read`` a blob whose key they know, ``write`` and delete, ``list`` what
there is, ``admin`` for changing the bucket itself.
"""

from __future__ import annotations

from typing import NamedTuple

from holdfast.accounts.directory import Identity
from holdfast.blobs.names import is_bucket, no_bucket
from holdfast.catalog import blobs as rows
from holdfast.catalog.blobs import Bucket
from holdfast.catalog.database import Connection
from holdfast.errors import Forbidden

READ, WRITE, LIST, ADMIN = "read", "write", "list", "admin"
ACTS = (READ, WRITE, LIST, ADMIN)
READS, WRITES = "blobs:read", "blobs:write"
_DOING = {READ: "read", WRITE: "change", LIST: "list", ADMIN: "administer"}


class Seen(NamedTuple):
    """A bucket as somebody sees it, and what he may do in it."""

    bucket: Bucket
    acts: frozenset[str]

    def demand(self, act: str) -> Bucket:
        if act not in self.acts:
            raise Forbidden(f"You may not {_DOING[act]} the bucket {self.bucket.name!r}.", "Its owner can grant that.")
        return self.bucket


def see(c: Connection, by: Identity, name: str) -> Seen:
    """The bucket, and what he may. NoContent when it is not there, or not for him."""
    bucket = rows.bucket_named(c, name) if is_bucket(name) else None
    if bucket is not None:
        acts = acts_in(c, by, bucket)
        if acts:
            return Seen(bucket, acts)
    raise no_bucket(name)


def acts_in(c: Connection, by: Identity, bucket: Bucket) -> frozenset[str]:
    if bucket.account == by.account or "admin" in by.scopes:
        return frozenset(ACTS)
    return rows.allowed(c, bucket.id, by.account)
