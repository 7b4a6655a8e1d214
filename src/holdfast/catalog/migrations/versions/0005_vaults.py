"""Vaults, what others may do with them, and what is under way in them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "vaults",
        sa.Column("id", Number, primary_key=True, autoincrement=False),
        _referring("vaults", "account", "accounts", "SET NULL", nullable=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("folder", sa.Text, nullable=False),
        sa.Column("quota_bytes", sa.BigInteger),
        sa.Column("append_only", sa.Boolean, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("objects", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("account", "name", name="uq_vaults_account"),
        sa.UniqueConstraint("folder", name="uq_vaults_folder"),
    )
    op.create_table(
        "vault_grants",
        _referring("vault_grants", "vault", "vaults", "CASCADE", primary_key=True),
        _referring("vault_grants", "account", "accounts", "CASCADE", primary_key=True),
        sa.Column("allowed", sa.Text, nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.CheckConstraint("allowed IN ('read', 'append', 'full')", name=op.f("ck_vault_grants_allowed")),
    )
    op.create_index("ix_vault_grants_account", "vault_grants", ["account"])
    op.create_table(
        "vault_changes",
        sa.Column("id", sa.Text, primary_key=True),
        _referring("vault_changes", "vault", "vaults", "CASCADE"),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("objects", sa.BigInteger, nullable=False),
        sa.Column("renewed_ns", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_vault_changes_vault", "vault_changes", ["vault"])
    op.create_index("ix_vault_changes_renewed_ns", "vault_changes", ["renewed_ns"])
    op.execute("INSERT INTO counters (name, value) VALUES ('vaults', 0)")


def _referring(
    table: str, column: str, there: str, ondelete: str, *, nullable: bool = False, primary_key: bool = False
) -> sa.Column[int]:
    key = sa.ForeignKey(f"{there}.id", name=f"fk_{table}_{column}", ondelete=ondelete)
    return sa.Column(column, Number, key, nullable=nullable, primary_key=primary_key, autoincrement=False)
