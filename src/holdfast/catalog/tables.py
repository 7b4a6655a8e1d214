"""The tables as they are now. ``migrations/`` says how they came to be; a test holds the two together.

Times are nanoseconds since 1970 (UTC), as everywhere in Holdfast. Secrets are never here: passwords as Argon2id,
tokens and session keys as SHA-256 of 256 random bits.
"""

from __future__ import annotations

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
