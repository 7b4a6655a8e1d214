"""OAuth2: programs (with our own command line), what was granted to them, its tokens, codes and device codes. Whom an
outside provider means by what.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
DEVICE = "urn:ietf:params:oauth:grant-type:device_code"


def upgrade() -> None:
    _clients()
    _grants()
    _codes()
    _devices()
    _subjects()


def _clients() -> None:
    made = op.create_table(
        "clients",
        sa.Column("id", sa.Text, primary_key=True),
        _account("clients", nullable=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("digest", sa.LargeBinary),
        sa.Column("redirect_uris", sa.Text, nullable=False),
        sa.Column("grants", sa.Text, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_clients_account", "clients", ["account"])
    ours = {
        "id": "holdfast-cli", "name": "Holdfast's command line", "redirect_uris": "", "grants": DEVICE, "scopes": "",
        "created_ns": 0,
    }  # fmt: skip
    op.bulk_insert(made, [ours])


def _grants() -> None:
    op.create_table(
        "grants",
        sa.Column("id", Number, primary_key=True),
        _client("grants"),
        _account("grants"),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("expires_ns", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "grant_tokens",
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        _family("grant_tokens"),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("expires_ns", sa.BigInteger, nullable=False),
        sa.Column("used", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.CheckConstraint("kind IN ('access', 'refresh')", name=op.f("ck_grant_tokens_kind")),
    )
    _indexes("grants", "client", "account", "expires_ns")
    _indexes("grant_tokens", "family", "expires_ns")


def _codes() -> None:
    op.create_table(
        "codes",
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        _client("codes"),
        _account("codes"),
        sa.Column("redirect_uri", sa.Text, nullable=False),
        sa.Column("challenge", sa.Text),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("expires_ns", sa.BigInteger, nullable=False),
        sa.Column("used", sa.Boolean, nullable=False, server_default=sa.false()),
        _family("codes", nullable=True),
    )
    _indexes("codes", "client", "account", "expires_ns", "family")


def _devices() -> None:
    op.create_table(
        "devices",
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("user_code", sa.LargeBinary, nullable=False),
        _client("devices"),
        _account("devices", nullable=True),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("interval_s", sa.BigInteger, nullable=False),
        sa.Column("polled_ns", sa.BigInteger),
        sa.Column("expires_ns", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("user_code", name="uq_devices_user_code"),
        sa.CheckConstraint("state IN ('waiting', 'approved', 'denied', 'used')", name=op.f("ck_devices_state")),
    )
    _indexes("devices", "client", "account", "address", "expires_ns")


def _subjects() -> None:
    op.create_table(
        "subjects",
        sa.Column("issuer", sa.Text, primary_key=True),
        sa.Column("subject", sa.Text, primary_key=True),
        _account("subjects"),
    )
    _indexes("subjects", "account")


def _indexes(table: str, *columns: str) -> None:
    for column in columns:
        op.create_index(f"ix_{table}_{column}", table, [column])


def _account(table: str, *, nullable: bool = False) -> sa.Column[int]:
    there = sa.ForeignKey("accounts.id", name=f"fk_{table}_account", ondelete="CASCADE")
    return sa.Column("account", Number, there, nullable=nullable)


def _client(table: str) -> sa.Column[str]:
    there = sa.ForeignKey("clients.id", name=f"fk_{table}_client", ondelete="CASCADE")
    return sa.Column("client", sa.Text, there, nullable=False)


def _family(table: str, *, nullable: bool = False) -> sa.Column[int]:
    there = sa.ForeignKey("grants.id", name=f"fk_{table}_family", ondelete="CASCADE")
    return sa.Column("family", Number, there, nullable=nullable)
