"""The tables as they are now. ``migrations/`` says how they came to be; a test holds the two together.

Times are nanoseconds since 1970 (UTC), as everywhere in Holdfast. Secrets are never here: passwords as Argon2id,
tokens, session keys, clients' secrets and codes as SHA-256 of 256 random bits (the code that people type has fewer, and
lives for minutes).
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # only INTEGER counts up by itself in SQLite


def _account(*, nullable: bool = False) -> sa.Column[int]:
    """Whose it is; it goes with the account."""
    there = sa.ForeignKey("accounts.id", ondelete="CASCADE")
    return sa.Column("account", Number, there, nullable=nullable, index=True)


accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", Number, primary_key=True),
    sa.Column("username", sa.Text, nullable=False, unique=True),
    sa.Column("email", sa.Text, nullable=False, server_default=""),
    sa.Column("name", sa.Text, nullable=False, server_default=""),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("password", sa.Text, nullable=False),  # Argon2id, in PHC form
    sa.Column("disabled", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
    sa.Column("quota_bytes", sa.BigInteger),  # null: no limit
    sa.Column("quota_objects", sa.BigInteger),
    sa.Column("used_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("used_objects", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("deletions", sa.BigInteger, nullable=False, server_default="0"),  # how often it deleted manifests
    sa.CheckConstraint("role IN ('admin', 'user')", name="role"),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", Number, primary_key=True),
    _account(),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("scopes", sa.Text, nullable=False),  # with one space between
    sa.Column("created_ns", sa.BigInteger, nullable=False),
    sa.Column("expires_ns", sa.BigInteger),  # null: never
    sa.Column("used_ns", sa.BigInteger),  # about when it was used last; null: never
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("digest", sa.LargeBinary, primary_key=True),
    _account(),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
    sa.Column("expires_ns", sa.BigInteger, nullable=False, index=True),
)

attempts = sa.Table(  # log-ins that failed
    "attempts",
    metadata,
    sa.Column("subject", sa.Text, primary_key=True),
    sa.Column("failures", sa.BigInteger, nullable=False),
    sa.Column("last_ns", sa.BigInteger, nullable=False, index=True),
)

audit = sa.Table(  # who did what; it outlives the account
    "audit",
    metadata,
    sa.Column("id", Number, primary_key=True),
    sa.Column("at_ns", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False, server_default=""),
)

subjects = sa.Table(  # whom an OpenID Connect provider means by what
    "subjects",
    metadata,
    sa.Column("issuer", sa.Text, primary_key=True),
    sa.Column("subject", sa.Text, primary_key=True),
    _account(),
)


# -- OAuth2 ------------------------------------------------------------------------------------------------------------


def _client() -> sa.Column[str]:
    """Which program it was given to; it goes with that."""
    return sa.Column("client", sa.Text, sa.ForeignKey("clients.id", ondelete="CASCADE"), nullable=False, index=True)


def _family(*, nullable: bool = False) -> sa.Column[int]:
    """The grant it comes from; it goes with that."""
    there = sa.ForeignKey("grants.id", ondelete="CASCADE")
    return sa.Column("family", Number, there, nullable=nullable, index=True)


clients = sa.Table(  # programs that act for somebody; what belongs to one goes with it
    "clients",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    _account(nullable=True),  # who registered it; null: Holdfast's own command line
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("digest", sa.LargeBinary),  # of its secret; null: a public client, which has none
    sa.Column("redirect_uris", sa.Text, nullable=False),  # with one space between
    sa.Column("grants", sa.Text, nullable=False),  # with one space between
    sa.Column("scopes", sa.Text, nullable=False),  # with one space between
    sa.Column("created_ns", sa.BigInteger, nullable=False),
)

grants = sa.Table(  # what somebody allowed a program once: a family of tokens
    "grants",
    metadata,
    sa.Column("id", Number, primary_key=True),
    _client(),
    _account(),
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
    sa.Column("expires_ns", sa.BigInteger, nullable=False, index=True),  # with its last token
)

grant_tokens = sa.Table(
    "grant_tokens",
    metadata,
    sa.Column("digest", sa.LargeBinary, primary_key=True),
    _family(),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
    sa.Column("expires_ns", sa.BigInteger, nullable=False, index=True),
    sa.Column("used", sa.Boolean, nullable=False, server_default=sa.false()),  # a refresh token that was exchanged
    sa.CheckConstraint("kind IN ('access', 'refresh')", name="kind"),
)

codes = sa.Table(  # authorization codes
    "codes",
    metadata,
    sa.Column("digest", sa.LargeBinary, primary_key=True),
    _client(),
    _account(),
    sa.Column("redirect_uri", sa.Text, nullable=False),
    sa.Column("challenge", sa.Text),  # PKCE's, S256; null: none was given
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("expires_ns", sa.BigInteger, nullable=False, index=True),
    sa.Column("used", sa.Boolean, nullable=False, server_default=sa.false()),
    _family(nullable=True),  # what it was exchanged for
)

devices = sa.Table(  # device codes
    "devices",
    metadata,
    sa.Column("digest", sa.LargeBinary, primary_key=True),
    sa.Column("user_code", sa.LargeBinary, nullable=False, unique=True),  # its SHA-256
    _client(),
    _account(nullable=True),  # who decided
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("address", sa.Text, nullable=False, index=True),  # from where it was asked for
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("interval_s", sa.BigInteger, nullable=False),
    sa.Column("polled_ns", sa.BigInteger),  # null: never
    sa.Column("expires_ns", sa.BigInteger, nullable=False, index=True),
    sa.CheckConstraint("state IN ('waiting', 'approved', 'denied', 'used')", name="state"),
)

# -- what accounts hold ------------------------------------------------------------------------------------------------


def _owner() -> sa.Column[int]:
    there = sa.ForeignKey("accounts.id", ondelete="CASCADE")
    return sa.Column("account", Number, there, primary_key=True, autoincrement=False)


def _content() -> list[sa.Column[Any]]:
    """Where bytes lie in the repository: an entry's list of chunks, and its depth."""
    return [sa.Column("chunks", sa.LargeBinary, nullable=False), sa.Column("depth", sa.Integer, nullable=False)]


files = sa.Table(  # complete, and of the hash they are named by
    "files",
    metadata,
    _owner(),
    sa.Column("hash", sa.Text, primary_key=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    *_content(),
    sa.Column("stored_ns", sa.BigInteger, nullable=False),
    sa.Column("deletions", sa.BigInteger, nullable=False, server_default="0"),  # the account's when it came last
)

parts = sa.Table(  # of files that are on their way: bytes from start up to, not including, stop
    "parts",
    metadata,
    _owner(),
    sa.Column("hash", sa.Text, primary_key=True),
    sa.Column("start", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("stop", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("total", sa.BigInteger, nullable=False),
    *_content(),
    sa.Column("stored_ns", sa.BigInteger, nullable=False),
)

manifests = sa.Table(
    "manifests",
    metadata,
    sa.Column("id", Number, primary_key=True),
    _account(nullable=True),  # null: a snapshot of the command line, which administrators see
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("timestamp", sa.Text, nullable=False),  # to the letter as it came
    sa.Column("base", sa.Text, nullable=False),
    sa.Column("header", sa.LargeBinary, nullable=False),  # the document without its files and directories
    sa.Column("files", sa.BigInteger, nullable=False),  # counts
    sa.Column("available", sa.BigInteger, nullable=False),
    sa.Column("content_bytes", sa.BigInteger, nullable=False),
    sa.Column("received_ns", sa.BigInteger, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),  # of the document
    *_content(),
    sa.Column("snapshot", sa.Text, nullable=False),  # empty: not made yet
    sa.Column("deletion", sa.BigInteger, index=True),  # the account's deletion that took it; null: it is there
    sa.UniqueConstraint("account", "name", "version", name="uq_manifests_account"),
)

wanted = (
    sa.Table(  # files that a manifest names and its account has not; hashes first: what arrives is looked for by them
        "wanted",
        metadata,
        sa.Column("hash", sa.Text, primary_key=True),
        sa.Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("manifest", Number, sa.ForeignKey("manifests.id", ondelete="CASCADE"), primary_key=True, index=True),
        sa.Column("times", sa.BigInteger, nullable=False),  # how many entries of the manifest it is
    )
)

shelves = sa.Table(  # snapshots of the shelf whose entries are in this catalog
    "shelves",
    metadata,
    sa.Column("snapshot", sa.Text, primary_key=True),
    sa.Column("strangers", sa.Text, nullable=False, server_default=""),  # whose there are too; with a slash between
)

counters = sa.Table(
    "counters",
    metadata,
    # accounts, manifests, vaults, buckets, shares: the last number given; owed: 1 if all of the shelf is to be merged
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)

seen = sa.Table(  # snapshots that were looked at: those of the command line are listed as manifests
    "seen",
    metadata,
    sa.Column("snapshot", sa.Text, primary_key=True),
)

digests = sa.Table(  # what files of the command line's snapshots hash to
    "digests",
    metadata,
    sa.Column("key", sa.LargeBinary, primary_key=True),  # made of size and list of chunks
    sa.Column("hash", sa.Text, nullable=False, index=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    *_content(),
)

# -- vaults ------------------------------------------------------------------------------------------------------------


vaults = sa.Table(  # places where other programs keep their own repositories
    "vaults",
    metadata,
    sa.Column("id", Number, primary_key=True, autoincrement=False),
    # null: it was deleted, alone or with its account; its folder is still to be removed
    sa.Column("account", Number, sa.ForeignKey("accounts.id", ondelete="SET NULL"), nullable=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("folder", sa.Text, nullable=False, unique=True),  # below the folder of all vaults
    sa.Column("quota_bytes", sa.BigInteger),  # null: no limit but the account's
    sa.Column("append_only", sa.Boolean, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"),  # with what is reserved
    sa.Column("objects", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("account", "name", name="uq_vaults_account"),
)

vault_grants = sa.Table(  # what other accounts may do with a vault
    "vault_grants",
    metadata,
    sa.Column("vault", Number, sa.ForeignKey("vaults.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("account", Number, sa.ForeignKey("accounts.id", ondelete="CASCADE"), primary_key=True, index=True),
    sa.Column("allowed", sa.Text, nullable=False),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
    sa.CheckConstraint("allowed IN ('read', 'append', 'full')", name="allowed"),
)

vault_changes = sa.Table(  # uploads and deletions that run: one that is left says that its vault must be counted anew
    "vault_changes",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("vault", Number, sa.ForeignKey("vaults.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("name", sa.Text, nullable=False),  # the object's
    sa.Column("bytes", sa.BigInteger, nullable=False),  # as what it counts meanwhile
    sa.Column("objects", sa.BigInteger, nullable=False),
    sa.Column("renewed_ns", sa.BigInteger, nullable=False, index=True),
)

# -- blobs -------------------------------------------------------------------------------------------------------------

buckets = sa.Table(
    "buckets",
    metadata,
    sa.Column("id", Number, primary_key=True, autoincrement=False),
    # null: its account was deleted; it is still to be emptied
    sa.Column("account", Number, sa.ForeignKey("accounts.id", ondelete="SET NULL"), nullable=True, index=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("filesystem", sa.Text, nullable=False),
    sa.Column("quota_bytes", sa.BigInteger),  # null: no limit but the account's
    sa.Column("quota_objects", sa.BigInteger),
    sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("objects", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
    sa.CheckConstraint("filesystem IN ('disk', 'object', 'repository')", name="filesystem"),
)

bucket_grants = sa.Table(  # what others may do in a bucket
    "bucket_grants",
    metadata,
    sa.Column("id", Number, primary_key=True),
    sa.Column("bucket", Number, sa.ForeignKey("buckets.id", ondelete="CASCADE"), nullable=False, index=True),
    _account(nullable=True),  # null: every account
    sa.Column("allowed", sa.Text, nullable=False),  # with one space between
)

blobs = sa.Table(
    "blobs",
    metadata,
    sa.Column("bucket", Number, sa.ForeignKey("buckets.id"), primary_key=True, autoincrement=False),
    sa.Column("key", sa.LargeBinary, primary_key=True),  # UTF-8: every database sorts bytes in the same way
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("sha1", sa.Text, nullable=False),
    sa.Column("modified_ns", sa.BigInteger, nullable=False),
    sa.Column("place", sa.Text, nullable=False),  # what its content is called in the bucket's file system
    *_content(),  # of one in the repository
    sa.Index("ix_blobs_modified", "bucket", "modified_ns", "key"),
)

blob_leftovers = sa.Table(  # contents that no blob names: on their way, given up, or left of a server that was killed
    "blob_leftovers",
    metadata,
    sa.Column("place", sa.Text, primary_key=True),
    sa.Column("filesystem", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger),  # null: unknown
    sa.Column("due_ns", sa.BigInteger, nullable=False, index=True),  # from then on it may be removed
)

# -- one-time shares ---------------------------------------------------------------------------------------------------


shares = sa.Table(  # files that are handed out a given number of times
    "shares",
    metadata,
    sa.Column("id", Number, primary_key=True, autoincrement=False),
    # null: the account was deleted; the file is still to be removed
    sa.Column("account", Number, sa.ForeignKey("accounts.id", ondelete="SET NULL"), nullable=True, index=True),
    sa.Column("digest", sa.LargeBinary, nullable=False, unique=True),  # SHA-256 of what its address ends in
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),  # SHA-256 of the content
    sa.Column("file", sa.Text, unique=True),  # below the folder of all shares; null: it is gone
    sa.Column("password", sa.Text),  # Argon2id, in PHC form; null: none
    sa.Column("downloads", sa.BigInteger, nullable=False),  # how many there may be
    sa.Column("taken", sa.BigInteger, nullable=False, server_default="0"),  # how many there were
    sa.Column("claimed", sa.BigInteger, nullable=False, server_default="0"),  # how many are under way
    sa.Column("created_ns", sa.BigInteger, nullable=False),
    sa.Column("expires_ns", sa.BigInteger),  # null: never
    sa.Column("ended_ns", sa.BigInteger),  # null: it has not ended
)
sa.Index("ix_shares_to_remove", shares.c.ended_ns, sqlite_where=shares.c.file.is_not(None),
         postgresql_where=shares.c.file.is_not(None))  # fmt: skip
sa.Index("ix_shares_to_expire", shares.c.expires_ns, sqlite_where=shares.c.ended_ns.is_(None),
         postgresql_where=shares.c.ended_ns.is_(None))  # fmt: skip

share_claims = sa.Table(  # downloads that are under way; one that nobody renews is left of a server that was killed
    "share_claims",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("share", Number, sa.ForeignKey("shares.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("final", sa.Boolean, nullable=False, server_default=sa.false()),  # the last byte may have been sent
    sa.Column("renewed_ns", sa.BigInteger, nullable=False, index=True),
)
