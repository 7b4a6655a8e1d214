"""Files, parts of files, manifests, and what they want."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "files",
        _account("files", primary_key=True),
        sa.Column("hash", sa.Text, primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("chunks", sa.LargeBinary, nullable=False),
        sa.Column("depth", sa.Integer, nullable=False),
        sa.Column("stored_ns", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "parts",
        _account("parts", primary_key=True),
        sa.Column("hash", sa.Text, primary_key=True),
        sa.Column("start", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("stop", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("total", sa.BigInteger, nullable=False),
        sa.Column("chunks", sa.LargeBinary, nullable=False),
        sa.Column("depth", sa.Integer, nullable=False),
        sa.Column("stored_ns", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "manifests",
        sa.Column("id", Number, primary_key=True),
        _account("manifests", nullable=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("timestamp", sa.Text, nullable=False),
        sa.Column("base", sa.Text, nullable=False),
        sa.Column("header", sa.LargeBinary, nullable=False),
        sa.Column("files", sa.BigInteger, nullable=False),
        sa.Column("available", sa.BigInteger, nullable=False),
        sa.Column("content_bytes", sa.BigInteger, nullable=False),
        sa.Column("received_ns", sa.BigInteger, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("chunks", sa.LargeBinary, nullable=False),
        sa.Column("depth", sa.Integer, nullable=False),
        sa.Column("snapshot", sa.Text, nullable=False),
        sa.UniqueConstraint("account", "name", "version", name="uq_manifests_account"),
    )
    op.create_index("ix_manifests_account", "manifests", ["account"])
    manifest = sa.ForeignKey("manifests.id", name="fk_wanted_manifest", ondelete="CASCADE")
    op.create_table(
        "wanted",
        sa.Column("hash", sa.Text, primary_key=True),
        sa.Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("manifest", Number, manifest, primary_key=True, autoincrement=False),
        sa.Column("times", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_wanted_manifest", "wanted", ["manifest"])
    op.create_table("shelves", sa.Column("snapshot", sa.Text, primary_key=True))
    op.create_table("seen", sa.Column("snapshot", sa.Text, primary_key=True))
    op.create_table(
        "digests",
        sa.Column("key", sa.LargeBinary, primary_key=True),
        sa.Column("hash", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("chunks", sa.LargeBinary, nullable=False),
        sa.Column("depth", sa.Integer, nullable=False),
    )
    op.create_index("ix_digests_hash", "digests", ["hash"])


def _account(table: str, *, nullable: bool = False, primary_key: bool = False) -> sa.Column[int]:
    there = sa.ForeignKey("accounts.id", name=f"fk_{table}_account", ondelete="CASCADE")
    return sa.Column("account", Number, there, nullable=nullable, primary_key=primary_key, autoincrement=False)
